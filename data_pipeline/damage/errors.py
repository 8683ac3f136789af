"""The error of a sample that does not decode."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from mezzotint.common.errors import UserError

Cause = Literal["image", "caption", "array", "hint"]
CAUSES: tuple[Cause, ...] = get_args(Cause)


class DamagedSampleError(UserError):
    """A member of a sample does not decode; shards that cannot be read are other errors."""

    def __init__(self, message: str, cause: Cause) -> None:
        super().__init__(message)
        self.cause: Cause = cause

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.cause)


@contextmanager
def decoding(cause: Cause) -> Iterator[None]:
    """Errors inside are of a sample.

    Raises:
        DamagedSampleError: For a UserError.
    """
    try:
        yield
    except UserError as error:
        raise DamagedSampleError(str(error), cause) from error
