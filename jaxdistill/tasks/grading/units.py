r"""Units, money and counted things around a number: `15\text{ cm}^2`, `\$18`, `72 km/h`, `12 boys`.

As in MATH, an answer may leave out the unit of the gold answer or add one, but must not contradict
it: 5 m is not 5 cm.
"""

import re
from typing import NamedTuple

from jaxdistill.tasks.grading.tokens import word_set

# {canonical name: spellings}; a plural "s" is removed first.
_SPELLINGS = {
    "mm": "mm millimeter millimetre",
    "cm": "cm centimeter centimetre",
    "m": "m meter metre",
    "km": "km kilometer kilometre",
    "in": "in inch inche",
    "ft": "ft foot feet",
    "yd": "yd yard",
    "mi": "mi mile",
    "g": "g gram gramme",
    "kg": "kg kilogram",
    "mg": "mg milligram",
    "lb": "lb lbs pound",
    "oz": "oz ounce",
    "l": "l L liter litre",
    "ml": "ml mL milliliter millilitre",
    "gal": "gal gallon",
    "s": "s sec second",
    "min": "min minute",
    "h": "h hr hour",
    "day": "d day",
    "week": "wk week",
    "month": "month",
    "year": "yr year",
    "degree": "degree deg",
    "radian": "rad radian",
    "percent": "percent percentage pct",
    "dollar": "dollar USD usd buck",
    "cent": "cent ¢",
    "euro": "euro EUR eur",
    "pound": "GBP gbp",
    "yen": "yen JPY",
    "yuan": "yuan RMB CNY",
    "rupee": "rupee INR Rs",
    "mph": "mph",
    "kph": "kph kmph",
    "N": "N newton",
    "J": "J joule",
    "W": "W watt",
    "V": "V volt",
    "A": "amp ampere",
    "Hz": "Hz hertz",
    "Pa": "Pa pascal",
    "mol": "mol mole",
    "K": "K kelvin",
    "C": "celsius",
    "F": "fahrenheit",
    "acre": "acre",
    "": "unit",
}
_UNITS = {word: name for name, words in _SPELLINGS.items() for word in words.split()}
_SQUARES = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_COMPOUND = {"mi/h": "mph", "km/h": "km/h", "kph": "km/h"}
# Words that change the number before them, or are no counted things.
_CHANGING = word_set(
    "and or not no to of is are was be by if than more less least most mod modulo times "
    "plus minus over divided squared cubed factorial percent million billion trillion "
    "thousand hundred dozen pair pairs half halves third thirds quarter quarters tenth "
    "tenths hundredth hundredths only about approximately except between through but "
    "either neither both undefined none pi root base hundredths nor score couple double "
    "triple twice zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy "
    "eighty ninety"
)

# Chinese units, and words for counting, perhaps with the thing counted: 75 种方法.
_CHINESE = {
    **{"毫米": "mm", "厘米": "cm", "分米": "dm", "千米": "km", "公里": "km", "米": "m"},
    **{"毫克": "mg", "千克": "kg", "公斤": "kg", "克": "g", "吨": "t", "毫升": "ml", "升": "l"},
    **{"秒": "s", "分钟": "min", "小时": "h", "时": "h", "天": "day", "周": "week", "年": "year"},
    **{
        "美元": "dollar",
        "元": "yuan",
        "度": "degree",
        "弧度": "radian",
        "平方单位": "",
        "单位": "",
    },
}
_CHINESE_UNIT = re.compile(
    rf"(?P<power>平方|立方)?(?P<unit>{'|'.join(sorted(_CHINESE, key=len, reverse=True))})"
)
_CHINESE_COUNTED = re.compile(
    r"(?:[个人名位种只条张本页题棵颗辆块支件组岁项步场户头匹根间座层台袋箱瓶杯盒枚天月]|次(?!方))"
    r"(?:(?![半百千万亿以多余左上下不或和与到至及倍\d])[\u4e00-\u9fff]){0,4}"
)
_AFTER_NUMBER = re.compile(r"(?P<body>.*[\d)}\]!])\s*(?P<unit>\(?[\u4e00-\u9fff/]+\)?)", re.DOTALL)

_UNIT_AS_FRACTION = re.compile(
    r"\s*\\frac\s*\{\s*\\text\{([^{}]*)\}\s*\}\s*\{\s*\\text\{([^{}]*)\}\s*\}$"
)

COUNTED = "things: "  # the start of a unit that is no unit of measurement

_MONEY = re.compile(
    r"^(?P<sign>-?)\s*(?P<mark>\\\$|US\s*\\\$|€|£|¥|₹|Rs\.?|(?:\\text\{)?(?:USD|EUR|GBP)\}?)\s*"
)
_MARKS = {"€": "euro", "£": "pound", "¥": "yen", "₹": "rupee", "Rs": "rupee", "Rs.": "rupee"}
_DEGREE = r"\s*\^\s*\\circ(?![a-zA-Z])\s*"
_TRIGONOMETRY = r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])"  # the degrees are those of its argument
_TEXT_UNIT = re.compile(
    r"(?P<body>.*?[\d\w)}\]!|])\s*(?P<unit>(?:\\text\{[^{}]*\}\s*(?:\^\s*\{?\s*[23]\s*\}?)?\s*[/·]?\s*"
    r"(?:\\cdot\s*)?)+)",
    re.DOTALL,
)
_WORDS = re.compile(
    r"(?P<body>.*[\d)}\]!])(?P<gap>\s*)(?P<unit>[A-Za-z¢][A-Za-z./ ]*(?:\^\s*\{?[23]\}?)?"
    r"(?:/[A-Za-z]+(?:\^\{?[23]\}?)?)?)",
    re.DOTALL,
)


