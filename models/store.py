"""The model directory: config.json, safetensors, a model card, and the tokenizer of a text model.

Directories are local paths or fsspec URLs. A local directory is written atomically; at a URL
config.json, without which it is no model directory, is written last.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from mezzotint.common import files, storage
from mezzotint.common.digests import sha256
from mezzotint.common.embedding_scaling import EmbeddingRecord
from mezzotint.common.errors import UserError, first_error
from mezzotint.common.hint import HintRecord
from mezzotint.common.preprocessing import Preprocessing
from mezzotint.common.storage_errors import NotFoundError
from models.base_record import BaseRecord
from models.config import ModelConfig
from models.finite import require_finite_weights
from models.first_stage import FirstStage
from models.nn.initialization import assign_state
from models.text_source import TextSource

CONFIG, CARD, TOKENIZER = "config.json", "README.md", "tokenizer.model"
_MAX_FILE_BYTES = 4 * 2**30


class WeightFile(BaseModel, frozen=True, extra="forbid"):
    """One safetensors file and what must be in it."""

    file: str = Field(pattern=r"^model(-\d{5}-of-\d{5})?\.safetensors$")
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ModelInfo(BaseModel, frozen=True, extra="forbid"):
    """config.json: the description of a model directory."""

    format: int = Field(default=1, ge=1, le=1)
    config: ModelConfig = Field(alias="model")
    weights: tuple[WeightFile, ...] = Field(min_length=1)
    tokenizer_sha256: str | None = None
    text_length: int | None = None
    text_encoder: TextSource | None = None
    """Location and digest of the frozen encoder of the model's captions."""
    first_stage: FirstStage | None = None
    """Of a latent diffusion model: its autoencoder, and the scaling of the latents."""
    base: BaseRecord | None = None
    """Of a control: the network that it was trained for."""
    hint: HintRecord | None = None
    """Of a control: what it reads."""
    embeddings: EmbeddingRecord | None = None
    """Of a model that reads or generates CLIP embeddings: the CLIP, and their normalisation."""
    preprocessing: Preprocessing | None = None
    """Of its training images; None in directories of earlier versions and in imported ones."""

    @property
    def weights_sha256(self) -> str:
        hashes = [entry.sha256 for entry in self.weights]
        return hashes[0] if len(hashes) == 1 else sha256("\n".join(hashes))

    @property
    def digest(self) -> str:
        """SHA-256 over the model's config and weights: names an encoder."""
        # without defaults: an option that a later version adds must not change old digests
        chosen = self.config.model_dump(mode="json", exclude_defaults=True)
        config = json.dumps({**chosen, "kind": self.config.kind}, sort_keys=True)
        return sha256(f"{config}\n{self.weights_sha256}")


def save(
    directory: str,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    *,
    card: str,
    tokenizer: bytes | None = None,
    text_length: int | None = None,
    text_encoder: TextSource | None = None,
    preprocessing: Preprocessing | None = None,
    first_stage: FirstStage | None = None,
    base: BaseRecord | None = None,
    hint: HintRecord | None = None,
    embeddings: EmbeddingRecord | None = None,
) -> None:
    """Write a model directory, replacing an existing one.

    `weights` is the state dict; buffers that are not persistent may be in it and are left out.

    Raises:
        UserError: weights that are not the model's or not finite, or a directory that cannot be
            written.
    """
    chosen = _persistent(config, weights)
    require_finite_weights(directory, chosen)
    header = partial(
        ModelInfo,
        model=config,
        tokenizer_sha256=None if tokenizer is None else sha256(tokenizer),
        text_length=text_length,
        text_encoder=text_encoder,
        preprocessing=preprocessing,
        first_stage=first_stage,
        base=base,
        hint=hint,
        embeddings=embeddings,
    )
    contents = _contents(header, chosen, card, tokenizer)
    try:
        if storage.is_local(directory):
            _write_local(storage.local_path(directory), contents)
        else:
            _write_remote(directory, contents)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({error})") from error


def describe(directory: str) -> ModelInfo:
    """Read config.json alone.

    Raises:
        UserError: no model directory, or a config.json that is not one.
    """
    where = storage.join(directory, CONFIG)
    content = _read(directory, CONFIG)
    try:
        return ModelInfo.model_validate_json(content)
    except ValidationError as error:
        raise UserError(f"{where}: {first_error(error)}") from error


