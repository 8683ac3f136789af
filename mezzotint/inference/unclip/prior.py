"""The prior of unCLIP: CLIP image embeddings from captions, the best of several."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from mezzotint.common.embedding_scaling import EmbeddingRecord, require_equal_embeddings
from mezzotint.common.errors import UserError
from mezzotint.inference.config import PriorSampling
from mezzotint.inference.generator import Progress
from mezzotint.inference.text_conditioning import ClipTextConditioning, text_conditioning
from models import store
from models.autoregressive.embedding_prior import EmbeddingPrior, generate_embeddings
from models.diffusion.condition import Condition
from models.diffusion.guidance import without_text
from models.diffusion.prior.network import DiffusionPrior
from models.diffusion.prior.sampling import best_match, embedding_thresholding
from models.diffusion.process import denoiser
from models.diffusion.sampling import NFE, DiffusionSampling, count_nfe
from models.finite import require_finite
from models.nn.random import normal


@dataclass(frozen=True)
class TrainedPrior:
    """A prior of either kind, with the text encoder that it reads captions by."""

    network: DiffusionPrior | EmbeddingPrior
    embeddings: EmbeddingRecord
    text: ClipTextConditioning
    digest: str = ""

    @classmethod
    def load(cls, directory: str, device: torch.device) -> "TrainedPrior":
        """Read a model directory.

        Raises:
            UserError: it is missing or damaged, or holds no prior of image embeddings.
        """
        network, stored = store.load(directory, device=device), store.describe(directory)
        if not isinstance(network, DiffusionPrior | EmbeddingPrior):
            raise UserError(
                f"system.prior: {directory} holds a {stored.config.kind}, not a prior of image "
                "embeddings (diffusion_prior, embedding_prior)"
            )
        require_equal_embeddings({f"system.prior: {directory}": stored.embeddings})
        assert stored.embeddings is not None, "checked"
        text = text_conditioning(directory, frozenset({"clip_text"}), device)
        assert isinstance(text, ClipTextConditioning), "of clip_text"
        return cls(network, stored.embeddings, text, stored.digest)

    def steps(self, settings: PriorSampling) -> int:
        """Steps of one sample: of the solver, or one for all codes of an autoregressive prior."""
        return settings.steps if isinstance(self.network, DiffusionPrior) else 1

    def sample(
        self,
        captions: Sequence[str],
        settings: PriorSampling,
        rng: Generator,
        nfe: NFE,
        progress: Progress | None = None,
    ) -> Tensor:
        """Image embeddings (B, D), as CLIP projects them, for captions.

        Of `settings.best_of` samples for each caption it is the one of the largest cosine with the
        embedding of the caption. `progress` counts `steps`; calls of a diffusion prior are added
        to `nfe`.
        """
        cond, best_of = self.text(Condition(), captions), settings.best_of
        assert cond.text_embedding is not None, "of clip_text"
        samples = []
        for number in range(best_of):

            def report(done: int, total: int, number: int = number) -> None:
                if progress is not None:
                    progress((number * total + done) // best_of, total)

            if isinstance(self.network, DiffusionPrior):
                found = self._denoise(self.network, cond, settings, rng, nfe, report)
            else:
                found = _from_codes(self.network, cond, settings, rng)
                report(1, 1)
            require_finite("the image embedding of the prior is", found)
            samples.append(self.embeddings.scaling.denormalize(found.float()))
        return best_match(torch.stack(samples, dim=1), cond.text_embedding)[0]

    def _denoise(
        self,
        network: DiffusionPrior,
        cond: Condition,
        settings: PriorSampling,
        rng: Generator,
        nfe: NFE,
        progress: Progress,
    ) -> Tensor:
        """Normalised embeddings (B, D)."""
        plain = count_nfe(denoiser(network), nfe)
        sampling = DiffusionSampling(
            solver=settings.solver,
            steps=settings.steps,
            guidance=settings.guidance,
            thresholding=embedding_thresholding(self.embeddings.scaling),
        )
        run = sampling.sampler_run(plain, without_text(plain), network.process.schedule)
        assert cond.text_embedding is not None, "of clip_text"
        rows, device = len(cond.text_embedding), cond.text_embedding.device
        return run.solve(normal((rows, network.config.dim), rng, device), cond, rng, progress)


def _from_codes(
    network: EmbeddingPrior, cond: Condition, settings: PriorSampling, rng: Generator
) -> Tensor:
    """Normalised embeddings (B, D) of an autoregressive prior."""
    empty = cond.without_text.clip_caption
    return generate_embeddings(network, cond.clip_caption, rng, settings.tokens, empty=empty)
