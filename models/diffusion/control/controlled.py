"""A denoiser under one or several controls, as sampling calls it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from mezzotint.common.errors import UserError
from models.diffusion.condition import Condition
from models.diffusion.control.encoding import Encoding, added
from models.diffusion.control.network import Control, Controllable
from models.diffusion.process import DiffusionNetwork

GuessMode = Literal["off", "power", "logspace"]


@runtime_checkable
class ControllableNetwork(DiffusionNetwork, Controllable, Protocol):
    """A diffusion network in two halves."""


@dataclass(frozen=True)
class ControlTerm:
    """A control and how it acts; scale 0 is without it."""

    control: Control
    scale: float = 1.0
    interval: tuple[float, float] | None = None
    """Times from low to high in which it acts; None: always."""
    guess: GuessMode = "off"
    """Scales of the residuals that grow with depth, see `guess_scales`."""

    def acts(self, t: Tensor) -> Tensor:
        """Which of the times (B,) it acts at."""
        if self.interval is None:
            return torch.ones_like(t, dtype=torch.bool)
        low, high = self.interval
        return (t >= low) & (t <= high)


def guess_scales(mode: GuessMode, count: int) -> tuple[float, ...]:
    """Factors of `count` residuals, the middle's last.

    `power`: 0.825^(count - 1 - i), as ControlNet's code (gradio_canny2image.py); `logspace`: equal
    steps of the logarithm from 0.1 to 1, as diffusers.
    """
    match mode:
        case "off":
            return (1.0,) * count
        case "power":
            return tuple(0.825 ** (count - 1 - number) for number in range(count))
        case "logspace":
            return tuple(torch.logspace(-1, 0, count, dtype=torch.float64, device="cpu").tolist())


class ControlledNetwork:
    """A base and its controls, whose scaled residuals are summed.

    Where no control acts (scale 0, outside of its interval, without a hint) the base is called as
    it is, bit for bit, and a control that does not act is not computed.
    """

    def __init__(self, base: ControllableNetwork, terms: Sequence[ControlTerm]) -> None:
        """Of a base, and controls that were trained for it.

        Raises:
            UserError: more than one control has a decoder of its own.
        """
        self.base, self.terms = base, tuple(terms)
        self.process = base.process
        if sum(term.control.decoder is not None for term in terms) > 1:
            raise UserError(
                "controls: only one control of several can be unlocked, because it brings a "
                "decoder; leave the others out"
            )

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """As the base, with the controls whose hints the condition holds.

        Raises:
            UserError: another number of hints than of controls.
        """
        acting = self._acting(t, condition)
        plain = condition.without_hints
        if not acting:
            return self.base(x, t, plain)
        with torch.no_grad():
            encoding = self.base.encode(x, t, plain)
        total: list[Tensor] = []
        for term, hint in acting:
            residuals = self._residuals(term, hint, x, t, plain, encoding)
            longer, shorter = sorted((total, residuals), key=len, reverse=True)
            total = added(longer, shorter)  # some may act on the middle alone
        own = next((term.control.decoder for term, _ in acting if term.control.decoder), None)
        decoder: Controllable = self.base if own is None else own
        return decoder.decode(encoding, tuple(total))

    def _acting(self, t: Tensor, condition: Condition) -> list[tuple[ControlTerm, Tensor]]:
        hints = condition.hints
        if hints and len(hints) != len(self.terms):
            raise UserError(
                f"{len(hints)} hints for {len(self.terms)} controls; give one hint for each control"
            )
        return [
            (term, hint)
            for term, hint in zip(self.terms, hints, strict=False)
            if hint is not None and term.scale != 0 and bool(term.acts(t).any())
        ]

    def _residuals(
        self,
        term: ControlTerm,
        hint: Tensor,
        x: Tensor,
        t: Tensor,
        condition: Condition,
        encoding: Encoding,
    ) -> list[Tensor]:
        """Scaled, and 0 for the samples at whose time the control does not act."""
        found = term.control.residuals(x, t, condition, hint, encoding)
        factors = [term.scale * each for each in guess_scales(term.guess, len(found))]
        acts = term.acts(t)
        scaled = [
            each if factor == 1 else each * factor
            for each, factor in zip(found, factors, strict=True)
        ]
        if bool(acts.all()):
            return scaled
        return [
            torch.where(acts.view((-1,) + (1,) * (each.ndim - 1)), each, torch.zeros_like(each))
            for each in scaled
        ]
