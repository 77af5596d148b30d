"""The thinking modes of student and teacher, and the text from which each reads a response.

Both score the same tokens of a response, each after its own prompt. A chat template may open the
thinking at the end of a prompt, open and close it at once, or leave it to the response, by mode. A
teacher in another mode than the student could then read thoughts as an answer, or an answer as
thoughts.
"""

import sys
from collections.abc import Sequence

from jaxdistill import hosts
from jaxdistill.errors import UserError
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.loading import Policy
from jaxdistill.tasks import contexts
from jaxdistill.tasks.contexts import Shown
from jaxdistill.tasks.questions import Question, messages
from jaxdistill.training.on_policy import OnPolicy


def teacher_ids(
    experience: OnPolicy, policy: Policy, chats: Sequence[Sequence[dict[str, str]]]
) -> list[list[int]]:
    """The token ids of chats in the teacher's thinking mode, up to where the response begins."""
    tokenizer, opening = policy.tokenizer, None
    if experience.teacher_opening == "student" and experience.modes_differ:
        opening = tokenizers.response_opening(tokenizer, chats[0], experience.student_thinking)
    return tokenizers.prompt_ids(tokenizer, chats, experience.teacher_mode, opening)


def check_roles(experience: OnPolicy, policy: Policy, question: Question) -> None:
    """Check that the teacher reads the student's response as what it is, from its first token on.

    Prompts of the same mode end alike. Of prompts that do not, one pair is well formed: the
    student's has an empty block of thinking and the teacher's has none (Qwen3, the student without
    thinking and the teacher with it), so that both read an answer; a line on stderr says so. A line
    also says if the mode makes no difference. Raises UserError for every other pair.
    """
    if not experience.modes_differ:
        return
    student, teacher = experience.student_thinking, experience.teacher_mode
    tokenizer, chat = policy.tokenizer, messages(question)
    modes = f"`experience.student_thinking={student}` and `experience.teacher_thinking={teacher}`"
    (plain,) = tokenizers.prompt_ids(tokenizer, [chat], student)
    if teacher_ids(experience, policy, [chat]) == [plain]:
        hosts.say(f"{modes} make no difference: both render the same prompt")
    if experience.teacher_opening == "student":
        return
    opens = tokenizers.response_opening(tokenizer, chat, student)
    teacher_opens = tokenizers.response_opening(tokenizer, chat, teacher)
    if opens == teacher_opens:
        return
    ends = (
        f"{modes}: the student's prompts end in {opens!r} and the teacher's in {teacher_opens!r}, "
    )
    alike = "`experience.teacher_opening=student` opens both as the student's"
    # The student's opening must be the teacher's and a whole block of thinking.
    more = opens.removeprefix(teacher_opens)
    opened, closed = more.count("<think>"), more.count("</think>")
    if not opens.startswith(teacher_opens) or not opened == closed > 0:
        raise UserError(
            f"{ends}so the teacher would misread where a response's thinking begins or ends; "
            f"{alike}, or choose the same mode"
        )
    print(
        f"{ends}so the teacher expects thinking where a response answers, which its first tokens "
        f"show; {alike}",
        file=sys.stderr,
    )


def say_unknown_words(experience: OnPolicy, policy: Policy) -> None:
    """Say on stderr which words around a demonstration the tokenizer does not know.

    Byte-level tokenizers know all; one of whole words, as the toy world's, reads `<|unk|>` instead.
    """
    tokenizer = policy.tokenizer
    words = list(dict.fromkeys(wording(experience).split()))
    unknown, ids = tokenizer.unk_token_id, tokenizers.encode(tokenizer, words)
    if missing := [word for word, row in zip(words, ids, strict=True) if unknown in row]:
        hosts.say(
            f"the teacher reads {tokenizer.unk_token} in place of {', '.join(missing)}, which its "
            "tokenizer does not know; `experience.template` is the wording around what is shown"
        )


def wording(experience: OnPolicy) -> str:
    """The words that the template puts around what the context shows; "" without a template."""
    context = experience.context
    if isinstance(context, contexts.NoContext):
        return ""
    shown = Shown("", is_example=contexts.shows_example(context))
    if isinstance(context, contexts.Feedback):
        shown = shown._replace(feedback="", solution="" if context.with_solution else None)
    elif not isinstance(context, contexts.InstructionOnly):
        shown = shown._replace(solution="")
    return shown.turn(experience.template)
