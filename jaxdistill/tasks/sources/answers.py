r"""Gold answers as they are stored: numbers, lists, boxes, `#### 72`, and what is no answer."""

import re
from decimal import Decimal
from typing import Any

from jaxdistill.tasks.grading.extract import boxed
from jaxdistill.tasks.sources.chat import native, structured, text
from jaxdistill.tasks.sources.place import Place

# What programs write where a value is missing.
_MISSING = {
    *("nan", "NaN", "-nan", "-NaN", "inf", "-inf", "<NA>", "#NA", "#N/A", "N/A", "n/a"),
    *("null", "NULL", "None", "notfound"),
}
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_BARE_BOX = re.compile(r"\\boxed\s*([^\s{}$\\][^{}$\\\n]*)(?=\$|\n|\\[)\]]|$)")  # $\boxed 2$
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d{1,3}")
_MOST_DIGITS = 60  # of a number written out; 1e300 is nobody's answer


def answers(place: Place, field: str, value: Any) -> tuple[str, ...]:
    """Return a gold answer and the further ones of a list, each as a person writes it.

    Raises BadRow for what is no answer: nothing, a truth value, NaN, an empty text or list.
    """
    value = native(value)
    if isinstance(value, str) and re.match(r"""\s*\[\s*["']""", value):  # a list of texts
        # NumPy writes a list into CSV as ['2' '3'], which Python reads as one text.
        listed = None if re.search(r"""["']\s+["']""", value) else structured(place, field, value)
        if not isinstance(listed, list):
            raise place.wrong(field, "an answer, or a JSON list of answers", value)
        value = listed
    if isinstance(value, list | tuple):
        if not value:
            raise place.wrong(field, "an answer", value)
        found = [_one(place, f"{field}[{at}]", one) for at, one in enumerate(value)]
        return tuple(dict.fromkeys(found))
    return (_one(place, field, value),)


def _one(place: Place, field: str, value: Any) -> str:
    value = native(value)
    if isinstance(value, bool):
        raise place.wrong(field, "text or a number", value)
    if isinstance(value, str | bytes):
        written = text(place, field, value).strip()
        if written in _MISSING:
            raise place.wrong(field, "an answer", value)
        if _EXPONENT.fullmatch(written) is None:
            return written
        value = Decimal(written)
    is_number = isinstance(value, int | float | Decimal) or hasattr(value, "dtype")
    if not is_number:
        raise place.wrong(field, "text or a number", value)
    number = Decimal(str(value))
    if not number.is_finite():
        raise place.wrong(field, "a finite number", value)
    if number and abs(number.adjusted()) > _MOST_DIGITS:
        raise place.wrong(field, f"a number of at most {_MOST_DIGITS} digits", value)
    return written_out(number)


def written_out(number: Decimal) -> str:
    """The number in positional notation, without zeros at its end.

    >>> written_out(Decimal("1e-05")), written_out(Decimal("540.0")), written_out(Decimal("-0"))
    ('0.00001', '540', '0')
    """
    digits = format(number, "f")
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if digits == "-0" else digits


def final_answer(written: str) -> tuple[str, bool]:
    r"""The answer at the end of a solution: GSM8K's `#### 72`, else its last box.

    "" where nothing stands there. Also whether `written` was a solution and not the answer alone.

    >>> final_answer("48/2=24\n#### 72"), final_answer("so \\boxed{5}."), final_answer("x=5")
    (('72', True), ('5', True), ('x=5', False))
    """
    _, marks, rest = written.rpartition("####")
    if marks:
        return rest.strip(), True
    if _BOX.search(written):
        # MATH has boxes of all three kinds.
        answer, _ = boxed(_BARE_BOX.sub(r"\\boxed{\1}", _BOX.sub(r"\\boxed", written)))
        return answer or "", _BOX.match(written.lstrip(" $")) is None
    return written, False