class Measured(NamedTuple):
    """A number's text, and the unit beside it; None without one, "" for a unit of no kind."""

    number: str
    unit: str | None


def without_unit(text: str) -> Measured:
    r"""Split an answer into number and unit. What is no unit stays with the number.

    >>> without_unit(r"15\text{cm}^{2}"), without_unit("5x")
    (Measured(number='15', unit='cm^2'), Measured(number='5x', unit=None))
    """
    text = _UNIT_AS_FRACTION.sub(r" \\text{\1/\2}", text)
    money = _MONEY.match(text)
    if money is not None:
        mark = re.sub(r"\\text\{|\}|\s", "", money["mark"])
        unit = _MARKS.get(mark) or {"EUR": "euro", "GBP": "pound"}.get(mark, "dollar")
        inner = without_unit(money["sign"] + text[money.end() :])
        if inner.unit in (None, unit, ""):
            return Measured(inner.number, unit)
        return Measured(text, None)
    if (found := re.search(r"(?<=\d)\s*\\\$$", text)) is not None:
        return Measured(text[: found.start()], "dollar")
    if (found := re.search(r"(?<=\d)(?:st|nd|rd|th)$", text)) is not None:
        return Measured(text[: found.start()], "")
    if (found := re.search(r"\s*%$", text)) is not None and found.start() > 0:
        return Measured(text[: found.start()], "percent")
    if (found := re.search(_DEGREE, text)) is not None and not re.search(_TRIGONOMETRY, text):
        scale = re.search(_DEGREE + r"(?:\\text\{)?([CF])\}?$", text)
        rest = text[: scale.start()] if scale else re.sub(_DEGREE, "", text)
        return Measured(rest.strip(), scale[1] if scale else "degree")
    if (found := _AFTER_NUMBER.fullmatch(text)) is not None:
        unit = _chinese_unit(found["unit"].strip("()"))
        return Measured(text if unit is None else found["body"], unit)
    for pattern in (_TEXT_UNIT, _WORDS):
        found = pattern.fullmatch(text)
        if found is not None:
            is_text = pattern is _TEXT_UNIT
            gap = True if is_text else bool(found["gap"])
            unit = unit_of(found["unit"], is_text=is_text, has_gap=gap)
            if unit is not None:
                return Measured(found["body"].strip(), unit)
    return Measured(text, None)


def _chinese_unit(text: str) -> str | None:
    """The canonical name of a Chinese unit or of counted things; None for what is none."""
    parts = [_CHINESE_UNIT.fullmatch(part) for part in re.split(r"/|每", text)]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return COUNTED + text if _CHINESE_COUNTED.fullmatch(text) else None
    powers = {None: "", "平方": "^2", "立方": "^3"}
    unit = "/".join(_CHINESE[part["unit"]] + powers[part["power"]] for part in known)
    return _COMPOUND.get(unit, unit)


def unit_of(text: str, *, is_text: bool, has_gap: bool) -> str | None:
    """The canonical name of a unit or of counted things; None for what is none."""
    words = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).replace("\\cdot", " ")
    if (in_brackets := re.fullmatch(r"\s*\(([^()]*)\)\s*", words)) is not None:
        words = in_brackets[1]
    words = re.sub(r"\s*\^\s*\{?\s*([23])\s*\}?", r"^\1", words)
    words = re.sub(r"\s*/\s*|\s+per\s+", "/", words).strip(" .")
    if not words:
        return None
    parts = [_one_unit(part, is_text or "/" in words) for part in words.split("/")]
    if None not in parts:
        unit = "/".join(part for part in parts if part is not None)
        return _COMPOUND.get(unit, unit)
    return _counted(words, is_text, has_gap)


def _one_unit(text: str, is_text: bool) -> str | None:
    """The name of one unit, perhaps squared: `square inches` is `in^2`."""
    power = 1
    words = text.split()
    if words and words[0].lower() in _SQUARES:
        power = _SQUARES[words.pop(0).lower()]
    if words and words[-1] == "squared" and len(words) > 1:
        power = 2
        words.pop()
    if len(words) != 1:
        return None
    word, _, raised = words[0].partition("^")
    word = word.strip(".")
    if raised and not re.fullmatch("[23]", raised):
        return None
    if not is_text and len(word) == 1 and word != "¢" and not raised:
        return None
    for spelled in (word, word.lower(), word.removesuffix("s"), word.lower().removesuffix("s")):
        if spelled in _UNITS:
            name = _UNITS[spelled]
            power = int(raised) if raised else power
            return name if power == 1 or not name else f"{name}^{power}"
    return None


def _counted(text: str, is_text: bool, has_gap: bool) -> str | None:
    """Things that a number counts, such as `boys`, by their words without a plural s."""
    words = text.lower().split()
    is_words = all(re.fullmatch(r"[a-z]{2,}\.?", word) for word in words)
    if not is_words or not has_gap or _CHANGING & {word.rstrip(".") for word in words}:
        return None
    # Without \text{}, three letters may be a product.
    if not is_text and any(len(word) < 4 for word in words):
        return None
    return COUNTED + " ".join(word.rstrip(".").removesuffix("s") for word in words)


def units_agree(a: str | None, b: str | None) -> bool:
    """Whether two units do not contradict each other; a missing one agrees with any."""
    if "degree" in (a, b) and {a, b} <= {"degree", "C", "F"}:
        return True
    return a == b or a in (None, "") or b in (None, "")
