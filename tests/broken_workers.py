"""Workers of a study that fail. In a module by itself: the processes that they run in import it."""

import os

from jaxdistill.run import workers

WORKER = workers.worker


def dies(arms, study_dir, cores, failures):
    """As by the system's memory killer: no exception ever comes back."""
    os._exit(7)


def faulty(arms, study_dir, cores, failures):
    def run_arms(*_, **__):
        raise TypeError("oh")

    workers.run_arms = run_arms  # this process ends with it
    WORKER(arms, study_dir, cores, failures)
