"""Tokenizers of a folder or a hub model: text to token ids and back, and chat templates.

Text never becomes a control token: only the chat template and the caller write control tokens
(`storage.control_tokens`).

`<think>` and `</think>` stay in decoded text, whatever their flag. A template may open the thinking
itself (DeepSeek-R1: the prompt ends in `<think>\\n`), or close it at once (Qwen3 with
`enable_thinking=False`). A response is what follows the prompt, so R1's contains `</think>` but no
`<think>`; code that reads responses must expect both forms (`tasks.contexts.remove_thinking`). Such
templates also drop the thinking of past assistant turns.
"""

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsInt

import numpy as np
from jaxtyping import Int32

from jaxdistill.errors import UserError
from jaxdistill.files import parse_json
from jaxdistill.own_classes import in_one_line
from jaxdistill.storage import control_tokens, hub

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerFast

# To encode spelled control tokens, a tokenizer is switched to another mode and back: a thread that
# samples beside an evaluation (`training.ahead`) must not encode in between.
_ENCODING = threading.Lock()


def load(name: str | Path) -> "PreTrainedTokenizerFast":
    """Load the tokenizer of a Hugging Face folder, or of a model on the hub ("org/name").

    Raises UserError when there is no such folder or model, or no readable fast tokenizer in it.
    """
    folder = hub.find_folder(name, weights=False)
    transformers = hub.import_transformers()
    # AutoTokenizer chooses a class by config.json's model_type, and some classes (Qwen2's in
    # transformers 5) keep the vocabulary of tokenizer.json but silently replace its pre-tokenizer
    # by their own. PreTrainedTokenizerFast uses the file as it is.
    has_file = (folder / "tokenizer.json").is_file()
    loader = transformers.PreTrainedTokenizerFast if has_file else transformers.AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, its own, ...
        raise UserError(
            f"cannot read a tokenizer from {folder}: {in_one_line(error)[:300]}"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"the tokenizer in {folder} is not a fast one; add its tokenizer.json")
    return tokenizer


# ------------------------------------------------------------------------------ text and ids


def prompt_ids(
    tokenizer: "PreTrainedTokenizerFast",
    chats: Sequence[Sequence[dict[str, str]]],
    enable_thinking: bool | None = None,
    opening: str | None = None,
) -> list[list[int]]:
    """Render each chat (a list of role/content messages) up to the start of the assistant's turn.

    A control token that a message spells is encoded as ordinary text.

    Returns token ids, one list per chat. `enable_thinking` None leaves the choice to the template;
    a template without this option ignores it. `opening` replaces what the template writes in the
    assistant's turn. Raises UserError if the tokenizer has no chat template or the template refuses
    a chat.
    """
    control = control_tokens.control_tokens(tokenizer)
    texts, spelled = [], []
    for chat in chats:
        hidden, marks = control_tokens.hide(control, chat)
        rendered = prompt_text(tokenizer, hidden, enable_thinking, opening)
        text, spans = control_tokens.reveal(rendered, marks)
        texts.append(text)
        spelled.append(spans)
    return _encode(tokenizer, control, texts, spelled)  # the template has written all the others


def prompt_text(
    tokenizer: "PreTrainedTokenizerFast",
    chat: Sequence[dict[str, str]],
    enable_thinking: bool | None = None,
    opening: str | None = None,
) -> str:
    """Render one chat through the template, and then the template's generation prompt or `opening`.

    Raises UserError as `prompt_ids` does.
    """
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer in {tokenizer.name_or_path} has no chat template; add "
            "`chat_template` to its tokenizer_config.json"
        )
    options: dict[str, Any] = {}
    if enable_thinking is not None:
        options["enable_thinking"] = enable_thinking
    try:
        text = tokenizer.apply_chat_template(
            list(chat), tokenize=False, add_generation_prompt=opening is None, **options
        )
    except Exception as error:  # Jinja's errors, and whatever a template raises itself
        # Cut to 300 characters, because Jinja may quote the whole template.
        raise UserError(
            f"the chat template in {tokenizer.name_or_path} refused a chat with roles "
            f"{[message.get('role') for message in chat]}: {in_one_line(error)[:300]}"
        ) from error
    assert isinstance(text, str)
    return text + (opening or "")


