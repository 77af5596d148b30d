"""One grading process: `python -m jaxdistill.tasks.grading.worker FD`, started by `pool`."""

import logging
import resource
import signal
import sys
from multiprocessing.connection import Connection

from jaxdistill.own_classes import in_one_line
from jaxdistill.tasks.grading.verdict import READY, TaskGrader, judge
from jaxdistill.tasks.questions import Question

# A tower of exponents fills memory faster than it runs out of time. The 4 GiB were chosen.
_MEMORY_BYTES = 4 << 30


def main(descriptor: int) -> None:
    """Receive a grader, say that it is ready, then answer (question, response) with a verdict."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it stops us itself
    logging.disable(logging.WARNING)  # what went wrong is in the verdict
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(_MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    with Connection(descriptor) as connection:
        try:
            grader = connection.recv()
        except (Exception, SystemExit) as error:  # a recipe that cannot be imported here
            connection.send(in_one_line(error))
            return
        if not isinstance(grader, TaskGrader):  # a recipe's own may not know such a question
            # Wrong on purpose: a right answer would end before the slow imports; they belong here.
            judge(grader, Question("warm-up", "", "1"), r"\boxed{\frac{1}{2}}")
        connection.send(READY)
        while True:
            try:
                question, response = connection.recv()
            except EOFError:  # the parent is gone
                return
            connection.send(judge(grader, question, response))


if __name__ == "__main__":
    main(int(sys.argv[1]))
