"""Two processes of this machine that are two hosts to each other."""

import os
import socket
import subprocess
import sys


def on_two_hosts(script, *arguments):
    """Run a script in two processes, one for each argument: [(exit code, last line if any)]."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(argument)],
            env={
                **os.environ,
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(i),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for i, argument in enumerate(arguments)
    ]
    try:
        lines = [each.communicate(timeout=200)[0].splitlines()[-1:] for each in running]
        return [(each.returncode, *line) for each, line in zip(running, lines)]
    finally:
        for each in running:
            each.kill()
