"""Orbax checkpoints of a run: the device state at a step, with the host's state as JSON beside it.

A state is stored leaf by leaf under its path ("params.embed.value"), so that an error can name the
leaf that does not match, and one part of the state can be restored without the rest.
"""

import contextlib
import json
import logging
import os
import signal
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxdistill.errors import UserError

# Each step's folder has this listing, {relative path: size in bytes}, so that we can name a missing
# or truncated file in one line. Orbax detects the damage too, but its reader threads print pages of
# tracebacks that the caller cannot catch.
_LISTING = "jaxdistill_files.json"


class Checkpoints:
    """Saves and restores the checkpoints in one folder, `FOLDER/STEP/{state,host}`.

    The constructor touches no file. A step is written to a temporary folder and renamed once it is
    complete, so a killed save leaves no step behind. With several hosts, every process must make
    every call, and the first process writes `host`.
    """

    def __init__(
        self, folder: str | os.PathLike[str], keep: int | None = 3, save_async: bool = True
    ) -> None:
        """Keep the newest `keep` steps (None: all); `save_async` writes them in the background."""
        # The default of three is chosen, not measured: two are left if the newest is damaged.
        # epath also handles gs:// paths; Orbax requires absolute ones.
        self._folder = epath.Path(folder).absolute()
        self._keep = keep
        self._save_async = save_async
        self._writer: ocp.CheckpointManager | None = None
        self._unlisted: int | None = None  # the step whose save may still be running

    def save(self, step: int, state: Any, host: dict[str, Any]) -> None:
        """Save a pytree of arrays and numbers and a JSON-serialisable dict; replaces `step`.

        With `save_async` the call returns once the state has been copied off the devices, so the
        caller may donate its buffers at once. The next call raises a failure in the background.
        """
        # The previous step's listing can only be written once its files are complete.
        self.wait()
        with _uninterrupted(), _quiet():
            writer = self._open_writer()
            if step in writer.all_steps():
                writer.delete(step)
            items = ocp.args.Composite(
                state=ocp.args.PyTreeSave(_by_name(state)), host=ocp.args.JsonSave(host)
            )
            # Without `force`, Orbax silently skips a step lower than its latest.
            writer.save(step, args=items, force=True)
            self._unlisted = step

    def steps(self) -> list[int]:
        """The complete steps on disk in ascending order, after waiting for a running save."""
        self.wait()
        if not self._folder.is_dir():
            return []
        with _quiet(), self._open_reader() as reader:
            return sorted(reader.all_steps())

    def latest_step(self) -> int | None:
        """The newest complete step, or None if there is none."""
        return max(self.steps(), default=None)

    def restore(
        self, step: int, example: Any, part: str | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Return (state, host) of a step, in the structure, dtypes and shardings of `example`.

        Args:
          step: one of `steps()`.
          example: pytree of arrays, `jax.ShapeDtypeStruct`s (with a sharding, else the first
            device), NumPy arrays and numbers.
          part: the one field of the saved state to read, such as "params"; `example` then has the
            structure of that field.

        Raises:
          UserError: the step is missing, damaged, or does not match `example`.
        """
        steps = self.steps()
        if step not in steps:
            found = ", ".join(map(str, steps)) or "none"
            raise UserError(f"{self._folder}: expected a checkpoint of step {step}, found {found}")
        with self._explain_damage(step):
            self._check_files(step)
        wanted = _by_name(example, part)
        with _quiet(), self._open_reader() as reader:
            with self._explain_damage(step):
                saved = reader.item_metadata(step)["state"]
                saved = {name: _shape_and_dtype(leaf) for name, leaf in saved.tree.items()}
            self._check_fit(step, saved, wanted, part)
            with self._explain_damage(step):
                items = reader.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.PyTreeRestore(
                            item=wanted,
                            restore_args={n: _restore_args(leaf) for n, leaf in wanted.items()},
                            partial_restore=part is not None,
                        ),
                        host=ocp.args.JsonRestore(),
                    ),
                )
                leaves = [items["state"][name] for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(example), leaves), items["host"]

    def wait(self) -> None:
        """Block until a running save is complete, and raise the error if it failed."""
        with _uninterrupted(), _quiet():
            step, self._unlisted = self._unlisted, None
            if self._writer is not None:
                self._writer.wait_until_finished()
            if step is not None and jax.process_index() == 0:
                folder = self._folder / str(step)
                sizes = {str(f.relative_to(folder)): f.stat().length for f in _files(folder)}
                # Renamed once complete: a truncated listing would condemn a good checkpoint.
                (folder / f"{_LISTING}.tmp").write_text(json.dumps(sizes))
                (folder / f"{_LISTING}.tmp").rename(folder / _LISTING)

    def close(self) -> None:
        """Wait for a running save and stop Orbax's threads; a later call starts them again."""
        self.wait()
        with _uninterrupted(), _quiet():
            if self._writer is not None:
                self._writer.close()
            self._writer = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open_writer(self) -> ocp.CheckpointManager:
        if self._writer is None:
            policies = ocp.checkpoint_managers
            keep = policies.LatestN(self._keep) if self._keep is not None else None
            options = ocp.CheckpointManagerOptions(
                preservation_policy=keep,
                enable_async_checkpointing=self._save_async,
                # Remove what a killed save left. Only the writer does so: a reader may be open
                # while another process is saving.
                cleanup_tmp_directories=True,
            )
            self._writer = ocp.CheckpointManager(self._folder, options=options)
        return self._writer

    def _open_reader(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(read_only=True, create=False)
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "host": ocp.JsonCheckpointHandler()}
        return ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    def _check_files(self, step: int) -> None:
        listing = self._folder / str(step) / _LISTING
        # A process killed right after its save leaves no listing; Orbax's own checks remain.
        if not listing.exists():
            return
        for name, num_bytes in json.loads(listing.read_text()).items():
            file = self._folder / str(step) / name
            if not file.exists():
                raise self._damaged(step, f"{name} is missing")
            if file.stat().length != num_bytes:
                came = file.stat().length
                raise self._damaged(step, f"{name}: expected {num_bytes} bytes, got {came}")

    @contextlib.contextmanager
    def _explain_damage(self, step: int) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        # Orbax, TensorStore and asyncio each raise their own exception types. The first 160
        # characters name the file; pages of stack trace follow.
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0][:160]
            raise self._damaged(step, f"{type(error).__name__}: {reason}") from error

    def _damaged(self, step: int, reason: str) -> UserError:
        return UserError(
            f"{self._folder}: the checkpoint of step {step} is damaged or incomplete ({reason}); "
            f"delete {self._folder / str(step)} to use another step"
        )

    def _check_fit(
        self, step: int, saved: dict[str, str], wanted: dict[str, Any], part: str | None
    ) -> None:
        if part is not None:
            saved = {
                name: text
                for name, text in saved.items()
                if name == part or name.startswith(part + ".")
            }
        expected = {name: _shape_and_dtype(leaf) for name, leaf in wanted.items()}
        wrong = [
            f"{name}: expected {expected.get(name, 'nothing')}, got {saved.get(name, 'nothing')}"
            for name in sorted(expected.keys() | saved.keys())
            if expected.get(name) != saved.get(name)
        ]
        if wrong:
            more = f" (and {len(wrong) - 1} more differ)" if len(wrong) > 1 else ""
            raise UserError(
                f"{self._folder}: the checkpoint of step {step} does not match this config; "
                f"{wrong[0]}{more}; use the config.json of its own run, or another folder"
            )


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _by_name(tree: Any, prefix: str | None = None) -> dict[str, Any]:
    """Flatten a pytree to {dotted path: leaf}, in the tree's order."""
    named = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        name = ".".join(filter(None, (prefix, name))) or "value"
        assert name not in named, f"two leaves are called {name}"
        named[name] = leaf
    return named