def load(
    directory: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """The model in evaluation mode, its weights verified against config.json.

    It is built without memory and takes the weights as they are read: nothing is initialised.

    Raises:
        UserError: a missing or changed file, or weights that do not fit the config or are not
            finite.
    """
    header = describe(directory)
    with torch.device("meta"):
        model = header.config.build()
    state: dict[str, Tensor] = {}
    for entry in header.weights:
        content = _verified(directory, entry.file, entry.sha256, entry.bytes)
        try:
            weights = parse_safetensors(content)
        except SafetensorError as error:
            raise UserError(f"{storage.join(directory, entry.file)}: {error}") from error
        require_finite_weights(storage.join(directory, entry.file), weights)
        state.update(weights)
    try:
        assign_state(model, state, device=torch.device(device), dtype=dtype)
    except RuntimeError as error:
        raise UserError(f"{directory}: weights do not fit {CONFIG} ({error})") from error
    return model.eval()


def tokenizer_bytes(directory: str) -> bytes:
    """The tokenizer the model was trained with, verified.

    Raises:
        UserError: the model takes no text, or the file is missing or changed.
    """
    header = describe(directory)
    if header.tokenizer_sha256 is None:
        raise UserError(f"{directory}: holds no tokenizer; this model takes no text")
    return _verified(directory, TOKENIZER, header.tokenizer_sha256)


def _persistent(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The persistent weights of a state dict, refused unless they are exactly the model's."""
    with torch.device("meta"):
        model = config.build()
    expected = model.state_dict()
    buffers = {name for name, _ in model.named_buffers()}
    missing = [name for name in expected if name not in weights]
    unknown = [name for name in weights if name not in expected and name not in buffers]
    if missing or unknown:
        raise UserError(
            f"weights are not those of a {config.kind}: missing {missing[:3]}, "
            f"unknown {unknown[:3]}"
        )
    for name, value in expected.items():
        if weights[name].shape != value.shape:
            raise UserError(
                f"weight {name} has shape {tuple(weights[name].shape)}, the config needs "
                f"{tuple(value.shape)}"
            )
    return {name: weights[name].detach().cpu().contiguous() for name in expected}


def _contents(
    header: Callable[..., ModelInfo],
    weights: Mapping[str, Tensor],
    card: str,
    tokenizer: bytes | None,
) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files, one in memory at a time; the header comes last."""
    entries: list[WeightFile] = []
    groups = list(_groups(weights))
    for number, group in enumerate(groups):
        many = f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors"
        name = many if len(groups) > 1 else "model.safetensors"
        content = safetensors_bytes(group, metadata={"format": "pt"})
        entries.append(WeightFile(file=name, bytes=len(content), sha256=sha256(content)))
        yield name, content
    yield CARD, card.encode()
    if tokenizer is not None:
        yield TOKENIZER, tokenizer
    tree = header(weights=tuple(entries)).model_dump(mode="json", by_alias=True)
    yield CONFIG, (json.dumps(tree, indent=2) + "\n").encode()


def _groups(weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Split the weights into groups of at most `_MAX_FILE_BYTES`, unless one tensor is larger."""
    group: dict[str, Tensor] = {}
    size = 0
    for name, value in weights.items():
        bytes_here = value.numel() * value.element_size()
        if group and size + bytes_here > _MAX_FILE_BYTES:
            yield group
            group, size = {}, 0
        group[name] = value
        size += bytes_here
    yield group


def _verified(directory: str, name: str, digest: str, size: int = 0) -> bytes:
    content = _read(directory, name, size)
    if sha256(content) != digest:
        raise UserError(
            f"{storage.join(directory, name)}: does not match {CONFIG} (changed or damaged); "
            "export the model again or restore the file"
        )
    return content


def _read(directory: str, name: str, size: int = 0) -> bytes:
    try:
        return storage.read_bytes(storage.join(directory, name), expected=size)
    except NotFoundError as error:
        raise UserError(f"{error}; {directory} is not a model directory") from error


def _write_local(directory: Path, contents: Iterator[tuple[str, bytes]]) -> None:
    """Everything into a temporary sibling, then one rename."""
    directory = directory.absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex[:8]
    fresh = directory.with_name(f".{directory.name}.{unique}.new")
    old = directory.with_name(f".{directory.name}.{unique}.old")
    fresh.mkdir()
    try:
        for name, content in contents:
            files.write_bytes(fresh / name, content)
        if directory.exists():
            directory.rename(old)
        fresh.rename(directory)
    finally:
        if old.exists() and not directory.exists():
            old.rename(directory)
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _write_remote(directory: str, contents: Iterator[tuple[str, bytes]]) -> None:
    """An old config.json is deleted first, the new one is written last."""
    storage.remove(storage.join(directory, CONFIG))
    for name, content in contents:
        storage.write_bytes(storage.join(directory, name), content)
