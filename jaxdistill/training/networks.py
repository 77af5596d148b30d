"""Score the same completions with each network, under its own prompt.

The networks are the student, the teacher (one or several), the reference and the contrasts.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill import sharding
from jaxdistill.models import completions, parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.layers import BLOCK
from jaxdistill.precision import compute_dtype
from jaxdistill.training.chunked_objective import HiddenAndHead, OtherNetworks
from jaxdistill.training.compute import Compute
from jaxdistill.training.micro_batches import MicroBatch, Sequences
from jaxdistill.training.teachers import External, Network


class NeededNetworks(NamedTuple):
    """Which networks score the samples in addition to the student."""

    teacher: bool
    reference: bool
    contrast: bool


class Networks(NamedTuple):
    """The parameters of each network; the teacher is a mixture (`teachers.networks_of`)."""

    student: Any
    teacher: tuple[Network, ...]  # ((parameters, weight of its logits), ...)
    reference: Any


def score_batch(
    model: ModelConfig,
    compute: Compute,
    networks: Networks,
    micro: MicroBatch,
    *,
    needed: NeededNetworks,
    has_gradient: bool = True,
) -> tuple[HiddenAndHead, OtherNetworks]:
    """Hidden states and heads of the student and of the needed other networks.

    Prompts that the same network scores are passed to it together, so that they may share a forward
    pass: a frozen teacher's and the reference's, or a teacher's and its contrasts'. Two networks
    are the same if their parameters are the same object. Without `has_gradient` the student is not
    differentiated either, as the other networks never are.
    """

    # Numbers of a feed-forward array on a device in the student's own backward pass.
    beside = 0
    if has_gradient:
        beside = micro.plain.tokens_BS.size * model.intermediate_size
        beside //= sharding.num_parts("B", len(micro.plain.tokens_BS))

    def scored(
        params: Any, prompts: list[Sequences], is_differentiated: bool = False
    ) -> list[HiddenAndHead]:
        weights, config = own_config(params, model)
        if isinstance(params, External):  # an id that only the student has would make NaN of it all
            last = config.vocab_size - 1
            prompts = [
                each._replace(tokens_BS=jnp.minimum(each.tokens_BS, last)) for each in prompts
            ]
        hiddens = completions.hidden_of_prompts(
            weights,
            config,
            prompts,
            micro.completions.lengths_BA,
            num_positions=micro.completions.tokens_BS.shape[1],
            dtype=compute_dtype(compute.dtype),
            remat=compute.remat,
            attention=compute.attention,
            # A backward pass would keep all blocks.
            mlp_block=None if is_differentiated else mlp_block_of(config, beside),
        )
        head_DV = head_of(params, model)
        return [HiddenAndHead(hidden_BTD, head_DV) for hidden_BTD in hiddens]

    with jax.named_scope("step/forward"):
        (student,) = scored(networks.student, [micro.plain], has_gradient)
    informed: list[Sequences] = []  # the teacher's prompts: its own context, then the contrasts
    if needed.teacher:
        assert micro.teacher is not None
        informed = [micro.teacher, *(micro.contrasts if needed.contrast else ())]
    by_network, reference = [], None
    for params, _ in networks.teacher if needed.teacher else ():
        is_reference = needed.reference and params is networks.reference
        with jax.named_scope("score/teacher"):
            by_prompt = scored(params, [*informed, micro.plain] if is_reference else informed)
        reference = by_prompt.pop() if is_reference else reference
        by_network.append(by_prompt)
    if needed.reference and reference is None:
        with jax.named_scope("score/reference"):
            (reference,) = scored(networks.reference, [micro.plain])
    # Transposed from networks x prompts: each prompt is scored by the whole mixture of networks.
    mixtures = list(zip(*by_network, strict=True))
    return student, OtherNetworks(
        teacher=mixtures[0] if needed.teacher else (),
        teacher_mix=tuple(weight for _, weight in networks.teacher),
        reference=reference,
        contrasts=tuple(mixtures[1:]),
        num_ids=num_ids_of([params for params, _ in networks.teacher]) if needed.teacher else None,
    )


# The width for which `layers.BLOCK` was chosen: Qwen3-8B's.
BLOCK_WIDTH = 12288


def mlp_block_of(config: ModelConfig, beside: int = 0) -> int:
    """Positions on a device whose feed-forward arrays are in memory at once (`layers.BLOCK`).

    On a GPU narrower models have longer blocks, of the same bytes: dividing the 16,384 positions of
    Qwen3-1.7B's 4 x 4,096 costs 0.5 GB of copies in each layer, by the compiled program. Blocks are
    also at least as large as the `beside` numbers of such an array in the student's backward pass,
    which holds more of them than a pass without a gradient.
    """
    if sharding.platform() != "gpu":
        return BLOCK
    width = config.intermediate_size
    return max(BLOCK * max(BLOCK_WIDTH // width, 1), beside // width)


def own_config(params: Any, model: ModelConfig) -> tuple[Any, ModelConfig]:
    """(parameters, config) of a network, whose config is the student's unless it has its own."""
    return (params.params, params.model) if isinstance(params, External) else (params, model)


def head_of(params: Any, model: ModelConfig) -> Float[Array, "D V"]:
    """A network's head in the student's columns: V as the mesh stores it, or of another model's.

    Another model's head is cut or filled to the student's vocabulary, whatever its own padding;
    columns beyond the ids that both share are masked (`OtherNetworks.num_ids`).
    """
    if not isinstance(params, External):
        return parameters.stored_head(params, model)
    head_DV = parameters.head(params.params, params.model)
    missing = model.vocab_size - head_DV.shape[1]
    if missing <= 0:
        return head_DV[:, : model.vocab_size]
    return jnp.pad(head_DV, ((0, 0), (0, missing)))


def num_ids_of(teacher: Sequence[Any]) -> int | None:
    """The ids over which distributions are taken if the teacher is another model; None: all."""
    external = [params for params in teacher if isinstance(params, External)]
    return external[0].num_ids if external else None
