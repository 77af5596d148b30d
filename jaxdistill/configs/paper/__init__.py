"""Which experiments follow the paper (arXiv 2603.24472) on its models and data?

They need its questions and a GPU or TPU, as each docstring says. May import what `configs` may.
"""
