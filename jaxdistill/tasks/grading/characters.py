r"""Unicode mathematics in an answer, written as LaTeX: `½ ≤ １２` becomes `\frac{1}{2} \le 12`."""

import re
import unicodedata

_COMMANDS = {
    **{"×": r"\times", "·": r"\cdot", "⋅": r"\cdot", "∙": r"\cdot", "∗": r"\cdot", "÷": "/"},
    **{"π": r"\pi", "∞": r"\infty", "±": r"\pm", "∓": r"\mp", "√": r"\sqrt", "∛": r"\sqrt[3]"},
    **{"≤": r"\le", "⩽": r"\le", "≦": r"\le", "≥": r"\ge", "⩾": r"\ge", "≧": r"\ge"},
    **{"≠": r"\ne", "≈": r"\approx", "≡": r"\equiv", "∈": r"\in", "∪": r"\cup", "∩": r"\cap"},
    **{"∅": r"\emptyset", "∖": r"\setminus", "∠": r"\angle", "⌊": r"\lfloor", "⌋": r"\rfloor"},
    **{"⌈": r"\lceil", "⌉": r"\rceil", "⟨": r"\langle", "⟩": r"\rangle", "∑": r"\sum"},
    **{"∫": r"\int", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}"},
    **{"ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "°": r"^\circ", "º": r"^\circ", "˚": r"^\circ"},
    **{"θ": r"\theta", "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "λ": r"\lambda"},
    **{"φ": r"\phi", "ϕ": r"\phi", "ω": r"\omega", "μ": r"\mu", "σ": r"\sigma", "δ": r"\delta"},
    **{"ε": r"\epsilon", "Δ": r"\Delta", "Ω": r"\Omega", "…": r"\dots", "⋯": r"\dots"},
}
_PLAIN = {
    **dict.fromkeys("−–—‐‑‒﹣－", "-"),
    **dict.fromkeys("\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008", " "),  # spaces
    **dict.fromkeys("\u2009\u200a\u202f\u3000", " "),
    **{"⁄": "/", "∕": "/", "∶": ":", "。": ".", "、": ",", "’": "'", "′": "'", "∣": "|"},
    **dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\u2061", ""),  # of no width
    **dict.fromkeys("\u2062\u2063\ufeff\u00ad\ufe0e\ufe0f", ""),
}
# A space ends a command's name before a letter.
_TABLE = str.maketrans({**_PLAIN, **{mark: f"{name} " for mark, name in _COMMANDS.items()}})
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ"
_LOWERED = "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎"


def in_latex(text: str) -> str:
    r"""Replace Unicode symbols by LaTeX commands and full-width forms by ASCII.

    >>> in_latex("１½ x²"), in_latex("45°")
    ('1\\frac{1}{2} x^{2}', '45^\\circ ')
    """
    if text.isascii():
        return text
    for marks, sign in ((_RAISED, "^"), (_LOWERED, "_")):
        text = re.sub(
            f"[{marks}]+",
            lambda run, sign=sign: f"{sign}{{{unicodedata.normalize('NFKC', run[0])}}}",
            text,
        )
    text = "".join(map(_fraction, text)).translate(_TABLE)
    # NFKC writes a minus inside an exponent as U+2212.
    return unicodedata.normalize("NFKC", text).translate(_TABLE)


def _fraction(mark: str) -> str:
    """A vulgar fraction such as ⅔ as a LaTeX fraction; any other character as it is."""
    if not "¼" <= mark <= "⅞" or unicodedata.category(mark) != "No":
        return mark
    above, slash, below = unicodedata.normalize("NFKC", mark).partition("⁄")
    return rf"\frac{{{above}}}{{{below}}}" if slash and below else mark
