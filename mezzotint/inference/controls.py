"""The controls of a diffusion system, and the hints of a request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mezzotint.common.errors import UserError
from mezzotint.inference.config import ControlSettings
from models import store
from models.diffusion.control.controlled import ControlTerm
from models.diffusion.control.network import Control, ControlConfig


@dataclass(frozen=True)
class Controls:
    """Controls as they act, with what they were loaded from."""

    settings: tuple[ControlSettings, ...] = ()
    terms: tuple[ControlTerm, ...] = ()
    digests: tuple[str, ...] = ()

    @property
    def conditional_only(self) -> frozenset[int]:
        """Numbers of the controls that guidance's unconditional half lacks."""
        return frozenset(
            number
            for number, each in enumerate(self.settings)
            if each.conditional_only or each.guess != "off"
        )

    def protocol(self) -> Mapping[str, object]:
        """How they act, for an evaluation's record; nothing without controls."""
        if not self.settings:
            return {}
        return {"controls": [each.model_dump(mode="json") for each in self.settings]}

    def with_settings(self, settings: tuple[ControlSettings, ...]) -> "Controls":
        """The same networks under other settings.

        Raises:
            UserError: the settings name other networks.
        """
        if [each.model for each in settings] != [each.model for each in self.settings]:
            raise UserError("system.controls: other controls than those that were loaded")
        terms = tuple(
            _term(one.control, each) for one, each in zip(self.terms, settings, strict=True)
        )
        return Controls(settings, terms, self.digests)

    def check(self, hints: Sequence[Tensor], prompts: int) -> None:
        """Refuse hints that do not fit, before anything is computed.

        Raises:
            UserError: another number, shape or count than needed, or values outside of [0, 1].
        """
        if len(hints) != len(self.terms):
            raise UserError(
                f"--control: {len(hints)} hints for {len(self.terms)} controls; give one hint for "
                "each control"
            )
        for hint, term, settings in zip(hints, self.terms, self.settings, strict=True):
            config = term.control.config
            shape = (config.hint.channels, config.hint_size, config.hint_size)
            if tuple(hint.shape) not in (shape, (prompts, *shape)):
                raise UserError(
                    f"--control: the hint has shape {tuple(hint.shape)}; {settings.model} takes "
                    f"hints of {shape[0]} channels and {shape[1]} x {shape[2]} pixels"
                )
            if not bool(((hint >= 0) & (hint <= 1)).all()):
                raise UserError("--control: a hint has values outside of [0, 1]")


NO_CONTROLS = Controls()


def read_controls(
    settings: tuple[ControlSettings, ...], base: str, device: torch.device
) -> Controls:
    """The controls of a system whose model is in the directory `base`.

    Raises:
        UserError: a directory holds no control, or one that was trained for another base.
    """
    known, terms, digests = store.describe(base), [], []
    for number, each in enumerate(settings):
        info = store.describe(each.model)
        if not isinstance(info.config, ControlConfig):
            raise UserError(
                f"system.controls.{number}.model: {each.model} holds a {info.config.kind}, not a "
                "control"
            )
        if info.base is not None and info.base.digest != known.digest:
            raise UserError(
                f"system.controls.{number}.model: {each.model} was trained for another base "
                f"({info.base.model}, {info.base.digest[:12]}) than {base} ({known.digest[:12]}); "
                f"sample it with its own base, or move it to this one: mezzotint transfer "
                f"{each.model} OUT --old {info.base.model} --new {base}"
            )
        if info.config.base != known.config:
            raise UserError(
                f"system.controls.{number}.model: {each.model} is a control of networks of other "
                f"settings than {base}; train one for this network"
            )
        control = store.load(each.model, device=device)
        assert isinstance(control, Control), "described as one"
        terms.append(_term(control, each))
        digests.append(info.digest)
    return Controls(settings, tuple(terms), tuple(digests))


def _term(control: Control, settings: ControlSettings) -> ControlTerm:
    return ControlTerm(control, settings.scale, settings.interval, settings.guess)
