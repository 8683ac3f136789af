"""Controls of `mezzotint sample`: their settings and hints, from its options."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from data_pipeline.config import ImageConfig
from data_pipeline.hints.config import of_record
from data_pipeline.hints.read import read_array_hint, read_image_hint
from data_pipeline.images import decode
from mezzotint.common.errors import UserError
from mezzotint.common.hint import HintRecord
from mezzotint.inference.config import ControlSettings, DenoiserSystem, SystemConfig
from mezzotint.inference.model_lookup import find_model
from models import store
from models.diffusion.control.controlled import GuessMode
from models.diffusion.control.network import ControlConfig

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ControlOptions:
    """Hint files and how their controls act, each option once for all controls or once each."""

    hints: tuple[Path, ...] = ()
    models: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()
    intervals: tuple[str, ...] = ()
    """`LOW,HIGH`."""
    guess: GuessMode = "off"
    detect: bool = False
    """The files are images, of which the recorded detector makes hints."""


NO_CONTROLS = ControlOptions()


def with_controls(config: SystemConfig, options: ControlOptions) -> SystemConfig:
    """The system with the controls of the options; without any of them as it is.

    Raises:
        UserError: a system without controls, options that do not go together, or a control without
            a hint.
    """
    known = config.controls if isinstance(config, DenoiserSystem) else ()
    if options == NO_CONTROLS:
        if known:
            raise UserError(
                f"{known[0].model}: a control needs a hint; give --control FILE, or sample its base"
            )
        return config
    if not isinstance(config, DenoiserSystem):
        raise UserError("--control: acts on a single diffusion model; give its run")
    if not options.hints:
        raise UserError("--control: is missing; give a hint for each control")
    named = tuple(ControlSettings(model=find_model(each).directory) for each in options.models)
    controls = (*known, *named)
    if not controls:
        raise UserError(
            f"--control: {config.model} is a base without a control; add --control-model RUN, or "
            "sample the control's own run"
        )
    if len(options.hints) != len(controls):
        raise UserError(
            f"--control: {len(options.hints)} hints for {len(controls)} controls; give one for each"
        )
    count = len(controls)
    scales = _each(options.scales, count, 1.0, "--control-scale")
    intervals = [
        None if each is None else interval(each)
        for each in _each(options.intervals, count, None, "--control-interval")
    ]
    changed = [
        each.model_copy(update={"scale": scale, "interval": when, "guess": options.guess})
        for each, scale, when in zip(controls, scales, intervals, strict=True)
    ]
    return config.model_copy(update={"controls": tuple(changed)})


def read_hints(
    config: SystemConfig, options: ControlOptions, image: ImageConfig
) -> tuple[Tensor, ...]:
    """A hint (C, H, W) for each control of a system whose images are prepared as `image`.

    Raises:
        UserError: a file that is no hint, or one of another size or number of channels.
    """
    assert isinstance(config, DenoiserSystem), "others have no controls"
    hints = []
    for path, control in zip(options.hints, config.controls, strict=True):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); name a file") from error
        record = hint_record(control.model)
        if options.detect:
            hints.append(detect_hint(content, str(path), record, image))
        else:
            hints.append(read_hint(content, str(path), record, image.size))
    return tuple(hints)


def interval(text: str) -> tuple[float, float]:
    """Times as `LOW,HIGH`.

    Raises:
        UserError: not two numbers, 0 <= LOW < HIGH <= 1.
    """
    try:
        low, high = (float(each) for each in text.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low < high <= 1:
        raise UserError(
            f"--control-interval {text}: give two times, LOW,HIGH, between 0 (image) and 1 (noise)"
        )
    return low, high


def _each(values: Sequence[T], count: int, default: T, option: str) -> list[T]:
    """A value for each control."""
    if len(values) not in (0, 1, count):
        raise UserError(f"{option}: is given {len(values)} times for {count} controls")
    return [*values] if len(values) == count else [values[0] if values else default] * count


def hint_record(directory: str) -> HintRecord:
    """The hint that a control reads; without a record one of its number of channels.

    Raises:
        UserError: it holds no control.
    """
    info = store.describe(directory)
    if not isinstance(info.config, ControlConfig):
        raise UserError(
            f"--control-model: {directory} holds a {info.config.kind}; give the run of a control"
        )
    return info.hint or HintRecord(name="hint", channels=info.config.hint.channels)


def read_hint(content: bytes, name: str, record: HintRecord, size: int) -> Tensor:
    """A hint file, which messages call `name`: (C, H, W) in [0, 1].

    Raises:
        UserError: no hint, or one of another size or number of channels.
    """
    read = read_array_hint if name.endswith(".npy") else read_image_hint
    return torch.from_numpy(read(content, name, channels=record.channels, size=size))


@cache
def _warn_of_another_version(trained: str, here: str) -> None:
    """Say that hints may differ from those of training, once."""
    log.warning(
        "--detect: the control was trained on hints of %s, and this is %s: the hint may differ in "
        "details; install that version where they matter",
        trained,
        here,
    )


def detect_hint(content: bytes, name: str, record: HintRecord, image: ImageConfig) -> Tensor:
    """The hint of an image file, by the detector of a record: (C, H, W) in [0, 1].

    Raises:
        UserError: no image, or no detector is recorded.
    """
    from data_pipeline.hints.detect import hint_of

    if record.detector is None:
        raise UserError(
            f"{name}: the control was trained on hints of a user's own ('{record.name}'), so no "
            "detector makes one from an image; give the hint itself, without --detect"
        )
    trained, here = record.detector, of_record(record.detector).record
    if (trained.library, trained.version) != (here.library, here.version):
        _warn_of_another_version(
            f"{trained.library} {trained.version}", f"{here.library} {here.version}"
        )
    return torch.from_numpy(hint_of(of_record(record.detector), decode(content, image, name)))
