"""`mezzotint import` and `export`: weights of and for other libraries."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor

from launch.weights.diffusers_folder import latent_parts, write_folder
from launch.weights.diffusers_import import import_folder, is_folder
from launch.weights.foreign_file import read_weights
from launch.weights.open_clip_folder import write_clip
from launch.weights.unclip_folder import UnclipModels, read_decoder, write_decoder, write_unclip
from mezzotint.common.embedding_scaling import EmbeddingRecord
from mezzotint.common.errors import UserError
from mezzotint.common.files import write_json
from mezzotint.common.preprocessing import MODELS_OWN, Preprocessing, StatedPreprocessing
from mezzotint.inference.model_lookup import find_model
from models import store
from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.diffusers import from_diffusers_vae, to_diffusers_vae
from models.autoencoders.diffusers_settings import (
    VAE_CLASSES,
    read_vae_settings,
    vae_config,
    vae_settings,
)
from models.autoencoders.taming_weights import from_taming
from models.clip import ClipConfig
from models.config import ModelConfig, image_side
from models.diffusion.control.diffusers import CLASS as CONTROL_CLASS
from models.diffusion.control.diffusers import (
    control_config,
    control_settings,
    from_diffusers_control,
    to_diffusers_control,
)
from models.diffusion.control.network import ControlConfig
from models.diffusion.dit import DiTConfig
from models.diffusion.dit_weights import dit_settings, from_dit, to_dit
from models.diffusion.prior.diffusers import CLASS as PRIOR_CLASS
from models.diffusion.prior.diffusers import (
    from_diffusers_prior,
    prior_config,
    prior_settings,
    to_diffusers_prior,
)
from models.diffusion.prior.network import DiffusionPriorConfig
from models.diffusion.unet.diffusers import from_diffusers, to_diffusers
from models.diffusion.unet.diffusers_settings import config_of, read_settings, settings_of
from models.diffusion.unet.guided_diffusion import (
    flags,
    from_guided_diffusion,
    to_guided_diffusion,
)
from models.diffusion.unet.network import UNetConfig
from trainer.recipe import apply_override, load, validate

NetworkFormat = Literal["guided_diffusion", "diffusers", "dit"]
SourceFormat = Literal["guided_diffusion", "diffusers", "dit", "taming"]
TargetFormat = Literal["guided_diffusion", "diffusers", "dit", "open_clip"]
Weights = Mapping[str, Tensor]
_FILES: Mapping[NetworkFormat, str] = {
    "guided_diffusion": "model.safetensors",
    "diffusers": "diffusion_pytorch_model.safetensors",
    "dit": "model.safetensors",
}
_BASE_SIZE = "model.base.image_size"


@dataclass(frozen=True)
class Converted:
    """What was written."""

    kind: str
    format: str
    """The format read or written."""
    parameters: int
    files: tuple[str, ...]
    note: str = ""
    """What else the user should know."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def import_weights(
    file: Path,
    out: str,
    source: SourceFormat,
    recipe: Path | None,
    overrides: Sequence[str],
    preprocessing: StatedPreprocessing = MODELS_OWN,
) -> Converted:
    """Write a model directory from weights of another library, or three of a diffusers folder.

    It records the preprocessing of the recipe's images, or the one stated, else none: other
    libraries keep it nowhere.

    Raises:
        UserError: no such file, no settings of the network, or weights that do not fit it.
    """
    if source == "diffusers" and is_folder(file):
        whole = import_folder(file, Path(out), overrides, dict(preprocessing.values))
        return Converted("latent diffusion", source, whole.parameters, whole.directories)
    file, settings = _locate(file, source)
    config, image = _config(settings, file.with_name("config.json"), source, recipe, overrides)
    if preprocessing.values:
        size = image_side(config)
        image = Preprocessing.model_validate({"size": size, **preprocessing.values})
    if source == "diffusers" and isinstance(config, UNetConfig) and config.image_embedding:
        found: Weights = read_decoder(file, config)
    else:
        found = _reader(config, source, settings)(read_weights(file))
    state = {name: value.float() for name, value in found.items()}
    parameters = sum(value.numel() for value in state.values())
    card = (
        f"# {config.kind} from {source}\n\nWeights of `{file.name}`, "
        f"{parameters:,} parameters. The training data is not known.\n"
    )
    store.save(out, config, state, card=card, preprocessing=image)
    return Converted(config.kind, source, parameters, (out,))


def export_model(
    directory: str,
    out: Path,
    target: TargetFormat,
    first_stage: str | None = None,
    unclip: UnclipModels | None = None,
) -> Converted:
    """Write a model's weights and settings for another library.

    A latent diffusion model is a whole folder of diffusers; `first_stage` says where its first
    stage lies now. So is a decoder of unCLIP with the other models of its system, `unclip`.

    Raises:
        UserError: no model directory, a network that the format cannot hold, or `out` not empty.
    """
    directory = find_model(directory).directory
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already exists; choose a new directory")
    info = store.describe(directory)
    config = info.config
    if target == "open_clip":
        return _export_clip(directory, config, out)
    if target == "diffusers" and isinstance(config, UNetConfig) and info.first_stage is not None:
        parts = latent_parts(directory, info, first_stage)
        done = write_folder(parts, out)
        return Converted(config.kind, target, done.parameters, done.files, done.note)
    if target == "diffusers" and isinstance(config, UNetConfig) and config.image_embedding:
        if unclip is None:
            done = write_decoder(directory, out)
        else:
            done = write_unclip(directory, unclip, out)
        return Converted(config.kind, target, done.parameters, done.files, done.note)
    if unclip is not None:
        raise UserError(f"--prior, --upsampler: {directory} is no decoder of unCLIP")
    write, settings = _writer(config, target, info.embeddings)
    network = store.load(directory)
    weights = write(dict(network.state_dict()))
    out.mkdir(parents=True, exist_ok=True)
    where = out / _FILES[target]
    save_file(dict(weights), where, metadata={"format": "pt"})
    write_json(out / "config.json", settings)
    parameters = sum(weight.numel() for weight in network.parameters())
    return Converted(config.kind, target, parameters, (str(where), str(out / "config.json")))


