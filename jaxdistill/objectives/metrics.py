"""The metrics of student, teacher and reference that every objective reports."""

import jax.numpy as jnp
from jaxtyping import Array

from jaxdistill import losses
from jaxdistill.objectives.positions import Epistemic, LossPart, Positions, Weighted, everywhere
from jaxdistill.objectives.reduction import Reduction
from jaxdistill.objectives.targets import AmplifyEpistemic

FORK_ENTROPY = AmplifyEpistemic.threshold  # nats

# The metrics whose histograms a step sums where the reference scores the samples (`fork_rates`).
OF_FORKS = ("entropy_student", "entropy_reference")


def observe(
    positions: Positions, epistemic: Epistemic, part: LossPart, reduction: Reduction
) -> dict[str, Weighted]:
    """Metrics as a value and a weight per position; `make_objective` lists them.

    The teacher's metrics are averaged over distilled rows only: in other rows it was shown nothing.
    """
    student, reference = positions.student_logp_BTV, positions.reference_logp_BTV
    is_epistemic_BT = epistemic.holds(positions.sampled.tokens_BT).astype(jnp.float32)
    size_BT = jnp.abs(part.loss_BT)
    # As the reduction weighs it: "sequence" divides each position's loss by its row's length.
    if reduction == "sequence":
        size_BT /= jnp.maximum(positions.rows.length_BT, 1)
    # Rounding leaves an entropy of 0 a little below it, where a histogram has no bin.
    entropy_BT = jnp.maximum(losses.entropy(student), 0.0)
    # Log-masses of E and of the rest, computed once here and used again for `mass_kl`.
    student_bins = losses.epistemic_bins(student, epistemic.is_member_V)
    metrics = {
        "epistemic_mass_student": everywhere(jnp.exp(student_bins[..., 0])),
        "epistemic_sampled": everywhere(is_epistemic_BT),
        "entropy_student": everywhere(entropy_BT),
        "fork_rate": everywhere((entropy_BT > FORK_ENTROPY).astype(jnp.float32)),
        "kept": Weighted(
            (part.weight_BT != 0).astype(jnp.float32), part.is_active_BT.astype(jnp.float32)
        ),
        "loss_share_epistemic": Weighted(is_epistemic_BT, size_BT),
    }
    if positions.teacher_logp_BTV is not None:
        metrics |= observe_teacher(positions, epistemic, student_bins)
    if reference is not None:
        metrics["epistemic_mass_reference"] = everywhere(epistemic.mass(reference))
        metrics["entropy_reference"] = everywhere(jnp.maximum(losses.entropy(reference), 0.0))
        metrics["kl_student_reference"] = everywhere(losses.reverse_kl(student, reference))
    return metrics


def observe_teacher(
    positions: Positions, epistemic: Epistemic, student_bins: Array
) -> dict[str, Weighted]:
    student, teacher = positions.student_logp_BTV, positions.teacher
    teacher_bins = losses.epistemic_bins(teacher, epistemic.is_member_V)
    values = {
        "epistemic_mass_teacher": jnp.exp(teacher_bins[..., 0]),
        "entropy_teacher": losses.entropy(teacher),
        "kl_teacher": losses.forward_kl(student, teacher),
        "mass_kl": losses.bernoulli_kl(teacher_bins, student_bins),
    }
    distill_weight_BT = jnp.greater(positions.rows.distill_weight_BT, 0).astype(jnp.float32)
    return {name: Weighted(value, distill_weight_BT) for name, value in values.items()}
