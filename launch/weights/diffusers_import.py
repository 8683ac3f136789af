"""A folder of diffusers' `StableDiffusionPipeline` as model directories."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import Tensor

from data_pipeline.text.tokenizer import Tokenizer
from launch.weights.diffusers_folder import TEXT_WEIGHTS, WEIGHTS
from launch.weights.foreign_file import read_weights
from mezzotint.common.errors import UserError
from mezzotint.common.latent_scaling import LatentScaling
from mezzotint.common.preprocessing import Preprocessing
from models import clip_text, store
from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.diffusers import from_diffusers_vae
from models.autoencoders.diffusers_settings import read_vae_settings, vae_config
from models.clip_text import read_json
from models.diffusion.schedules.diffusers import process_of
from models.diffusion.unet.diffusers import from_diffusers
from models.diffusion.unet.diffusers_settings import config_of, read_settings
from models.diffusion.unet.network import UNetConfig
from models.first_stage import FirstStage
from models.text_source import ClipTextModel
from trainer.recipe import apply_override, validate

_PARTS = {
    "unet": ("config.json", WEIGHTS),
    "vae": ("config.json", WEIGHTS),
    "scheduler": ("scheduler_config.json",),
    "text_encoder": ("config.json", TEXT_WEIGHTS),
    "tokenizer": ("tokenizer_config.json",),
}


@dataclass(frozen=True)
class Imported:
    """What was written."""

    directories: tuple[str, ...]
    parameters: int


def is_folder(path: Path) -> bool:
    """Whether a path is a folder of several networks, and not that of one."""
    return path.is_dir() and not (path / "config.json").is_file() and (path / "unet").is_dir()


def import_folder(
    folder: Path, out: Path, overrides: Sequence[str], images: dict[str, object]
) -> Imported:
    """Write `first_stage/`, `text_encoder/` and `model/`, which refers to both, into `out`.

    `overrides` are of `model.`, the denoiser; `images` states fit and filter of training images.

    Raises:
        UserError: a part is missing or has no network here, or parts do not fit; nothing is
            written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already exists; choose a new directory")
    _require_parts(folder)
    vae, vae_state, scale, shift = _first_stage(folder / "vae")
    unet, unet_state = _denoiser(folder, overrides)
    if unet.image_channels != vae.channels:
        raise UserError(
            f"{folder}: unet takes {unet.image_channels} channels, and latents of vae have "
            f"{vae.channels}; the parts are of different models"
        )
    _check_text(folder, unet)
    text_state = read_weights(folder / "text_encoder" / TEXT_WEIGHTS)
    first_stage, text, model = (out / name for name in ("first_stage", "text_encoder", "model"))
    # 1 sample: nothing says how many were measured
    scaling = LatentScaling(mean=shift, std=1 / scale, samples=1)
    card = f"of `{folder.name}`, a folder of diffusers. The training data is not known.\n"
    prepared = (
        None if not images else Preprocessing.model_validate({"size": vae.image_size, **images})
    )
    store.save(
        str(first_stage), vae, vae_state, card=f"# First stage\n\n{card}", preprocessing=prepared
    )
    _copy_text(folder, text)
    store.save(
        str(model),
        unet,
        unet_state,
        card=f"# Denoiser\n\n{card}",
        text_encoder=ClipTextModel(directory=str(text), digest=clip_text.digest(str(text))),
        first_stage=FirstStage(
            model=str(first_stage), digest=store.describe(str(first_stage)).digest, scaling=scaling
        ),
        preprocessing=prepared,
    )
    states = (vae_state, unet_state, text_state)
    count = sum(value.numel() for state in states for value in state.values())
    return Imported((str(first_stage), str(text), str(model)), count)


def _require_parts(folder: Path) -> None:
    """Refuse a folder of which a file is missing, by its name."""
    missing = [
        f"{part}/{name}"
        for part, names in _PARTS.items()
        for name in names
        if not (folder / part / name).is_file()
    ]
    if missing:
        raise UserError(
            f"{folder}: {', '.join(missing)} missing; give a whole folder, or the directory of "
            f"one network ({folder}/unet, {folder}/vae)"
        )


def _first_stage(home: Path) -> tuple[AutoencoderConfig, dict[str, Tensor], float, float]:
    where = str(home / "config.json")
    settings = read_vae_settings(read_json(home / "config.json"), where)
    config = validate(AutoencoderConfig.model_validate, vae_config(settings, where), where)
    state = from_diffusers_vae(read_weights(home / WEIGHTS), config)
    return config, _float(state), settings.scaling_factor, settings.shift


def _denoiser(folder: Path, overrides: Sequence[str]) -> tuple[UNetConfig, dict[str, Tensor]]:
    where, scheduler = folder / "unet" / "config.json", folder / "scheduler/scheduler_config.json"
    content = read_json(where)
    model = config_of(read_settings(content, str(where)), str(where))
    process = process_of(read_json(scheduler), str(scheduler))
    tree: dict[str, Any] = {"model": {**model, "process": {**model["process"], **process}}}
    for override in overrides:
        apply_override(tree, override)
    adapter = TypeAdapter(UNetConfig)
    config = validate(adapter.validate_python, tree["model"], str(where))
    sines_first = content.get("flip_sin_to_cos") is False
    weights = read_weights(folder / "unet" / WEIGHTS)
    return config, _float(from_diffusers(weights, config, sines_first=sines_first))


def _check_text(folder: Path, unet: UNetConfig) -> None:
    """Refuse a text encoder or tokenizer that cannot be read, or has features of another width."""
    home, tokenizer = folder / "text_encoder", folder / "tokenizer"
    width = clip_text.settings(str(home)).hidden_size
    if unet.features is None or unet.features.width != width:
        wanted = "none" if unet.features is None else str(unet.features.width)
        raise UserError(
            f"{home}: has features of width {width}, and {folder / 'unet'} takes {wanted}; the "
            "parts are of different models"
        )
    clip_text.ClipTextTower(str(home))
    own = tokenizer / clip_text.OWN_TOKENIZER
    if own.is_file():
        Tokenizer.load(str(own))
    else:
        clip_text.read_padding(tokenizer)


def _copy_text(folder: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", TEXT_WEIGHTS):
        shutil.copyfile(folder / "text_encoder" / name, out / name)
    for path in sorted((folder / "tokenizer").iterdir()):
        if path.is_file():
            shutil.copyfile(path, out / path.name)


def _float(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() for name, value in state.items()}
