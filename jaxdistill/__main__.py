"""`python -m jaxdistill` runs the command `jaxdistill`."""

from jaxdistill.cli import entry

if __name__ == "__main__":
    entry()
