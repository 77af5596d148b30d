"""One grading process: `python -m jaxdistill.tasks.grading.worker FD`, started by `pool`."""

import logging
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection

from jaxdistill.own_classes import in_one_line
from jaxdistill.tasks.grading.parent import end_with_parent
from jaxdistill.tasks.grading.verdict import READY, TaskGrader, judge
from jaxdistill.tasks.questions import Question

# Evaluating a tower of exponents exhausts the memory before the time limit. 4 GiB of address space
# is chosen, not measured.
_MEMORY_BYTES = 4 << 30


def main(descriptor: int) -> None:
    """Receive a grader, send READY, then answer each (question, response) with a verdict."""
    # Ctrl-C goes to the whole process group; the parent handles it and stops this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
            connection.send(in_one_line(error))
            return
        # A built-in grader is called once so that its slow imports do not count towards the first
        # response. Only an integral or the like makes it import computer algebra. A recipe's own
        # grader may not accept such a question.
        if not isinstance(grader, TaskGrader):
            judge(grader, Question("warm-up", "", "1"), r"\boxed{\int_0^1 2x \, dx}")
        connection.send(READY)
        while True:
            try:
                question, response = connection.recv()
            except EOFError:  # the parent has exited
                return
            connection.send(judge(grader, question, response))


if __name__ == "__main__":
    main(int(sys.argv[1]))
