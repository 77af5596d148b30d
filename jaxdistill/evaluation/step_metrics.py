"""What the metrics of drift in metrics.jsonl mean: for docs/settings.md and a report's glossary."""

# S is the student, R the reference (the initial model without a context), H an entropy in nats.
DRIFT = {
    "fork_rate": "the share of the student's sampled tokens at which its entropy H(S) is above "
    "0.672 nats, where an answer may fork",
    "fork_rate_reference": "the share at which H(S) is above `fork_threshold_reference`; 0.2 for "
    "the initial model itself. Where the reference scores the samples (`track_reference`)",
    "fork_threshold_reference": "the entropy H(R), in nats, that a fifth of the same tokens exceed",
    "entropy_reference": "the mean of H(R), in nats",
    "kl_student_reference": "KL(S||R) per token of the student's own samples, in nats. Where the "
    "reference scores the samples",
    "kl_reference_student": "KL(R||S) per token of the initial model's samples, in nats, at steps "
    "that are evaluated. It grows where the student forgets. With `evaluation.base_questions`, "
    "which costs two forward passes over these samples each time",
    "param_drift": "the norm of the parameters' change divided by the norm of the initial ones. "
    "At every step: the initial parameters are always held",
    "param_drift_GROUP": "the same of the embedding, attention, mlp, norms, and the head if it is "
    "not tied",
}
# The same for a reader of a report.
IN_SHORT = (
    "How far a run has moved from the initial model, as metrics.jsonl has it: the share of tokens "
    "at which the student is undecided (fork_rate, and fork_rate_reference against the initial "
    "model's own fifth), the divergence from the initial model on the student's samples "
    "(kl_student_reference) and on the initial model's (kl_reference_student), and the relative "
    "change of the parameters (param_drift)."
)
