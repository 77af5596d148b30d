"""Student, teacher, reference and contrasts, each under its own prompt, on the same completions."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdistill.axes import AnyArray
from jaxdistill.models import completions, parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.training import chunked_objective
from jaxdistill.training.batch import Batch
from jaxdistill.training.compute import Compute
from jaxdistill.training.packed_batch import MicroBatch, Sequences
from jaxdistill.training.state import TrainState
from jaxdistill.training.teachers import EMA, Frozen, Live, Snapshot, Teacher, TrustRegion


class NeededNetworks(NamedTuple):
    """Which networks score the samples beside the student."""

    teacher: bool
    reference: bool
    contrast: bool


class Networks(NamedTuple):
    """Parameters beside the student's; a teacher that is None has the reference's."""

    teacher: tuple[Any, ...]
    reference: Any


def networks_of(teacher: Teacher, state: TrainState, reference_params: Any) -> Networks:
    match teacher:
        case EMA() | Snapshot():
            return Networks((state.teacher,), reference_params)
        case Live():
            return Networks((state.params,), reference_params)
        case TrustRegion():
            return Networks((None, state.params), reference_params)
        case Frozen():
            return Networks((None,), reference_params)


class Prompt(NamedTuple):
    ids_BP: Int[AnyArray, "B P"]
    mask_BP: Int[AnyArray, "B P"]


def score_batch(
    model: ModelConfig,
    compute: Compute,
    params: Any,
    networks: Networks,
    batch: Batch | MicroBatch,
    *,
    needed: NeededNetworks,
) -> tuple[chunked_objective.HiddenAndHead, chunked_objective.OtherNetworks]:
    """Student and the others on the same completion tokens, each under its own prompt.

    Prompts that one network scores (a frozen teacher's and the reference's, a teacher's and its
    contrasts') go through it in one forward, as rows of one batch; packed rows one by one.
    """

    def scored(params, prompts: list) -> list[chunked_objective.HiddenAndHead]:
        head_DV = parameters.head(params, model)
        hiddens = hidden_of(
            params, model, prompts, batch,
            dtype=jnp.dtype(compute.dtype), remat=compute.remat, attention=compute.attention,
        )  # fmt: skip
        return [chunked_objective.HiddenAndHead(hidden_BTD, head_DV) for hidden_BTD in hiddens]

    plain = plain_prompt(batch)
    (student,) = scored(params, [plain])
    informed = informed_prompts(batch, needed)
    # The reference's network scores the plain prompt too where asked, in the same forward.
    reference_prompts = [
        *(informed if None in networks.teacher else []),
        *[plain] * needed.reference,
    ]
    reference_hiddens = scored(networks.reference, reference_prompts)
    reference = reference_hiddens.pop() if needed.reference else None
    by_network = [
        reference_hiddens if teacher_params is None else scored(teacher_params, informed)
        for teacher_params in networks.teacher
    ]
    by_prompt = list(zip(*by_network, strict=True))
    return student, chunked_objective.OtherNetworks(
        teacher=by_prompt[0] if needed.teacher else (),
        reference=reference,
        contrasts=tuple(by_prompt[1:]),
        contrast_weight_BTJ=contrast_weights(batch) if needed.contrast else None,
    )


def hidden_of(
    params: Any, model: ModelConfig, prompts: list, batch: Batch | MicroBatch, **how: Any
) -> list[Float[Array, "B T D"]]:
    """The hidden states that predict the completions, under each of the prompts."""
    if isinstance(batch, Batch):
        return completions.hidden_of_prompts(
            params=params,
            config=model,
            prompts=prompts,
            completion_ids_BT=batch.completion_ids_BT,
            completion_mask_BT=batch.completion_mask_BT,
            **how,
        )
    num_positions = batch.completion_mask_BT.shape[1]
    return [
        completions.packed_completion_hidden(
            params=params,
            config=model,
            tokens_BS=tokens,
            lengths_BA=lengths,
            completion_lengths_BA=batch.completion_lengths_BA,
            num_positions=num_positions,
            **how,
        )
        for tokens, lengths in prompts
    ]


def plain_prompt(batch: Batch | MicroBatch) -> Prompt | Sequences:
    """What the student sees, and the reference."""
    if isinstance(batch, MicroBatch):
        return batch.plain
    return Prompt(batch.prompt_ids_BP, batch.prompt_mask_BP)


def contrast_weights(batch: Batch | MicroBatch) -> Float[Array, "B T J"] | None:
    if isinstance(batch, MicroBatch):
        return batch.contrast_weight_BTJ
    assert batch.contrast_weight_BJ is not None
    (B, J), T = batch.contrast_weight_BJ.shape, batch.completion_ids_BT.shape[1]
    return jnp.broadcast_to(batch.contrast_weight_BJ[:, None, :], (B, T, J))


def informed_prompts(batch: Batch | MicroBatch, needed: NeededNetworks) -> list:
    """What the teacher sees: its own context first, then the J contrasts."""
    if not needed.teacher:
        return []
    if isinstance(batch, MicroBatch):
        assert batch.teacher is not None
        return [batch.teacher, *(batch.contrasts if needed.contrast else ())]
    assert batch.teacher_ids_BP is not None
    assert batch.teacher_mask_BP is not None
    prompts = [Prompt(batch.teacher_ids_BP, batch.teacher_mask_BP)]
    if needed.contrast:
        assert batch.contrast_ids_BJP is not None
        assert batch.contrast_mask_BJP is not None
        contrasts = batch.contrast_ids_BJP, batch.contrast_mask_BJP
        num = batch.contrast_ids_BJP.shape[1]
        prompts += [Prompt(*(x[:, j] for x in contrasts)) for j in range(num)]
    return prompts
