"""The one exception of this room."""


class ModelError(Exception):
    """A bad model directory, or settings and inputs that do not fit together.

    The message is one sentence that names the file or the key at fault and the next step. The
    command line prints it without a traceback and exits with code 2.
    """
