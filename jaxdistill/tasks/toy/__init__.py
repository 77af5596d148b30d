"""The synthetic reasoning world: problems, traces, tokenizer, grader. No JAX in here."""
