"""One recipe a file: a function of the file's name that returns a frozen config."""
