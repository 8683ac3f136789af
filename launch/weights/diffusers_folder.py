"""A latent diffusion model as a folder that diffusers opens.

`vae/`, `unet/`, `scheduler/` load by themselves; with a text encoder of CLIP's form and a
gaussian first stage, `StableDiffusionPipeline` loads and samples the whole folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from data_pipeline.text.tokenizer import Tokenizer
from data_pipeline.text.tokenizer_json import tokenizer_files
from launch.weights.open_clip_tokenizer import open_clip_tokenizer_files
from mezzotint.common.errors import UserError
from mezzotint.common.files import write_bytes, write_json
from mezzotint.inference.model_lookup import find_model
from models import clip_text, store
from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.diffusers import to_diffusers_vae
from models.autoencoders.diffusers_settings import vae_settings
from models.clip import Clip, ClipConfig
from models.clip_transformers import TextTowerSettings, to_clip_text_model
from models.diffusion.schedules.diffusers import STEPS, scheduler_settings
from models.diffusion.schedules.discrete import DiscreteSchedule
from models.diffusion.unet.diffusers import to_diffusers
from models.diffusion.unet.diffusers_settings import settings_of
from models.diffusion.unet.network import UNetConfig
from models.frozen_text import as_trained, describe
from models.pretrained.lookup import identify
from models.pretrained.network import PretrainedClip
from models.text_source import ClipText, ClipTextModel, OpenClipText, T5Text, TextSource

INDEX = "model_index.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
TEXT_WEIGHTS = "model.safetensors"
VERSION = "0.42.1"
"""The version of diffusers whose form is written."""


@dataclass(frozen=True)
class LatentParts:
    """The model directories of a latent diffusion model."""

    denoiser: str
    first_stage: str
    mean: float
    """Of the latents; they are shifted by it, then scaled."""
    scale: float
    text_encoder: TextSource | None


def latent_parts(directory: str, info: store.ModelInfo, first_stage: str | None) -> LatentParts:
    """The parts that a latent model's directory records; `first_stage` replaces its location.

    Raises:
        UserError: it is no latent model, or a part is missing or another one than in training.
    """
    record = info.first_stage
    if record is None:
        raise UserError(f"{directory}: is no latent diffusion model; it records no first stage")
    where = find_model(first_stage or record.model).directory
    found = store.describe(where).digest
    if found != record.digest:
        raise UserError(
            f"{where}: holds another first stage ({found[:12]}) than the one {directory} was "
            f"trained with ({record.digest[:12]}); name that one with --first-stage"
        )
    text = info.text_encoder
    return LatentParts(
        denoiser=directory,
        first_stage=where,
        mean=record.scaling.shift,
        scale=record.scaling.scale,
        text_encoder=None if text is None else describe(as_trained(text)).source,
    )


@dataclass(frozen=True)
class Written:
    """What was written."""

    files: tuple[str, ...]
    parameters: int
    note: str
    """What opens the folder, or why no pipeline does."""


def write_folder(parts: LatentParts, out: Path) -> Written:
    """Write the folder; nothing is written where a part cannot be held.

    Raises:
        UserError: a part that diffusers does not have.
    """
    unet, vae = _unet(parts.denoiser), _vae(parts)
    text = None if parts.text_encoder is None else text_part(parts.text_encoder)
    scheduler = scheduler_settings(unet.config.process)
    out.mkdir(parents=True, exist_ok=True)
    files = [
        *write_part(out / "unet", unet.settings, unet.weights, WEIGHTS),
        *write_part(out / "vae", vae.settings, vae.weights, WEIGHTS),
        write_json_file(out / "scheduler" / "scheduler_config.json", scheduler),
    ]
    weights = [*unet.weights.values(), *vae.weights.values()]
    if text is not None:
        files += write_part(out / "text_encoder", text.settings, text.weights, TEXT_WEIGHTS)
        weights += text.weights.values()
        for name, content in text.tokenizer.items():
            (out / "tokenizer").mkdir(exist_ok=True)
            write_bytes(out / "tokenizer" / name, content)
            files.append(str(out / "tokenizer" / name))
    missing = _no_pipeline(vae, text)
    if text is not None and missing is None:
        files.append(write_json_file(out / INDEX, _index(text.tokenizer_class)))
    note = missing or "StableDiffusionPipeline.from_pretrained opens it"
    return Written(tuple(files), sum(value.numel() for value in weights), note)


@dataclass(frozen=True)
class _Part:
    settings: Mapping[str, object]
    weights: Mapping[str, Tensor]


@dataclass(frozen=True)
class _Denoiser(_Part):
    config: UNetConfig


@dataclass(frozen=True)
class TextPart(_Part):
    """A text tower, and the files of its tokenizer."""

    tokenizer: Mapping[str, bytes]
    tokenizer_class: str
    projection: Tensor | None = None
    """(width, D): to CLIP's embedding; None where the tower comes without."""


