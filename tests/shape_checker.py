"""What checks the library's annotations under pytest, wrong shapes and dtypes included.

`conftest.py` has jaxtyping decorate every function and dataclass of the package with it.
"""

from beartype import BeartypeConf, beartype

# The numeric tower of PEP 484: an int may stand where a float is written.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
