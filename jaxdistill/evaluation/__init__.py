"""How good are the answers of a model, and how do they read?

Sampling a split (its answers are judged in `tasks.grading`), the record of a response, what is
measured of it, counts of doubt, and intervals. May import `sampling` and every room that it may;
`analyze`, `intervals`, `measures` and `responses` need no JAX.
"""
