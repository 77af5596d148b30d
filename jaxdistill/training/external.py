"""A teacher that is another model (`teachers.Fixed`): found, compared with the student, and opened.

Student and teacher must have the same tokenizer, since the teacher scores the student's token ids.
Their vocabularies may be padded differently (Qwen's 151,936 and 152,064 rows for 151,669 ids): the
distributions of all networks are then over the tokenizer's ids alone.
"""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxdistill import hosts, objectives
from jaxdistill.errors import UserError
from jaxdistill.evaluation.revision import model_identity
from jaxdistill.files import write_whole
from jaxdistill.objectives import Objective
from jaxdistill.precision import compute_dtype
from jaxdistill.sharding import Mesh
from jaxdistill.storage import hf_files, hf_import, loading
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.loading import Policy
from jaxdistill.storage.toy import toy_name
from jaxdistill.training.teachers import External, Fixed, Teacher, Untrained

IDENTITY = "teacher.json"  # in a run's model folder


def with_external(
    teacher: Teacher,
    objective: Objective,
    student: Policy,
    mesh: Mesh | None = None,
    *,
    dtype: str = "auto",
    progress: bool = False,
) -> Any:
    """The parameters that no step changes: the student's own, or an `Untrained` with a teacher.

    A teacher's weights are held in `dtype`, the compute dtype, or as they are stored if that takes
    less. Raises UserError if there is no such model, its tokenizer is not the student's, or the
    objective reads no teacher.
    """
    if not isinstance(teacher, Fixed):
        return student.params
    if not objectives.needs_teacher(objective):
        raise UserError(
            f"`teacher`: {type(objective).__name__} reads no teacher, so {teacher.model} would be "
            "loaded for nothing; leave out `teacher`"
        )
    name = teacher.model
    place_of(name)
    model, tokenizer = loading.read_description(name)
    check_tokenizer(teacher, tokenizer, student.tokenizer)
    held = narrower(stored_dtype(name), str(compute_dtype(dtype)))
    model, params, _ = loading.open_weights(name, mesh, dtype=held, progress=progress)
    num_ids = shared_ids(model.vocab_size, student.config.vocab_size, tokenizer)
    return Untrained(student.params, External(params, model, num_ids))


def narrower(stored: str, computed: str) -> str:
    """Of two dtypes the one of fewer bytes; of equal ones the stored one."""
    return computed if jnp.dtype(computed).itemsize < jnp.dtype(stored).itemsize else stored


def stored_dtype(name: str) -> str:
    """The dtype of a model's published weights; a run's is that of its export."""
    folder = place_of(name)
    if loading.is_run(folder):
        return loading.export_dtype(folder / "model") or "float32"
    return hf_import.stored_dtype(folder)


def place_of(name: str) -> Path:
    """The folder that a teacher is read from. Raises UserError if there is none."""
    try:
        if toy_name(name) is None and loading.is_run(run := loading.folder_of(name)):
            return run
        return loading.model_folder(name)
    except UserError as error:
        raise UserError(f"`teacher`: {error}") from error


def shared_ids(teacher: int, student: int, tokenizer: Any) -> int | None:
    """How many ids both vocabularies share; None if neither has rows beyond them.

    Rows beyond the tokenizer's ids are padding, of which each model has as many as it likes.
    """
    num_ids = tokenizers.num_ids(tokenizer)
    return None if teacher == student == num_ids else num_ids


# ------------------------------------------------------------------------------- the tokenizer


def check_tokenizer(teacher: Fixed, theirs: Any, own: Any) -> None:
    """Raise UserError, which names the first difference, unless both tokenizers are the same.

    Compared are the ids of the whole vocabulary and, unless `template="student"`, the chat template
    and the tokens that begin and end texts.
    """
    start = f"`teacher`: {teacher.model} has another tokenizer than the student"
    found = first_other_id(theirs.get_vocab(), own.get_vocab())
    if found is not None:
        id, there, here = found
        raise UserError(
            f"{start}: id {id} is {there} there and {here} here; the teacher scores the student's "
            "ids, so take a teacher of the same vocabulary"
        )
    if teacher.template == "student":
        return
    advice = (
        "with `Fixed(..., template='student')` it reads the student's all the same, as a base "
        "student's instruct teacher does"
    )
    for name in ("eos_token", "bos_token"):
        there, here = getattr(theirs, name), getattr(own, name)
        if there != here:
            raise UserError(f"{start}: its {name} is {there!r}, and {here!r} here; {advice}")
    there, here = (str(each.chat_template or "") for each in (theirs, own))
    if there != here:
        at = next(
            (i for i, (x, y) in enumerate(zip(there, here)) if x != y), min(len(there), len(here))
        )
        raise UserError(
            f"{start}: its chat template differs from character {at}, {there[at : at + 40]!r} "
            f"there and {here[at : at + 40]!r} here; {advice}"
        )


def first_other_id(theirs: dict[str, int], own: dict[str, int]) -> tuple[int, str, str] | None:
    """(id, token there, token here) of the lowest id with different tokens, as text."""
    there, here = ({id: token for token, id in vocab.items()} for vocab in (theirs, own))
    for id in sorted(there.keys() | here.keys()):
        if there.get(id) != here.get(id):
            texts = [repr(each[id]) if id in each else "missing" for each in (there, here)]
            return id, texts[0], texts[1]
    return None


# -------------------------------------------------------------------------------- its identity


def identity_of(name: str) -> dict[str, Any]:
    """What tells a teacher from another: its name, a hash of its files, and a run's step."""
    folder = place_of(name)
    if loading.is_run(folder):
        found = model_identity(name)
        return {"model": name, "hash": found["revision"], "step": found["step"]}
    return {"model": name, "hash": loading.fingerprint(folder), "step": None}


def check_identity(teacher: Teacher, model_dir: Path, *, notes: bool = True) -> None:
    """Note the teacher in a run's model folder, or compare it with what is noted there.

    Without `notes` nothing is written.

    Checkpoints do not hold its parameters, which are read again. Raises UserError if the model has
    changed since the run was started.
    """
    if not isinstance(teacher, Fixed):
        return
    found, file = identity_of(teacher.model), model_dir / IDENTITY
    hosts.require_same(found["hash"], f"the teacher {teacher.model}: its files")
    if not hosts.is_first():
        return
    if not file.exists():
        if not notes:
            return
        model_dir.mkdir(exist_ok=True)
        write_whole(file, json.dumps(found, indent=1))
    elif (kept := hf_files.read_json(file)).get("hash") != found["hash"]:
        was = f"{kept.get('hash')}, step {kept.get('step')}" if kept.get("step") else kept["hash"]
        raise UserError(
            f"the teacher {teacher.model} is not the one that run {model_dir.parent} was started "
            f"with: its hash is {found['hash']}, and was {was}; restore it, or start another run"
        )
