"""The exception for errors that a user can correct."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(Exception):
    """Invalid input, or settings and files that do not fit together.

    The message is one sentence that names the file, key or option and the next step. The command
    line prints it without a traceback and exits with code 2.
    """


def first_error(error: "ValidationError") -> str:
    """The first fault that pydantic found, as `key: message`."""
    fault = error.errors()[0]
    key = ".".join(str(part) for part in fault["loc"])
    return f"{key}: {fault['msg']}" if key else str(fault["msg"])
