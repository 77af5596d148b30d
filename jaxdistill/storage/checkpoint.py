"""Orbax checkpoints of a run: the device state at a step, with the host's state as JSON beside it.

A state is stored leaf by leaf under its path ("params.embed.value"), so that an error can name the
leaf that does not match, and one part of the state can be restored without the rest.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from jaxdistill import hosts
from jaxdistill.errors import UserError
from jaxdistill.files import sync
from jaxdistill.storage.best import Best, read_best, write_best
from jaxdistill.storage.buckets import explained, require_access
from jaxdistill.storage.leaves import by_name, misfit
from jaxdistill.storage.listings import (
    find_damage,
    is_complete,
    is_local,
    read_listings,
    remove_listings,
    write_listing,
)
from jaxdistill.storage.quiet import quiet, uninterrupted
from jaxdistill.storage.waiting import REFUSALS, is_at, wait_until


class Checkpoints:
    """Saves and restores the checkpoints in one folder, `FOLDER/STEP/{state,host}`.

    The constructor touches no file. A step is written under a temporary name and
    gets its name once the hashes of all its files are listed beside them (`listings`), so that a
    killed save leaves no step behind. A bucket, gs://BUCKET/PATH, has no names to change: there an
    object `STEP.unlisted` stands beside a step until it is listed, and such a step does not count.
    With several processes, every one must make every call, and the first writes `host`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        keep: int | None = 3,
        save_async: bool = True,
        verify: bool = True,
    ) -> None:
        """Keep the newest `keep` steps (None: all); `save_async` writes them in the background.

        Unless `verify`, steps are restored without comparing their files with the hashes.
        """
        # The default of three is chosen, not measured: two are left if the newest is damaged.
        # epath also handles gs:// paths; Orbax requires absolute ones.
        require_access(folder)
        self._folder = epath.Path(folder)
        if is_local(self._folder):
            self._folder = self._folder.absolute()
        self._keep = keep
        self._save_async = save_async
        self._verify = verify
        self._best: Best | None = None  # a step that is kept as the best once it is complete
        self._sound: set[int] = set()  # steps saved or verified by this process
        self._damaged: set[int] = set()
        self._writer: ocp.AsyncCheckpointer | ocp.Checkpointer | None = None
        self._finishing: threading.Thread | None = None
        self._failure: Exception | None = None  # of the thread
        self._has_failed = False
        # The folder, held open: a folder of its name that is made later has another inode.
        self._handle: int | None = None

    def save(self, step: int, state: Any, host: dict[str, Any]) -> None:
        """Save a pytree of arrays and numbers and a JSON-serialisable dict; replaces `step`.

        With `save_async` the call returns once the state has been copied off the devices, so the
        caller may donate its buffers at once. The next call raises a failure in the background:
        OSError with the path if the disk is full or refuses. Older steps beyond `keep` are deleted
        once this one is complete, and with them those known to be damaged.
        """
        self.wait()
        with uninterrupted(), quiet(), self._explain_failed_save(step):
            writer = self._open_writer()
            items = ocp.args.Composite(
                state=ocp.args.PyTreeSave(by_name(state)), host=ocp.args.JsonSave(host)
            )
            self._sound.discard(step)
            if not is_local(self._folder) and jax.process_index() == 0:
                self._marker(step).write_text("")
                # Orbax would do so with `force`, but for that it asks for the bucket's settings,
                # which an account that may write objects need not be allowed to see.
                self._delete(step)
            writer.save(self._unlisted(step), args=items, force=True)
            # Inside the block: an interrupt after it must not leave the step without its listing.
            self._finishing = threading.Thread(target=self._finish, args=(step,))
            self._finishing.start()
        if not self._save_async:
            self.wait()

    def steps(self) -> list[int]:
        """The steps on disk in ascending order, damaged ones too, once a running save is done.

        With several hosts it is what the first one sees; every one must make the call.
        """
        self.wait()
        return hosts.broadcast(self.steps_here() if hosts.is_first() else [], "checkpoints")

    def steps_here(self) -> list[int]:
        """The steps that this host sees; waits for nothing."""
        return sorted(self._named_steps())

    def usable_steps(self) -> list[int]:
        """The steps on disk that are complete and not known to be damaged; waits for nothing."""
        return sorted(
            step
            for step in self._named_steps() - self._damaged
            if not self._verify or is_complete(self._path(step))
        )

    def _named_steps(self) -> set[int]:
        with explained(os.fspath(self._folder)):
            # A process that deletes a step may be faster than this one.
            try:
                names = {path.name for path in self._folder.iterdir()}
            except (FileNotFoundError, NotADirectoryError):
                return set()
        unlisted = {name.removesuffix(".unlisted") for name in names if name.endswith(".unlisted")}
        return {int(name) for name in names - unlisted if name.isdecimal()}

    def best(self) -> Best | None:
        """The step that was kept as the best (`keep_best`), whatever newer ones there are."""
        with explained(os.fspath(self._folder)):
            return read_best(self._folder)

    def keep_best(self, best: Best) -> None:
        """Keep this step beside the newest ones, in place of the best before; it may be unsaved."""
        self.wait()
        self._best = best
        if jax.process_index() == 0 and best.step in self._named_steps():
            write_best(self._folder, best)
            self._delete_others(max(self._named_steps()))

    def forget_best(self) -> None:
        """No step is the best any more: the run continues from one before it."""
        self._best = None
        if jax.process_index() == 0:
            write_best(self._folder, None)

    def read_listings(self, step: int) -> dict[str, bytes]:
        """{name: content} of the listings of a step's files, which tell it from any other.

        A checkpoint of an earlier version has none; its metadata still name the arrays.
        """
        with explained(os.fspath(self._folder)):
            return read_listings(self._path(step))

    def latest_step(self) -> int | None:
        """The newest step, or None if there is none."""
        return max(self.steps(), default=None)

    def newest_sound_step(self, strict: bool, say: Callable[[str], None]) -> int | None:
        """The newest step whose files are as they were written, or None if there is no step.

        `say` is called with a line for each newer step, which is damaged or incomplete. Raises
        UserError if no step is sound, or for the first damaged one if `strict`. Deletes nothing.
        """
        steps = self.steps()
        if not self._verify:
            return max(steps, default=None)
        damage: dict[int, str] = {}
        for step in reversed(steps):
            found = self._find_damage(step)
            if found is None:
                for damaged, reason in damage.items():
                    say(
                        f"WARNING: {self._path(damaged)} is damaged or incomplete ({reason}): "
                        f"going on from step {step}, and what came after it is done again"
                    )
                return step
            if strict:
                raise self._damaged_error(step, found)
            damage[step] = found
        if not damage:
            return None
        newest = max(damage)
        raise UserError(
            f"{self._folder}: the checkpoint of step {newest} is damaged or incomplete "
            f"({damage[newest]}), and none is sound (steps {', '.join(map(str, steps))}); restore "
            "the files from a copy, or start again in another folder"
        )

    def restore(
        self, step: int, example: Any, part: str | None = None, vocab_size: int | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Return (state, host) of a step, in the structure, dtypes and shardings of `example`.

        Args:
          step: one of `steps()`.
          example: pytree of arrays, `jax.ShapeDtypeStruct`s (with a sharding, else the first
            device), NumPy arrays and numbers.
          part: the one field of the saved state to read, such as "params"; `example` then has the
            structure of that field.
          vocab_size: the model's; rows that a mesh stores beyond them may differ in number between
            the saved and the restored state, and are zero. None: every shape must be equal.

        Raises:
          UserError: the step is missing, damaged, or does not match `example`.
        """
        steps = self.steps()
        if step not in steps:
            found = ", ".join(map(str, steps)) or "none"
            raise UserError(f"{self._folder}: expected a checkpoint of step {step}, found {found}")
        if self._verify and (found := self._find_damage(step)):
            raise self._damaged_error(step, found)
        wanted = by_name(example, part)
        with quiet(), ocp.Checkpointer(_handler()) as reader:
            path = self._path(step)
            with self._explain_damage(step):
                saved = reader.metadata(path).item_metadata["state"].tree
            if (wrong := misfit(saved, example, part, vocab_size)) is not None:
                raise UserError(
                    f"{self._folder}: the checkpoint of step {step} does not match this config; "
                    f"{wrong}; use the config.json of its own run, or another folder"
                )
            with self._explain_damage(step):
                items = reader.restore(
                    path,
                    args=ocp.args.Composite(
                        state=ocp.args.PyTreeRestore(
                            item=wanted,
                            restore_args={n: _restore_args(leaf) for n, leaf in wanted.items()},
                            partial_restore=part is not None,
                        ),
                        host=ocp.args.JsonRestore(),
                    ),
                )
                leaves = [items["state"][name] for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(example), leaves), items["host"]

    def wait(self) -> None:
        """Block until a running save is complete, and raise the error if it failed."""
        with uninterrupted():
            if self._finishing is not None:
                self._finishing.join()
                self._finishing = None
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure

    def close(self) -> None:
        """Wait for a running save and stop Orbax's threads; a later call starts them again."""
        try:
            self.wait()
        finally:
            with uninterrupted(), quiet():
                if self._writer is not None:
                    # A failed save was reported; Orbax may report it again, without the path.
                    failed = contextlib.suppress(Exception)
                    with failed if self._has_failed else contextlib.nullcontext():
                        self._writer.close()
                self._writer = None
                if self._handle is not None:
                    os.close(self._handle)
                self._handle = None
                if self._has_failed:
                    self._remove_leftovers()  # again: other threads may have gone on writing

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _path(self, step: int) -> epath.Path:
        return self._folder / str(step)

    def _unlisted(self, step: int) -> epath.Path:
        """Where a step is until its files are listed."""
        return self._marker(step) if is_local(self._folder) else self._path(step)

    def _marker(self, step: int) -> epath.Path:
        return self._folder / f"{step}.unlisted"

    def _open_writer(self) -> ocp.AsyncCheckpointer | ocp.Checkpointer:
        if self._writer is None:
            if is_local(self._folder):
                # Without its parents: those of a run that was deleted are not made again.
                self._folder.mkdir(exist_ok=True)
            if is_local(self._folder) and self._handle is None:
                self._handle = os.open(self._folder, os.O_RDONLY)
            # Only a writer does this: a reader may be open while another process is saving.
            self._remove_leftovers()
            kind = ocp.AsyncCheckpointer if self._save_async else ocp.Checkpointer
            self._writer = kind(_handler())
        return self._writer

    def _remove_leftovers(self) -> None:
        """Remove what killed and failed saves left under temporary names."""
        if jax.process_index() == 0:
            for pattern in ("*.orbax-checkpoint-tmp*", "*.unlisted"):
                for path in self._folder.glob(pattern):
                    with contextlib.suppress(OSError):
                        if not is_local(path):
                            # The marker last: until then what is left of the step has one.
                            (self._folder / path.name.removesuffix(".unlisted")).rmtree(
                                missing_ok=True
                            )
                        path.rmtree()

    def _finish(self, step: int) -> None:
        """In a thread: complete a step, then delete the older ones that it replaces."""
        try:
            with quiet(), self._explain_failed_save(step):
                if isinstance(self._writer, ocp.AsyncCheckpointer):
                    self._writer.wait_until_finished()
                write_listing(self._unlisted(step), jax.process_index(), jax.process_count())
                if jax.process_index() == 0:
                    wait_until(lambda: is_complete(self._unlisted(step)))
                    self._give_name(step)
                    if self._best is not None and self._best.step == step:
                        write_best(self._folder, self._best)
                    self._delete_others(step)
                else:
                    wait_until(
                        lambda: step in self._named_steps() and is_complete(self._path(step))
                    )
                self._sound.add(step)
                self._damaged.discard(step)
        except Exception as error:  # raised by `wait`, in the caller's thread
            self._failure = error

    def _give_name(self, step: int) -> None:
        """Rename a complete step, in place of an older one of the same number."""
        if self._unlisted(step) != self._path(step):
            self._delete(step)
            self._unlisted(step).rename(self._path(step))
            sync(self._folder)
        else:
            self._marker(step).unlink()

    def _delete(self, step: int) -> None:
        if self._path(step).exists():
            # It must not look complete while its files are deleted one after another.
            remove_listings(self._path(step))
            self._path(step).rmtree()

    def _delete_others(self, newest: int) -> None:
        """Delete all but the best and the newest `keep` steps up to `newest`, and damaged ones.

        Steps after `newest` are of a run that went back to an earlier one.
        """
        if self._keep is None:
            return
        self._damaged.discard(newest)
        steps = self._named_steps()
        kept = [step for step in self.usable_steps() if step <= newest]
        best = {found.step} if (found := self.best()) is not None else set()
        for step in steps - set(kept[::-1][: self._keep]) - (best - self._damaged):
            self._delete(step)

    def _find_damage(self, step: int) -> str | None:
        """What is wrong with a step's files; all processes get the same answer, or all get one."""
        if step in self._sound:
            return None
        with explained(os.fspath(self._folder)):
            found = find_damage(self._path(step), jax.process_index(), jax.process_count())
        everywhere = hosts.all_gather(found, "damage")
        found = next((each for each in everywhere if each is not None), None)
        (self._sound if found is None else self._damaged).add(step)
        return found

    @contextlib.contextmanager
    def _explain_failed_save(self, step: int) -> Iterator[None]:
        """Turn what Orbax and TensorStore raise on a full disk into an OSError with the path."""
        try:
            yield
        except Exception as error:
            self._has_failed = quiet.is_kept = True
            if self._handle is not None and not is_at(self._handle, self._folder):
                # TensorStore makes it again, and fails for what was in it.
                text = "the folder was deleted during a save"
                raise FileNotFoundError(errno.ENOENT, text, str(self._folder)) from error
            self._remove_leftovers()  # on a full disk, they would take the room
            if not is_local(self._folder):
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                text = f"{self._path(step)} could not be written: {reason}"
                raise UserError(f"{text}; with access and room there, --resume goes on") from error
            if isinstance(error, OSError) and error.filename is not None:
                raise
            for code in REFUSALS:
                if os.strerror(code) in str(error) or getattr(error, "errno", None) == code:
                    path = str(self._path(step))
                    raise OSError(code, os.strerror(code), path) from error
            raise

    @contextlib.contextmanager
    def _explain_damage(self, step: int) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        # Orbax, TensorStore and asyncio each raise their own exception types. The first 160
        # characters name the file; pages of stack trace follow.
        except Exception as error:
            quiet.is_kept = True
            reason = (str(error).strip().splitlines() or [""])[0].partition(". See full")[0][:160]
            raise self._damaged_error(step, f"{type(error).__name__}: {reason}") from error

    def _damaged_error(self, step: int, reason: str) -> UserError:
        return UserError(
            f"{self._folder}: the checkpoint of step {step} is damaged or incomplete ({reason}); "
            f"delete {self._folder / str(step)} to use another step"
        )


def _handler() -> ocp.CompositeCheckpointHandler:
    return ocp.CompositeCheckpointHandler(
        state=ocp.PyTreeCheckpointHandler(), host=ocp.JsonCheckpointHandler()
    )


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        # Not strict: `misfit` has compared the shapes, and a vocabulary's added rows are cut off or
        # filled with zeros.
        return ocp.ArrayRestoreArgs(
            sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype, strict=False
        )
    return ocp.RestoreArgs(restore_type=type(leaf))