def _export_clip(directory: str, config: ModelConfig, out: Path) -> Converted:
    if not isinstance(config, ClipConfig):
        raise UserError(f"--to open_clip: cannot hold a model of kind {config.kind}")
    done = write_clip(directory, out)
    return Converted(config.kind, "open_clip", done.parameters, done.files, done.note)


def _locate(file: Path, source: SourceFormat) -> tuple[Path, dict[str, Any] | None]:
    """The file of the weights, and diffusers' settings if they lie beside it."""
    if file.is_dir():
        file = file / _FILES["diffusers" if source == "diffusers" else "dit"]
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a .safetensors file")
    beside = file.with_name("config.json")
    if source != "diffusers" or not beside.is_file():
        return file, None
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{beside}: is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{beside}: must hold an object")
    return file, content


def _config(
    settings: dict[str, Any] | None,
    beside: Path,
    source: SourceFormat,
    recipe: Path | None,
    overrides: Sequence[str],
) -> tuple[ModelConfig, Preprocessing | None]:
    """Config and preprocessing of the recipe, or the config of diffusers' settings `beside`."""
    if recipe is not None:
        read = load(recipe, overrides)
        return read.model, None if read.data.image is None else read.data.image.preprocessing
    if settings is None:
        other = ", or config.json beside the weights" if source == "diffusers" else ""
        raise UserError(f"--recipe: is needed for the config of the network{other}")
    where = str(beside)
    tree: dict[str, Any] = {"model": _settings_of_model(settings, where, overrides)}
    for override in overrides:
        apply_override(tree, override)
    adapter: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)
    return validate(adapter.validate_python, tree["model"], where), None


def _settings_of_model(
    settings: Mapping[str, Any], where: str, overrides: Sequence[str]
) -> dict[str, Any]:
    """Our settings of the network of a config.json of diffusers."""
    if settings.get("_class_name") == CONTROL_CLASS:
        return control_config(settings, where, _base_size(overrides))
    if settings.get("_class_name") == PRIOR_CLASS:
        return prior_config(settings, where)
    if settings.get("_class_name") in VAE_CLASSES:
        return vae_config(read_vae_settings(settings, where), where)
    return config_of(read_settings(settings, where), where)


def _base_size(overrides: Sequence[str]) -> int:
    """Side of a control's base, which its settings do not say; Stable Diffusion's by default."""
    for override in overrides:
        key, _, value = override.partition("=")
        if key == _BASE_SIZE:
            if not value.isdecimal() or int(value) < 1:
                raise UserError(f"{_BASE_SIZE}: {value} is not a number of positions")
            return int(value)
    return 64


def _reader(
    config: ModelConfig, source: SourceFormat, settings: dict[str, Any] | None
) -> Callable[[Weights], Weights]:
    match source, config:
        case "guided_diffusion", UNetConfig() as unet:
            return lambda weights: from_guided_diffusion(weights, unet)
        case "diffusers", AutoencoderConfig() as autoencoder:
            return lambda weights: from_diffusers_vae(weights, autoencoder)
        case "diffusers", ControlConfig() as control:
            return lambda weights: from_diffusers_control(weights, control)
        case "diffusers", DiffusionPriorConfig() as prior:
            return lambda weights: from_diffusers_prior(weights, prior)
        case "diffusers", UNetConfig() as unet:
            sines_first = settings is not None and settings.get("flip_sin_to_cos") is False
            return lambda weights: from_diffusers(weights, unet, sines_first=sines_first)
        case "dit", DiTConfig() as dit:
            return lambda weights: from_dit(weights, dit)
        case "taming", AutoencoderConfig() as autoencoder:
            return lambda weights: from_taming(weights, autoencoder)
    raise UserError(f"--from {source}: cannot hold a model of kind {config.kind}")


def _writer(
    config: ModelConfig, target: NetworkFormat, embeddings: EmbeddingRecord | None
) -> tuple[Callable[[Weights], Weights], dict[str, Any]]:
    match target, config:
        case "guided_diffusion", UNetConfig() as unet:
            return lambda weights: to_guided_diffusion(weights, unet), flags(unet)
        case "diffusers", UNetConfig() as unet:
            return lambda weights: to_diffusers(weights, unet), settings_of(unet)
        case "diffusers", ControlConfig() as control:
            return lambda weights: to_diffusers_control(weights, control), control_settings(control)
        case "diffusers", DiffusionPriorConfig() as prior:
            scaling = None if embeddings is None else embeddings.scaling
            settings = prior_settings(prior)
            return lambda weights: to_diffusers_prior(weights, prior, scaling), settings
        case "diffusers", AutoencoderConfig() as vae:
            return lambda weights: to_diffusers_vae(weights, vae), vae_settings(vae)
        case "dit", DiTConfig() as dit:
            return lambda weights: to_dit(weights, dit), dit_settings(dit)
    raise UserError(f"--to {target}: cannot hold a model of kind {config.kind}")
