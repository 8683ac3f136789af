"""The decoder of unCLIP: images from CLIP image embeddings, and DDIM inversion of real ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from mezzotint.common.embedding_scaling import EmbeddingRecord, require_equal_embeddings
from mezzotint.common.errors import UserError
from mezzotint.inference.generator import Progress
from mezzotint.inference.latent_space import (
    ImageSpace,
    PixelDiffusionModel,
    PixelSpace,
    check_generates_alone,
    read_latent_space,
)
from mezzotint.inference.text_conditioning import TextConditioning, text_conditioning
from models import store
from models.diffusion.condition import Condition
from models.diffusion.guidance import without_embedding, without_text
from models.diffusion.inversion import DDIMInversion, ddim_round_trip
from models.diffusion.process import denoiser
from models.diffusion.sampling import NFE, DiffusionSampling, SamplerRun, count_nfe
from models.diffusion.thresholding import NoThresholding
from models.diffusion.unet.image_embedding import EmbeddingNoiseConfig, embedding_noise_of
from models.nn.random import normal


@dataclass(frozen=True)
class Decoder:
    """A diffusion model that is conditioned on image embeddings, and maybe on captions."""

    network: PixelDiffusionModel
    embeddings: EmbeddingRecord
    space: ImageSpace
    text: TextConditioning | None
    """None: it is not conditioned on captions."""
    digest: str = ""

    @classmethod
    def load(cls, directory: str, device: torch.device, *, force: bool = False) -> "Decoder":
        """Read a model directory; `force` as of `read_latent_space`.

        Raises:
            UserError: it is missing or damaged, or no model of images from image embeddings.
        """
        network, stored = store.load(directory, device=device), store.describe(directory)
        if not isinstance(network, PixelDiffusionModel) or not takes_embeddings(network):
            raise UserError(
                f"system.decoder: {directory} holds a {stored.config.kind} that is not conditioned "
                "on CLIP embeddings of images; train one with task.condition clip_image"
            )
        require_equal_embeddings({f"system.decoder: {directory}": stored.embeddings})
        assert stored.embeddings is not None, "checked"
        if others := network.config.conditioning & {"class", "inpainting"}:
            raise UserError(
                f"system.decoder: {directory} is also conditioned on {', '.join(sorted(others))}, "
                "which an unclip system does not give; choose another model"
            )
        latents = None
        if stored.first_stage is not None:
            latents = read_latent_space(directory, None, device, force=force)
        check_generates_alone(network, directory, latents)
        text = text_conditioning(directory, network.config.conditioning, device)
        space = latents or PixelSpace(network.config.image_size)
        return cls(network, stored.embeddings, space, text, stored.digest)

    @property
    def image_size(self) -> int:
        """Side of its images in pixels."""
        return self.space.image_size

    @property
    def embedding_noise(self) -> EmbeddingNoiseConfig | None:
        """The noise on embeddings whose level the network reads (Stable unCLIP)."""
        return embedding_noise_of(self.network)

    def condition(
        self,
        embedding: Tensor,
        captions: Sequence[str],
        *,
        level: int = 0,
        rng: Generator | None = None,
    ) -> Condition:
        """Image embeddings (B, D), as CLIP projects them, with captions, empty ones for none.

        A network that reads noisy embeddings gets them at `level`, with noise of `rng`; without
        one they are scaled down as that level does, and have none.
        """
        given = self.embeddings.scaling.normalize(embedding.float())
        cond = Condition(image_embedding=given)
        if self.embedding_noise is not None:
            levels = torch.full((len(given),), level, dtype=torch.int64, device=given.device)
            noise = torch.zeros_like(given)
            if rng is not None:
                noise = normal(tuple(given.shape), rng, given.device)
            scaling = self.embeddings.scaling
            cond = self.embedding_noise.condition(cond, given, levels, noise, scaling)
        return cond if self.text is None else self.text(cond, captions)

    def sampler_run(self, sampling: DiffusionSampling, nfe: NFE) -> SamplerRun[Condition]:
        """The sampler, guided by embedding and caption at once; calls are added to `nfe`."""
        plain = count_nfe(denoiser(self.network), nfe)
        free = without_embedding(without_text(plain))
        if not isinstance(self.space, PixelSpace):
            sampling = sampling.model_copy(update={"thresholding": NoThresholding()})
        return sampling.sampler_run(plain, free, self.network.process.schedule)

    def decode(
        self,
        run: SamplerRun[Condition],
        condition: Condition,
        noise: Tensor,
        rng: Generator,
        progress: Progress | None = None,
    ) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] from standard normal noise (B, C, h, w)."""
        return self.space.decode(run.solve(noise, condition, rng, progress))

    def invert(
        self,
        run: SamplerRun[Condition],
        condition: Condition,
        images: Tensor,
        progress: Progress | None = None,
    ) -> DDIMInversion:
        """Images (B, 3, H, W) in [-1, 1] to noise (B, C, h, w) by DDIM, and back to images.

        Along the run's times, which end above 0 as those of `encoding_times`.
        """
        x0 = self.space.encode(images)
        found = ddim_round_trip(run.denoiser, run.schedule, x0, run.times, condition, progress)
        return replace(found, reconstruction=self.space.decode(found.reconstruction))


def takes_embeddings(network: PixelDiffusionModel) -> bool:
    """Whether a network is conditioned on CLIP embeddings of images."""
    return "clip_image" in network.config.conditioning
