"""CLIP embeddings of images as a condition (unCLIP's decoder, arXiv 2204.06125, 2.1)."""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from mezzotint.common.embedding_scaling import IMAGE_EMBEDDING, EmbeddingScaling
from mezzotint.common.errors import UserError
from models.diffusion.condition import Condition
from models.diffusion.guidance import without_embedding
from models.diffusion.network import ConditionalNetwork
from models.diffusion.process import Denoiser
from models.diffusion.unet.image_embedding import EmbeddingNoiseConfig, embedding_noise_of
from trainer.rng import dropped_rows
from trainer.tasks.conditioning.captions import CaptionConfig
from trainer.tasks.conditioning.inputs import BaseCondition, ConditionInputs


class ClipImageCondition(BaseCondition, frozen=True, extra="forbid"):
    """CLIP embeddings of the images; `drop` of them become the network's learned vector.

    `captions` are dropped independently of them (unCLIP, arXiv 2204.06125, 2.1: 10% of the
    embeddings and half of the captions).
    """

    kind: Literal["clip_image"]
    drop: float = Field(default=0.1, ge=0, lt=1)
    noise: float = Field(default=0.0, ge=0)
    """Gaussian noise on the normalised embeddings in training, of a standard deviation uniform in
    [0, noise]: what is sampled for an embedding then holds for those near it, such as a prior's."""
    captions: CaptionConfig | None = None
    scaling: EmbeddingScaling | None = None
    """None: the normalisation of the set. A model that goes on from another states the other's."""

    @property
    def gives(self) -> frozenset[str]:
        return frozenset({self.kind}) | (self.captions.gives if self.captions else frozenset())

    def check(self, network: ConditionalNetwork) -> None:
        if self.noise and embedding_noise_of(network) is not None:
            raise UserError(
                "task.condition.noise: the model has noise on its embeddings and reads its level "
                "(model.image_embedding.noise); leave this out"
            )
        if self.captions is not None:
            self.captions.check(network)

    def train_condition(self, condition: Condition, inputs: ConditionInputs) -> Condition:
        embedding, noise = self._embedding(inputs), embedding_noise_of(inputs.network)
        rows, device = len(embedding), embedding.device
        if noise is not None:
            steps = noise.schedule.steps
            level = torch.randint(steps, (rows,), generator=inputs.rng, device=device)
            condition = self._with_noise(condition, noise, level, inputs)
        else:
            noised = self._noised(embedding, inputs.rng)
            condition = replace(condition, image_embedding=noised)
        dropped = dropped_rows(rows, self.drop, inputs.rng, device)
        condition = replace(condition, null_embedding=dropped)
        if self.captions is None:
            return condition
        return self.captions.train_condition(condition, inputs)

    def eval_condition(self, condition: Condition, inputs: ConditionInputs) -> Condition:
        embedding, noise = self._embedding(inputs), embedding_noise_of(inputs.network)
        condition = replace(condition, image_embedding=embedding)
        if noise is not None:
            level = torch.zeros(len(embedding), dtype=torch.int64, device=embedding.device)
            condition = self._with_noise(condition, noise, level, inputs)
        if self.captions is None:
            return condition
        return self.captions.eval_condition(condition, inputs)

    def unconditional(
        self, denoiser: Denoiser[Condition], network: ConditionalNetwork
    ) -> Denoiser[Condition]:
        if self.drop:
            denoiser = without_embedding(denoiser)
        return denoiser if self.captions is None else self.captions.unconditional(denoiser, network)

    def _noised(self, embedding: Tensor, rng: Generator) -> Tensor:
        if not self.noise:
            return embedding
        rows = (len(embedding), 1)
        level = self.noise * torch.rand(rows, generator=rng, device=embedding.device)
        more = torch.randn(embedding.shape, generator=rng, device=embedding.device)
        return embedding + level * more

    def _with_noise(
        self,
        condition: Condition,
        noise: EmbeddingNoiseConfig,
        level: Tensor,
        inputs: ConditionInputs,
    ) -> Condition:
        assert self.scaling is not None, "taken from the set when the run is set up"
        embedding = self._embedding(inputs)
        drawn = torch.randn(embedding.shape, generator=inputs.rng, device=embedding.device)
        return noise.condition(condition, embedding, level, drawn, self.scaling)

    def _embedding(self, inputs: ConditionInputs) -> Tensor:
        assert self.scaling is not None, "taken from the set when the run is set up"
        return self.scaling.normalize(inputs.batch.array(IMAGE_EMBEDDING).float())
