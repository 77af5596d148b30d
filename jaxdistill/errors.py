"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
    """A mistake in a config, file, folder or prompt; its message is one line for a person.

    The command line prints the line and exits with 2. Everything else is our own fault (exit 1).
    """
