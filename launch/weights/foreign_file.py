"""Weights of other libraries, read from safetensors alone."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mezzotint.common.errors import UserError
from models.finite import require_finite_weights


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        UserError: another format, such as a pickle, with the way to convert it.
        NonFiniteError: a weight that is not finite.
    """
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: is not a safetensors file ({error}); a pickled checkpoint (.pt, .ckpt, .bin) "
            "can run code when it is loaded, so it is never read here: take the .safetensors file "
            "of the same weights, or convert it to safetensors first: python -c "
            '"import torch; from safetensors.torch '
            f"import save_file; found = torch.load('{file}', map_location='cpu', "
            "weights_only=True); found = found.get('state_dict', found); save_file({name: "
            "value.clone().contiguous() for name, value in found.items() if hasattr(value, "
            f"'clone')}}, '{file.with_suffix('.safetensors')}')\""
        ) from error
    require_finite_weights(str(file), weights)
    return weights
