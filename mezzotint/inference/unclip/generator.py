"""unCLIP: a prior of CLIP image embeddings, a decoder of them, and super-resolution models."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mezzotint.common.embedding_scaling import require_clip, require_equal_embeddings
from mezzotint.common.errors import UserError
from mezzotint.inference.cascade import (
    UpsamplingStage,
    check_levels,
    load_upsamplers,
    sampler_name,
    solve_truncated,
    stop_level,
    upsample_in_turn,
)
from mezzotint.inference.clip import ClipEmbedder
from mezzotint.inference.config import UnclipSystem
from mezzotint.inference.generator import Block, GenerationRequest, ImageGenerator, Progress
from mezzotint.inference.images import to_bytes
from mezzotint.inference.latent_space import PixelSpace
from mezzotint.inference.preprocessing import require_equal_preprocessing
from mezzotint.inference.runtime import Runtime
from mezzotint.inference.unclip.decoder import Decoder
from mezzotint.inference.unclip.prior import TrainedPrior
from models.diffusion.sampling import NFE
from models.frozen_text import CaptionTokens
from models.nn.random import normal


@dataclass(frozen=True)
class UnclipGenerator(ImageGenerator):
    """CLIP, maybe a prior, a decoder and its super-resolution models."""

    config: UnclipSystem
    clip: ClipEmbedder
    prior: TrainedPrior | None
    """None: it generates from given embeddings."""
    decoder: Decoder
    stages: tuple[UpsamplingStage, ...]
    runtime: Runtime
    digests: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, config: UnclipSystem, runtime: Runtime) -> "UnclipGenerator":
        """Read the model directories of a configuration.

        Raises:
            UserError: a directory is missing or damaged or holds another kind of model; models of
                other CLIPs or normalisations, or whose image sizes do not meet.
        """
        device, force = runtime.device, config.force_preprocessing
        clip = ClipEmbedder.load(config.clip, device)
        decoder = Decoder.load(config.decoder, device, force=force)
        where = f"system.decoder ({config.decoder})"
        require_clip(decoder.embeddings, clip.digest, "system.clip", where)
        prior = None if config.prior is None else TrainedPrior.load(config.prior, device)
        records = {where: decoder.embeddings}
        if prior is not None:
            records[f"system.prior ({config.prior})"] = prior.embeddings
        require_equal_embeddings(records)
        settings = {f"upsamplers.{index}": each for index, each in enumerate(config.upsamplers)}
        _check_embedding_level(config, decoder)
        stages = load_upsamplers(
            settings, runtime, low_size=decoder.image_size, below="system.decoder"
        )
        require_equal_preprocessing({"decoder": config.decoder, **settings}, force=force)
        digests = {"clip": clip.digest, "decoder": decoder.digest}
        digests |= {each.setting: each.digest for each in stages}
        if prior is not None:
            digests["prior"] = prior.digest
        return cls(config, clip, prior, decoder, stages, runtime, digests)

    @property
    def image_size(self) -> int:
        return self.stages[-1].image_size if self.stages else self.decoder.image_size

    @property
    def text_encoders(self) -> Mapping[str, CaptionTokens]:
        found = {"model": self.clip.text}
        return (
            found if self.decoder.text is None else {**found, "decoder": self.decoder.text.tokens}
        )

    def up_to(self, stages: int) -> "UnclipGenerator":
        """The decoder with the first `stages` super-resolution models."""
        return replace(self, stages=self.stages[:stages])

    def _check(self, request: GenerationRequest) -> None:
        kind, given = self.config.kind, request.image_embedding
        request.refuse(kind, prefix=True, embedding=False)
        if request.edit is not None:
            raise UserError(
                f"image: an {kind} system edits images by `mezzotint edit`; leave it out"
            )
        if request.hints:
            raise UserError(f"--control: an {kind} system has no controls; leave the hints out")
        if any(prompt.label is not None for prompt in request.prompts):
            raise UserError(
                f"--class: an {kind} system is not conditioned on classes; leave it out"
            )
        following = self.config.stage_sampling[: len(self.stages)]
        check_levels(self.stages, following)
        if stop_level(following) and not isinstance(self.decoder.space, PixelSpace):
            raise UserError(
                "system.upsampler_sampling: truncated needs a decoder of pixels, and this one "
                "generates latents; leave it out"
            )
        if given is not None:
            self.check_embedding(given, (len(request.prompts),))
            return
        if self.prior is None:
            raise UserError(
                "system.prior: the system has no prior, which generates image embeddings from "
                "captions; set it, or give image embeddings or images to edit"
            )
        if any(prompt.text is None for prompt in request.prompts):
            raise UserError(f"captions: an {kind} system generates from captions; give some")

    def check_embedding(self, given: Tensor, rows: tuple[int, ...]) -> None:
        """Refuse image embeddings of another shape than (D,) or `rows` (..., D), or not finite.

        Raises:
            UserError: they are.
        """
        dim = self.decoder.embeddings.scaling.dim
        if tuple(given.shape) not in ((dim,), (*rows, dim)):
            raise UserError(
                f"image_embedding: has shape {tuple(given.shape)}; this system takes ({dim},), or "
                f"{(*rows, dim)}"
            )
        if not bool(torch.isfinite(given).all()):
            raise UserError("image_embedding: has values that are not finite")

    def _sample(self, block: Block) -> Mapping[str, Tensor]:
        nfe, device = NFE(), self.runtime.device
        following = self.config.stage_sampling[: len(self.stages)]
        first = 0
        if block.image_embedding is None and self.prior is not None:
            first = self.prior.steps(self.config.prior_sampling)
        steps = self.config.sampling.steps
        total = first + steps + sum(each.steps for each in following)

        def after(before: int) -> Progress:
            return lambda done, _: block.report(before + done, total)

        embedding = block.image_embedding
        if embedding is None:
            assert self.prior is not None, "checked"
            settings = self.config.prior_sampling
            embedding = self.prior.sample(block.captions, settings, block.rng, nfe, after(0))
        noise = block.noise
        if noise is None:
            noise = normal((len(block.prompts), *self.decoder.space.shape), block.rng, device)
        level, rng = self.config.embedding_level, block.rng
        cond = self.decoder.condition(embedding, block.captions, level=level, rng=rng)
        run = self.decoder.sampler_run(self.config.sampling.sampling(), nfe)
        if stop := stop_level(following):
            low = solve_truncated(run, cond, noise, block.rng, stop, after(first))
        else:
            low = self.decoder.decode(run, cond, noise, block.rng, after(first))
        images = upsample_in_turn(
            self.stages, following, low, block.captions, block.rng, nfe,
            progress=after(first + steps),
        )  # fmt: skip
        return {
            "images": to_bytes(images),
            "nfe": torch.tensor([nfe.network, nfe.classifier], device="cpu"),
        }

    def protocol(self) -> Mapping[str, object]:
        config = self.config
        stages = {"decoder": config.sampling}
        stages |= dict(zip(map(_name, self.stages), config.stage_sampling, strict=False))
        settings: dict[str, object] = {
            name: each.model_dump(mode="json") for name, each in stages.items()
        }
        if self.decoder.embedding_noise is not None:
            settings["embedding_level"] = config.embedding_level
        if self.prior is not None:
            settings["prior"] = config.prior_sampling.model_dump(mode="json")
        return {
            "kind": config.kind,
            "digests": dict(self.digests),
            "clip": dict(self.clip.protocol()),
            "embeddings": self.decoder.embeddings.model_dump(mode="json"),
            "sampler": sampler_name(*stages.values()),
            "steps": {name: each.steps for name, each in stages.items()},
            "guidance": config.sampling.guidance,
            "sampling": settings,
            "precision": self.runtime.precision_name,
        }


def _check_embedding_level(config: UnclipSystem, decoder: Decoder) -> None:
    noise, level = decoder.embedding_noise, config.embedding_level
    if level and noise is None:
        raise UserError(
            f"system.embedding_level: {config.decoder} reads embeddings without noise; leave it out"
        )
    if noise is not None and level >= noise.schedule.steps:
        raise UserError(
            f"system.embedding_level: {level} is not one of the {noise.schedule.steps} levels of "
            f"{config.decoder}, which are 0 to {noise.schedule.steps - 1}"
        )


def _name(stage: UpsamplingStage) -> str:
    return stage.setting
