"""Where a run came from: code, packages, machine, command and time."""

import importlib.metadata
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jaxdistill

_PACKAGES = (
    "jaxdistill",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "transformers",
    "numpy",
)


def current_provenance() -> dict[str, Any]:
    """Collect the contents of `RUN/provenance.json` as plain JSON values.

    `git` is None if the package does not run from a git checkout or git is not installed; a package
    that is not installed has the version None, except jaxdistill, which may run from its source
    tree. Initialises JAX's backend.
    """
    # Imported here, because commands that run no computation must start without loading JAX.
    import jax

    devices = jax.devices()
    return {
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "git": _git(Path(__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
    }


def changes_of_place(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Differences between two provenances that may change results: "jax 0.10.2 -> 0.12.0".

    They are the packages' versions, the commit of this one and the devices. What an older version
    did not write down is not compared.
    """
    devices = "{count} x {kind}"
    pairs = {
        name: (version, now["packages"].get(name))
        for name, version in before.get("packages", {}).items()
    }
    if before.get("git") and now["git"]:
        pairs["commit"] = before["git"]["commit"][:10], now["git"]["commit"][:10]
    if "devices" in before:
        pairs["devices"] = (
            devices.format(**before["devices"]),
            devices.format(**now["devices"]),
        )
    return [f"{name} {old} -> {new}" for name, (old, new) in pairs.items() if old != new]


def _version(package: str) -> str | None:
    if package == jaxdistill.__name__:
        return jaxdistill.__version__  # of the code that runs, whatever else is installed
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path) -> dict[str, Any] | None:
    """{commit, dirty (the package differs from it)} of the checkout that tracks us, else None.

    A copy installed in a virtual environment inside another project's checkout is not tracked by
    it, so that checkout's commit would say nothing about our code.
    """
    if _git_output(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = _git_output(folder, "rev-parse", "HEAD")
    changes = _git_output(folder, "status", "--porcelain", "--", ".")
    if commit is None or changes is None:
        return None
    return {"commit": commit, "dirty": bool(changes)}


def _git_output(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            # 10 s, chosen: a slow file system must not delay the run for long.
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
