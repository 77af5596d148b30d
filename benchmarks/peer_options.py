"""The command line of a peer in `beside_peers.py`; imports neither JAX nor torch."""

import argparse
from pathlib import Path


def peer_options(doc: str | None) -> argparse.Namespace:
    """The options of this process; `doc` is the script's docstring."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--work", choices=("decode", "step"), required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--new", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try it on a CPU")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()
