"""A parser that reports a mistake in one line and ends the help of every flag with its default."""

import argparse
from collections.abc import Callable
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any):
        super().__init__(formatter_class=DefaultsShown, **settings)

    def error(self, message: str) -> NoReturn:
        """Exit with one line, without the usage that argparse prints before it."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


class DefaultsShown(argparse.HelpFormatter):
    """Append each flag's default to its help, so that no help text has to repeat it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # Positional arguments, --help and --version have no default to show.
        ends_here = isinstance(action, argparse._HelpAction | argparse._VersionAction)
        if not action.help or not action.option_strings or ends_here:
            return action.help
        if action.required:
            return f"{action.help} (required)"
        default = vars(action).get("described_default")
        if default is None:
            is_switch, is_empty = action.nargs == 0, action.default in (None, [])
            default = "off" if is_switch else "none" if is_empty else "%(default)s"
        return f"{action.help} (default: {default})"


def describe_default(action: argparse.Action, default: str) -> None:
    """Show `default` in the help of a flag whose value is None until its verb computes it."""
    # An attribute of our own: `add_argument` rejects keywords that it does not know.
    vars(action)["described_default"] = default


def add_verb(
    verbs: Any,
    name: str,
    function: Callable[[argparse.Namespace], None],
    summary: str,
    *,
    compiles: bool = False,
    touches_devices: bool = False,
    several_hosts: bool = False,
) -> argparse.ArgumentParser:
    """Add a verb. One that `compiles` programs for a model imports JAX and says what takes long.

    Where several hosts are expected, one that compiles or `touches_devices` is refused unless it
    runs on `several_hosts`: a host's devices would wait for those of the others.
    """
    sub = verbs.add_parser(name, help=summary, description=summary)
    sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    is_refused = (compiles or touches_devices) and not several_hosts
    hosts = "several" if several_hosts else "one" if is_refused else None
    sub.set_defaults(function=function, compiles=compiles, hosts=hosts, verb=name)
    return sub
