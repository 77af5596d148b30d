"""Log-probabilities of responses under two prompts each, one of which shows more than the other.

Rows are padded to few shapes, and the head is applied to chunks of positions, so that neither the
number of programs nor the memory grows with the data.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxdistill import sharding
from jaxdistill.models import completions, parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.precision import compute_dtype
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.loading import Policy

# Positions of one device in a forward pass: 65,536 of an 8B model are 0.5 GB of hidden states in
# bfloat16. Chosen, not measured.
TOKENS_PER_BATCH = 1 << 16


class Row(NamedTuple):
    """The ids of a response and of the prompts without and with a context."""

    response: list[int]
    plain: list[int]
    informed: list[int]

    @property
    def shape(self) -> tuple[int, int]:
        """The padded lengths of the longer prompt and of the response, in tokens."""
        return padded_length(len(self.informed)), padded_length(len(self.response))


class Scored(NamedTuple):
    """The scores of some rows, each with its index in the caller's list."""

    rows: list[int]
    tokens_BT: Int[np.ndarray, "B T"]
    is_token_BT: Bool[np.ndarray, "B T"]  # False at padding
    plain_logp_BT: Float[np.ndarray, "B T"]
    informed_logp_BT: Float[np.ndarray, "B T"]

    @property
    def gains_B(self) -> Float[np.ndarray, " B"]:
        """sum_t log p(y_t | informed, y_<t) - log p(y_t | plain, y_<t) of each row, in nats."""
        gain_BT = self.informed_logp_BT.astype(np.float64) - self.plain_logp_BT
        return np.where(self.is_token_BT, gain_BT, 0.0).sum(axis=1)


def score_pairs(
    policy: Policy, rows: Sequence[Row], dtype: str, attention: str, mesh: sharding.Mesh | None
) -> Iterator[Scored]:
    """Score each row's response under both of its prompts, rows of the same shape together.

    Log-probabilities are of the untempered, untruncated distribution.
    """
    pad = tokenizers.pad_id(policy.tokenizer)
    logp = _make_logp(policy.config, str(compute_dtype(dtype)), attention)

    def place(arrays):
        return arrays if mesh is None else sharding.shard_batch(mesh, arrays)

    with sharding.use_mesh(mesh):
        for batch, size in _batches(rows, sharding.num_parts("B")):
            # Copies of a row up to a size that is compiled; nothing of them is returned.
            filled = [rows[i] for i in batch] + [rows[batch[-1]]] * (size - len(batch))
            completion = _pad_rows(tokenizers.right_pad, [row.response for row in filled], pad)
            # Prompts are padded on the left, so that every completion starts at the same index.
            plain = _pad_rows(tokenizers.left_pad, [row.plain for row in filled], pad)
            informed = _pad_rows(tokenizers.left_pad, [row.informed for row in filled], pad)
            plain_logp_BT, informed_logp_BT = (
                np.asarray(logp(policy.params, *place((prompt, completion))))[: len(batch)]
                for prompt in (plain, informed)
            )
            tokens_BT, mask_BT = (array[: len(batch)] for array in completion)
            yield Scored(batch, tokens_BT, mask_BT > 0, plain_logp_BT, informed_logp_BT)


# Cached because the rows of one command come in several calls: both prompts of a batch, and batches
# of the same shape, share a program.
@functools.cache
def _make_logp(config: ModelConfig, dtype: str, attention: str) -> Callable[..., Any]:
    @jax.jit
    def logp(params, prompt, completion):
        hidden_BTD = completions.completion_hidden(
            params,
            config,
            prompt_ids_BP=prompt[0],
            prompt_mask_BP=prompt[1],
            completion_ids_BT=completion[0],
            completion_mask_BT=completion[1],
            dtype=compute_dtype(dtype),
            attention=attention,
        )
        return completions.token_logp(hidden_BTD, parameters.head(params, config), completion[0])

    return logp


def _batches(rows: Sequence[Row], parts: int) -> Iterator[tuple[list[int], int]]:
    """Group rows of the same padded shape: (their indices, the number of rows to compile for).

    That number is a power of two times `parts`, or the largest that is allowed.
    """
    order = sorted(range(len(rows)), key=lambda i: rows[i].shape)
    for shape, group in itertools.groupby(order, lambda i: rows[i].shape):
        same_shape, most = list(group), max(TOKENS_PER_BATCH // sum(shape), 1)
        for start in range(0, len(same_shape), parts * most):
            batch = same_shape[start : start + parts * most]
            per_part = -(-len(batch) // parts)
            yield batch, parts * min(most, 1 << (per_part - 1).bit_length())


def _pad_rows(pad_rows: Any, sequences: list[list[int]], pad: int) -> tuple[np.ndarray, np.ndarray]:
    return pad_rows(sequences, pad, padded_length(max(map(len, sequences))))


def padded_length(length: int) -> int:
    """Return the length to which a sequence is padded: the next power of two, at least 64.

    Powers of two keep the number of compiled shapes small. 64 is chosen, not measured.

    >>> padded_length(3), padded_length(65)
    (64, 128)
    """
    return max(64, 1 << (length - 1).bit_length())
