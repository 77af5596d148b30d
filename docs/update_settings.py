"""Write docs/settings.md: every setting of a run, its default, its unit and when to change it.

Command: python docs/update_settings.py

Names, values and defaults come from the dataclasses, and so does what a setting means: from the
comment at its field, or from its entry in the class's docstring ("name: text"). Only the advice on
when to change a setting is written here. A setting without a text or without advice is an error.
"""

import dataclasses
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdistill import own_classes
from jaxdistill.config import RunConfig
from jaxdistill.errors import UserError
from jaxdistill.evaluation.evaluate import Evaluation, Split
from jaxdistill.evaluation.step_metrics import DRIFT
from jaxdistill.sampling import Sampling
from jaxdistill.sharding import MeshConfig
from jaxdistill.tasks.tasks import ChoiceTask, ExactTask, MathTask, ToyTask, WordsTask
from jaxdistill.training.compute import Compute
from jaxdistill.training.experience import Supervised
from jaxdistill.training.on_policy import OnPolicy
from jaxdistill.training.optimizer import Optimizer
from jaxdistill.training.traces import Traces

sys.path.insert(0, str(Path(__file__).parent))  # a test loads this file from elsewhere
from field_comments import comments_at_fields

PAGE = Path(__file__).with_name("settings.md")
INTRODUCTION = """# Settings

Every setting of a run. On the command line a setting is its dotted path, as in `--set
optimizer.peak_lr=3e-6`; in a recipe it is a field of the dataclass. The tables have the settings
that most runs are made of, and [the choices](#choices) below them are the classes that a setting
may be. A setting may also be a class of your own ([a weight, target, task or teacher of your
own](add_an_objective.md)). `config.json` in a run's folder has the values that the run used.

This page is written by `python docs/update_settings.py`.
"""

METRICS = """What `metrics.jsonl` and TensorBoard say at each step about the distance of the
student S to the initial model, which is the reference R. Columns of other metrics are explained in
[a first real run](first_real_run.md)."""

# Classes whose settings are tables, in the page's order, and their headings. The other classes are
# choices, whose docstrings explain their fields together.
TABLES: dict[type, str] = {
    RunConfig: "The run",
    OnPolicy: "`experience`: the student's own samples (OnPolicy)",
    Traces: "`experience`: responses of a file (Traces)",
    Supervised: "`experience`: texts of a toy world (Supervised)",
    MathTask: "`experience.task`: a data set (MathTask, ChoiceTask, ExactTask)",
    ChoiceTask: "",  # it has the settings of `MathTask`
    ExactTask: "`experience.task`: what else ExactTask has",
    ToyTask: "`experience.task`: the toy world (ToyTask)",
    WordsTask: "`experience.task`: its problems in words (WordsTask)",
    Sampling: "`experience.sampling` and `evaluation.sampling`",
    Optimizer: "`optimizer`",
    Compute: "`compute`",
    MeshConfig: "`mesh`",
    Evaluation: "`evaluation`",
    Split: "`evaluation.splits`",
}

