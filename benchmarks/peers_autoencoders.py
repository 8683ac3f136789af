"""DALLE-pytorch's dVAE and vector-quantize-pytorch's quantiser as the same functions as ours.

* dalle-pytorch 1.6.6, `DiscreteVAE` as shipped: no residual blocks, mean squared error. Its network
  is not DALL-E's, so `in_its_shape` gives our dVAE an encoder and a decoder of its shape; the dVAE
  around them, its Gumbel-softmax sample and its divergence are those of every recipe. The weight
  of the divergence is per position in ours and per batch in the package; both mean the same.
* vector-quantize-pytorch 1.32.0, `VectorQuantize`, with the plain straight-through gradient in
  the place of its rotation trick, and no dead codes replaced.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peers_prior import stub_what_dalle_pytorch_imports
from torch import Tensor, nn
from torch.nn import functional as F

from models.autoencoders.dvae import DVAE, DVAEConfig
from models.autoencoders.gumbel_softmax import SMALL
from models.autoencoders.losses import unmap_pixels
from models.autoencoders.quantizer import EmaVectorQuantizer
from models.nn.random import gumbel_like

KL = 0.1
"""Weight of the divergence per position."""
TEMPERATURE = 0.9


class Encoder(nn.Module):
    """DALLE-pytorch's: convolutions of stride 2, then the logits."""

    def __init__(self, *, vocab: int, width: int, halvings: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Conv2d(3 if index == 0 else width, width, 4, stride=2, padding=1)
            for index in range(halvings)
        )
        self.out = nn.Conv2d(width, vocab, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Pixels as `map_pixels` maps them to logits (B, vocab, h, w)."""
        x = unmap_pixels(image).contiguous(memory_format=torch.channels_last)
        for layer in self.down:
            x = F.relu(layer(x))
        return self.out(x)


class Decoder(nn.Module):
    """DALLE-pytorch's codebook, transposed convolutions, and three colours."""

    def __init__(self, *, vocab: int, codebook: int, width: int, halvings: int) -> None:
        super().__init__()
        self.codebook = nn.Conv2d(vocab, codebook, 1, bias=False)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(codebook if index == 0 else width, width, 4, stride=2, padding=1)
            for index in range(halvings)
        )
        self.out = nn.Conv2d(width, 3, 1)

    def features(self, codes: Tensor) -> Tensor:
        """(B, vocab, h, w) to what the last layer reads."""
        x = self.codebook(codes.contiguous(memory_format=torch.channels_last))
        for layer in self.up:
            x = F.relu(layer(x))
        return x

    def project(self, features: Tensor) -> Tensor:
        """The last layer."""
        return self.out(features)


def in_its_shape(*, image: int, vocab: int, width: int, codebook: int, halvings: int) -> DVAE:
    """Our dVAE around DALLE-pytorch's network."""
    torch.manual_seed(0)
    model = DVAEConfig(image_size=image, vocab=vocab, width=width, groups=halvings + 1).build()
    model.encoder = Encoder(vocab=vocab, width=width, halvings=halvings)
    model.decoder = Decoder(vocab=vocab, codebook=codebook, width=width, halvings=halvings)
    model.set_temperature(TEMPERATURE)
    return model


def own_loss(model: DVAE, image: Tensor, rng: torch.Generator) -> Tensor:
    """Mean squared error and the weighted divergence; images in [-1, 1]."""
    result = model(image, rng)
    return F.mse_loss(result.output, image) + KL * result.latent.loss


class DallePytorch:
    """`dalle_pytorch.DiscreteVAE` with the weights of ours."""

    name = "dalle-pytorch 1.6.6"

    def __init__(self, ours: DVAE, *, width: int, codebook: int, halvings: int, batch: int) -> None:
        stub_what_dalle_pytorch_imports()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from dalle_pytorch import DiscreteVAE
        config = ours.config
        side, _ = ours.grid
        self.ours = ours
        self.model = DiscreteVAE(
            image_size=config.image_size,
            num_tokens=config.vocab,
            codebook_dim=codebook,
            num_layers=halvings,
            hidden_dim=width,
            temperature=TEMPERATURE,
            kl_div_loss_weight=KL / (batch * side**2),
        )
        with torch.no_grad():
            for theirs, own in self.pairs():
                theirs.copy_(own)

    def layers(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Its convolutions beside ours."""
        for theirs, ours in (
            (self.model.encoder, [*self.ours.encoder.down, self.ours.encoder.out]),
            (self.model.decoder, [*self.ours.decoder.up, self.ours.decoder.out]),
        ):
            kept = [m for m in theirs.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
            yield from zip(kept, ours, strict=True)

    def pairs(self, *, gradients: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Its parameters, or their gradients, beside ours."""
        parameters = [(self.model.codebook.weight, self.ours.decoder.codebook.weight)]
        for theirs, own in self.layers():
            parameters += [(theirs.weight, own.weight), (theirs.bias, own.bias)]
        for theirs, own in parameters:
            a, b = (theirs.grad, own.grad) if gradients else (theirs, own)
            yield a, b if b.shape == a.shape else b[:, :, 0, 0].T

    def loss(self, image: Tensor) -> Tensor:
        """Images in [-1, 1]; the package wants [0, 1]."""
        return self.model((image + 1) / 2, return_loss=True)

    @contextmanager
    def our_noise(self, rng: torch.Generator) -> Iterator[None]:
        """Its noise, -ln of an exponential variable, is what ours samples from `rng`."""
        original = Tensor.exponential_

        def same(x: Tensor) -> Tensor:
            if x.numel() > SMALL:  # ours then samples position by position
                noise = gumbel_like(x.movedim(1, -1), rng).movedim(-1, 1)
            else:
                noise = gumbel_like(x, rng)
            return x.copy_(noise.neg().exp())

        Tensor.exponential_ = same
        try:
            yield
        finally:
            Tensor.exponential_ = original


class VectorQuantizePytorch:
    """`vector_quantize_pytorch.VectorQuantize` with the averages of ours."""

    name = "vector-quantize-pytorch 1.32.0"

    def __init__(self, ours: EmaVectorQuantizer) -> None:
        from vector_quantize_pytorch import VectorQuantize

        config = ours.config
        self.ours = ours
        self.model = VectorQuantize(
            dim=ours.codebook.shape[1],
            codebook_size=config.codes,
            decay=config.decay,
            eps=config.epsilon,
            commitment_weight=config.commitment,
            accept_image_fmap=True,
            rotation_trick=False,
        )
        for theirs, own in self.pairs():
            theirs.copy_(own)

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Its codebook, counts and sums beside ours."""
        theirs, ours = self.model._codebook, self.ours
        yield theirs.embed.data[0], ours.codebook
        yield theirs.cluster_size[0], ours.counts
        yield theirs.embed_avg[0], ours.sums


def relative(pairs: Iterator[tuple[Tensor, Tensor]]) -> float:
    """The largest difference of a pair, relative to its size."""
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def count(model: nn.Module) -> int:
    """Parameters."""
    return sum(each.numel() for each in model.parameters())
