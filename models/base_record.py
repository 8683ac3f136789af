"""The network that a control was trained for, as the control's model directory records it."""

from pydantic import BaseModel, Field


class BaseRecord(BaseModel, frozen=True, extra="forbid"):
    """A model directory and what must be in it."""

    model: str = Field(min_length=1)
    """A path or URL."""
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