def response_opening(
    tokenizer: "PreTrainedTokenizerFast",
    chat: Sequence[dict[str, str]],
    enable_thinking: bool | None = None,
) -> str:
    """What the template writes in the assistant's turn before the response, its header included.

    Qwen3's is `<|im_start|>assistant\\n`, and without thinking also an empty block of thinking.
    Raises UserError for a template that changes the turns before it too.
    """
    whole = prompt_text(tokenizer, chat, enable_thinking)
    turns = prompt_text(tokenizer, chat, enable_thinking, opening="")
    if not whole.startswith(turns):
        raise UserError(
            f"the chat template in {tokenizer.name_or_path} renders a chat's turns differently "
            "with `add_generation_prompt`, so where the assistant's turn begins is unknown"
        )
    return whole.removeprefix(turns)


def encode(tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str]) -> list[list[int]]:
    """Encode texts in one batch, adding no special token; a spelled control token stays text."""
    control = control_tokens.control_tokens(tokenizer)
    return _encode(tokenizer, control, texts, [control.spelled(text) for text in texts])


def _encode(
    tokenizer: "PreTrainedTokenizerFast",
    control: control_tokens.ControlTokens,
    texts: Sequence[str],
    spelled: Sequence[Sequence[control_tokens.Span]],
) -> list[list[int]]:
    """Encode texts; `spelled` holds the spans of each at which it spells control tokens."""
    if not texts:
        return []
    for text in texts:
        refuse_surrogates(text)
    with _ENCODING:
        rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [
            control_tokens.encode_spelled(tokenizer, control, text, spans) if spans else row
            for text, spans, row in zip(texts, spelled, rows, strict=True)
        ]


