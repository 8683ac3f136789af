"""What is known of an open_clip checkpoint: from its settings, its tag, and the file beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from mezzotint.common.errors import UserError, first_error
from models.pretrained.settings import (
    Channels,
    Deviations,
    ImagePreprocessing,
    Interpolation,
    OpenClipCheckpoint,
    OpenClipImages,
    ResizeMode,
)
from models.torchvision_compat import ensure_torchvision

HUB_CONFIG = "open_clip_config.json"
HUB_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
"""Names of the weights in a folder, in order of preference."""


@dataclass(frozen=True)
class KnownCheckpoint:
    """A checkpoint with everything that its features depend on."""

    name: str
    """What open_clip builds the network from: an architecture, or a folder with its config."""
    title: str
    """The same for messages."""
    shape: Mapping[str, Any]
    """open_clip's settings of the network."""
    weights: Path
    quick_gelu: bool
    stated: bool
    """Whether the recipe itself states the activation."""
    preprocessing: ImagePreprocessing | None
    """None where only the text tower is used."""


class _Preprocessing(BaseModel, frozen=True, extra="ignore"):
    """`preprocess_cfg` of open_clip_config.json, with open_clip's defaults."""

    mean: Channels = (0.48145466, 0.4578275, 0.40821073)
    std: Deviations = (0.26862954, 0.26130258, 0.27577711)
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"
    fill_color: int = 0


class _HubConfig(BaseModel, frozen=True, extra="ignore"):
    network: dict[str, Any] = Field(alias="model_cfg")
    preprocessing: _Preprocessing = Field(default=_Preprocessing(), alias="preprocess_cfg")


def identify(source: OpenClipCheckpoint) -> KnownCheckpoint:
    """Everything that the features of a checkpoint depend on, but its weights.

    Raises:
        UserError: no such file, architecture or tag, sources that contradict each other, or
            something that none of them says.
    """
    weights = _weights(source.checkpoint)
    beside = weights.with_name(HUB_CONFIG)
    config = _read(beside) if beside.is_file() else None
    shape = _shape(source, config, beside)
    known = _agreed(source, _of_tag(source), _of_config(config), beside)
    if "quick_gelu" not in known and not _has_twin(source.architecture):
        known["quick_gelu"] = bool(shape.get("quick_gelu"))
    if shape.get("quick_gelu") and not known["quick_gelu"]:
        raise UserError(
            f"{source.checkpoint}: quick_gelu is false, but {source.architecture or beside} is an "
            "architecture with QuickGELU; name the one without"
        )
    images = isinstance(source, OpenClipImages)
    wanted = ("mean", "std", "interpolation") if images else ()
    missing = [name for name in ("quick_gelu", *wanted) if name not in known]
    if missing:
        raise UserError(_question(source, missing))
    chosen = {name: known[name] for name in ImagePreprocessing.model_fields if name in known}
    return KnownCheckpoint(
        name=source.architecture or f"local-dir:{weights.parent}",
        title=source.architecture or str(beside),
        shape=shape,
        weights=weights,
        quick_gelu=bool(known["quick_gelu"]),
        stated=source.quick_gelu is not None,
        preprocessing=ImagePreprocessing.model_validate(chosen) if images else None,
    )


def own_activation(architecture: str) -> bool:
    """Whether an architecture, without more being known of its weights, computes QuickGELU.

    Raises:
        UserError: open_clip has no such architecture.
    """
    return bool(model_config(architecture).get("quick_gelu"))


def text_width(source: OpenClipCheckpoint) -> int:
    """Width of the text tower of a checkpoint.

    Raises:
        UserError: as `identify`, or its text tower is not CLIP's.
    """
    known = identify(source)
    shape = known.shape
    if shape.get("custom_text") or needs_hugging_face(shape, known.title):
        raise UserError(
            f"architecture '{known.title}' has a text tower of its own kind; choose a CLIP (e.g. "
            "ViT-L-14)"
        )
    return int(shape["text_cfg"]["width"])


def model_config(architecture: str) -> Mapping[str, Any]:
    """open_clip's settings of an architecture.

    Raises:
        UserError: it has none of this name.
    """
    ensure_torchvision()
    import open_clip

    shape: Mapping[str, Any] | None = None
    if ":" not in architecture:  # open_clip would look elsewhere
        shape = open_clip.get_model_config(architecture)
    if shape is None:
        raise UserError(f"open_clip has no architecture '{architecture}' (e.g. ViT-B-32)")
    return shape


def needs_hugging_face(shape: Mapping[str, Any], architecture: str) -> bool:
    """Whether open_clip downloads the tokenizer or text tower of an architecture."""
    text = shape["text_cfg"]
    named = text.get("hf_tokenizer_name") or text.get("hf_model_name")
    return bool(named) or "siglip" in architecture.lower()


