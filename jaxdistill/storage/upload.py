"""Uploads to the Hugging Face hub: one commit with all files, or none.

The hub's own client does the work. Here are the checks that come before it, so that a long export
is not made for a name that cannot be pushed to, and one line for everything that may go wrong.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxdistill.errors import UserError

# What the hub itself puts into a new repository.
_OWN_FILES = {".gitattributes"}


class Repository(NamedTuple):
    """A repository of models that can be pushed to."""

    name: str  # OWNER/NAME
    is_private: bool
    head: str | None  # its last commit; None if it is not there yet


def check_name(name: str) -> None:
    """Raise UserError unless `name` is OWNER/NAME as the hub allows it. Needs no network."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if name.count("/") != 1:
            raise HFValidationError("it has not two parts")
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"{name!r:.120} is no name on the hub; expected OWNER/NAME of letters, digits, '-', "
            f"'_' and '.': {_one_line(error)}"
        ) from None


def find_repository(name: str, *, private: bool, update: bool) -> Repository:
    """The repository that a push would go to, whether it is there yet or not.

    Raises UserError without a token, for one that the hub does not accept, without a network, for a
    public repository if `private`, and for one that holds files unless `update`.
    """
    from huggingface_hub import HfApi, errors, get_token

    check_name(name)
    if get_token() is None:
        raise UserError(
            f"no token for the hub, which pushing to {name} needs: set HF_TOKEN, or "
            "`hf auth login`; the token must allow writing"
        )
    with _explained(name, "looking at it"):
        try:
            found = HfApi().model_info(name)
        except errors.RepositoryNotFoundError as error:
            if _status(error) == 401:
                raise
            return Repository(name, private, None)
    files = {file.rfilename for file in found.siblings or ()} - _OWN_FILES
    if files and not update:
        raise UserError(
            f"{name} is on the hub and holds {len(files)} files; add --update for another commit "
            "on top of them, or choose another name"
        )
    if private and not found.private:
        raise UserError(f"{name} is public; omit --private, or choose another name")
    return Repository(name, bool(found.private), found.sha)


def upload(
    repository: Repository, files: Mapping[str, Path | bytes], *, message: str, quiet: bool
) -> str:
    """Push `files` ({path in the repository: file or content}) as one commit; returns its address.

    The repository is created if it is not there. Raises UserError, and has then committed nothing,
    if the hub refuses or cannot be reached, or if somebody else has committed in the meantime.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    api, name, state = HfApi(), repository.name, ""
    was_disabled = are_progress_bars_disabled()
    if quiet and not was_disabled:
        disable_progress_bars()
    try:
        if repository.head is None:
            with _explained(name, "creating it"):
                api.create_repo(name, private=repository.is_private, exist_ok=True)
            state = f"; {name} is there now, and empty"
        with _explained(name, "uploading", f"; nothing was committed{state}"):
            done = api.create_commit(
                name,
                [CommitOperationAdd(path, _given(file)) for path, file in files.items()],
                commit_message=message,
                parent_commit=repository.head,
            )
    finally:
        if quiet and not was_disabled:
            enable_progress_bars()
    return done.commit_url


def _given(file: Path | bytes) -> str | bytes:
    return file if isinstance(file, bytes) else str(file)


@contextlib.contextmanager
def _explained(name: str, doing: str, state: str = "") -> Iterator[None]:
    """Raise UserError for every failure of the hub's client, with what is left on the hub."""
    from huggingface_hub import errors

    try:
        yield
    except Exception as error:
        # The client wraps what went wrong with one file.
        cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
        again = "; the same command may be run again"
        match _status(cause):
            case 401:
                reason = "the hub does not accept the token (HF_TOKEN, or `hf auth login`)"
            case 403:
                reason = f"this account or token may not write to {name.partition('/')[0]}/"
            case 409 | 412:
                reason = "it has changed on the hub in the meantime"
            case None if isinstance(error, errors.OfflineModeIsEnabled):
                reason = "HF_HUB_OFFLINE is set, so that the hub must not be asked"
            case None if _is_network(cause):
                reason = f"the hub cannot be reached: {_one_line(cause)}"
            case _:
                reason = _one_line(getattr(cause, "server_message", None) or cause)
        raise UserError(f"pushing to {name}, {doing}: {reason}{state}{again}") from error


def _status(error: Any) -> int | None:
    """The HTTP status of an error of the hub's client; None if it has none."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_network(error: BaseException | None) -> bool:
    # By its name: the client's HTTP library is httpx, and from its version 2 on another one.
    names = {kind.__name__ for kind in type(error).__mro__}
    return "TransportError" in names or isinstance(error, ConnectionError | TimeoutError)


def _one_line(error: object) -> str:
    """The text of an error, which may quote a whole request: 200 characters of it, chosen."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
