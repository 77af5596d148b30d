"""What would student, teacher and reference have said at each token of one answer?

`scoring` computes it in chunks of positions, `answers` from a question's texts, and `rollouts` from
a row that a run has saved. `record` is the result, of `numbers` that `page` and `plot` show; these
four do not import JAX. The room is not called `trace`, since `jaxdistill.trace` is the function.
"""
