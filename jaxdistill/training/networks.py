"""Score the same completions with each network, under its own prompt.

The networks are the student, the teacher (one or several), the reference and the contrasts.
"""

from typing import Any, NamedTuple

import jax

from jaxdistill.models import completions, parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.precision import compute_dtype
from jaxdistill.training.chunked_objective import HiddenAndHead, OtherNetworks
from jaxdistill.training.compute import Compute
from jaxdistill.training.micro_batches import MicroBatch, Sequences
from jaxdistill.training.teachers import Network


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
) -> tuple[HiddenAndHead, OtherNetworks]:
    """Hidden states and heads of the student and of the needed other networks.

    Prompts that the same network scores are passed to it together, so that they may share a forward
    pass: a frozen teacher's and the reference's, or a teacher's and its contrasts'. Two networks
    are the same if their parameters are the same object.
    """

    def scored(params: Any, prompts: list[Sequences]) -> list[HiddenAndHead]:
        hiddens = completions.hidden_of_prompts(
            params,
            model,
            prompts,
            micro.completions.lengths_BA,
            num_positions=micro.completions.tokens_BS.shape[1],
            dtype=compute_dtype(compute.dtype),
            remat=compute.remat,
            attention=compute.attention,
        )
        head_DV = parameters.head(params, model)
        return [HiddenAndHead(hidden_BTD, head_DV) for hidden_BTD in hiddens]

    with jax.named_scope("step/forward"):
        (student,) = scored(networks.student, [micro.plain])
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
    )
