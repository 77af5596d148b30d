"""What is asked, and is the answer right?

Questions and where they are read, what a teacher is shown beside one, graders, and the toy world.
May import `models` and every room that it may, but contexts, grading, questions and the toy world
do without JAX; only here are Grain and TFDS imported.
"""
