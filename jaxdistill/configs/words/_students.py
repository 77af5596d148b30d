"""The model that the recipes in words are for, and how a run of another one is called."""

from jaxdistill.models.students import ExpectedModel, Student

# As `docs/examples/make_smollm2.py` writes it, into the folder that its docstring names. Stop ids
# and positions are those of the folder's own files.
SMOLLM2 = Student(
    model="smollm2",
    expected=ExpectedModel(
        student="SmolLM2-135M-Instruct", family="llama", stop_ids=(2,), max_positions=8_192
    ),
    billions=0.1,
)


def called(recipe: str, student: Student, usual: Student) -> str:
    """The name of a run, and so its folder: that of the recipe, with another student's name.

    >>> called("words_base", SMOLLM2, SMOLLM2)
    'words_base'
    """
    return recipe if student == usual else f"{recipe}-{student.name}"
