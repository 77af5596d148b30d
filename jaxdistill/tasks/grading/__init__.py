"""Is the answer right? A wrong, missing, malformed or slow answer gets a verdict, not an exception.

May import `tasks.questions` and whatever `tasks` may, but not JAX: worker processes import it.
"""

from jaxdistill.tasks.grading.pool import GradingPool, grade_all
from jaxdistill.tasks.grading.verdict import Grader, Verdict

__all__ = ["Grader", "GradingPool", "Verdict", "grade_all"]
