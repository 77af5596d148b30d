"""Student, teacher, reference and contrasts, each under its own prompt, on the same completions."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxdistill.models import completions, parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.training.chunked_objective import HiddenAndHead, OtherNetworks
from jaxdistill.training.compute import Compute
from jaxdistill.training.micro_batches import MicroBatch, Sequences
from jaxdistill.training.teachers import Network


class NeededNetworks(NamedTuple):
    """Which networks score the samples beside the student."""

    teacher: bool
    reference: bool
    contrast: bool


class Networks(NamedTuple):
    """Parameters of each network, and the teacher's as a mixture: `teachers.networks_of`."""

    student: Any
    teacher: tuple[Network, ...]
    reference: Any


def score_batch(
    model: ModelConfig,
    compute: Compute,
    networks: Networks,
    micro: MicroBatch,
    *,
    needed: NeededNetworks,
) -> tuple[HiddenAndHead, OtherNetworks]:
    """Student and the others on the same completion tokens, each under its own prompt.

    Prompts that one network scores (a frozen teacher's and the reference's, a teacher's and its
    contrasts') go through it together: networks are the same where their parameters are one object.
    """

    def scored(params: Any, prompts: list[Sequences]) -> list[HiddenAndHead]:
        hiddens = completions.hidden_of_prompts(
            params,
            model,
            prompts,
            micro.completions.lengths_BA,
            num_positions=micro.completions.tokens_BS.shape[1],
            dtype=jnp.dtype(compute.dtype),
            remat=compute.remat,
            attention=compute.attention,
        )
        head_DV = parameters.head(params, model)
        return [HiddenAndHead(hidden_BTD, head_DV) for hidden_BTD in hiddens]

    (student,) = scored(networks.student, [micro.plain])
    informed: list[Sequences] = []  # what the teacher sees: its own context, then the contrasts
    if needed.teacher:
        assert micro.teacher is not None
        informed = [micro.teacher, *(micro.contrasts if needed.contrast else ())]
    by_network, reference = [], None
    for params, _ in networks.teacher if needed.teacher else ():
        is_reference = needed.reference and params is networks.reference
        found = scored(params, [*informed, micro.plain] if is_reference else informed)
        reference = found.pop() if is_reference else reference
        by_network.append(found)
    if needed.reference and reference is None:
        (reference,) = scored(networks.reference, [micro.plain])
    by_prompt = list(zip(*by_network, strict=True))
    return student, OtherNetworks(
        teacher=by_prompt[0] if needed.teacher else (),
        teacher_mix=tuple(weight for _, weight in networks.teacher),
        reference=reference,
        contrasts=tuple(by_prompt[1:]),
    )
