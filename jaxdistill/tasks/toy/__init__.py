"""What is the synthetic world in which a study takes minutes?

Its problems, the traces that a base is pretrained on, its tokenizer and its grader. May import
contexts, questions and grading of `tasks`, but not JAX.
"""
