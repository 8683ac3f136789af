"""`mezzotint import --from compvis` and `export --to compvis`: whole checkpoints and controls."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from launch.weights.compvis_text import text_tower, tower_settings, write_text_tower
from launch.weights.foreign_file import read_weights
from mezzotint.common import storage
from mezzotint.common.errors import UserError
from mezzotint.common.files import write_json
from mezzotint.common.latent_scaling import LatentScaling
from mezzotint.common.preprocessing import MODELS_OWN, Preprocessing, StatedPreprocessing
from mezzotint.inference.model_lookup import find_model
from models import store
from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.diffusers import shifted
from models.autoencoders.taming_weights import from_taming, to_taming
from models.config import ModelConfig, image_side
from models.diffusion.control.network import ControlConfig
from models.diffusion.control.released import from_released, to_released
from models.diffusion.unet.compvis import (
    FIRST_STAGE,
    SCALE,
    Checkpoint,
    from_compvis,
    read_checkpoint,
    to_compvis,
)
from models.diffusion.unet.guided_diffusion import flags
from models.diffusion.unet.network import UNetConfig
from models.first_stage import FirstStage
from models.text_source import TextSource
from trainer.recipe import Recipe, load
from trainer.tasks.denoising import DenoisingConfig

FILE = "model.safetensors"


@dataclass(frozen=True)
class Checkpoints:
    """What was read or written."""

    format: str
    parameters: Mapping[str, int]
    """Of each part."""
    files: tuple[str, ...]
    scale: float | None = None
    """What latents are multiplied by."""
    averaged: bool = False
    """Whether the denoiser's weights are the averages of `model_ema`."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def to_text(self) -> str:
        lines = [f"{part}: {count:,} parameters" for part, count in self.parameters.items()]
        return "\n".join([*lines, *self.files])


Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Recipes:
    """What says the settings of the networks in a checkpoint."""

    model: Path | None
    first_stage: Path | None
    """None: the first stage is not read."""


def import_compvis(
    file: Path,
    out: str,
    recipes: Recipes,
    overrides: Sequence[str],
    scale: float | None,
    images: StatedPreprocessing = MODELS_OWN,
) -> Checkpoints:
    """Write `out`/model, and `out`/first_stage with the recipe of the first stage.

    The recipe's model says what is read: a UNet, with the averages of `model_ema` where there are
    some, or a control. CLIP's text tower, where the checkpoint holds the one that the UNet reads,
    becomes `out`/text_encoder. `scale` is that of the latents where the checkpoint does not hold
    it, `images` how training images were prepared, where the recipes do not say it.

    Raises:
        UserError: no such file or recipe, or weights that do not fit; nothing is written.
    """
    if recipes.model is None:
        raise UserError("--recipe: is needed for the config of the network")
    recipe = load(recipes.model, overrides)
    config = recipe.model
    weights = _read(file)
    if isinstance(config, ControlConfig):
        where = storage.join(out, "model")
        count = _save(where, config, from_released(weights, config), f"weights of `{file.name}`")
        return Checkpoints("compvis", {"model": count}, (where,))
    if not isinstance(config, UNetConfig):
        raise UserError(f"{recipes.model}: model.kind: {config.kind}: the checkpoint holds a unet")
    parts = read_checkpoint(weights, config)
    state = from_compvis(parts.denoiser, config)
    scale = parts.scale if scale is None else scale
    found, counts, files, stage = None, {}, [], None
    tower = {} if config.features is None else text_tower(weights)
    settings = tower_settings(tower, config.features.width) if config.features and tower else None
    if recipes.first_stage is not None:
        if not parts.first_stage:
            raise UserError(f"{file}: holds no first stage; leave out --first-stage-recipe")
        stage = _first_stage(recipes.first_stage, images)
        where = storage.join(out, "first_stage")
        found, counts["first_stage"] = _save_first_stage(stage, parts, where, _known(scale))
        files.append(where)
    encoder = recipe.task.text_encoder if isinstance(recipe.task, DenoisingConfig) else None
    if settings is not None:
        where = storage.join(out, "text_encoder")
        encoder, counts["text_encoder"] = write_text_tower(tower, settings, where), _numbers(tower)
        files.append(where)
    card = f"{'averaged weights' if parts.averaged else 'weights'} of `{file.name}`"
    where = storage.join(out, "model")
    image = _prepared(recipe, images) if stage is None else stage.image
    counts["model"] = _save(
        where, config, state, card, image=image, encoder=encoder, first_stage=found
    )
    return Checkpoints("compvis", counts, (where, *files), scale, parts.averaged)


@dataclass(frozen=True)
class _FirstStage:
    config: AutoencoderConfig
    image: Preprocessing | None


