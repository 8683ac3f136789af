"""State dicts of open_clip checkpoints, read as tensors only."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mezzotint.common.errors import UserError
from models.finite import require_finite_weights
from models.weights_file import refuse_torchscript

OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")
"""Numbers beside the weights in OpenAI's own archives."""


def read_state(path: Path) -> tuple[Mapping[str, Tensor], bool]:
    """Weights by name, and whether they are OpenAI's, by the keys beside them.

    Raises:
        UserError: no torch or safetensors file, one that holds more than tensors, of which nothing
            is unpickled, or a weight that is not finite.
    """
    try:
        tree: object = load_file(path) if _is_safetensors(path) else _torch_file(path)
    except (RuntimeError, ValueError, KeyError, EOFError, OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a checkpoint; it cannot be read ({reason})") from error
    state = tree.get("state_dict", tree) if isinstance(tree, Mapping) else None
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"{path}: not a checkpoint; save a state dict, tensors by name")
    prefix = "module." if next(iter(state)).startswith("module.") else ""
    named = {
        str(name).removeprefix(prefix): value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    openai = all(key in named for key in OPENAI_KEYS)
    weights = {name: value for name, value in named.items() if name not in OPENAI_KEYS}
    require_finite_weights(str(path), weights)
    return weights, openai


def _is_safetensors(path: Path) -> bool:
    """By its name, or by a JSON header after eight bytes of its length."""
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or (start[8:] == b"{" and start[:2] != b"PK")


def _torch_file(path: Path) -> object:
    try:
        refuse_torchscript(path)
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path}: not a torch checkpoint of torch 1.6 or later; give a state dict on disk, or "
            "a safetensors file"
        ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            f"{path}: not a checkpoint of tensors alone; where it was made, save the state dict "
            "of the model instead (torch.save(model.state_dict(), ...))"
        ) from error
