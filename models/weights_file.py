"""State dicts from local weight files of other projects."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mezzotint.common.errors import UserError
from models.finite import require_finite_weights


def read_weights(path: str | Path) -> Mapping[str, Tensor]:
    """State dict of a `.safetensors` file, or of a torch file read as tensors only; all finite.

    Raises:
        UserError: missing, unreadable, or holding anything but tensors by name.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such weight file; check the path")
    try:
        if Path(path).suffix == ".safetensors":
            tree: object = load_file(path)
        else:
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, UnpicklingError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read as a weight file ({reason})") from error
    if not isinstance(tree, dict) or not all(isinstance(value, Tensor) for value in tree.values()):
        raise UserError(f"{path}: must hold a state dict, tensors by name")
    require_finite_weights(str(path), tree)
    return tree
