"""Weights & Biases: `pip install 'jaxdistill[wandb]'`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

from jaxdistill import hosts
from jaxdistill.errors import UserError
from jaxdistill.tracking.names import SAMPLES, STEP
from jaxdistill.tracking.session import Sample, Status, TrackedRun, package

# For the first answer of the service. Chosen: a slow network needs seconds, and whoever waits for
# one that is not there wants to know soon.
INIT_TIMEOUT_S = 30.0
REFUSED = "/\\#?%:"  # characters of a project's name
EXIT_CODES: dict[Status, int] = {"finished": 0, "stopped": 143, "ended itself": 3, "failed": 1}


@dataclass(frozen=True)
class WandB:
    """A run of a W&B project, which a resumed run continues; runs of a study are a group.

    project, entity: where W&B shows the run; entity None: your default one. tags: of the run.

    The key comes from `wandb login` or WANDB_API_KEY and is never a setting. WANDB_MODE=offline
    keeps the run in RUN/wandb, from where `wandb sync` sends it.
    """

    project: str = "jaxdistill"
    entity: str | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self):
        # W&B's own limits, which it names only once a run is opened.
        if not 1 <= len(self.project) <= 128 or set(self.project) & set(REFUSED):
            raise UserError(
                f"WandB.project={self.project!r:.80}: expected 1 to 128 characters, none of "
                f"{REFUSED}"
            )

    @property
    def label(self) -> str:
        return f"WandB({'/'.join(filter(None, (self.entity, self.project)))})"

    def open(self, run: TrackedRun) -> "WandBSession":
        # The client's reports on itself: without a network they keep the process from ending.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        wandb: Any = package("wandb", self.label, "wandb")
        settings = wandb.Settings(
            silent=True,  # our line says what matters; its own would break the progress bar
            console="off",
            disable_git=True,
            save_code=False,
            init_timeout=INIT_TIMEOUT_S,
        )
        try:
            wandb.setup(wandb.Settings(silent=True))
            # Read here: the package reads it once per process.
            mode = os.environ.get("WANDB_MODE")
            if mode not in ("offline", "disabled") and not wandb.login(prompt=False, verify=False):
                raise UserError(
                    f"tracking: {self.label}: no login; run `wandb login`, set WANDB_API_KEY, or "
                    "set WANDB_MODE=offline to keep the run here for `wandb sync`"
                )
            opened = wandb.init(
                project=self.project,
                entity=self.entity,
                id=run.id,
                mode=mode,
                name=run.name,
                group=run.study,
                tags=list(self.tags) or None,
                config=run.config,
                dir=str(run.folder),
                resume="allow",
                reinit="create_new",  # a recipe's own code may have a run open
                allow_val_change=True,  # of settings that a resumed run may change
                settings=settings,
            )
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise UserError(
                f"tracking: {self.label} cannot be reached: {reason}; WANDB_MODE=offline keeps the "
                "run here for `wandb sync`"
            ) from error
        # W&B's own counter cannot go back, so an evaluation that a resumed run repeats would be
        # dropped; values are drawn over a counter of ours.
        opened.define_metric(STEP, summary="max")
        opened.define_metric("*", step_metric=STEP)
        return WandBSession(wandb, opened)


class WandBSession:
    """A W&B run. Its client sends in a process of its own, so that no call waits for a network."""

    num_open = 0  # in this process

    def __init__(self, wandb: Any, run: Any) -> None:
        self._wandb, self._run = wandb, run
        WandBSession.num_open += 1

    def says(self) -> str:
        if self._run.url:
            return self._run.url
        return f"offline; `wandb sync {os.path.dirname(self._run.dir)}` sends it"

    def last_step(self) -> int | None:
        step = self._run.summary.get(STEP) if self._run.resumed else None
        return int(step) if isinstance(step, int | float) else None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({STEP: step, **values})

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        table = self._wandb.Table(
            columns=[field.name for field in fields(Sample)],
            data=[list(astuple(sample)) for sample in samples],
        )
        self._run.log({STEP: step, SAMPLES: table})

    def finish(self, status: Status) -> None:
        self._run.summary["status"] = status
        if status == "stopped":
            self._run.mark_preempting()  # shown as preempted, not as failed
        self._run.finish(exit_code=EXIT_CODES[status])
        WandBSession.num_open -= 1
        # Where this process ends without Python's handlers at exit, W&B's own process, which writes
        # the files, is killed with it: let it end first. Elsewhere a notebook may have other runs.
        if (status == "stopped" or hosts.count() > 1) and not WandBSession.num_open:
            self._wandb.teardown(exit_code=EXIT_CODES[status])
