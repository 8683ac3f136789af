"""Checks that the settings of several networks share."""


def require_multiple(name: str, value: int, of: str, divisor: int) -> None:
    """Refuse a value that is no multiple of the divisor, which `of` describes.

    Raises:
        ValueError: it is none.
    """
    if value % divisor:
        raise ValueError(f"{name} {value} is not a multiple of {of} {divisor}")
