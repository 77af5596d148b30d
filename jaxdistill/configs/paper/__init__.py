"""Which experiments follow the paper (arXiv 2603.24472) on its models and data?

They need its questions and a GPU or TPU, unless a recipe's docstring says otherwise. May import
what `configs` may import.
"""
