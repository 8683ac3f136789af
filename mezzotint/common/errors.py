"""The one exception for what a user can mend."""


class UserError(Exception):
    """Bad input, or settings and files that do not fit together.

    The message is one sentence that names the file, key or option at fault and the next step. The
    command line prints it without a traceback and exits with code 2.
    """