def _first_stage(recipe: Path, images: StatedPreprocessing) -> _FirstStage:
    """What its recipe says.

    Raises:
        UserError: of another model.
    """
    read = load(recipe)
    if not isinstance(read.model, AutoencoderConfig):
        raise UserError(f"{recipe}: model.kind: {read.model.kind}: must be autoencoder")
    return _FirstStage(read.model, _prepared(read, images))


def _prepared(recipe: Recipe, images: StatedPreprocessing) -> Preprocessing | None:
    """How training images were prepared: as the recipe says, or what is stated."""
    own = None if recipe.data.image is None else recipe.data.image.preprocessing
    if not images.values:
        return own
    size = image_side(recipe.model) if own is None else own.size
    return Preprocessing.model_validate({"size": size, **images.values})


def _save_first_stage(
    stage: _FirstStage, parts: Checkpoint, where: str, scale: float
) -> tuple[FirstStage, int]:
    """Write it; the record of it with the scale of its latents, and its number of parameters."""
    state = from_taming(parts.first_stage, stage.config)
    count = _save(where, stage.config, state, "first stage of a checkpoint", image=stage.image)
    # the number of samples is not known: CompVis' code measures one batch
    scaling = LatentScaling(mean=0.0, std=1 / scale, samples=1)
    return FirstStage(model=where, digest=store.describe(where).digest, scaling=scaling), count


def _known(scale: float | None) -> float:
    if scale is None:
        raise UserError(
            "--latent-scale: the checkpoint holds no scale_factor; give that of its configuration, "
            "such as 0.18215 for Stable Diffusion 1, or 1 for a VQ first stage"
        )
    return scale


def _save(
    where: str,
    config: ModelConfig,
    state: Weights,
    origin: str,
    *,
    image: Preprocessing | None = None,
    encoder: TextSource | None = None,
    first_stage: FirstStage | None = None,
) -> int:
    """Write a model directory, and return the number of its parameters."""
    single = {key: value.float() for key, value in state.items()}
    count = sum(value.numel() for value in single.values())
    card = (
        f"# {config.kind} from compvis\n\nThe {origin}, {count:,} parameters. The training data "
        "is not known.\n"
    )
    store.save(
        where,
        config,
        single,
        card=card,
        preprocessing=image,
        text_encoder=encoder,
        first_stage=first_stage,
    )
    return count


def export_compvis(directory: str, out: Path, first_stage: str | None) -> Checkpoints:
    """Write one checkpoint of a model and of its first stage, given or recorded.

    Raises:
        UserError: no model directory, a network that the format cannot hold, or `out` not empty.
    """
    directory = find_model(directory).directory
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already exists; choose a new directory")
    info = store.describe(directory)
    config, recorded = info.config, info.first_stage
    if not isinstance(config, UNetConfig | ControlConfig):
        raise UserError(f"--to compvis: cannot hold a model of kind {config.kind}")
    state = dict(store.load(directory).state_dict())
    if isinstance(config, ControlConfig):
        weights, settings = to_released(state, config), _control_settings(config)
        recorded = None
    else:
        weights, settings = to_compvis(state, config), flags(config)
    counts, scale = {"model": _numbers(state)}, None
    stage = first_stage or (None if recorded is None else recorded.model)
    if stage is not None:
        mean = 0.0 if recorded is None else recorded.scaling.shift
        named = _named_first_stage(stage, recorded, mean)
        weights |= {f"{FIRST_STAGE}{name}": value for name, value in named.items()}
        counts["first_stage"] = _numbers(named)
    if recorded is not None:
        scale = recorded.scaling.scale
        weights[SCALE] = torch.tensor(scale, device="cpu")
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / FILE, metadata={"format": "pt"})
    write_json(out / "config.json", settings)
    files = (str(out / FILE), str(out / "config.json"))
    return Checkpoints("compvis", counts, files, scale)


def _named_first_stage(directory: str, recorded: FirstStage | None, mean: float) -> Weights:
    """The first stage under CompVis' names, its latents shifted to a mean of 0."""
    info = store.describe(directory)
    if recorded is not None and info.digest != recorded.digest:
        raise UserError(
            f"{directory}: is another first stage ({info.digest[:12]}) than the model's "
            f"({recorded.digest[:12]}); give that one by --first-stage"
        )
    if not isinstance(info.config, AutoencoderConfig):
        raise UserError(f"{directory}: a {info.config.kind}, not an autoencoder")
    state = dict(store.load(directory).state_dict())
    if mean:
        state = shifted(state, info.config, mean)
    return to_taming(state, info.config)


def _numbers(state: Weights) -> int:
    return sum(value.numel() for value in state.values())


def _control_settings(config: ControlConfig) -> dict[str, object]:
    assert isinstance(config.base, UNetConfig), "what the released code has no other of"
    settings = flags(config.base)
    del settings["out_channels"]
    return {**settings, "hint_channels": config.hint.channels}


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a .safetensors file")
    return read_weights(file)
