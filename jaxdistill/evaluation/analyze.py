"""Statistics of responses: lengths, and epistemic words counted in three modes.

`paper` counts substrings, as for every published number. `word` counts whole words. `token` counts
the ids that a loss sees, and needs a tokenizer.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxdistill import epistemic
from jaxdistill.epistemic import Lexicon
from jaxdistill.errors import UserError
from jaxdistill.evaluation.responses import Response, encode
from jaxdistill.storage import tokenizer as tokenizers

MODES = ("paper", "word", "token")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer and a lexicon for it, which the `token` mode needs."""

    tokenizer: Any
    lexicon: Lexicon


def count_tokens(tokenizer: Any, responses: Sequence[Response]) -> Int[np.ndarray, " V"]:
    """Count the occurrences of each id of the vocabulary in the responses."""
    ids = [i for sequence in encode(tokenizer, responses) for i in sequence]
    return np.bincount(np.array(ids, np.int64), minlength=epistemic.vocab_size(tokenizer))


class Counted(NamedTuple):
    """The statistics of one response."""

    response: Response
    counts: dict[str, dict[str, int]]  # {mode: {word: count}}
    tokens: int | None
    uncovered: int  # occurrences of forms that no id of the lexicon covers


def analyze(
    responses: Sequence[Response],
    words: Sequence[str],
    modes: Sequence[str] = MODES,
    vocabulary: Vocabulary | None = None,
) -> dict[str, Any]:
    """Count `words` in every response and sum over groups. Returns values for JSON.

    The result's `groups` are each source (if there are several), all responses, and the correct and
    incorrect ones if the records say which. A group has `responses` (a count), `characters` and
    `tokens` (means per response), `truncated` and `accuracy` (fractions), and `counts[mode]` with
    `total`, `per_response`, `per_1k` (per 1,000 tokens) and `words`, the same three for each word.
    A value is None if the records do not contain it. Tokens are counted with the tokenizer, or
    without one taken from `num_tokens`, and never estimated.
    Raises UserError for the mode `token` without a vocabulary.
    """
    if "token" in modes and vocabulary is None:
        raise UserError("mode `token` counts ids and needs a tokenizer: add --model MODEL")
    counted = list(count(responses, words, modes, vocabulary))
    names = list(dict.fromkeys(each.source for each in responses))
    groups = {name: [c for c in counted if c.response.source == name] for name in names}
    groups = (groups if len(groups) > 1 else {}) | {"all": counted}
    groups |= {
        name: [c for c in counted if c.response.correct is verdict]
        for name, verdict in (("correct", True), ("incorrect", False))
    }
    result = {"groups": {name: _summary(group) for name, group in groups.items() if group}}
    return result | ({} if vocabulary is None else {"lexicon": _lexicon_facts(vocabulary)})


def count(
    responses: Sequence[Response],
    words: Sequence[str],
    modes: Sequence[str],
    vocabulary: Vocabulary | None,
) -> Iterator[Counted]:
    ids: Iterable[list[int] | None] = [None] * len(responses)
    word_of: dict[int, str] = {}
    split: list[tuple[int, ...]] = []
    if vocabulary is not None:
        tokenizer, lexicon = vocabulary.tokenizer, vocabulary.lexicon
        ids = encode(tokenizer, responses)
        word_of = {i: epistemic.word_of_id(tokenizer, i) for i in lexicon.ids}
        # Forms that are several tokens, without those that the tokenizer cannot spell: <unk> would
        # match unrelated text.
        forms = {tuple(f) for f in tokenizers.encode(tokenizer, lexicon.uncovered) if len(f) > 1}
        forms = {form for form in forms if tokenizer.unk_token_id not in form}
        # If the space is a separate token, " seems" contains "seems" and would be counted twice.
        split = [f for f in forms if not epistemic.count_sequences(f, forms - {f})]
    for response, sequence in zip(responses, ids):
        counts = {}
        for mode in modes:
            if mode != "token":
                counts[mode] = epistemic.count(response.text, words, mode)
                continue
            # A lexicon may contain words that are not in `words`.
            counts[mode] = dict.fromkeys([*words, *word_of.values()], 0)
            for i in sequence or ():
                if i in word_of:
                    counts[mode][word_of[i]] += 1
        tokens = response.num_tokens if sequence is None else len(sequence)
        yield Counted(response, counts, tokens, epistemic.count_sequences(sequence or (), split))


