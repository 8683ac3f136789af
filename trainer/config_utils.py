"""Settings that name no kind."""

from pydantic import BeforeValidator


def kind_by_default(kind: str) -> BeforeValidator:
    """A mapping without a `kind` is one of this kind."""

    def named(value: object) -> object:
        if isinstance(value, dict) and "kind" not in value:
            return {"kind": kind, **value}
        return value

    return BeforeValidator(named)
