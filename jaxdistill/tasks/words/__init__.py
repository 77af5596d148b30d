"""What are the toy world's problems for a pretrained model, as short English reasoning?

Texts in words, their reader and grader, and the file that a model is fine-tuned on. May import the
toy world, contexts, questions and grading of `tasks`, but not JAX.
"""
