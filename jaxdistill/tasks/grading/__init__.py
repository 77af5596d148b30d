"""Is the answer right? A wrong, missing, malformed or slow answer is a verdict, no exception.

May import `tasks.questions` and what stands above `tasks`; no JAX, since worker processes load it.
"""

from jaxdistill.tasks.grading.pool import GradingPool, grade_all
from jaxdistill.tasks.grading.verdict import Grader, Verdict

__all__ = ["Grader", "GradingPool", "Verdict", "grade_all"]