def _unet(directory: str) -> _Denoiser:
    config = store.describe(directory).config
    if not isinstance(config, UNetConfig):
        raise UserError(
            f"{directory}: a {config.kind}; diffusers' latent pipelines have a unet, export this "
            "network by itself"
        )
    if config.transformer is None or config.features is None:
        raise UserError(
            f"{directory}: model.transformer and model.features: diffusers' latent pipelines have "
            "cross-attention to the features of captions"
        )
    schedule = config.process.schedule
    if isinstance(schedule, DiscreteSchedule) and schedule.steps != STEPS:
        raise UserError(
            f"{directory}: model.process.schedule.steps: {schedule.steps}: the time embedding "
            f"counts {STEPS} steps there"
        )
    settings = settings_of(config)
    weights = to_diffusers(dict(store.load(directory).state_dict()), config)
    return _Denoiser(settings, weights, config)


def _vae(parts: LatentParts) -> _Part:
    config = store.describe(parts.first_stage).config
    if not isinstance(config, AutoencoderConfig):
        raise UserError(f"{parts.first_stage}: a {config.kind}; diffusers has the kind autoencoder")
    settings = vae_settings(config, scale=parts.scale)
    weights = dict(store.load(parts.first_stage).state_dict())
    return _Part(settings, to_diffusers_vae(weights, config, mean=parts.mean))


def text_part(source: TextSource) -> TextPart | None:
    """The text tower and its tokenizer; None where transformers' CLIP has no such network."""
    match source:
        case ClipText(model=directory):
            return _own_text(directory)
        case OpenClipText():
            return _open_clip_text(source)
        case ClipTextModel(directory=directory):
            return _clip_text(directory)
        case T5Text():
            return None


def _own_text(directory: str) -> TextPart:
    clip = store.load(directory)
    if not isinstance(clip, Clip):
        raise UserError(f"{directory}: is no clip, which a text encoder of this kind is")
    config: ClipConfig = clip.config
    settings = TextTowerSettings(
        vocab_size=config.text_vocab,
        hidden_size=config.text_width,
        intermediate_size=4 * config.text_width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_width // config.head_width,
        max_position_embeddings=config.text_length,
        hidden_act="gelu",
        projection_dim=config.embed,
        pad_token_id=Tokenizer.pad_id,
        bos_token_id=Tokenizer.begin_id,
        eos_token_id=Tokenizer.end_id,
    )
    tokenizer = Tokenizer(store.tokenizer_bytes(directory), f"{directory}/{store.TOKENIZER}")
    return TextPart(
        settings.content(),
        to_clip_text_model(dict(clip.clip.state_dict())),
        {
            **tokenizer_files(tokenizer, config.text_length),
            store.TOKENIZER: tokenizer.model_bytes,
        },
        "PreTrainedTokenizerFast",
        clip.clip.text_projection.detach(),
    )


def _open_clip_text(source: OpenClipText) -> TextPart:
    known, clip = identify(source), PretrainedClip(source)
    text: Mapping[str, Any] = known.shape["text_cfg"]
    width, length = int(text["width"]), int(text.get("context_length", 77))
    settings = TextTowerSettings(
        vocab_size=int(text.get("vocab_size", 49408)),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=int(text["layers"]),
        num_attention_heads=int(text["heads"]),
        max_position_embeddings=length,
        hidden_act="quick_gelu" if known.quick_gelu else "gelu",
        projection_dim=int(known.shape["embed_dim"]),
        pad_token_id=0,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    return TextPart(
        settings.content(),
        to_clip_text_model(dict(clip.clip.state_dict())),
        open_clip_tokenizer_files(length),
        "CLIPTokenizer",
        clip.clip.text_projection.detach(),
    )


def _clip_text(directory: str) -> TextPart:
    """The files of a `CLIPTextModel` as they are."""
    home = Path(directory)
    names = [
        path.name
        for path in sorted(home.iterdir())
        if path.name not in (clip_text.CONFIG, clip_text.WEIGHTS)
    ]
    own = (home / clip_text.OWN_TOKENIZER).is_file()
    return TextPart(
        clip_text.read_json(home / clip_text.CONFIG),
        load_file(home / clip_text.WEIGHTS),
        {name: (home / name).read_bytes() for name in names},
        "PreTrainedTokenizerFast" if own else "CLIPTokenizer",
    )


def _no_pipeline(vae: _Part, text: TextPart | None) -> str | None:
    """Why no pipeline opens the folder; None if one does."""
    alone = "vae/, unet/ and scheduler/ load by themselves"
    if text is None:
        return f"{alone}: the text encoder has no form that StableDiffusionPipeline takes"
    if vae.settings["_class_name"] != "AutoencoderKL":
        return f"{alone}: StableDiffusionPipeline takes AutoencoderKL, not VQModel"
    return None


def _index(tokenizer_class: str) -> dict[str, object]:
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": VERSION,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", tokenizer_class],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def write_part(
    where: Path, settings: Mapping[str, object], weights: Mapping[str, Tensor], name: str
) -> list[str]:
    """Write config.json and the weights of a network; the paths of both."""
    where.mkdir(parents=True, exist_ok=True)
    stored = {key: value.contiguous().clone() for key, value in weights.items()}
    save_file(stored, where / name, metadata={"format": "pt"})
    return [str(where / name), write_json_file(where / "config.json", settings)]


def write_json_file(where: Path, content: Mapping[str, object]) -> str:
    """Write a JSON file and its directory; its path."""
    where.parent.mkdir(parents=True, exist_ok=True)
    write_json(where, dict(content))
    return str(where)