def _shape_and_dtype(leaf: Any) -> str:
    """Describe arrays, abstract arrays, numbers and Orbax's metadata alike: "float32[2, 3]"."""
    shape = getattr(leaf, "shape", None) or ()
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    return f"{dtype}{list(shape)}"


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return ocp.ArrayRestoreArgs(
            sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype, strict=True
        )
    return ocp.RestoreArgs(restore_type=type(leaf))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Orbax's log lines (absl's logger, and asyncio's after a failure) off the terminal."""
    loggers = {name: logging.getLogger(name) for name in ("absl", "asyncio")}
    levels = {name: logger.level for name, logger in loggers.items()}
    for logger in loggers.values():
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, logger in loggers.items():
            logger.setLevel(levels[name])


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C until the block is done; a second Ctrl-C interrupts the block at once.

    An exception inside Orbax's asyncio calls leaves threads that fail later on a closed event loop.
    """
    handler = signal.getsignal(signal.SIGINT)
    # Python sets signal handlers in the main thread only, and SIG_IGN or a handler that was not
    # installed from Python cannot be called.
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not callable(handler):
        yield
        return
    held: list[Any] = []

    def hold(number: int, frame: Any) -> None:
        held.append((number, frame))
        signal.signal(signal.SIGINT, handler)

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if held:
        handler(*held[0])
