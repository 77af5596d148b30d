"""From a question, a response and a context to the trace of the response."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill import config as configs
from jaxdistill import epistemic, overrides, sharding
from jaxdistill.epistemic import LexiconSource, Words
from jaxdistill.errors import UserError
from jaxdistill.objectives import PRESETS, Objective
from jaxdistill.overrides import Classes
from jaxdistill.own_classes import require_choice
from jaxdistill.precision import compute_dtype
from jaxdistill.sampling import Address, Sampling
from jaxdistill.sampling.engine import Engine
from jaxdistill.sampling.prompts import encode_prompts
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.loading import Policy
from jaxdistill.storage.toy import toy_base_folder
from jaxdistill.tasks.contexts import (
    PAPER,
    Attempt,
    Context,
    Shown,
    Template,
    composed,
    regenerates,
    shows_example,
)
from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question, is_text, messages
from jaxdistill.tasks.toy.traces import BUNDLED
from jaxdistill.tracing.record import Trace
from jaxdistill.tracing.scoring import CHUNK, Answer, PerToken, Settings, score_answer
from jaxdistill.training.networks import Networks

# What a context sees of a response that nobody has graded.
NOT_GRADED = Verdict(correct=False, reason="not graded", answer=None)


@dataclass(frozen=True, kw_only=True)
class How:
    """How a trace is computed, whatever it is of."""

    objective: Objective | None = None
    lexicon: LexiconSource = Words()
    mesh: sharding.Mesh | None = None
    dtype: str = "auto"
    attention: str = "auto"
    alternatives: int = 5  # the likeliest tokens of each network that are kept
    chunk: int = CHUNK  # positions per device whose logits are in memory at once
    temperature: float = 1.0  # of the objective and of every probability shown
    teacher_temperature: float | None = None  # of the teacher's; None: `temperature`


def how_of(**given: Any) -> How:
    """`How` with these fields. Raises UserError for a name that is none of them."""
    names = [field.name for field in fields(How)]
    for name in given:
        if name not in names:
            raise UserError(f"trace: unknown argument `{name}`; expected {', '.join(names)}")
    return How(**given)


@dataclass(frozen=True, kw_only=True)
class Named:
    """What a trace is called."""

    question: str
    context: str
    model: str
    reference: str = ""
    notes: tuple[str, ...] = ()


def trace_answer(
    policy: Policy, networks: Networks, answer: Answer, named: Named, how: How
) -> Trace:
    """Score an answer's token ids and describe them.

    Raises UserError for an answer that is empty or does not fit the model.
    """
    check_answer(policy, answer)
    lexicon = epistemic.open_lexicon(how.lexicon, policy.tokenizer)
    settings = Settings(
        model=policy.config,
        epistemic_ids=tuple(sorted(set(lexicon.ids))),
        objective=how.objective,
        alternatives=how.alternatives,
        dtype=str(compute_dtype(how.dtype)),
        attention=how.attention,
        temperature=how.temperature,
        teacher_temperature=how.teacher_temperature,
        chunk=how.chunk,
    )
    found = score_answer(settings, networks, answer, how.mesh)
    return _described(policy, answer, named, settings, found)


def check_answer(policy: Policy, answer: Answer) -> None:
    """Raise UserError for an answer without tokens, with unknown ones, or with too many."""
    tokens, V = list(answer.tokens), policy.config.vocab_size
    if not tokens:
        raise UserError("`response` has no tokens; a trace needs at least one")
    outside = [token for token in tokens if not 0 <= token < V]
    if outside:
        raise UserError(f"`response`: token id {outside[0]} is not one of the vocabulary's {V}")
    longest = max(len(answer.plain), len(answer.informed))
    if longest + len(tokens) > policy.config.max_positions:
        raise UserError(
            f"a prompt of {longest:,} tokens and the response's {len(tokens):,} exceed the model's "
            f"{policy.config.max_positions:,} positions (max_position_embeddings)"
        )


def _described(
    policy: Policy, answer: Answer, named: Named, settings: Settings, found: PerToken
) -> Trace:
    tokenizer, backend = policy.tokenizer, policy.tokenizer.backend_tokenizer
    ids = np.unique(found.top_ids).tolist()
    # One by one: a joint text would not say which characters are whose.
    texts = backend.decode_batch([[id] for id in ids], skip_special_tokens=False)
    teacher = settings.teacher_temperature
    objective = settings.objective
    return Trace(
        question=named.question,
        context=named.context,
        model=named.model,
        reference=named.reference,
        objective="" if objective is None else _name_of(objective),
        prompts=(text_of(tokenizer, answer.plain), text_of(tokenizer, answer.informed)),
        texts=pieces(tokenizer, answer.tokens),
        ids=np.asarray(answer.tokens, int),
        vocabulary=dict(zip(ids, texts, strict=True)),
        epistemic_ids=frozenset(settings.epistemic_ids),
        temperatures=(settings.temperature, settings.temperature if teacher is None else teacher),
        notes=named.notes,
        **found._asdict(),
    )


def _name_of(objective: Objective) -> str:
    """A preset's name, or the choice as one would write it."""
    for name, preset in PRESETS.items():
        if preset() == objective:
            return name
    return written(objective)


