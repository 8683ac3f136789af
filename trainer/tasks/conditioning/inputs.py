"""What conditions are made of, and what all of them have."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel
from torch import Generator, Tensor

from data_pipeline.batch import Batch
from models.diffusion.condition import Condition
from models.diffusion.network import ConditionalNetwork
from models.diffusion.process import Denoiser
from trainer.rng import replaced_rows


@dataclass(frozen=True)
class TextFeatures:
    """Features of captions from a frozen encoder, in fp32."""

    features: Tensor
    """(B, L, C)."""
    empty: Tensor
    """(L, C): of an empty caption."""
    clip: "ClipTexts | None" = None
    """Of a CLIP's text tower."""

    def dropped(self, rows: Tensor) -> "TextFeatures":
        """The same with what an empty caption has in the rows (B,) bool."""
        clip, features = self.clip, replaced_rows(self.features, self.empty, rows)
        if clip is not None:
            clip = replace(
                clip,
                mask=replaced_rows(clip.mask, clip.empty_mask, rows),
                embedding=replaced_rows(clip.embedding, clip.empty_embedding, rows),
            )
        return replace(self, features=features, clip=clip)


@dataclass(frozen=True)
class ClipTexts:
    """What CLIP's text tower makes of captions besides features, and of an empty one."""

    mask: Tensor
    """(B, L) bool: which features are of tokens, and not of padding."""
    embedding: Tensor
    """(B, D): the projection as it is."""
    empty_mask: Tensor
    """(L,)."""
    empty_embedding: Tensor
    """(D,)."""


@dataclass(frozen=True)
class ConditionInputs:
    """The inputs of conditions."""

    batch: Batch
    clean: Tensor
    """(B, ...): the target before noise is added, after cropping."""
    network: ConditionalNetwork
    rng: Generator
    encode_text: Callable[[Sequence[str]], TextFeatures]
    """The frozen encoder of the task; a CLIP also gives `TextFeatures.clip`."""
    encode_images: Callable[[Tensor], Tensor]
    """Images (B, 3, H, W) as what is denoised: themselves, or normalised latents."""


class BaseCondition(BaseModel, frozen=True, extra="forbid"):
    """One condition of a task."""

    @property
    def gives(self) -> frozenset[str]:
        """What a network is conditioned on by it, in the network's terms."""
        kind: str = getattr(self, "kind")  # noqa: B009 - of the subclasses
        return frozenset({kind})

    def check(self, network: ConditionalNetwork) -> None:
        """Refuse a network that does not fit."""

    def unconditional(
        self, denoiser: Denoiser[Condition], network: ConditionalNetwork
    ) -> Denoiser[Condition]:
        """The unconditional denoiser, where training drops this condition."""
        return denoiser
