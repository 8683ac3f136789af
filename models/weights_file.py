"""State dicts from local weight files of other projects."""

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

UNREADABLE = (RuntimeError, ValueError, EOFError, SafetensorError, zipfile.BadZipFile)


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
            if zipfile.is_zipfile(path):
                refuse_torchscript(Path(path))
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except (*UNREADABLE, UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read as a weight file ({reason})") from error
    if not isinstance(tree, dict) or not all(isinstance(value, Tensor) for value in tree.values()):
        raise UserError(f"{path}: must hold a state dict, tensors by name")
    require_finite_weights(str(path), tree)
    return tree


def refuse_torchscript(path: Path) -> None:
    """Refuse a TorchScript archive, of which nothing is unpickled.

    Raises:
        UserError: it is one; the message says how to make a state dict of it.
        zipfile.BadZipFile: no zip archive.
    """
    with zipfile.ZipFile(path) as archive:
        names = [name.split("/") for name in archive.namelist()]
    if not any("constants.pkl" in parts or "code" in parts[:-1] for parts in names):
        return
    raise UserError(
        f"{path}: is a TorchScript archive, as OpenAI publishes its CLIPs: a program, not a state "
        'dict. If you trust it, make one with `python -c "import torch; '
        f"torch.save(torch.jit.load('{path}', map_location='cpu').state_dict(), "
        f"'{path.with_suffix('.state.pt')}')\"` and give that file"
    )
