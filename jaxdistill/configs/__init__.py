"""Which experiments are there to be run?

One recipe per file: a function of the file's name that returns a frozen config. May import every
room but `bench`, `api` and `cli`; nothing in the library imports a recipe by name.
"""
