"""A lexicon: epistemic words, the ids that spell them in one tokenizer, and its JSON file.

The file contains a hash of the tokenizer. A lexicon is refused for another tokenizer, in which the
same ids mean other words.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxdistill.epistemic.counting import TEN_WORDS, expand
from jaxdistill.errors import UserError
from jaxdistill.files import local_path, parse_json, write_whole

CASINGS = (str.lower, str.capitalize, str.upper)
# Tokenizers may merge one of these with the word after it: ".Wait" occurs after a sentence, the
# others mostly in program code ("\tcheck", ".check(", "(wait").
_MARKS = ".,(\t"
_LEADING = " " + _MARKS


@dataclass(frozen=True)
class Lexicon:
    """Epistemic words and the ids that spell them in one tokenizer.

    `uncovered` lists the plain surface forms ("hmm", " MAYBE") that the tokenizer splits into
    several tokens, which losses cannot see. The first token of a split form ("M" of "M|ight") is
    never in `ids`, because unrelated words begin with it too. `made` describes how the ids were
    chosen.
    """

    words: tuple[str, ...]
    ids: tuple[int, ...]
    tokenizer_hash: str
    uncovered: tuple[str, ...] = ()
    made: str = "words"


# ------------------------------------------------------------------------------------ configs


@dataclass(frozen=True)
class Words:
    """A lexicon of the ids that spell these words in the run's tokenizer.

    `ten`, `core` and `hedge` are replaced by their lists. For `merged` see `build_lexicon`. Raises
    UserError for a blank word, or none.
    """

    words: tuple[str, ...] = TEN_WORDS
    merged: bool = False

    def __post_init__(self):
        if not isinstance(self.words, tuple) or not all(isinstance(w, str) for w in self.words):
            raise UserError(f"`words` must be a tuple of texts, got {self.words!r:.80}")
        if not self.words:
            raise UserError("`words` must not be empty; name at least one word")
        if not all(word.strip() for word in self.words):
            raise UserError(f"`words` must not be blank, got {list(self.words)!r}")


@dataclass(frozen=True)
class LexiconFile:
    """The path of a lexicon file written by a run or by `jaxdistill analyze`."""

    path: str


LexiconSource = Words | LexiconFile


def open_lexicon(source: LexiconSource, tokenizer: Any) -> Lexicon:
    """Build or read a lexicon. Raises UserError as `read_lexicon` does.

    It also does for words of the user's choice of which the tokenizer spells none: the paper's ten,
    which are the default, may have no ids.
    """
    if isinstance(source, LexiconFile):
        return read_lexicon(source.path, tokenizer)
    words = expand(source.words)
    lexicon = build_lexicon(tokenizer, words, merged=source.merged)
    if not lexicon.ids and words != TEN_WORDS:
        raise UserError(
            f"the tokenizer spells none of the lexicon's words as one token: {', '.join(words)}"
        )
    return lexicon


# ------------------------------------------------------------------------------ words -> ids


def build_lexicon(
    tokenizer: Any, words: Sequence[str] = TEN_WORDS, *, merged: bool = False
) -> Lexicon:
    """Find every id that spells one of `words`: alone, after a space, or as ".Word".

    The casings are lower, Capitalised and UPPER, which gives 42 ids for the paper's ten words in
    Qwen's vocabulary. `merged` adds the forms after a full stop, comma, opening parenthesis or tab
    in any casing ("(wait", ".check"; 50 ids in all), which occur mostly in program code. Each
    surface form is encoded, and kept if it is a single id that decodes to the word. Building takes
    about half a second for 151k tokens, most of it for the hash.

    >>> build_lexicon(qwen3_tokenizer, ("wait",)).ids  # doctest: +SKIP
    (3783, 11489, 13824, 14190, 28384, 54390, 71032)
    """
    words = tuple(dict.fromkeys(word.lower() for word in words))
    found: dict[str, int | None] = {}
    for word in words:
        forms = [mark + casing(word) for mark in ("", " ") for casing in CASINGS]
        if merged:
            forms += [mark + casing(word) for mark in _MARKS for casing in CASINGS]
        else:
            forms.append("." + word.capitalize())  # a sentence that follows another directly
        for form in forms:
            ids = tokenizer.encode(form, add_special_tokens=False)
            # The id is decoded again because an unknown form may also be a single id, <unk>.
            is_word = len(ids) == 1 and without_leading_mark(tokenizer.decode(ids)).lower() in words
            found[form] = ids[0] if is_word else None
    return Lexicon(
        words=words,
        ids=tuple(sorted({i for i in found.values() if i is not None})),
        tokenizer_hash=hash_tokenizer(tokenizer),
        uncovered=tuple(form for form, i in found.items() if i is None and form[0] not in _MARKS),
    )


def without_leading_mark(text: str) -> str:
    """Remove one leading space, tab, full stop, comma or opening parenthesis."""
    return text[1:] if text[:1] and text[0] in _LEADING else text


def hash_tokenizer(tokenizer: Any) -> str:
    """Identify a tokenizer by its vocabulary alone, not its file or version, in 16 hex digits."""
    by_id = sorted((i, token) for token, i in tokenizer.get_vocab().items())
    # 64 bits make an accidental collision of two tokenizers negligible and fit in an error message.
    return hashlib.sha256(repr(by_id).encode()).hexdigest()[:16]


def vocab_size(tokenizer: Any) -> int:
    """Return the largest id plus one. A model's embedding may be padded beyond that."""
    return max(tokenizer.get_vocab().values()) + 1


