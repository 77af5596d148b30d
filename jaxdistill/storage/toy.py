"""The toy worlds' base models, bundled or made, and its tokenizer as a Hugging Face folder."""

from importlib import resources
from pathlib import Path

from jaxdistill.errors import UserError
from jaxdistill.storage import hub
from jaxdistill.tasks.toy.tokenizer import CHAT_TEMPLATE, vocabulary


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template into a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    ids = {word: i for i, word in enumerate(vocabulary())}
    core = Tokenizer(models.WordLevel(ids, unk_token="<|unk|>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = hub.import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)


def toy_name(name: str | Path) -> str | None:
    """The part of `name` after the prefix "toy:"; None if it does not have that prefix.

    >>> toy_name("toy:main"), toy_name("runs/main")
    ('main', None)
    """
    kind, colon, rest = str(name).partition(":")
    return rest if (kind, colon) == ("toy", ":") else None


# World -> the recipe that makes its base, into the folder of its command; such bases do not ship.
MADE = {"sparse": "toy_sparse_base"}


def toy_base_folder(world: str) -> Path:
    """The folder of a world's base model: in the package, or where its recipe has made it.

    Raises UserError if there is none for `world`, or it has not been made in this folder.
    """
    if world in MADE:
        run = Path("runs") / MADE[world]
        if not (run / "export" / "config.json").exists():
            raise UserError(
                f"the base of the toy world {world!r} does not ship with the package, and {run} "
                f"has no export; make it with `jaxdistill train {MADE[world]} --run-dir {run}`"
            )
        return run / "export"
    folder = Path(str(resources.files("jaxdistill") / "tasks" / "toy" / "bases" / world))
    if not (folder / "config.json").exists():
        raise UserError(f"toy base {world!r} is not known; expected main, control or sparse")
    return folder
