"""The one exception of this room."""


class DataError(Exception):
    """Bad data or bad data settings.

    The message is one sentence that names the file or the key at fault and the next step. The
    command line prints it without a traceback and exits with code 2.
    """