# {class: {setting: when to change it}}. Settings of a base class stand with the class in TABLES.
WHEN: dict[type, dict[str, str]] = {
    RunConfig: {
        "name": "to tell runs apart",
        "model": "always, for a model of your own",
        "expected": "None for a model that is none of its recipe's students",
        "experience": "always: it holds the task",
        "objective": "this is the method: start from a preset",
        "steps": "more while the held-out accuracy still rises; 0 only evaluates",
        "teacher": "EMA or Snapshot for a teacher that improves with the student",
        "optimizer": "see its section",
        "compute": "see its section",
        "mesh": "see its section",
        "evaluation": "always: without splits nothing is evaluated",
        "lexicon": "for another language, or words that your model doubts with",
        "track_reference": "to see how far the student's epistemic mass is from the initial one",
        "checkpoint": "fewer minutes where machines disappear without a signal",
        "keep_checkpoints": "lower it if the disk fills up",
        "keep_best": "where a run may decline after its best step: [tracking](tracking.md)",
        "max_skipped_steps": "raise it if single batches are known to overflow",
        "stop_when": "for runs that collapse while nobody watches: [tracking](tracking.md)",
        "tracking": "`(TensorBoard(), WandB(project=...))`, `Trackio()` or your own; () for none",
        "save_checkpoints": "in studies of many small runs",
        "rollouts_every": "1 to keep the samples of all steps",
        "rollouts_rows": "None to keep all of a step's rows",
        "rollouts_token_ids": "to trace saved samples token by token, or to train on them again",
        "export": "if nobody loads the trained model",
        "seed": "for repetitions of a run",
        "grace_seconds": "what your cluster leaves after SIGTERM, less a few seconds",
    },
    OnPolicy: {
        "task": "always",
        "questions": "fewer for a small set or a short trial; more for a steadier gradient",
        "rollouts": "more if few questions have both a correct and an incorrect response",
        "sampling": "always `max_new_tokens`: responses longer than it are cut off",
        "context": "this is what the teacher knows: the paper's independent variable",
        "demonstration": "`sibling_or_reference` if many questions are never solved",
        "demonstration_choice": "`Shortest()` for terse demonstrations; `Majority()` for questions "
        "without gold answers",
        "cut_demonstrations": "True if nearly every response is cut",
        "cut_rows_in_loss": "False if cut responses teach the model to ramble",
        "max_prompt_tokens": "if a few long prompts make every batch wide",
        "max_demonstration_tokens": "lower it if the teacher's prompts do not fit in memory",
        "overlong": "`drop` if half a solution would mislead the teacher",
        "template": "for another wording or language",
        "contrast": "for the contrastive objectives only",
        "contrasts": "more for a less noisy contrast; each is a forward pass",
        "prompt_widths": "to fix the widths of the sampler by hand",
        "teacher_prompt_multiple": "for widths of your own, such as one for all batches",
        "completion_multiple": "for widths of your own, such as one for all batches",
        "updates": "2 as in the paper: twice as many updates from the same samples",
        "schedule": "`OneStepOff()` to [sample beside the update](one_step_off.md)",
        "student_thinking": "for models with a thinking mode, such as Qwen3",
        "teacher_thinking": "for a teacher that thinks and a student that does not",
        "teacher_opening": "`student` if a teacher in another mode should read the same turn",
        "teacher_temperature": "below 1 for a sharper teacher",
    },
    Traces: {
        "source": "always",
        "columns": "if the layout of the file is not recognised",
        "correct": "True to imitate correct responses only",
        "instruction": "if the evaluation asks for a form that the prompts do not",
        "batch_size": "with the learning rate",
        "epochs": "more for small files, while the held-out accuracy rises",
        "max_tokens": "if long rows do not fit in memory",
        "overlong": "`cut` if most rows are too long",
        "bad_rows": "`skip` once you have read which rows are bad",
        "student_thinking": "if responses hold thinking that the template would not expect",
    },
    Supervised: {
        "world": "to pretrain the control world's base",
        "examples": "fewer for a base that has seen less",
        "batch_size": "with the learning rate",
        "max_prompt_tokens": "with problems of more numbers",
        "max_completion_tokens": "with problems of more numbers",
        "workers": "if the device waits for texts",
    },
    MathTask: {
        "source": "always",
        "limit": "for a quick evaluation, or to vary the coverage of questions",
        "limit_seed": "for another subset of the same size",
        "columns": "if the layout of the data set is not recognised",
        "instruction": "None if the prompts ask for the form of the answer in their own way",
        "bad_rows": "`skip` once you have read which rows are bad",
        "thinking_tags": "for a model that thinks between other tags",
        "last_chars": "100 to take the box from where the paper's training does",
    },
    ExactTask: {
        "answer_in": "for prompts that ask for the bare answer",
        "ignore_case": "if case does not matter to the answer",
    },
    ToyTask: {
        "pool": "`heldout` for evaluations",
        "numbers": "4 or more for problems out of distribution",
        "count": "fewer to vary the coverage of problems",
        "seed": "for other problems of the same kind",
    },
    WordsTask: {
        "pool": "`heldout` for evaluations",
        "numbers": "4 or more for problems out of distribution",
        "count": "fewer to vary the coverage of problems",
        "seed": "for other problems of the same kind",
    },
    Sampling: {
        "temperature": "lower for accuracy; in training leave it at 1, the policy itself",
        "top_k": "as a model's card recommends, in evaluations",
        "top_p": "as a model's card recommends, in evaluations",
        "max_new_tokens": "always: raise it while the share of cut responses (`truncated`) is high",
        "min_p": "as a model's card recommends, in evaluations",
    },
    Optimizer: {
        "peak_lr": "first of all: too high a rate destroys a model within steps",
        "warmup_steps": "with the number of steps",
        "schedule": "`cosine` for runs whose end is known, such as fine-tuning",
        "b1": "hardly ever",
        "b2": "lower (0.99) for runs of few steps",
        "eps": "hardly ever",
        "weight_decay": "0 for short runs",
        "clip_norm": "if `grad_norm` is far above it at most steps",
        "moments": "`bfloat16` if memory is short",
        "moments_on": "`host` if memory is still short; the step becomes slower",
    },
    Compute: {
        "dtype": "`float32` to compare with another implementation",
        "chunk": "lower it if the step runs out of memory",
        "micro_batches": "more if the step runs out of memory and rows are padded",
        "pack": "for responses of uneven length on an accelerator",
        "remat": "if the automatic choice runs out of memory (`all`) or is slow (`none`)",
        "gradients": "`float32` to compare, or where 4 more bytes per parameter are at hand",
        "attention": "to compare implementations, or if the automatic choice fails",
        "cache_dtype": "`int8` to sample more rows at a time from long contexts",
        "weights_dtype": "`int8_dynamic` and an int8 cache, with a `rollout_correction`, for about "
        "64 rows at a time on an H200; time them first (benchmarks/README.md)",
        "grade_while_decoding": "where grading takes a visible part of an iteration",
        "slot_counts": "4 where most rows end long before the longest, from 256 slots on",
    },
    MeshConfig: {
        "data": "if the model fits on one device several times over",
        "fsdp": "1 for tiny models, whose steps several devices only slow down",
        "tensor": "if one row of a large model does not fit on a device",
    },
    Evaluation: {
        "splits": "always: at least one held-out set",
        "every": "to see when a run turns, at the cost of an evaluation each time",
        "at_start": "False if the initial model is measured elsewhere, as in a study",
        "samples": "more for narrower intervals on small sets",
        "sampling": "always `max_new_tokens`, as in the results you compare with",
        "evaluation_thinking": "to evaluate in another mode than that of training",
        "questions_per_batch": "fewer if memory is short",
        "base_questions": "to see what the student forgets; it costs two forward passes each time",
        "seed": "to see how much of a difference is noise",
    },
    Split: {
        "name": "always",
        "task": "always",
    },
}


