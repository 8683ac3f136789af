"""What a hint is: recorded with the set that holds it and with a control that reads it."""

from pydantic import BaseModel, Field


class Detector(BaseModel, frozen=True, extra="forbid"):
    """What made hints from images; equal records make equal hints from equal images."""

    kind: str
    """`edges`, `sobel`, `silhouette`, `colours` or `scribble`."""
    library: str
    version: str
    """Of the library."""
    settings: dict[str, float | int | str]
    """All of the detector's settings, with their defaults."""

    def __str__(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in sorted(self.settings.items()))
        return f"{self.kind} ({values}; {self.library} {self.version})"


class HintRecord(BaseModel, frozen=True, extra="forbid"):
    """The hint that a control was trained on."""

    name: str
    """Of the member: `edges` for `KEY.edges.png`."""
    channels: int = Field(gt=0)
    detector: Detector | None = None
    """None: a user's own images or arrays."""
