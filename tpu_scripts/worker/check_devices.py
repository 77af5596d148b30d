"""On a worker: all devices of the slice are seen, and a sum over them is right.

python check_devices.py HOSTS DEVICES. Runs on all workers at once, as a run does.
"""

import sys

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# A worker that does not come must not hold the others for long.
WAIT_SECONDS = 180


def main() -> int:
    hosts, devices = (int(word) for word in sys.argv[1:])
    if hosts > 1:
        jax.distributed.initialize(initialization_timeout=WAIT_SECONDS)
    found = f"{jax.process_count()} hosts, {jax.device_count()} devices"
    print(
        f"host {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} of "
        f"{jax.device_count()} devices, {jax.devices()[0].device_kind}",
        flush=True,
    )
    if jax.device_count() != devices:
        print(f"expected {hosts} hosts, {devices} devices; got {found}", file=sys.stderr)
        return 2
    rows = NamedSharding(Mesh(jax.devices(), "d"), PartitionSpec("d"))
    numbers = jax.jit(lambda: jnp.arange(devices), out_shardings=rows)()
    total = int(jax.jit(jnp.sum)(numbers))
    if total != devices * (devices - 1) // 2:
        print(f"a sum over all devices is {total}, a wrong number", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
