"""T5's encoder (arXiv 1910.10683), read from a directory with the published names; frozen."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from mezzotint.common.digests import sha256, sha256_file
from mezzotint.common.errors import UserError, first_error
from models.finite import require_finite_weights
from models.nn import initialization

SETTINGS, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PIECES = "spiece.model"


class T5Settings(BaseModel, frozen=True, extra="ignore"):
    """The keys of a published `config.json` that the encoder needs."""

    model_type: Literal["t5", "mt5"]
    vocab_size: int = Field(gt=1)
    d_model: int = Field(gt=0)
    d_kv: int = Field(gt=0)
    d_ff: int = Field(gt=0)
    num_layers: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    relative_attention_num_buckets: int = Field(default=32, gt=2, multiple_of=2)
    relative_attention_max_distance: int = Field(default=128, gt=0)
    layer_norm_epsilon: float = Field(default=1e-6, gt=0)
    feed_forward_proj: Literal["relu", "gated-gelu"] = "relu"

    def build(self) -> "T5Encoder":
        return T5Encoder(self)


class T5Attention(nn.Module):
    """Attention without a scale: logits are products plus the bias that all layers share."""

    def __init__(self, settings: T5Settings) -> None:
        super().__init__()
        self._heads = settings.num_heads
        inner = settings.num_heads * settings.d_kv
        self.q, self.k, self.v = (nn.Linear(settings.d_model, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, settings.d_model, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (
            each(x).unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for each in (self.q, self.k, self.v)
        )
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.o(found.transpose(1, 2).flatten(2))


class T5FeedForward(nn.Module):
    """ReLU between two matrices (the paper), or GELU(a) x b (version 1.1; arXiv 2002.05202)."""

    def __init__(self, settings: T5Settings) -> None:
        super().__init__()
        width, hidden = settings.d_model, settings.d_ff
        self.wi: nn.Linear | None = None
        self.wi_0: nn.Linear | None = None
        self.wi_1: nn.Linear | None = None
        match settings.feed_forward_proj:
            case "relu":
                self.wi = nn.Linear(width, hidden, bias=False)
            case "gated-gelu":
                self.wi_0 = nn.Linear(width, hidden, bias=False)
                self.wi_1 = nn.Linear(width, hidden, bias=False)
        self.wo = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.wi is not None:
            return self.wo(F.relu(self.wi(x)))
        assert self.wi_0 is not None and self.wi_1 is not None  # noqa: PT018 - one thought
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class T5Block(nn.Module):
    """x + attention(norm x), then x + feed-forward(norm x)."""

    def __init__(self, settings: T5Settings) -> None:
        super().__init__()
        width, epsilon = settings.d_model, settings.layer_norm_epsilon
        self.attention_norm = nn.RMSNorm(width, epsilon)
        self.attention = T5Attention(settings)
        self.forward_norm = nn.RMSNorm(width, epsilon)
        self.feed_forward = T5FeedForward(settings)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), bias)
        return x + self.feed_forward(self.forward_norm(x))


class T5Encoder(nn.Module):
    """A bidirectional encoder; padding (id 0) is masked."""

    def __init__(self, settings: T5Settings) -> None:
        super().__init__()
        self.settings = settings
        self.token = nn.Embedding(settings.vocab_size, settings.d_model)
        self.bias = nn.Embedding(settings.relative_attention_num_buckets, settings.num_heads)
        self.blocks = nn.ModuleList(T5Block(settings) for _ in range(settings.num_layers))
        self.norm = nn.RMSNorm(settings.d_model, settings.layer_norm_epsilon)

    def token_features(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) int64 to a vector each (B, L, d_model) in fp32; 0 for padding."""
        settings, length = self.settings, tokens.shape[1]
        position = torch.arange(length, device=tokens.device)
        buckets = relative_buckets(
            position - position[:, None],
            settings.relative_attention_num_buckets,
            settings.relative_attention_max_distance,
        )
        known = (tokens != 0)[:, None, None]
        bias = self.bias(buckets).permute(2, 0, 1).masked_fill(~known, -torch.inf)
        # softmax of a row of padding alone would be NaN
        bias = bias.masked_fill(~known.any(dim=-1, keepdim=True), 0.0)
        x = self.token(tokens)
        for block in self.blocks:
            x = block(x, bias)
        return self.norm(x).float() * (tokens != 0)[..., None]


