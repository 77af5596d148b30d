"""What is the synthetic world in which a study takes minutes?

Problems, the traces that a base is pretrained on, tokenizer and grader. May import contexts,
questions and grading of `tasks`; no JAX in here.
"""
