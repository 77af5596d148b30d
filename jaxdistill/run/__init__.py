"""What happens from a config to a finished run folder?

The loop, the folder and its provenance, and studies, which are grids of runs. May import `report`
and every room that it may: of the library only recipes, benchmarks and the interfaces stand above.
"""
