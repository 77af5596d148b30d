"""Which tokens a model says less once it has seen a solution: the data for a lexicon of its own.

The responses are scored twice by one model, under the question alone (R) and under the question
with a correct sibling's solution (T); `epistemic.propose` ranks tokens by the mean of
log R - log T, their pointwise mutual information with not having been told. No word list goes in.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdistill import epistemic
from jaxdistill.epistemic import Lexicon, TokenStats
from jaxdistill.errors import UserError
from jaxdistill.evaluation.analyze import Vocabulary, count_tokens
from jaxdistill.evaluation.responses import Response, encode
from jaxdistill.models import completions, parameters
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.loading import Policy
from jaxdistill.tasks import contexts
from jaxdistill.tasks.questions import Question, messages

# Room for the context's own words in any tokenizer: chosen, not counted.
TEMPLATE_TOKENS = 64
MAX_DEMONSTRATION_TOKENS = 20480  # as in the paper's runs
# Positions in one forward pass: 65,536 of an 8B model are 0.5 GB of hidden states in bfloat16.
# Chosen, not measured.
TOKENS_PER_BATCH = 1 << 16


class Row(NamedTuple):
    """A response with the two prompts that it is scored under, as ids."""

    response: list[int]
    plain: list[int]
    informed: list[int]

    @property
    def width(self) -> int:
        return padded_length(len(self.informed)) + padded_length(len(self.response))


class Proposal(NamedTuple):
    """A lexicon from data, with what it was chosen by."""

    lexicon: Lexicon
    stats: TokenStats
    num_scored: int  # responses

    def table(self, tokenizer: Any) -> Iterator[str]:
        """A line for each id: how much less the informed teacher says it, how often it stands."""
        mean_V = epistemic.mean_surprise(self.stats)
        yield f"{'nats':>8}  {'count':>8}  {'id':>7}  token"
        for i in self.lexicon.ids:
            count, token = self.stats.count_V[i], tokenizer.decode([i])
            yield f"{mean_V[i]:>8.3f}  {count:>8}  {i:>7}  {token!r}"


def propose_lexicon(
    policy: Policy,
    responses: Sequence[Response],
    *,
    num_ids: int,
    min_count: int,
    seed: int = 0,
    enable_thinking: bool | None = None,
    dtype: str = "float32",
) -> Proposal:
    """The `num_ids` ids that the model says less once it was shown a solution, by `score_pmi`."""
    stats, num_scored = score_pmi(
        policy, responses, seed=seed, enable_thinking=enable_thinking, dtype=dtype
    )
    lexicon = epistemic.propose(policy.tokenizer, stats, num_ids, min_count)
    return Proposal(lexicon, stats, num_scored)


def control_lexicon(vocabulary: Vocabulary, responses: Sequence[Response], seed: int) -> Lexicon:
    """Random ids that stand in the responses as often as the vocabulary's lexicon does."""
    count_V = count_tokens(vocabulary.tokenizer, responses)
    return epistemic.matched_control(vocabulary.tokenizer, vocabulary.lexicon, count_V, seed)


def score_pmi(
    policy: Policy,
    responses: Sequence[Response],
    *,
    seed: int = 0,
    enable_thinking: bool | None = None,
    dtype: str = "float32",
    attention: str = "auto",
) -> tuple[TokenStats, int]:
    """Sum log R - log T by token over the responses that have a correct sibling, and fit into the
    model's positions beside it; and their number.

    The tokens are those of the response's text, which need not be split as they were sampled.
    Raises UserError where a record names no question, or no response has a correct sibling.
    """
    size = epistemic.vocab_size(policy.tokenizer)
    total = TokenStats(np.zeros(size, np.int64), np.zeros(size))
    rows = rows_of(policy, responses, seed, enable_thinking)
    for tokens_N, plain_logp_N, informed_logp_N in _scored(policy, rows, dtype, attention):
        new = epistemic.tally(tokens_N, plain_logp_N, informed_logp_N, size)
        total = TokenStats(total.count_V + new.count_V, total.surprise_V + new.surprise_V)
    return total, len(rows)