def refuse_surrogates(text: str) -> None:
    """Raise UserError for text with a lone surrogate, which no tokenizer accepts.

    JSON can hold one, and so can an argument whose bytes are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        near = text[max(error.start - 20, 0) : error.end + 20]
        raise UserError(f"text is not valid Unicode (a lone surrogate) near {near!r}") from None


def decode(tokenizer: "PreTrainedTokenizerFast", ids: Iterable[SupportsInt]) -> str:
    """Decode one sequence without its special tokens; `<think>` and `</think>` stay."""
    return decode_all(tokenizer, [ids])[0]


def decode_all(
    tokenizer: "PreTrainedTokenizerFast", sequences: Iterable[Iterable[SupportsInt]]
) -> list[str]:
    """Decode many sequences in one batch, as `decode` does."""
    backend = tokenizer.backend_tokenizer
    # `skip_special_tokens` is not used: some folders flag the think tags as special.
    skipped = {
        id
        for id, token in backend.get_added_tokens_decoder().items()
        if token.special and token.content not in control_tokens.THINK_TAGS
    }
    # An array's own list of integers takes a tenth of the time of `int` for each.
    lists = (ids.tolist() if isinstance(ids, np.ndarray) else map(int, ids) for ids in sequences)
    rows = [[token for token in ids if token not in skipped] for ids in lists]
    # Call the Rust tokenizer directly: the Python wrapper decodes row by row, and under some
    # folders' config it removes spaces before punctuation, which would change the training text.
    return backend.decode_batch(rows, skip_special_tokens=False)


# ---------------------------------------------------------------------------- special tokens


def stop_ids(
    tokenizer: "PreTrainedTokenizerFast",
    folder: str | Path | None = None,
    vocab_size: int | None = None,
) -> tuple[int, ...]:
    """Return the ids that end a response: `generation_config.json`'s, then the tokenizer's eos.

    If the two differ, either ends a response, as in vLLM: some published folders have the
    end-of-text token in one and the end-of-turn token in the other. A folder whose
    generation_config.json names none has those of its config.json, as in transformers. Raises
    UserError if there is no stop token, a file is malformed, or an id is not below `vocab_size`,
    since a model never samples it.
    """
    found: list[int] = []
    for name in () if folder is None else ("generation_config.json", "config.json"):
        found = found or _eos_of(Path(folder or "") / name, vocab_size)
    if isinstance(tokenizer.eos_token_id, int):
        found.append(tokenizer.eos_token_id)
    if not found:
        raise UserError(
            f"no stop token for {tokenizer.name_or_path}: set `eos_token` in "
            "tokenizer_config.json or `eos_token_id` in generation_config.json"
        )
    return tuple(dict.fromkeys(found))


def _eos_of(path: Path, vocab_size: int | None) -> list[int]:
    if not path.is_file():
        return []
    try:
        value = parse_json(path.read_bytes()).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a readable JSON object: {in_one_line(error)}") from error
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise UserError(
            f"{path}: `eos_token_id` must be a token id or a list of them: {value!r:.80}"
        )
    if vocab_size is not None and any(token >= vocab_size for token in ids):
        raise UserError(
            f"{path}: `eos_token_id` {max(ids)} is outside the model's `vocab_size` of "
            f"{vocab_size}, so no response would end with it"
        )
    return ids


def pad_id(tokenizer: "PreTrainedTokenizerFast") -> int:
    """The id to pad with. Masks hide padding, so a stop id will do if no pad token is set."""
    pad = tokenizer.pad_token_id
    return pad if isinstance(pad, int) else stop_ids(tokenizer)[0]


def num_ids(tokenizer: "PreTrainedTokenizerFast") -> int:
    """The rows that an embedding needs: one more than the highest id, whatever ids are left out."""
    return 1 + max(tokenizer.get_vocab().values())


def check_vocabulary(tokenizer: "PreTrainedTokenizerFast", vocab_size: int) -> None:
    """Refuse a tokenizer with ids that a model of `vocab_size` embeddings has no row for.

    Such an id would be read outside the embedding, which gives NaN and no error.
    """
    names = tokenizer.get_vocab()
    outside = sorted((id, name) for name, id in names.items() if id >= vocab_size)
    if outside:
        id, name = outside[0]
        raise UserError(
            f"the tokenizer in {tokenizer.name_or_path} has {len(outside)} entries beyond the "
            f"model's `vocab_size` of {vocab_size}, the first {name!r} with id {id}: take the "
            "model's own tokenizer, or resize its embeddings"
        )


# ------------------------------------------------------------------------------------ padding


def left_pad(
    sequences: Sequence[Sequence[int]], pad_id: int, multiple: int = 1
) -> tuple[Int32[np.ndarray, "B P"], Int32[np.ndarray, "B P"]]:
    """Pad on the left to the longest length, rounded up to `multiple`; returns (ids, mask).

    >>> left_pad([[5, 6], [7]], pad_id=0, multiple=4)[0].tolist()
    [[0, 0, 5, 6], [0, 0, 0, 7]]
    """
    ids_BP, mask_BP = _blank(sequences, pad_id, multiple)
    for ids_P, mask_P, sequence in zip(ids_BP, mask_BP, sequences, strict=True):
        start = len(ids_P) - len(sequence)
        ids_P[start:] = sequence
        mask_P[start:] = 1
    return ids_BP, mask_BP


def right_pad(
    sequences: Sequence[Sequence[int]], pad_id: int, multiple: int = 1
) -> tuple[Int32[np.ndarray, "B T"], Int32[np.ndarray, "B T"]]:
    """Pad on the right to the longest length, rounded up to `multiple`; returns (ids, mask)."""
    ids_BT, mask_BT = _blank(sequences, pad_id, multiple)
    for ids_T, mask_T, sequence in zip(ids_BT, mask_BT, sequences, strict=True):
        ids_T[: len(sequence)] = sequence
        mask_T[: len(sequence)] = 1
    return ids_BT, mask_BT


def _blank(
    sequences: Sequence[Sequence[int]], pad_id: int, multiple: int
) -> tuple[np.ndarray, np.ndarray]:
    longest = max((len(sequence) for sequence in sequences), default=0)
    # At least one multiple, because the compiled functions need axes of non-zero length.
    shape = (len(sequences), max(-(-longest // multiple), 1) * multiple)
    return np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32)