def _summary(group: Sequence[Counted]) -> dict[str, Any]:
    size = len(group)
    finished = [c.response.finished for c in group]
    correct = [c.response.correct for c in group]
    lengths = [c.tokens for c in group]
    tokens = None if None in lengths else sum(length or 0 for length in lengths)

    def rates(total: int) -> dict[str, Any]:
        # A ratio of sums: a mean of ratios would give short and long responses the same weight.
        per_1k = 1000 * total / tokens if tokens else None
        return {"total": total, "per_response": total / size, "per_1k": per_1k}

    counts = {}
    for mode in group[0].counts:
        totals = {w: sum(c.counts[mode][w] for c in group) for w in group[0].counts[mode]}
        words = {word: rates(total) for word, total in totals.items()}
        counts[mode] = rates(sum(totals.values())) | {"words": words}
    return {
        "responses": size,
        "tokens": None if tokens is None else tokens / size,
        "characters": sum(len(c.response.text) for c in group) / size,
        "truncated": None if None in finished else finished.count(False) / size,
        "accuracy": None if None in correct else correct.count(True) / size,
        "counts": counts,
        "uncovered": sum(c.uncovered for c in group),
    }


def _lexicon_facts(vocabulary: Vocabulary) -> dict[str, Any]:
    lexicon = vocabulary.lexicon
    report = epistemic.examine(vocabulary.tokenizer, lexicon)
    return {
        "made": lexicon.made,
        "tokenizer_hash": lexicon.tokenizer_hash,
        "ids": {i: vocabulary.tokenizer.decode([i]) for i in lexicon.ids},
        "uncovered": lexicon.uncovered,
        "near": [each._asdict() for each in report.near],
        "over_inclusive": [each._asdict() for each in report.over_inclusive],
    }


# ------------------------------------------------------------------------------------ the table


def table(found: dict[str, Any]) -> Iterator[str]:
    """Format an analysis as lines of text: groups, then words, then notes on the lexicon."""
    groups = found["groups"]
    modes = list(groups["all"]["counts"])
    plain, shares = ("responses", "tokens", "characters"), ("truncated", "accuracy")
    rows = []
    for name, group in groups.items():
        # In percent, as everywhere in text for people.
        percent = [None if group[key] is None else f"{group[key]:.1%}" for key in shares]
        counted = _rates(group["counts"], modes)
        rows.append([name, *(group[key] for key in plain), *percent, *counted])
    yield from aligned(["", *plain, *shares, *_headers(modes)], rows)
    yield ""
    counts = groups["all"]["counts"]
    words = dict.fromkeys(word for mode in modes for word in counts[mode]["words"])
    rows = [
        [word, *_rates({m: counts[m]["words"].get(word) for m in modes}, modes)] for word in words
    ]
    rows.append(["total", *_rates(counts, modes)])
    yield from aligned(["word", *_headers(modes)], rows)
    yield from _notes(found)


def _headers(modes: Sequence[str]) -> list[str]:
    return [f"{mode}{rate}" for mode in modes for rate in ("/resp", "/1k")]


def _rates(counts: dict[str, Any], modes: Sequence[str]) -> list[float | None]:
    none = {"per_response": None, "per_1k": None}
    return [(counts[mode] or none)[rate] for mode in modes for rate in none]


def _notes(found: dict[str, Any]) -> Iterator[str]:
    everything = found["groups"]["all"]
    if everything["tokens"] is None:
        yield "no rates per 1,000 tokens: some records have no `num_tokens`; add --model MODEL"
    if (lexicon := found.get("lexicon")) is None:
        return
    yield ""
    yield f"lexicon: {len(lexicon['ids'])} ids of tokenizer {lexicon['tokenizer_hash']}"
    yield (
        f"{len(lexicon['uncovered'])} forms have no id, so losses do not see them "
        f"({everything['uncovered']} occurrences here): {_few(lexicon['uncovered'])}"
    )
    near = [each["token"] for each in lexicon["near"]]
    yield f"{len(near)} vocabulary entries contain a word but are left out: {_few(near)}"
    also = [f"{each['token']!r} in {each['inside'][0]}" for each in lexicon["over_inclusive"]]
    yield f"{len(also)} ids also spell other words: {', '.join(also[:4]) or 'none'}"


def _few(texts: Sequence[str]) -> str:
    shown = ", ".join(map(repr, texts[:6]))
    return (shown or "none") + (", ..." if len(texts) > 6 else "")


def aligned(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    cells = [list(headers), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    for first, *rest in cells:
        line = [first.ljust(widths[0])]
        line += [cell.rjust(width) for cell, width in zip(rest, widths[1:])]
        yield "  ".join(line).rstrip()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    # A file or word may contain control characters, which must not reach the terminal.
    text = str(value)
    return text if text.isprintable() else repr(text)
