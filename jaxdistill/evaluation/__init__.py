"""How good are a model's answers, and how are they written?

Sampling a split (`tasks.grading` judges its answers), response records, measures, counts of
epistemic words, and confidence intervals. May import `sampling` and whatever `sampling` may.
`analyze`, `intervals`, `measures` and `responses` do not use JAX.
"""