def name_of_folder(folder: Path) -> str:
    """What a model's folder is called on a page: the bundled base, the run, or the folder itself.

    A page is passed on, and the folders above say where somebody's files are.
    """
    for world in BUNDLED:
        if folder == toy_base_folder(world):
            return f"toy:{world}"
    return "/".join((folder.parent if folder.name == "model" else folder).parts[-2:])


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    backend = tokenizer.backend_tokenizer
    return backend.decode([int(id) for id in ids], skip_special_tokens=False)


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; together they are the text of all.

    A token that ends inside a character adds none: the character belongs to the token that
    completes it, and to the last one if none does.
    """
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=False)
    backend = tokenizer.backend_tokenizer
    found = [stream.step(backend, int(id)) or "" for id in ids]
    if not found[-1]:
        # The stream still waits for the rest of the character, which does not come.
        whole = text_of(tokenizer, ids)
        found[-1] = whole[len("".join(found)) :]
    return found


# ----------------------------------------------------------------------------- from texts


def question_of(question: str | Question) -> Question:
    """The question that was asked. Raises UserError for anything but text or a Question."""
    if isinstance(question, Question):
        return question
    if not is_text(question) or not question.strip():
        raise UserError(f"`question` must be text or a Question, got {question!r:.80}")
    # As `generate` names its first prompt, so that the same seed samples the same answer.
    return Question("prompt:0", question, "")


def informed_ids(
    policy: Policy,
    question: Question,
    context: Context,
    *,
    response: str = "",
    solution: str | None = None,
    template: Template = PAPER,
    thinking: bool | None = None,
) -> list[int]:
    """The teacher's prompt under a context. Raises UserError if it has nothing to show."""
    require_choice("context", context, Context)
    name = type(context).__name__
    if regenerates(context):
        raise UserError(
            f"`context`: {name} shows what the initial model answers when it is shown a solution; "
            "sample that answer, and show it with Solution(text)"
        )
    shown = shown_of(context, question, response, solution)
    if shown is None:
        what = "a Question with an answer" if name == "AnswerOnly" else f"{name}(text='...')"
        raise UserError(f"`context`: {name} has nothing to show for this question; write {what}")
    chat = messages(question, shown.turn(template))
    return tokenizers.prompt_ids(policy.tokenizer, [chat], thinking)[0]


def shown_of(
    context: Context, question: Question, response: str, solution: str | None
) -> Shown | None:
    """What a context shows beside a response; `solution` None is the question's own.

    For a context that shows another problem it is that problem with its solution.
    """
    example = solution if shows_example(context) else None
    solution = question.solution if solution is None else solution
    attempt = Attempt(question, response, NOT_GRADED, solution, None, example=example)
    return composed(context, attempt)