def _weights(checkpoint: str) -> Path:
    """The file of a checkpoint, also of a folder."""
    path = Path(checkpoint)
    if path.is_dir():
        found = next((path / name for name in HUB_WEIGHTS if (path / name).is_file()), None)
        if found is None:
            raise UserError(
                f"{checkpoint}: a folder without {' or '.join(HUB_WEIGHTS[:3])}; give the file"
            )
        return found
    if not path.is_file():
        raise UserError(f"{checkpoint}: no such file; give a local open_clip checkpoint")
    return path


def _read(path: Path) -> _HubConfig:
    try:
        return _HubConfig.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = first_error(error) if isinstance(error, ValidationError) else error
        raise UserError(f"{path}: is no settings file of open_clip ({reason})") from error


def _shape(
    source: OpenClipCheckpoint, config: _HubConfig | None, beside: Path
) -> Mapping[str, Any]:
    """Settings of the network; refuses a file beside the weights that describes another one."""
    if source.architecture is None:
        if config is None:
            raise UserError(
                f"{source.checkpoint}: has no {HUB_CONFIG} beside it; set architecture (e.g. "
                "ViT-B-32)"
            )
        return config.network
    shape = model_config(source.architecture)
    if config is not None:
        found, ours = _sizes(config.network), _sizes(shape)
        other = next((key for key in ours if key in found and found[key] != ours[key]), None)
        if other is not None:
            raise UserError(
                f"{beside}: has {other} {found[other]}, where {source.architecture} has "
                f"{ours[other]}; name the architecture of these weights, or move the file away"
            )
    return shape


def _sizes(shape: Mapping[str, Any]) -> dict[str, object]:
    """Numbers of a network by dotted name."""
    flat: dict[str, object] = {}
    for key, value in shape.items():
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        for name, each in inner:
            if isinstance(each, int) and not isinstance(each, bool):
                flat[f"{key}.{name}".rstrip(".")] = each
    return flat


def _of_tag(source: OpenClipCheckpoint) -> dict[str, object]:
    """What open_clip knows of the tag."""
    if source.tag is None:
        return {}
    if source.architecture is None:
        raise UserError(f"tag: {source.tag} is one of an architecture; set architecture too")
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    known = get_pretrained_cfg(source.architecture, source.tag)
    if not known:
        tags = open_clip.list_pretrained_tags_by_model(source.architecture)
        raise UserError(
            f"tag: open_clip has no weights '{source.tag}' of {source.architecture}; it has "
            f"{', '.join(tags) or 'none'}"
        )
    found = {name: known[name] for name in ImagePreprocessing.model_fields if name in known}
    return found | {"quick_gelu": bool(known.get("quick_gelu"))}


def _of_config(config: _HubConfig | None) -> dict[str, object]:
    """What the file beside the weights says."""
    if config is None:
        return {}
    found = config.preprocessing.model_dump()
    return found | {"quick_gelu": bool(config.network.get("quick_gelu"))}


def _agreed(
    source: OpenClipCheckpoint, tag: dict[str, object], config: dict[str, object], beside: Path
) -> dict[str, object]:
    """Values by name; settings of the recipe itself come first."""
    own = dict(source.preprocessing) if isinstance(source, OpenClipImages) else {}
    if source.quick_gelu is not None:
        own["quick_gelu"] = source.quick_gelu
    read = {"quick_gelu"} | (
        set(ImagePreprocessing.model_fields) if isinstance(source, OpenClipImages) else set()
    )
    for name in sorted(read & set(tag) & set(config) - set(own)):
        if tag[name] != config[name]:
            raise UserError(
                f"{beside}: has {name} {config[name]}, and tag {source.tag} has {tag[name]}; set "
                f"{name} to the right one"
            )
    return {name: value for name, value in {**config, **tag, **own}.items() if name in read}


def _has_twin(architecture: str | None) -> bool:
    """Whether open_clip has an architecture with GELU and with QuickGELU."""
    import open_clip

    if architecture is None or architecture.endswith("-quickgelu"):
        return False
    return open_clip.get_model_config(f"{architecture}-quickgelu") is not None


CHOICES = {
    "mean": "mean",
    "std": "std",
    "interpolation": "interpolation (bicubic or bilinear)",
}


def _question(source: OpenClipCheckpoint, missing: list[str]) -> str:
    """The refusal of a checkpoint of which something is not known."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    tags = (
        []
        if source.architecture is None
        else open_clip.list_pretrained_tags_by_model(source.architecture)
    )
    by_tag = f"tag to open_clip's name of these weights ({', '.join(tags)}), or " if tags else ""
    quick = [tag for tag in tags if get_pretrained_cfg(source.architecture, tag).get("quick_gelu")]
    activation = f"quick_gelu (true or false; true of {', '.join(quick) or 'none of these tags'})"
    choices = {**CHOICES, "quick_gelu": activation if tags else "quick_gelu (true or false)"}
    return (
        f"{source.checkpoint}: nothing says with which {', '.join(missing)} it was trained; set "
        f"{by_tag}{', '.join(choices[name] for name in missing)}, or put its {HUB_CONFIG} beside it"
    )
