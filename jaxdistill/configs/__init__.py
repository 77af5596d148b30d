"""Which experiments ship with the package?

One recipe per file: a function with the file's name that returns a frozen config. May import every
package except `bench`, `api` and `cli`; nothing in the library imports a recipe by name.
"""
