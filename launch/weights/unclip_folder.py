"""An unCLIP system as a folder that diffusers' `UnCLIPPipeline` loads (tested with version 0.42).

`prior/`, `decoder/`, `text_proj/`, `text_encoder/`, `tokenizer/`, `super_res_first/` and
`super_res_last/`, which are one upsampler here, and three schedulers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from launch.weights.diffusers_folder import (
    INDEX,
    TEXT_WEIGHTS,
    VERSION,
    WEIGHTS,
    TextPart,
    Written,
    text_part,
    write_json_file,
    write_part,
)
from launch.weights.foreign_file import read_weights
from mezzotint.common.embedding_scaling import EmbeddingScaling, require_equal_embeddings
from mezzotint.common.errors import UserError
from mezzotint.common.files import write_bytes
from mezzotint.inference.model_lookup import find_model
from models import store
from models.clip_transformers import with_projection
from models.diffusion.prior.diffusers import prior_settings, to_diffusers_prior
from models.diffusion.prior.network import DiffusionPriorConfig
from models.diffusion.prior.sampling import embedding_thresholding
from models.diffusion.process import ProcessConfig
from models.diffusion.schedules.discrete import CosineBetasConfig, DiscreteSchedule
from models.diffusion.schedules.ve_schedule import EDMSchedule, VESchedule
from models.diffusion.thresholding import NormThresholding, RangeThresholding
from models.diffusion.unet.diffusers import to_diffusers
from models.diffusion.unet.diffusers_settings import settings_of
from models.diffusion.unet.network import UNetConfig
from models.diffusion.unet.unclip_weights import (
    PROJECTION,
    DecoderState,
    decoder_settings,
    from_diffusers_decoder,
    projection_settings,
    to_diffusers_decoder,
)
from models.frozen_text import as_trained, describe
from models.text_source import ClipText, OpenClipText

STEPS = 1000
_CLOSE = 1e-3
"""Largest difference of alpha^2 from the one schedule that their scheduler has."""
_PREDICTIONS = {"noise": "epsilon", "x0": "sample"}
_PROJECTION_MODULE = "diffusers.pipelines.deprecated.unclip.text_proj"


@dataclass(frozen=True)
class UnclipModels:
    """The models of a system besides its decoder: training runs or model directories."""

    prior: str
    upsampler: str

    @classmethod
    def of_options(cls, prior: str | None, upsampler: str | None) -> "UnclipModels | None":
        """What a command was given; None without.

        Raises:
            UserError: one of both is missing.
        """
        if prior is None and upsampler is None:
            return None
        if prior is None or upsampler is None:
            raise UserError("--prior and --upsampler: UnCLIPPipeline needs both")
        return cls(prior, upsampler)


def read_decoder(file: Path, config: UNetConfig) -> dict[str, Tensor]:
    """A decoder from the weights of its UNet and `text_proj/` beside; it reads CLIP's embeddings.

    Raises:
        UserError: there is no such folder, or weights that do not fit the config.
    """
    beside = file.parent.parent / "text_proj" / WEIGHTS
    if not beside.is_file():
        raise UserError(f"{beside}: no such file; a decoder of unCLIP is decoder/ and text_proj/")
    state = DecoderState(read_weights(file), read_weights(beside))
    return from_diffusers_decoder(state, config, None)


def write_decoder(directory: str, out: Path) -> Written:
    """Write `decoder/` and `text_proj/` alone.

    Raises:
        UserError: a network that is not of Karlo's form.
    """
    info = store.describe(directory)
    assert isinstance(info.config, UNetConfig), "the caller has looked"
    scaling = None if info.embeddings is None else info.embeddings.scaling
    parts = _decoder_parts(directory, info.config, scaling)
    files: list[str] = []
    for name, part in parts.items():
        files += write_part(out / name, part.settings, part.weights, WEIGHTS)
    note = (
        "decoder/ and text_proj/ load by themselves; with --prior and --upsampler UnCLIPPipeline "
        "opens the folder"
    )
    return Written(tuple(files), _count(*parts.values()), note)


def write_unclip(decoder: str, models: UnclipModels, out: Path) -> Written:
    """Write the folder; nothing is written where a part cannot be held.

    Raises:
        UserError: a part that diffusers does not have, or parts that do not belong together.
    """
    system = _read(decoder, models)
    large = _Part(
        settings_of(system.upsampler),
        to_diffusers(_state(system.upsampler_directory), system.upsampler),
    )
    parts = {
        "prior": _Part(
            prior_settings(system.prior),
            to_diffusers_prior(_state(system.prior_directory), system.prior, system.scaling),
        ),
        **_decoder_parts(decoder, system.decoder, system.scaling),
        "super_res_first": large,
        "super_res_last": large,
    }
    text, schedulers = _text(decoder), _schedulers(system)
    out.mkdir(parents=True, exist_ok=True)
    files = write_part(out / "text_encoder", text.settings, text.weights, TEXT_WEIGHTS)
    for name, part in parts.items():
        files += write_part(out / name, part.settings, part.weights, WEIGHTS)
    for name, content in text.tokenizer.items():
        (out / "tokenizer").mkdir(exist_ok=True)
        write_bytes(out / "tokenizer" / name, content)
        files.append(str(out / "tokenizer" / name))
    for name, settings in schedulers.items():
        files.append(write_json_file(out / name / "scheduler_config.json", settings))
    files.append(write_json_file(out / INDEX, _index(text.tokenizer_class)))
    return Written(tuple(files), _count(text, *parts.values()), _note(system.upsampler))


@dataclass(frozen=True)
class _Part:
    settings: Mapping[str, object]
    weights: Mapping[str, Tensor]


def _count(*parts: _Part | TextPart) -> int:
    return sum(value.numel() for part in parts for value in part.weights.values())


@dataclass(frozen=True)
class _System:
    """The settings of the parts, which fit each other."""

    decoder_directory: str
    decoder: UNetConfig
    prior_directory: str
    prior: DiffusionPriorConfig
    upsampler_directory: str
    upsampler: UNetConfig
    scaling: EmbeddingScaling


def _read(decoder: str, models: UnclipModels) -> _System:
    prior, upsampler = find_model(models.prior).directory, find_model(models.upsampler).directory
    own, other, large = (store.describe(each) for each in (decoder, prior, upsampler))
    if not isinstance(other.config, DiffusionPriorConfig):
        raise UserError(f"{prior}: a {other.config.kind}; UnCLIPPipeline takes a diffusion_prior")
    require_equal_embeddings({decoder: own.embeddings, prior: other.embeddings})
    assert own.embeddings is not None, "required"
    assert isinstance(own.config, UNetConfig), "the caller has looked"
    if not isinstance(large.config, UNetConfig) or large.config.low_resolution is None:
        raise UserError(
            f"{upsampler}: UnCLIPPipeline takes an upsampler of kind unet with low_resolution"
        )
    if large.config.low_resolution.size != own.config.image_size:
        raise UserError(
            f"{upsampler}: enlarges images of {large.config.low_resolution.size} pixels, {decoder} "
            f"generates {own.config.image_size}"
        )
    return _System(
        decoder, own.config, prior, other.config, upsampler, large.config, own.embeddings.scaling
    )


def _decoder_parts(
    directory: str, config: UNetConfig, scaling: EmbeddingScaling | None
) -> dict[str, _Part]:
    unet, projection = decoder_settings(config), projection_settings(config)
    state = to_diffusers_decoder(_state(directory), config, scaling)
    return {
        "decoder": _Part(unet, state.unet),
        "text_proj": _Part(projection, state.projection),
    }


def _schedulers(system: _System) -> dict[str, dict[str, Any]]:
    """Their configurations by folder."""
    decoder = _scheduler(system.decoder.process, system.decoder_directory, 1.0)
    return {
        "prior_scheduler": _scheduler(
            system.prior.process, system.prior_directory, _range(system.scaling)
        ),
        # of a decoder without learned variances its channels state the smallest
        "decoder_scheduler": decoder | {"variance_type": "learned_range"},
        "super_res_scheduler": _scheduler(
            system.upsampler.process, system.upsampler_directory, 1.0
        ),
    }


def _state(directory: str) -> dict[str, Tensor]:
    return dict(store.load(directory).state_dict())


def _text(directory: str) -> TextPart:
    """The text tower with its projection, and its tokenizer."""
    info = store.describe(directory)
    if info.text_encoder is None:
        raise UserError(f"{directory}: records no text encoder; train with captions clip_text")
    source = describe(as_trained(info.text_encoder)).source
    if not isinstance(source, ClipText | OpenClipText):
        raise UserError(f"{directory}: its text encoder is no CLIP with a projection")
    part = text_part(source)
    assert part is not None, "CLIP's towers have the form of transformers"
    assert part.projection is not None, "of a whole CLIP"
    settings, weights = with_projection(part.settings, part.weights, part.projection)
    return TextPart(settings, weights, part.tokenizer, part.tokenizer_class)


def _scheduler(process: ProcessConfig, directory: str, limit: float) -> dict[str, Any]:
    """scheduler_config.json; predictions of x_0 are clamped to +- `limit`.

    Raises:
        UserError: a process that `UnCLIPScheduler` does not have.
    """
    if process.prediction_type not in _PREDICTIONS:
        raise UserError(
            f"{directory}: model.process.prediction_type: {process.prediction_type}: "
            "UnCLIPScheduler has noise and x0"
        )
    if not _is_cosine(process):
        raise UserError(
            f"{directory}: model.process.schedule: UnCLIPScheduler has the cosine betas of 1,000 "
            "steps alone; train with {kind: discrete, betas: {kind: cosine}}"
        )
    return {
        "_class_name": "UnCLIPScheduler",
        "_diffusers_version": VERSION,
        "beta_schedule": "squaredcos_cap_v2",
        "clip_sample": True,
        "clip_sample_range": limit,
        "num_train_timesteps": STEPS,
        "prediction_type": _PREDICTIONS[process.prediction_type],
        "variance_type": "learned_range" if process.variance == "learned" else "fixed_small_log",
    }


def _is_cosine(process: ProcessConfig) -> bool:
    schedule = process.schedule
    if isinstance(schedule, VESchedule | EDMSchedule):
        return False
    times = torch.arange(1, STEPS + 1, dtype=torch.float64, device="cpu") / STEPS
    theirs = DiscreteSchedule(betas=CosineBetasConfig(), steps=STEPS)
    apart = schedule.at(times).alpha ** 2 - theirs.at(times).alpha ** 2
    return float(apart.abs().max()) <= _CLOSE


def _range(scaling: EmbeddingScaling) -> float:
    """What no value of a normalised embedding exceeds, as in sampling here."""
    match embedding_thresholding(scaling):
        case RangeThresholding(limit=limit) | NormThresholding(limit=limit):
            return limit
    raise AssertionError("a normalisation has a limit")


def _note(upsampler: UNetConfig) -> str:
    low = upsampler.low_resolution
    note = "UnCLIPPipeline.from_pretrained opens it"
    if low is not None and low.interpolation != "bicubic":
        note += f"; it enlarges images bicubically, in training they were {low.interpolation}"
    return note


def _index(tokenizer_class: str) -> dict[str, object]:
    return {
        "_class_name": "UnCLIPPipeline",
        "_diffusers_version": VERSION,
        "decoder": ["diffusers", "UNet2DConditionModel"],
        "decoder_scheduler": ["diffusers", "UnCLIPScheduler"],
        "prior": ["diffusers", "PriorTransformer"],
        "prior_scheduler": ["diffusers", "UnCLIPScheduler"],
        "super_res_first": ["diffusers", "UNet2DModel"],
        "super_res_last": ["diffusers", "UNet2DModel"],
        "super_res_scheduler": ["diffusers", "UnCLIPScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_proj": [_PROJECTION_MODULE, PROJECTION],
        "tokenizer": ["transformers", tokenizer_class],
    }
