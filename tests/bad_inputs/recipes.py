"""Recipe files: those that exit, return what is no config, or bring classes that do not work."""

from collections.abc import Iterator

from bad_inputs import Row, file, row

# {kind: (text, what is said)}; each is tried as a run's recipe and as a study's. `mine` is called.
TEXTS = {
    "nothing": ("", "expected a function named 'mine'"),
    "no function": ("mine = 3", "expected a function named 'mine'"),
    "another function": ("def other(): ...", "expected a function named 'mine'"),
    "a syntax error": ("def mine(:", "SyntaxError"),
    "bad indentation": ("def mine(ARGS):\nreturn 1", "IndentationError"),
    "no Python": ("{", "SyntaxError"),
    "random bytes": (bytes(range(1, 256)), "SyntaxError"),
    "a null character": ("x = 1\0", "SyntaxError|ValueError"),
    "Latin-1": ("x = 'é'\n".encode("latin-1"), "SyntaxError|expected a function"),
    "deep brackets": ("x = " + "(" * 500, "SyntaxError|MemoryError|RecursionError"),
    "a failing import": ("import no_such_module", "ModuleNotFoundError"),
    "a failing line": ("1 / 0", "ZeroDivisionError"),
    "an exit": ("import sys; sys.exit(0)", "cannot be run: SystemExit"),
    "an exit in it": ("import sys\ndef mine(ARGS): sys.exit(0)", "cannot be run: SystemExit"),
    "a bare exit": ("def mine(ARGS): exit()", "cannot be run: SystemExit"),
    "an exit with text": ("import sys\ndef mine(ARGS): sys.exit('bye')", "SystemExit: bye"),
    "a generator's exit": ("def mine(ARGS): raise GeneratorExit('now')", "GeneratorExit: now"),
    "an own base exception": (
        "class Stop(BaseException): ...\ndef mine(ARGS): raise Stop('now')",
        "Stop: now",
    ),
    "a base exception at once": ("raise BaseException('now')", "BaseException: now"),
    "an error of two lines": ("def mine(ARGS): raise ValueError('a\\nb')", "ValueError: a b"),
    "endless recursion": (
        "def mine(ARGS): return mine(ARGS)",
        "RecursionError|NameError|TypeError",
    ),
    "a coroutine": ("async def mine(ARGS): return 3", "returned coroutine"),
    "a generator": ("def mine(ARGS): yield 3", "returned generator"),
    "nothing back": ("def mine(ARGS): ...", "returned NoneType"),
    "a number": ("def mine(ARGS): return 3", "returned int"),
    "a class": (
        "from jaxdistill.config import RunConfig\ndef mine(ARGS): return RunConfig",
        "returned type",
    ),
    "arguments": ("def mine(ARGS, size): return 3", "TypeError: .*size"),
    "a class named so": ("class mine:\n  def __init__(self, ARGS): ...", "returned mine"),
    "an object that refuses": (
        "class A:\n  def __repr__(self): raise ValueError('no')\ndef mine(ARGS): return A()",
        "returned A",
    ),
}
# Parts of a RunConfig that are of another type: refused by type, wherever the config is read.
PARTS = {
    "name=None": "`?name",
    "name=3": "`?name",
    "model=None": "model: expected",
    "model=3": "model: expected",
    "model='toy:main'": "model: expected",
    "experience=None": "experience",
    "objective=None": "objective",
    "objective='sdpo'": "objective",
    "teacher=None": "teacher: expected",
    "teacher=EMA": "teacher: expected",
    "optimizer=None": "optimizer: expected",
    "compute=None": "compute",
    "mesh=None": "mesh: expected",
    "mesh='fsdp=1'": "mesh: expected",
    "evaluation=None": "evaluation: expected",
    "evaluation=()": "evaluation: expected",
    "lexicon=None": "lexicon: expected",
    "lexicon=('wait',)": "lexicon: expected",
    "steps='2'": "steps",
    "steps=2.0": "steps",
    "steps=True": "steps",
    "seed=None": "seed",
    "seed=1.5": "seed",
    "checkpoint=None": "checkpoint",
    "checkpoint='all'": "checkpoint",
    "keep_checkpoints=1.5": "keep_checkpoints",
    "rollouts_every='2'": "rollouts_every",
    "rollouts_rows='all'": "rollouts_rows",
    "export=None": "export",
    "track_reference='no'": "track_reference",
    "evaluation=Evaluation(splits=[Split('a', ToyTask())])": "splits",
    "evaluation=Evaluation(splits=(ToyTask(),))": "splits",
    "evaluation=Evaluation(splits=(Split('a', None),))": "splits.*task",
    "evaluation=Evaluation(splits=(Split('a', ToyTask),))": "task",
    "evaluation=Evaluation(samples='2')": "samples",
    "evaluation=Evaluation(samples=2.0)": "samples",
    "evaluation=Evaluation(every=None)": "every",
    "model=Pretrained(None)": "path",
    "model=Pretrained(Path('m'))": "path",
    "model=ToyBase(None)": "world",
    "lexicon=Words('wait')": "words",
    "lexicon=Words((None,))": "words",
    "lexicon=LexiconFile(None)": "lexicon.path: expected str",
}
CONFIG = """
from pathlib import Path
from jaxdistill.evaluation.evaluate import Evaluation, Split
from jaxdistill.epistemic import LexiconFile, Words
from jaxdistill.storage.loading import Pretrained, ToyBase
from jaxdistill.tasks.tasks import ToyTask
from jaxdistill.training.teachers import EMA
from tiny_run import tiny

def mine():
    return tiny(PART)
"""
STUDIES = {
    "workers=0": "`workers` must be an integer of at least 1",
    "workers='2'": "`workers` must be an integer",
    "arms=()": "`arms` must be a tuple of Arms, at least one",
    "arms=None": "`arms` must be a tuple",
    "arms=(3,)": "`arms` must be a tuple of Arms",
    "arms=[arm]": "`arms` must be a tuple",
    "arms=(arm, arm)": "several arms have the same name",
    "arms=(Arm(world='a/b', method='m', config=tiny()),)": "usable as a folder's name",
    "arms=(Arm(world='', method='..', config=None),)": "config",
    "arms=(Arm(world='w', method='m', config=3),)": "config",
    "name=''": "`name` must be usable",
    "name='../x'": "`name` must be usable",
}
STUDY = """
from jaxdistill.run.study import Arm, Study
from tiny_run import tiny

def mine(profile):
    arm = Arm(world='w', method='m', config=tiny())
    return Study(**(dict(name='s', profile='quick', arms=(arm,), workers=1) | dict(PART)))
"""
TASK = """
import sys
from dataclasses import dataclass
from jaxdistill.tasks.grading import Verdict
from jaxdistill.tasks.questions import Question

@dataclass(frozen=True)
class Mine:
    grading_workers = 0
    def questions(self):
        QUESTIONS
    def grade(self, question, response):
        GRADE
"""
ASK, RIGHT = "return [Question('q', '1', '1')]", "return Verdict(True, 'x', None)"
TASKS = {
    "no questions": ("return []", RIGHT, "Mine"),
    "no list": ("return None", RIGHT, "Mine"),
    "texts": ("return ['q']", RIGHT, "Mine"),
    "an exit": ("sys.exit(0)", RIGHT, "SystemExit|sys.exit"),
    "an error": ("return [][1]", RIGHT, "IndexError"),
    "two questions of one id": (f"{ASK} * 2", RIGHT, "Mine|id"),
    "an id that is a number": ("return [Question(3, '1', '1')]", RIGHT, "Mine|id"),
    "no verdict": (ASK, "return True", "expected a Verdict"),
    "an error in grade": (ASK, "raise KeyError('oh')", "KeyError"),
    "an exit in grade": (ASK, "sys.exit(0)", "SystemExit"),
    "a missing module": (ASK, "import no_such_module", "ModuleNotFoundError"),
    "a recursion in grade": (ASK, "return self.grade(question, response)", "RecursionError"),
}


def rows() -> Iterator[Row]:
    for verb, argument in (("train", ""), ("study", "profile")):
        for name, (text, expected) in TEXTS.items():
            if isinstance(text, str):
                text = text.replace("ARGS, ", f"{argument}, " if argument else "")
                text = text.replace("ARGS", argument)
            yield row(
                f"{verb}: a recipe of {name}", f"{verb} mine.py", expected, file("mine.py", text)
            )
    for part, expected in PARTS.items():
        text = CONFIG.replace("PART", part)
        yield row(
            f"train: a recipe with {part}", "train mine.py --quiet", expected, file("mine.py", text)
        )
    for part, expected in STUDIES.items():
        text = STUDY.replace("PART", part)
        yield row(
            f"study: a recipe with {part}", "study mine.py --quiet", expected, file("mine.py", text)
        )
    for name, (questions, grade, expected) in TASKS.items():
        text = TASK.replace("QUESTIONS", questions).replace("GRADE", grade)
        command = "eval toy:main --task mine.py:Mine --samples 1 --mesh fsdp=1"
        yield row(f"eval: a task with {name}", command, expected, file("mine.py", text))
