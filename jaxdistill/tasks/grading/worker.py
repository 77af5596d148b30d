"""One grading process: `python -m jaxdistill.tasks.grading.worker FD`, started by `pool`."""

import logging
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection

from jaxdistill.own_classes import in_one_line
from jaxdistill.tasks.grading.parent import end_with_parent
from jaxdistill.tasks.grading.verdict import BEGAN, READY, Grader, TaskGrader, fault_in, judge
from jaxdistill.tasks.questions import Question

# Evaluating a tower of exponents exhausts the memory before the time limit. 4 GiB of address space
# is chosen, not measured.
_MEMORY_BYTES = 4 << 30

# Only computer algebra finds them equal, so a grader of mathematics imports its library for them.
_GOLD, _GIVEN = "0.5", r"\int_0^1 x\,dx"


def main(descriptor: int) -> None:
    """Receive a grader, send READY, then answer each (question, response) with a verdict.

    Any other message says in one line why the run cannot go on. BEGAN precedes each verdict.
    """
    # Ctrl-C goes to the whole process group, and a host that shuts down sends SIGTERM to every
    # process; the parent handles both, may still need verdicts, and stops this process.
    for stopping in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stopping, signal.SIG_IGN)
    # A killed parent closes the pipe, but that is only noticed between two responses.
    end_with_parent(os.getppid())
    logging.disable(logging.WARNING)  # the verdict contains the reason of a failure
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(_MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    with Connection(descriptor) as connection:
        try:
            grader = connection.recv()
        except (Exception, SystemExit) as error:  # for example a recipe that cannot be imported
            connection.send(f"a grading process cannot load the grader: {in_one_line(error)}")
            return
        discard_output()
        connection.send(missing(grader) or READY)
        while True:
            try:
                question, response = connection.recv()
            except EOFError:  # the parent has exited
                return
            connection.send(BEGAN)
            verdict = judge(grader, question, response)
            fault = fault_in(verdict)
            connection.send(verdict if fault is None else f"the grader cannot run: {fault}")


def missing(grader: Grader) -> str | None:
    """What a built-in grader lacks here, in one line; None if it works.

    It grades one response, so that its slow imports do not count towards the first one. A recipe's
    own grader may not accept such a question and is not tried.
    """
    if isinstance(grader, TaskGrader):
        return None
    verdict = judge(grader, Question("warm-up", "", _GOLD), rf"\boxed{{{_GIVEN}}}")
    fault = fault_in(verdict)
    # Other graders than that of mathematics find no answer in a box.
    if fault is None and (verdict.correct or verdict.answer != _GIVEN):
        return None
    return (
        f"math_verify does not find {_GIVEN} equal to {_GOLD} ({fault or verdict.reason}), so it "
        "or its parser (latex2sympy2_extended, antlr4-python3-runtime) is missing or broken; "
        "install math-verify again"
    )


def discard_output() -> None:
    """Close what the parent reads to learn why a start failed: a grader may print without end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        os.dup2(nowhere, number)  # the descriptor, because C code prints too
    os.close(nowhere)


if __name__ == "__main__":
    main(int(sys.argv[1]))