def page() -> str:
    """The page's text. Raises UserError for a setting that lacks a text or advice."""
    parts = [INTRODUCTION]
    shown: set[tuple[type, str]] = set()
    for cls, heading in TABLES.items():
        fields = [f for f in own_classes.fields_of(cls) if (owner(cls, f), f) not in shown]
        shown |= {(owner(cls, name), name) for name in fields}
        if stale := sorted(WHEN.get(cls, {}).keys() - set(fields)):
            raise UserError(f"{PAGE.name}: {cls.__name__} has no setting {stale[0]!r}")
        if fields:
            parts.append(
                "\n".join([f"## {heading}\n", wrapped(summary(cls)), "", *rows(cls, fields)])
            )
    parts.append("## Choices")
    for path, classes in choices().items():
        items = "\n".join(map(item, classes))
        parts.append(f"### `{path}`\n\n{items}")
    lines = [f"- {wrapped(f'`{k}`: {text}.', '  ').strip()}" for k, text in DRIFT.items()]
    parts.append(f"## Metrics of drift\n\n{wrapped(METRICS)}\n\n" + "\n".join(lines))
    return "\n\n".join(part.strip() for part in parts) + "\n"


# ------------------------------------------------------------------------------------- tables


def rows(cls: type, fields: list[str]) -> Iterator[str]:
    """The lines of the table of a class's settings."""
    texts = texts_of(cls)
    yield "| setting | values | default | meaning and unit | change it |"
    yield "|---|---|---|---|---|"
    defaults = {field.name: field.default for field in dataclasses.fields(typing.cast(Any, cls))}
    for name in fields:
        annotation = own_classes.fields_of(cls)[name]
        tables = [c for c in own_classes.dataclasses_of(annotation) if c in TABLES]
        text = texts.get(name) or (summary(tables[0]) if len(tables) == 1 else "")
        advice = WHEN.get(cls, {}).get(name, "")
        for what, found in (("comment or entry in the docstring", text), ("advice", advice)):
            if not found:
                raise UserError(f"{PAGE.name}: {cls.__name__}.{name} has no {what}")
        default = "required"
        if defaults[name] is not dataclasses.MISSING:
            default = f"`{shortened(defaults[name])}`"
        cells = (f"`{name}`", values(annotation), default, text, advice)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def values(annotation: Any) -> str:
    """What a setting may be, in words."""
    origin, members = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{member}`" for member in members)
    if own_classes.is_union(annotation):
        kinds = [member for member in members if dataclasses.is_dataclass(member)]
        paths = [path for path, found in choices().items() if kinds and kinds[-1] in found]
        if len(kinds) > 4 and paths:
            anchor = paths[0].replace(".", "")
            return f"[a choice](#{anchor})"
        # Protocols allow a recipe's own class, which the introduction says.
        found = [values(member) for member in members if not own_classes.is_protocol(member)]
        return ", ".join(dict.fromkeys(found))
    if origin is tuple:
        is_pair = typing.get_origin(members[0]) is tuple
        return f"tuple of {'pairs' if is_pair else values(members[0])}"
    names = {bool: "`True`, `False`", type(None): "`None`", int: "integer", float: "number"}
    if annotation is str:
        return "text"
    return names.get(annotation) or f"`{annotation.__name__}`"


def shortened(value: Any, most: int = 44) -> str:
    """The value as it is written in a recipe, without what is default in it, and cut if long."""
    if dataclasses.is_dataclass(value):
        named = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        defaults = {field.name: field.default for field in dataclasses.fields(value)}
        changed = [f"{k}={shortened(v)}" for k, v in named.items() if v != defaults[k]]
        return f"{type(value).__name__}({', '.join(changed)})"
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


# ------------------------------------------------------------------------------------ choices


def choices() -> dict[str, list[type]]:
    """{path of the setting at which classes are first met: these classes}, in order."""
    found: dict[str, list[type]] = {}
    seen: set[type] = set(TABLES)

    def visit(cls: type, above: str) -> None:
        for name, annotation in own_classes.fields_of(cls).items():
            path = f"{above}{name}"
            if typing.get_origin(annotation) is tuple:
                annotation = typing.get_args(annotation)[0]
            for kind in own_classes.dataclasses_of(annotation):
                if kind in seen and kind not in TABLES:
                    continue
                if kind not in seen:
                    seen.add(kind)
                    found.setdefault(path, []).append(kind)
                visit(kind, f"{path}.")

    visit(RunConfig, "")
    return found


def item(cls: type) -> str:
    """A choice as an item of a list: how it is written, its docstring, its fields' comments."""
    arguments = []
    for field in dataclasses.fields(typing.cast(Any, cls)):
        has_default = field.default is not dataclasses.MISSING
        arguments.append(f"{field.name}={shortened(field.default)}" if has_default else field.name)
    docstring, comments = documented(cls), comments_of(cls)
    for name in own_classes.fields_of(cls):
        if name not in comments and not re.search(rf"\b{name}\b", docstring):
            raise UserError(f"{PAGE.name}: {cls.__name__}.{name} is explained nowhere")
    notes = "".join(f" `{name}`: {text.rstrip('.')}." for name, text in comments.items())
    text = f"`{cls.__name__}({', '.join(arguments)})`: {docstring}{notes}"
    return wrapped(text, "  ").replace("  ", "- ", 1)


# ------------------------------------------------------------------------------ texts of classes


def owner(cls: type, name: str) -> type:
    """The class of the inheritance chain that declares the field."""
    return next(base for base in cls.__mro__ if name in vars(base).get("__annotations__", {}))


def documented(cls: type) -> str:
    """The docstring in one line, without the errors that it lists."""
    text = " ".join(inspect.cleandoc(cls.__doc__ or "").split())
    return re.sub(r"\s*[^.]*\braises? UserError\b.*?\.(?=\s|$)", "", text, flags=re.IGNORECASE)


def summary(cls: type) -> str:
    return inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]


def texts_of(cls: type) -> dict[str, str]:
    """{setting: text} from the docstrings' entries "name: text" and the comments at the fields."""
    texts: dict[str, str] = {}
    names = "|".join(own_classes.fields_of(cls))
    entry = re.compile(rf"^((?:{names})(?:, (?:{names}))*): ")
    for base in reversed(cls.__mro__[:-1]):
        current: list[str] = []
        for line in inspect.cleandoc(base.__doc__ or "").splitlines():
            if found := entry.match(line):
                current = found[1].split(", ")
            elif not line or line.startswith("Raises "):
                current = []
            for name in current:
                added = line.removeprefix(found[0]) if found else line
                texts[name] = f"{texts[name]} {added}" if not found else added
        for name, comment in comments_of(base).items():
            texts[name] = f"{texts[name].rstrip('.')}; {comment}" if name in texts else comment
    return texts


def comments_of(cls: type) -> dict[str, str]:
    """{field: the comment above it and the one behind it} of a class's own fields."""
    if not dataclasses.is_dataclass(cls):
        return {}
    found = comments_at_fields(inspect.getsource(cls))
    return {name: text for name, text in found.items() if name in own_classes.fields_of(cls)}


def wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text,
        118,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
