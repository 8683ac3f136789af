"""Captions as a condition: tokens, or what a frozen encoder makes of them."""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field

from mezzotint.common.embedding_scaling import TEXT_EMBEDDING
from mezzotint.common.text_features import TEXT_FEATURES, TEXT_TOKENS
from models.diffusion.condition import Condition
from models.diffusion.guidance import without_text
from models.diffusion.network import ConditionalNetwork
from models.diffusion.process import Denoiser
from models.text_source import ClipTextSource, TextSource
from trainer.rng import drop_rows, drop_text, dropped_rows
from trainer.tasks.conditioning.inputs import (
    BaseCondition,
    ClipTexts,
    ConditionInputs,
    TextFeatures,
)


class _CaptionCondition(BaseCondition, frozen=True, extra="forbid"):
    drop: float = Field(default=0.1, ge=0, lt=1)

    def unconditional(
        self, denoiser: Denoiser[Condition], network: ConditionalNetwork
    ) -> Denoiser[Condition]:
        return without_text(denoiser) if self.drop else denoiser


class TextCondition(_CaptionCondition, frozen=True, extra="forbid"):
    """Captions; `drop` of them are empty in training, for classifier-free guidance."""

    kind: Literal["text"]

    def train_condition(self, condition: Condition, inputs: ConditionInputs) -> Condition:
        return replace(condition, text=drop_text(inputs.batch.tokens, self.drop, inputs.rng))

    def eval_condition(self, condition: Condition, inputs: ConditionInputs) -> Condition:
        return replace(condition, text=inputs.batch.tokens)


class FeaturesCondition(_CaptionCondition, frozen=True, extra="forbid"):
    """Features of captions from a frozen encoder; `drop` of them are of empty ones in training."""

    kind: Literal["features"]
    encoder: TextSource
    cached: bool = False
    """Read the features from the set, or one of data.join, where `mezzotint data derive
    --text-encoder` has written them; captions are dropped as without."""

    def train_condition(self, condition: Condition, inputs: ConditionInputs) -> Condition:
        text = self._text(inputs)
        features = drop_rows(text.features, text.empty, self.drop, inputs.rng)
        return replace(condition, features=features, empty_features=text.empty)

    def eval_condition(self, condition: Condition, inputs: ConditionInputs) -> Condition:
        text = self._text(inputs)
        return replace(condition, features=text.features, empty_features=text.empty)

    def _text(self, inputs: ConditionInputs) -> TextFeatures:
        batch = inputs.batch
        if not self.cached:
            return inputs.encode_text(batch.captions)
        features = batch.array(TEXT_FEATURES)
        return TextFeatures(features, batch.empty_caption[TEXT_FEATURES].to(features.device))


class ClipTextCondition(_CaptionCondition, frozen=True, extra="forbid"):
    """CLIP's features and embeddings of captions; `drop` of them are of empty ones in training.

    Both of a caption are dropped together. What networks of unCLIP read (arXiv 2204.06125, 2.2).
    """

    kind: Literal["clip_text"]
    encoder: ClipTextSource
    cached: bool = False
    """Read them from the set, or one of data.join, where `mezzotint data derive --clip
    --text-features` has written them; captions are dropped as without."""

    def train_condition(self, condition: Condition, inputs: ConditionInputs) -> Condition:
        text = self._text(inputs)
        dropped = dropped_rows(len(text.features), self.drop, inputs.rng, text.features.device)
        return self._with(condition, text if dropped is None else text.dropped(dropped))

    def eval_condition(self, condition: Condition, inputs: ConditionInputs) -> Condition:
        return self._with(condition, self._text(inputs))

    def _with(self, condition: Condition, text: TextFeatures) -> Condition:
        assert text.clip is not None, "its encoder is a CLIP"
        return replace(
            condition,
            features=text.features,
            empty_features=text.empty,
            features_mask=text.clip.mask,
            empty_features_mask=text.clip.empty_mask,
            text_embedding=text.clip.embedding,
            empty_text_embedding=text.clip.empty_embedding,
        )

    def _text(self, inputs: ConditionInputs) -> TextFeatures:
        batch = inputs.batch
        if not self.cached:
            return inputs.encode_text(batch.captions)
        features, tokens = batch.array(TEXT_FEATURES), batch.array(TEXT_TOKENS)
        device, empty = features.device, batch.empty_caption
        place = torch.arange(features.shape[1], device=device)
        clip = ClipTexts(
            place < tokens[:, None],
            batch.array(TEXT_EMBEDDING),
            place < empty[TEXT_TOKENS].to(device),
            empty[TEXT_EMBEDDING].to(device),
        )
        return TextFeatures(features, empty[TEXT_FEATURES].to(device), clip)


CaptionConfig = Annotated[
    TextCondition | FeaturesCondition | ClipTextCondition, Field(discriminator="kind")
]