def rows_of(
    policy: Policy, responses: Sequence[Response], seed: int, enable_thinking: bool | None
) -> list[Row]:
    """Prompts and ids of each response that has a correct sibling, and positions for both."""
    pairs = list(with_siblings(responses, seed))
    if not pairs:
        raise UserError(
            "no response has a correct sibling (another response to its `question` whose `correct` "
            "is true), so there is nothing to show a teacher"
        )
    tokenizer = policy.tokenizer
    questions = [Question("", r.question or "", "", r.system) for r, _ in pairs]
    chats = [messages(question) for question in questions]
    plain = tokenizers.prompt_ids(tokenizer, chats, enable_thinking)
    ids = encode(tokenizer, [response for response, _ in pairs])
    shown, told = [], []
    for row in range(len(pairs)):
        # The sibling's text is cut so that prompt and response stay within the model's positions.
        room = policy.config.max_positions - len(plain[row]) - len(ids[row]) - TEMPLATE_TOKENS
        sibling, _ = contexts.shorten(
            pairs[row][1],
            lambda text: tokenizers.encode(tokenizer, [text])[0],
            lambda ids: tokenizers.decode(tokenizer, ids),
            min(MAX_DEMONSTRATION_TOKENS, room),
        )
        told.append(bool(sibling.strip()))
        turn = contexts.render(contexts.Solution(), questions[row].prompt, sibling, "")
        shown.append(messages(questions[row], turn))
    informed = tokenizers.prompt_ids(tokenizer, shown, enable_thinking)
    rows = [
        Row(response=response, plain=without, informed=with_sibling)
        for response, without, with_sibling, is_told in zip(ids, plain, informed, told)
        if response and is_told and len(response) + len(with_sibling) <= policy.config.max_positions
    ]
    if not rows:
        raise UserError(
            f"no response fits into the model's {policy.config.max_positions} positions beside its "
            "question and a solution"
        )
    return rows


def with_siblings(responses: Sequence[Response], seed: int) -> Iterator[tuple[Response, str]]:
    """Each response with a correct sibling's text, drawn by (seed, question) alone."""
    groups: dict[str, list[Response]] = {}
    for response in responses:
        if response.question is None:
            raise UserError(f"{response.where}: no text in `question`, under which to score it")
        groups.setdefault(response.question, []).append(response)
    for question, group in groups.items():
        rng = np.random.default_rng(list(f"{seed}/propose/{question}".encode("utf-8", "replace")))
        chosen = contexts.choose_siblings([bool(each.correct) for each in group], rng)
        for response, siblings in zip(group, chosen):
            if siblings:
                yield response, group[siblings[0]].text


def _scored(
    policy: Policy, rows: Sequence[Row], dtype: str, attention: str
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(tokens, their log-prob under the plain prompt, under the informed one), batch by batch."""
    pad = tokenizers.pad_id(policy.tokenizer)

    @jax.jit
    def logp(params, prompt, completion):
        hidden_BTD = completions.completion_hidden(
            params,
            policy.config,
            prompt_ids_BP=prompt[0],
            prompt_mask_BP=prompt[1],
            completion_ids_BT=completion[0],
            completion_mask_BT=completion[1],
            dtype=dtype,
            attention=attention,
        )
        return completions.token_logp(
            hidden_BTD, parameters.head(params, policy.config), completion[0]
        )

    for batch in _batches(rows):
        completion = _pad_rows(tokenizers.right_pad, [row.response for row in batch], pad)
        plain = _pad_rows(tokenizers.left_pad, [row.plain for row in batch], pad)
        informed = _pad_rows(tokenizers.left_pad, [row.informed for row in batch], pad)
        plain_logp_BT = np.asarray(logp(policy.params, plain, completion))
        informed_logp_BT = np.asarray(logp(policy.params, informed, completion))
        is_token_BT = completion[1] > 0
        yield completion[0][is_token_BT], plain_logp_BT[is_token_BT], informed_logp_BT[is_token_BT]


def _batches(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows of one padded width together, as many as fit, so that few shapes are compiled."""
    for width, group in itertools.groupby(sorted(rows, key=lambda r: r.width), lambda r: r.width):
        alike, size = list(group), max(TOKENS_PER_BATCH // width, 1)
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def _pad_rows(pad_rows: Any, sequences: list[list[int]], pad: int) -> tuple[np.ndarray, np.ndarray]:
    return pad_rows(sequences, pad, padded_length(max(map(len, sequences))))


def padded_length(length: int) -> int:
    """The power of two, 64 or more, that a sequence is padded to.

    >>> padded_length(3), padded_length(65)
    (64, 128)
    """
    return max(64, 1 << (length - 1).bit_length())