# ------------------------------------------------------------------------------------ the file


def write_lexicon(path: str | Path, lexicon: Lexicon, tokenizer: Any) -> None:
    """Write a lexicon as JSON with one line per field.

    The additional field `tokens`, the text of each id, is for human readers and is not read back.
    """
    fields = asdict(lexicon) | {"tokens": [tokenizer.decode([i]) for i in lexicon.ids]}
    lines = [f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in fields.items()]
    write_whole(local_path(path), "{\n" + ",\n".join(lines) + "\n}\n")


def read_lexicon(path: str | Path, tokenizer: Any = None) -> Lexicon:
    """Read a file of `write_lexicon`, and check it against `tokenizer` if one is given.

    Raises UserError if the file is not a lexicon, if an id is not in the vocabulary, or if the
    lexicon belongs to another tokenizer.
    """
    fields = _read_object(local_path(path))
    lexicon = Lexicon(
        words=_list_of(str, path, fields, "words"),
        ids=_list_of(int, path, fields, "ids"),
        tokenizer_hash=_text(path, fields, "tokenizer_hash"),
        uncovered=_list_of(str, path, fields, "uncovered"),
        made=_text(path, fields, "made"),
    )
    if len(set(lexicon.ids)) < len(lexicon.ids) or min(lexicon.ids, default=0) < 0:
        raise UserError(f"{path}: `ids` must be different token ids of at least 0")
    if tokenizer is not None:
        _check_tokenizer(path, lexicon, tokenizer)
    return lexicon


def _check_tokenizer(path: str | Path, lexicon: Lexicon, tokenizer: Any) -> None:
    size = vocab_size(tokenizer)
    if (largest := max(lexicon.ids, default=0)) >= size:
        raise UserError(f"{path}: id {largest} is not in the vocabulary of {size} tokens")
    if (found := hash_tokenizer(tokenizer)) != lexicon.tokenizer_hash:
        raise UserError(
            f"{path}: made for the tokenizer with hash {lexicon.tokenizer_hash}, but this one has "
            f"{found}, where the ids mean other words; build the lexicon for this tokenizer"
        )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        fields = parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"lexicon {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"lexicon {path} is not JSON: {' '.join(str(error).split())}") from error
    if not isinstance(fields, dict):
        raise UserError(f"lexicon {path} must hold a JSON object, not a {type(fields).__name__}")
    return fields


def _field(path: str | Path, fields: dict[str, Any], name: str) -> Any:
    if name not in fields:
        raise UserError(f"{path}: no field `{name}`; is it a lexicon written by `jaxdistill`?")
    return fields[name]


def _text(path: str | Path, fields: dict[str, Any], name: str) -> str:
    value = _field(path, fields, name)
    if not isinstance(value, str):
        raise UserError(f"{path}: field `{name}`: expected text, got {value!r:.80}")
    return value


def _list_of(kind: type, path: str | Path, fields: dict[str, Any], name: str) -> tuple:
    value = _field(path, fields, name)
    # `type`, not `isinstance`: `true` in JSON is an int to Python.
    if not isinstance(value, list) or not all(type(each) is kind for each in value):
        expected = f"a list of {'texts' if kind is str else 'token ids'}"
        raise UserError(f"{path}: field `{name}`: expected {expected}, got {value!r:.80}")
    return tuple(value)
