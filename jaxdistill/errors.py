"""The one exception for mistakes that the user can correct."""


class UserError(ValueError):
    """A mistake in a config, file, folder or prompt; its message is one line for the user.

    The command line prints this line and exits with 2. Any other exception is a bug (exit 1).
    """
