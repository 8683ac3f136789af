"""The exception for errors that a user can correct."""


class UserError(Exception):
    """Invalid input, or settings and files that do not fit together.

    The message is one sentence that names the file, key or option and the next step. The command
    line prints it without a traceback and exits with code 2.
    """