def response_ids(
    policy: Policy,
    question: Question,
    response: str | Sequence[int] | None,
    *,
    sampling: Sampling,
    seed: int,
    how: How,
    thinking: bool | None,
) -> tuple[list[int], list[float] | None, tuple[str, ...]]:
    """(token ids, behaviour log-probabilities if sampled, notes); if it is None, one is sampled."""
    if response is None:
        engine = Engine(
            policy,
            mesh=how.mesh,
            dtype=how.dtype,
            attention=how.attention,
            enable_thinking=thinking,
        )
        address = Address(seed=seed, purpose="sample")
        drawn = engine.rollouts(policy.params, [question], sampling, 1, address)
        length = int(drawn.lengths_B[0])
        cut = () if drawn.finished_B[0] else (f"The answer was cut at {length:,} tokens.",)
        return (
            drawn.tokens_BT[0, :length].tolist(),
            drawn.logp_BT[0, :length].tolist(),
            ("The answer was sampled by the student.", *cut),
        )
    if isinstance(response, str):
        if not is_text(response):
            raise UserError("`response` is not valid Unicode (a lone surrogate)")
        return tokenizers.encode(policy.tokenizer, [response])[0], None, ()
    ids = np.asarray(response)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise UserError(f"`response` must be text or a list of token ids, got {response!r:.80}")
    return ids.tolist(), None, ()


def trace_question(
    policy: Policy,
    networks: Networks,
    question: str | Question,
    response: str | Sequence[int] | None,
    context: Context | str,
    *,
    model: str,
    reference: str = "",
    solution: str | None = None,
    template: Template = PAPER,
    thinking: bool | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    how: How,
) -> Trace:
    """The trace of a response, or of one that is sampled, under a context.

    `solution` is what a context shows that has no text of its own; None is the question's own.
    """
    question, context = question_of(question), context_of(context)
    informed = informed_ids(
        policy, question, context, solution=solution, template=template, thinking=thinking
    )
    tokens, behaviour, notes = response_ids(
        policy,
        question,
        response,
        sampling=sampling or Sampling(),
        seed=seed,
        how=how,
        thinking=thinking,
    )
    return trace_answer(
        policy,
        networks,
        Answer(
            plain=encode_prompts(policy.tokenizer, [question], thinking)[0],
            informed=informed,
            tokens=tokens,
            behaviour_logp=behaviour,
        ),
        Named(
            question=question.prompt,
            context=written(context),
            model=model,
            reference=reference,
            notes=notes,
        ),
        how,
    )


# --------------------------------------------------------------------------- choices as text


def written(choice: Any) -> str:
    """A choice as one would write it: what is not as by default.

    >>> from jaxdistill.tasks.contexts import PartialSolution, Solution
    >>> written(Solution()), written(PartialSolution(0.25))
    ('Solution()', 'PartialSolution(fraction=0.25)')
    """
    changed = {field.name: getattr(choice, field.name) for field in fields(choice)}
    for field in fields(choice):
        if field.default == changed[field.name]:
            del changed[field.name]
    inside = ", ".join(f"{name}={value!r}" for name, value in changed.items())
    return f"{type(choice).__name__}({inside})"


def context_of(context: Context | str, own: Classes | None = None) -> Context:
    """A context, or one written as on the command line: "Solution('...')", "AnswerOnly()"."""
    if not isinstance(context, str):
        return context
    return overrides.parse(Context, context, "context", own or {})


def objective_of(objective: Objective | str | None, own: Classes | None = None) -> Any:
    """An objective, a preset's name, or one written as on the command line."""
    if not isinstance(objective, str):
        if objective is not None:
            require_choice("objective", objective, Objective)
        return objective
    (text,) = configs.with_presets([f"objective={objective}"])
    return overrides.parse(Objective, text.partition("=")[2], "objective", own or {})
