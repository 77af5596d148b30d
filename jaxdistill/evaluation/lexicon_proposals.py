"""Propose a lexicon: the tokens that a model finds less likely once it has seen a solution.

One model scores the responses twice, given the question alone (R) and given the question with a
correct sibling's solution (T). `epistemic.propose` ranks tokens by the mean of log R - log T, their
pointwise mutual information with not having seen a solution. No word list is involved.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdistill import epistemic, sharding
from jaxdistill.epistemic import Lexicon, TokenStats
from jaxdistill.errors import UserError
from jaxdistill.evaluation.analyze import Vocabulary, count_tokens
from jaxdistill.evaluation.pair_scoring import Row, score_pairs
from jaxdistill.evaluation.responses import Response, encode
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.loading import Policy
from jaxdistill.tasks import contexts
from jaxdistill.tasks.demonstrations import Group, Random, choose_siblings
from jaxdistill.tasks.questions import Question, messages

# An upper bound for the tokens of the context's own wording in any tokenizer. Chosen, not counted.
TEMPLATE_TOKENS = 64
MAX_DEMONSTRATION_TOKENS = 20480  # as in the paper's runs


class Proposal(NamedTuple):
    """A lexicon from data, with the statistics by which it was chosen."""

    lexicon: Lexicon
    stats: TokenStats
    num_scored: int  # responses

    def table(self, tokenizer: Any) -> Iterator[str]:
        """Format each id as a line: its mean log R - log T in nats, and its number of samples."""
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
    dtype: str = "auto",
    mesh: sharding.Mesh | None = None,
) -> Proposal:
    """Propose the `num_ids` ids with the largest mean log R - log T, computed by `score_pmi`.

    Ids sampled fewer than `min_count` times are left out. Raises UserError as `score_pmi` does.
    """
    stats, num_scored = score_pmi(
        policy, responses, seed=seed, enable_thinking=enable_thinking, dtype=dtype, mesh=mesh
    )
    lexicon = epistemic.propose(policy.tokenizer, stats, num_ids, min_count)
    return Proposal(lexicon, stats, num_scored)


def control_lexicon(vocabulary: Vocabulary, responses: Sequence[Response], seed: int) -> Lexicon:
    """Return a lexicon of random ids, as frequent in the responses as those of the vocabulary's.

    Raises UserError if the vocabulary has too few other ids.
    """
    count_V = count_tokens(vocabulary.tokenizer, responses)
    return epistemic.matched_control(vocabulary.tokenizer, vocabulary.lexicon, count_V, seed)


def score_pmi(
    policy: Policy,
    responses: Sequence[Response],
    *,
    seed: int = 0,
    enable_thinking: bool | None = None,
    dtype: str = "auto",
    attention: str = "auto",
    mesh: sharding.Mesh | None = None,
) -> tuple[TokenStats, int]:
    """Sum log R - log T per token id, and return the sums with the number of responses scored.

    Only responses that have a correct sibling, and that fit into the model's positions together
    with it, are scored. Their text is encoded again, so its tokens may differ from those sampled.
    Raises UserError if a record has no question, or if no response can be scored.
    """
    size = epistemic.vocab_size(policy.tokenizer)
    total = TokenStats(np.zeros(size, np.int64), np.zeros(size))
    rows = rows_of(policy, responses, seed, enable_thinking)
    for scored in score_pairs(policy, rows, dtype, attention, mesh):
        is_token_BT = scored.is_token_BT
        new = epistemic.tally(
            scored.tokens_BT[is_token_BT],
            scored.plain_logp_BT[is_token_BT],
            scored.informed_logp_BT[is_token_BT],
            size,
        )
        total = TokenStats(total.count_V + new.count_V, total.surprise_V + new.surprise_V)
    return total, len(rows)


def rows_of(
    policy: Policy, responses: Sequence[Response], seed: int, enable_thinking: bool | None
) -> list[Row]:
    """Encode each response that has a correct sibling, with both prompts.

    A sibling is truncated so that the row fits into the model's positions, and the row is left out
    if nothing of the sibling remains. Raises UserError if no row is left.
    """
    pairs = pairs_of(responses, seed)
    tokenizer = policy.tokenizer
    questions = [Question("", r.question or "", "", r.system) for r, _ in pairs]
    chats = [messages(question) for question in questions]
    plain = tokenizers.prompt_ids(tokenizer, chats, enable_thinking)
    ids = encode(tokenizer, [response for response, _ in pairs])
    capacity = policy.config.max_positions
    informed_chats, is_informed = [], []
    for row in range(len(pairs)):
        sibling, _ = contexts.shorten(
            pairs[row][1],
            lambda text: tokenizers.encode(tokenizer, [text])[0],
            lambda ids: tokenizers.decode(tokenizer, ids),
            min(
                MAX_DEMONSTRATION_TOKENS,
                capacity - len(plain[row]) - len(ids[row]) - TEMPLATE_TOKENS,
            ),
        )
        is_informed.append(bool(sibling.strip()))
        turn = contexts.render(contexts.Solution(), questions[row].prompt, sibling, "")
        informed_chats.append(messages(questions[row], turn))
    informed = tokenizers.prompt_ids(tokenizer, informed_chats, enable_thinking)
    # The length is checked again because `TEMPLATE_TOKENS` is only an estimate.
    rows = [
        Row(response=response, plain=without, informed=with_sibling)
        for response, without, with_sibling, has_sibling in zip(ids, plain, informed, is_informed)
        if response and has_sibling and len(response) + len(with_sibling) <= capacity
    ]
    if not rows:
        raise UserError(
            f"no response fits into the model's {capacity} positions together with its question "
            "and a solution"
        )
    return rows


def pairs_of(responses: Sequence[Response], seed: int) -> list[tuple[Response, str]]:
    """`with_siblings`. Raises UserError as it does, and if no response has a correct sibling."""
    pairs = list(with_siblings(responses, seed))
    if not pairs:
        raise UserError(
            "no response has a correct sibling (another response to its `question` whose `correct` "
            "is true), so there is nothing to show a teacher"
        )
    return pairs


def with_siblings(responses: Sequence[Response], seed: int) -> Iterator[tuple[Response, str]]:
    """Pair each response with the text of a random correct sibling, if it has one.

    The draw depends only on the seed and the question. Raises UserError, naming file and line, for
    a response without a question.
    """
    groups: dict[str, list[Response]] = {}
    for response in responses:
        if response.question is None:
            raise UserError(f"{response.where}: no text in `question`, which scoring needs")
        groups.setdefault(response.question, []).append(response)
    for question, group in groups.items():
        # Seeded by the bytes of the text: Python's `hash` of a string differs between processes.
        rng = np.random.default_rng(list(f"{seed}/propose/{question}".encode("utf-8", "replace")))
        everyone = Group(
            is_eligible=[True] * len(group),
            lengths=[0] * len(group),  # a random draw reads none
            is_correct=[bool(each.correct) for each in group],
        )
        chosen = choose_siblings(everyone, Random(), rng)
        for response, siblings in zip(group, chosen):
            if siblings:
                yield response, group[siblings[0]].text
