"""The noise of inverted images as a file: `invert` writes it, `sample` starts from it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mezzotint.common.errors import UserError
from models.finite import require_finite_weights

NAME, ABOUT = "noise", "mezzotint"


@dataclass(frozen=True)
class NoiseFile:
    """Noise (n, 3, H, W), standard normal where the model is good, and how it was made."""

    noise: Tensor
    digest: str
    """Of the model."""
    steps: int
    times: str
    """Kind of the grid of times."""
    captions: tuple[str, ...]
    classes: tuple[int, ...]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {key: value for key, value in asdict(self).items() if key != NAME}
        save_file({NAME: self.noise.contiguous()}, path, metadata={ABOUT: json.dumps(about)})


def read_noise(path: Path) -> NoiseFile:
    """Read what `NoiseFile.save` wrote.

    Raises:
        UserError: no such file, or one that is something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[ABOUT])
            noise = file.get_tensor(NAME)
        require_finite_weights(str(path), {NAME: noise})
        return NoiseFile(
            noise=noise,
            digest=str(about["digest"]),
            steps=int(about["steps"]),
            times=str(about["times"]),
            captions=tuple(about["captions"]),
            classes=tuple(about["classes"]),
        )
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise UserError(
            f"{path}: is not noise that `mezzotint invert` has written ({error})"
        ) from error
