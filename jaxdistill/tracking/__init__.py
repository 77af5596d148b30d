"""Trackers: where the metrics, evaluations and samples of a run are shown, besides its folder."""

from typing import Any

from jaxdistill import own_classes
from jaxdistill.errors import UserError
from jaxdistill.tracking.session import (
    OwnTracker,
    Sample,
    Session,
    Status,
    TrackedRun,
    label_of,
)
from jaxdistill.tracking.tensorboard import TensorBoard
from jaxdistill.tracking.trackio import Trackio
from jaxdistill.tracking.wandb import WandB

Tracker = TensorBoard | WandB | Trackio | OwnTracker
# Parts of the names of fields that hold a key, which config.json would keep and send.
SECRETS = ("api_key", "apikey", "token", "password", "secret", "credential")


def check_tracking(trackers: Any) -> None:
    """Raise UserError unless these are trackers, each with a label of its own and no key in it."""
    if not isinstance(trackers, tuple):
        raise UserError(f"tracking: expected a tuple of trackers, got {trackers!r:.80}")
    labels = []
    for index, tracker in enumerate(trackers):
        own_classes.require_choice(f"tracking[{index}]", tracker, Tracker)
        for name in own_classes.fields_of(type(tracker)):
            if any(part in name.lower() for part in SECRETS):
                raise UserError(
                    f"tracking[{index}]: {type(tracker).__name__}.{name} would be written to "
                    "config.json and sent with it; read a key from the environment instead"
                )
        labels.append(label_of(tracker))
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise UserError(f"tracking: {min(twice)} is there twice")


__all__ = [
    "OwnTracker",
    "Sample",
    "Session",
    "Status",
    "TensorBoard",
    "TrackedRun",
    "Tracker",
    "Trackio",
    "WandB",
    "check_tracking",
]
