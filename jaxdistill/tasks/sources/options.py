"""The options of a multiple-choice question, as they are stored and as they are asked."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxdistill.tasks.sources import chat
from jaxdistill.tasks.sources.answers import answers
from jaxdistill.tasks.sources.place import Place

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Options:
    """Options in order; the first is asked as A, whatever the data set calls it."""

    labels: tuple[str, ...]  # of the data set: A, B, C or 1, 2, 3
    texts: tuple[str, ...]

    def letter_of(self, place: Place, field: str, value: Any) -> str:
        """The letter of a gold answer: a label, a position from 0, or an option's text."""
        value = chat.native(value)
        if isinstance(value, int) and not isinstance(value, bool):
            if str(value) in self.labels:
                return LETTERS[self.labels.index(str(value))]
            if 0 <= value < len(self.texts):
                return LETTERS[value]
            raise place.wrong(field, f"a position in 0..{len(self.texts) - 1}", value)
        answer, *more = answers(place, field, value)
        if not more:
            bare = answer.strip("() .")
            for known in (self.labels, tuple(LETTERS[: len(self.texts)]), self.texts):
                for given in (bare, answer):
                    if known.count(given) == 1:
                        return LETTERS[known.index(given)]
            marked = re.fullmatch(r"\(?([A-J])[).:]\s*(.+)", answer, re.DOTALL)  # "B) 5"
            if marked is not None and self.texts.count(marked[2]) == 1:
                at = self.texts.index(marked[2])
                if marked[1] in (self.labels[at], LETTERS[at]):
                    return LETTERS[at]
        shown = ", ".join(self.labels)
        raise place.wrong(field, f"one of the options {shown} or its text", value)


def options_of(place: Place, field: str, value: Any) -> Options:
    """Read a list of texts, {A: text, ...}, {text: [...], label: [...]} or [{label, text}]."""
    value = chat.native(value)
    if isinstance(value, Mapping) and "text" in value:
        texts, labels = chat.native(value["text"]), chat.native(value.get("label"))
    elif isinstance(value, Mapping):
        given = {str(label): text for label, text in value.items() if not chat.is_missing(text)}
        texts, labels = list(given.values()), list(given)
    elif isinstance(value, list | tuple) and all(isinstance(one, Mapping) for one in value):
        texts = [one.get("text", one.get("content")) for one in value]
        labels = [one.get("label", one.get("key")) for one in value]
    else:
        texts, labels = value, None
    if not isinstance(texts, list | tuple) or not 2 <= len(texts) <= len(LETTERS):
        raise place.wrong(field, f"2 to {len(LETTERS)} options", value)
    for at, text in enumerate(texts):
        if isinstance(chat.native(text), list | tuple):
            raise place.wrong(f"{field}[{at}]", "the text of an option", text)
    if not isinstance(labels, list | tuple | None):
        raise place.wrong(field, "a list of labels", labels)
    read = [answers(place, f"{field}[{at}]", text)[0] for at, text in enumerate(texts)]
    marked = [re.match(rf"\(?{a}[).:]\s*(.+)", text) for a, text in zip(LETTERS, read)]
    if all(marked):  # "A) 4", "B) 5": the letters are written into the texts
        read = [mark[1] for mark in marked if mark is not None]
    names = list(LETTERS[: len(read)]) if labels is None else [_label(label) for label in labels]
    if len(names) != len(read) or len(set(names)) < len(names):
        raise place.wrong(field, "one label for each option", value)
    return Options(tuple(names), tuple(read))


def with_options(prompt: str, options: Options) -> str:
    """The prompt with its options below it, unless it lists them itself.

    >>> with_options("Which is prime?", Options(("1", "2"), ("4", "5"))).splitlines()
    ['Which is prime?', '', 'A: 4', 'B: 5']
    """
    pairs = list(zip(LETTERS, options.texts))
    if all(re.search(rf"(?:^|\s|\(){a}[).:]\s*{re.escape(text)}", prompt) for a, text in pairs):
        return prompt
    lines = [f"{letter}: {text}" for letter, text in pairs]
    return "\n".join([prompt.rstrip(), "", *lines])


def bare_letter(answer: str) -> str:
    """A gold letter without the marks around it; other answers stay.

    >>> bare_letter("(B)"), bare_letter("B."), bare_letter("Both")
    ('B', 'B', 'Both')
    """
    return re.sub(r"^\(?([A-Z])[).]*$", r"\1", answer)


def _label(label: Any) -> str:
    return (label.decode() if isinstance(label, bytes) else str(label)).strip("() .")
