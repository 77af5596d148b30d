"""What happens from a config to a finished run folder?

The training loop, the run folder with its provenance, and studies, which are grids of runs. May
import `report` and every package that `report` may import; only recipes, benchmarks and the
interfaces are above it.
"""
