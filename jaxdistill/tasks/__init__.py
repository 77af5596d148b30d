"""Which questions are asked, and which answers are correct?

Questions and their sources, the contexts that a teacher is shown, graders, and the toy world. May
import `models` and whatever `models` may. Contexts, grading, questions and the toy world do not use
JAX. Grain and TFDS are imported only here.
"""