def relative_buckets(offset: Tensor, buckets: int, farthest: int) -> Tensor:
    """The bucket of key position - query position, int64: half for earlier keys, half for later.

    In each half, the first half are single offsets, the others grow logarithmically up to
    `farthest`; larger offsets share the last (arXiv 1910.10683, 2.1).
    """
    half = buckets // 2
    exact = half // 2
    size = offset.abs()
    grown = torch.log(size.clamp(min=1).float() / exact) / math.log(farthest / exact)
    far = (exact + (grown * (half - exact)).to(torch.int64)).clamp(max=half - 1)
    return (offset > 0).to(torch.int64) * half + torch.where(size < exact, size, far)


def read_settings(directory: str) -> T5Settings:
    """The settings of a published directory.

    Raises:
        UserError: no config.json, or one of another kind of network.
    """
    where = Path(directory) / SETTINGS
    try:
        return T5Settings.model_validate_json(where.read_bytes())
    except OSError as error:
        raise UserError(
            f"{where}: cannot be read; give a directory with {SETTINGS}, {WEIGHTS} and {PIECES} "
            "of a T5"
        ) from error
    except ValidationError as error:
        raise UserError(f"{where}: is not that of a T5 encoder ({first_error(error)})") from error


def load_t5(directory: str) -> T5Encoder:
    """The frozen encoder of a published directory, in fp32; a decoder beside it is not read.

    Raises:
        UserError: a missing file, or weights that do not fit the settings.
    """
    settings = read_settings(directory)
    with torch.device("meta"):
        network = settings.build()
    state: dict[str, Tensor] = {}
    names = _published(network)
    found = dict(_tensors(_weight_files(directory), {*names.values()}))
    for ours, theirs in names.items():
        value = found.get(theirs)
        if value is None and ours == "token.weight":  # the name in encoder-only checkpoints
            value = found.get("encoder.embed_tokens.weight")
        if value is None or value.shape != network.get_parameter(ours).shape:
            raise UserError(
                f"{directory}: {theirs} is missing or has another shape than in {SETTINGS}"
            )
        state[ours] = value
    initialization.assign_state(network, state, device=torch.device("cpu"))
    return network.requires_grad_(requires_grad=False).eval()


def pieces(directory: str) -> bytes:
    """The sentencepiece model of a published directory.

    Raises:
        UserError: there is none.
    """
    where = Path(directory) / PIECES
    try:
        return where.read_bytes()
    except OSError as error:
        raise UserError(f"{where}: cannot be read; put T5's sentencepiece model there") from error


def digest(directory: str) -> str:
    """SHA-256 over settings, weights and sentencepiece model.

    Raises:
        UserError: a file is missing.
    """
    settings = read_settings(directory).model_dump_json().encode()
    weights = [bytes.fromhex(sha256_file(path)) for path in _weight_files(directory)]
    return sha256(b"".join([settings, pieces(directory), *weights]))


def _published(network: T5Encoder) -> Mapping[str, str]:
    """Our names to the published ones."""
    names = {
        "token.weight": "shared.weight",
        "bias.weight": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "norm.weight": "encoder.final_layer_norm.weight",
    }
    parts = {
        "attention_norm": "layer.0.layer_norm",
        "attention": "layer.0.SelfAttention",
        "forward_norm": "layer.1.layer_norm",
        "feed_forward": "layer.1.DenseReluDense",
    }
    for ours, _ in network.blocks.named_parameters():
        number, part, rest = ours.split(".", 2)
        names[f"blocks.{ours}"] = f"encoder.block.{number}.{parts[part]}.{rest}"
    return names


def _weight_files(directory: str) -> list[Path]:
    index, single = Path(directory) / INDEX, Path(directory) / WEIGHTS
    if single.is_file():
        return [single]
    try:
        tree: Any = json.loads(index.read_text(encoding="utf-8"))
        return [
            Path(directory) / Path(name).name for name in sorted({*tree["weight_map"].values()})
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{single}: no such file, and no {INDEX}; weights are read from safetensors only"
        ) from error


def _tensors(files: list[Path], expected: set[str]) -> Iterator[tuple[str, Tensor]]:
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    if name in expected or name == "encoder.embed_tokens.weight":
                        tensor = file.get_tensor(name)
                        require_finite_weights(str(path), {name: tensor})
                        yield name, tensor
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: cannot be read as safetensors ({error})") from error
