"""A whole edit by Imagic beside that of diffusers' community pipeline, on the same tiny networks.

    curl -O https://raw.githubusercontent.com/huggingface/diffusers/main/examples/community/\\
imagic_stable_diffusion.py
    .venv/bin/python benchmarks/imagic.py --community imagic_stable_diffusion.py --threads 1 \\
        [--quick] [--only whole|adapters] [--json FILE]

The pipeline gets our weights: UNet and first stage must give our outputs, and the UNet our
gradients, before anything is timed. Both optimise the embedding and then all weights, in so many
steps of batch 1, and sample one image in 25 steps with guidance; ours also restores the system.
Rows "with comparison" also measure the losses and sample the target without an edit, as the
command line does. The pipeline runs as it is, in fp32:
it asks accelerate for fp16 but prepares no model with it, and accelerate refuses fp16 on a CPU, so
that class is replaced by one that does nothing. Rows with adapters train other weights than the
pipeline can. The memory is that of the weights and of the most live tensors that an edit adds.
"""

import importlib.util
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]

from diffusion import NOISE, checked, error, new_unet, own_call  # noqa: E402
from peers_diffusion import Diffusers, parameters, relative, steps_of  # noqa: E402
from timing import Row, as_table, interleaved, machine, peak_bytes, run_command  # noqa: E402

from mezzotint.common.latent_scaling import LatentScaling  # noqa: E402
from mezzotint.inference.config import LatentSystem  # noqa: E402
from mezzotint.inference.diffusion import DiffusionGenerator  # noqa: E402
from mezzotint.inference.images import from_bytes  # noqa: E402
from mezzotint.inference.imagic.config import ImagicConfig, Optimization  # noqa: E402
from mezzotint.inference.imagic.edit import ImagicRequest, edit  # noqa: E402
from mezzotint.inference.runtime import Runtime  # noqa: E402
from models import store  # noqa: E402
from models.autoencoders.autoencoder import AutoencoderConfig  # noqa: E402
from models.autoencoders.diffusers import to_diffusers_vae  # noqa: E402
from models.autoencoders.diffusers_settings import vae_settings  # noqa: E402
from models.autoencoders.latent_space import LatentSpace  # noqa: E402
from models.diffusion.condition import Condition  # noqa: E402
from models.diffusion.sampling import LatentSampling  # noqa: E402
from models.diffusion.unet.network import UNetConfig  # noqa: E402
from models.torchvision_compat import ensure_torchvision  # noqa: E402

TOKENS, WIDTH, SCALE = 77, 256, 0.18215
TARGET, GUIDANCE, SAMPLING_STEPS = "a caption", 2.0, 25
RATES = (1e-3, 2e-6)
"""The pipeline's defaults."""
SPEED, MEMORY = 1.5, 0.7
VARIANTS = (("fp32", None, False), ("fp32", None, True), ("fp32", 8, False), ("bf16", 8, False))
"""Of our edits: precision, rank of adapters, and whether it compares."""


@dataclass(frozen=True)
class Shape:
    """Sizes and steps of the comparison; the pipeline's defaults are 500 and 1000 steps."""

    unet: UNetConfig
    vae: AutoencoderConfig
    steps: tuple[int, int]


def shape_of(*, quick: bool) -> Shape:
    """Latents of 16 x 16 x 4, 77 tokens of 256, images of 128 pixels."""
    unet = UNetConfig.model_validate(
        {
            "image_size": 16,
            "image_channels": 4,
            "channels": 64,
            "multipliers": (1, 2) if quick else (1, 2, 4),
            "depth": 1,
            "attention": (16, 8),
            "heads": 4,
            "features": {"width": WIDTH},
            "transformer": {},
            "modulation": "add",
            "resampling": "convolution",
            "timestep_offset": 1,
            "process": NOISE,
        }
    )
    vae = AutoencoderConfig.model_validate(
        {
            "image_size": 128,
            "channels": 4,
            "bottleneck": {"kind": "gaussian"},
            "pyramid": {
                "kind": "resnet", "width": 16, "multipliers": [1, 2, 2, 2], "blocks": 1,
                "groups": 8,
            },
        }
    )  # fmt: skip
    return Shape(unet, vae, (4, 8) if quick else (40, 80))


class Captions:
    """Features of captions by the text encoder that the pipeline has, in place of ours."""

    tokens: Any = None

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = encoder

    def __call__(self, cond: Condition, captions: list[str]) -> Condition:
        with torch.no_grad():
            features = torch.cat([self.encoder(ids(each))[0] for each in ["", *captions]])
        return replace(cond, features=features[1:], empty_features=features[0])


def ids(caption: str) -> Tensor:
    """Tokens (1, 77) of a caption: one for each letter."""
    letters = [1 + ord(letter) % 90 for letter in caption][:TOKENS]
    return torch.tensor([letters + [0] * (TOKENS - len(letters))])


class Tokenizer:
    """What the pipeline asks of a tokenizer."""

    model_max_length = TOKENS

    def __call__(self, captions: str | list[str], **_: object) -> types.SimpleNamespace:
        given = [captions] if isinstance(captions, str) else captions
        return types.SimpleNamespace(input_ids=torch.cat([ids(each) for each in given]))


class Accelerator:
    """What is left of accelerate's where it prepares no model."""

    is_local_main_process = is_main_process = sync_gradients = True

    def __init__(self, **_: object) -> None:
        pass

    def init_trackers(self, *_: object, **__: object) -> None:
        pass

    @contextmanager
    def accumulate(self, *_: object) -> Iterator[None]:
        yield

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def log(self, *_: object, **__: object) -> None:
        pass

    def wait_for_everyone(self) -> None:
        pass


def community(path: Path) -> type:
    """The pipeline's class."""
    ensure_torchvision()  # transformers imports it
    fake: Any = types.ModuleType("accelerate")
    fake.Accelerator = Accelerator
    fake.__spec__ = importlib.util.spec_from_loader("accelerate", None)
    import diffusers  # before the module is there, so that it does not look for accelerate

    assert diffusers.DiffusionPipeline
    sys.modules["accelerate"] = fake
    spec = importlib.util.spec_from_file_location("imagic_stable_diffusion", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["imagic_stable_diffusion"] = module
    spec.loader.exec_module(module)
    del sys.modules["accelerate"]
    return module.ImagicStableDiffusionPipeline


@dataclass
class Systems:
    """Ours and the pipeline's, of the same weights."""

    generator: DiffusionGenerator
    pipeline: Any
    peer: Diffusers
    image: Tensor
    """(128, 128, 3) uint8."""
    steps: tuple[int, int]

    @classmethod
    def of(cls, shape: Shape, pipeline_class: type, home: Path) -> "Systems":
        """New networks."""
        import diffusers
        import transformers

        torch.manual_seed(0)
        unet, vae = new_unet(shape.unet), shape.vae.build().eval()
        store.save(str(home), shape.unet, unet.state_dict(), card="benchmark")
        unet = store.load(str(home))
        sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
        config = transformers.CLIPTextConfig(
            vocab_size=100,
            num_hidden_layers=2,
            max_position_embeddings=TOKENS,
            bos_token_id=98,
            eos_token_id=99,
            **sizes,
        )
        text = transformers.CLIPTextModel(config).eval()
        peer = Diffusers(unet)
        their_vae = diffusers.AutoencoderKL(
            **{k: v for k, v in vae_settings(shape.vae).items() if not k.startswith("_")}
        ).eval()
        their_vae.load_state_dict(to_diffusers_vae(vae.state_dict(), shape.vae), strict=True)
        pipeline = pipeline_class(
            vae=their_vae, text_encoder=text, tokenizer=Tokenizer(), unet=peer.model,
            scheduler=diffusers.DDIMScheduler(clip_sample=False), safety_checker=None,
            feature_extractor=None,
        )  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        sampling = LatentSampling(steps=SAMPLING_STEPS, guidance=GUIDANCE)
        latents = LatentSpace(vae, LatentScaling(mean=0.0, std=1 / SCALE, samples=1))
        generator = DiffusionGenerator(
            config=LatentSystem(model=str(home), sampling=sampling),
            network=unet,
            runtime=Runtime.of("cpu", "fp32"),
            text=Captions(text),
            latents=latents,
        )
        rng = torch.Generator().manual_seed(4)
        image = torch.randint(0, 256, (128, 128, 3), generator=rng, dtype=torch.uint8)
        return cls(generator, pipeline, peer, image, shape.steps)

    def own_edit(self, kind: str, rank: int | None, *, compares: bool = True) -> Tensor:
        """Ours: the image of one eta, with what an edit measures beside it if it `compares`."""
        runtime = Runtime.of("cpu", "bf16" if kind == "bf16" else "fp32")
        first, second = (
            Optimization(steps=steps, lr=rate)
            for steps, rate in zip(self.steps, RATES, strict=True)
        )
        config = ImagicConfig(embedding=first, network=second, batch=1, rank=rank)
        request = ImagicRequest(self.image, TARGET, etas=(1.0,), compares=compares)
        return edit(replace(self.generator, runtime=runtime), request, config).images

    def peer_edit(self) -> Tensor:
        """The pipeline's; its UNet is not restored."""
        first, second = self.steps
        size = len(self.image)
        self.pipeline.train(
            TARGET,
            from_bytes(self.image)[None],
            height=size,
            width=size,
            embedding_learning_rate=RATES[0],
            diffusion_model_learning_rate=RATES[1],
            text_embedding_optimization_steps=first,
            model_fine_tuning_optimization_steps=second,
        )
        found = self.pipeline(
            alpha=1.0, height=size, width=size, num_inference_steps=SAMPLING_STEPS,
            guidance_scale=GUIDANCE, output_type="np",
        )  # fmt: skip
        self.pipeline.unet.zero_grad(set_to_none=True)
        return torch.from_numpy(found.images)


def parity(systems: Systems) -> dict[str, float]:
    """The largest differences of outputs, gradients and latents."""
    unet, peer = systems.generator.network, systems.peer
    rng = torch.Generator().manual_seed(2)
    x, noise = torch.randn(2, 1, 4, 16, 16, generator=rng)
    condition = Captions(systems.pipeline.text_encoder)(Condition(), [TARGET])
    given = x, steps_of(1), condition, noise
    calls = (unet, own_call(unet)), (peer.model, peer.call)
    with torch.no_grad():
        away = calls[0][1](x, given[1], condition) - peer.call(x, given[1], condition)
    for model, call in calls:
        model.requires_grad_(True).zero_grad()  # noqa: FBT003
        error(call, given).backward()
    gradients = checked("gradients", relative(peer.gradients()), 1e-3)
    for model, _ in calls:
        model.zero_grad(set_to_none=True)
    image = from_bytes(systems.image)[None]
    with torch.no_grad():
        ours = systems.generator.space.encode(image)
        theirs = SCALE * systems.pipeline.vae.encode(image).latent_dist.mean
        decoded = systems.pipeline.vae.decode(ours / SCALE).sample.clamp(-1, 1)
        back = systems.generator.space.decode(ours) - decoded
    return {
        "outputs": checked("outputs", float(away.abs().max()), 1e-4),
        "gradients": gradients,
        "latents": checked("latents", float((ours - theirs).abs().max()), 1e-4),
        "decoded": checked("decoded images", float(back.abs().max()), 1e-4),
    }


def measure(community_class: type, *, quick: bool, only: str | None) -> dict[str, object]:
    """Everything, as one tree."""
    rounds = 3 if quick else 7
    with tempfile.TemporaryDirectory() as home:
        systems = Systems.of(shape_of(quick=quick), community_class, Path(home) / "unet")
        return {"machine": machine(), "edit": edits(systems, rounds, only)}


def edits(systems: Systems, rounds: int, only: str | None) -> dict[str, object]:
    """Times and peaks of whole edits; `only` of whole weights, or of adapters."""
    same = parity(systems)
    peer = "community pipeline"
    work: dict[str, Callable[[], Tensor]] = {peer: systems.peer_edit}
    for kind, rank, compares in VARIANTS:
        if only not in (None, "adapters" if rank else "whole"):
            continue
        name = f"{kind} adapters" if rank else kind
        work[name + " with comparison" * compares] = partial(
            systems.own_edit, kind, rank, compares=compares
        )
    timings = interleaved(work, rounds)
    networks = (systems.generator.network, systems.generator.latents.first_stage)
    own = [
        weight
        for network in (*networks, systems.pipeline.text_encoder)
        for weight in network.parameters()
    ]
    held = sum(weight.numel() * weight.element_size() for weight in own)
    steps, systems.steps = systems.steps, (2, 2)
    peaks = {
        name: held + peak_bytes(run)
        if name == peer
        else peak_bytes(run, (each.data for each in own))
        for name, run in work.items()
    }
    systems.steps = steps
    rows = []
    for name in list(work)[1:]:
        rows.append(asdict(Row.of(f"edit {name}", timings[name], timings[peer], SPEED, rounds)))
        rows.append(asdict(Row.of_counts(f"memory {name}", peaks[name], peaks[peer], 1 / MEMORY)))
    return {
        "parity": same,
        "steps": list(steps),
        "parameters": parameters(systems.peer.model),
        "weights_mib": held / 2**20,
        "edit": as_table(timings),
        "memory_mib": {name: value / 2**20 for name, value in peaks.items()},
        "rows": rows,
    }


def main() -> None:
    """`--community` is ours, the other options are those of every benchmark."""
    if "--community" not in sys.argv[:-1]:
        raise SystemExit("give --community imagic_stable_diffusion.py (see the head of this file)")
    place = sys.argv.index("--community")
    path = Path(sys.argv[place + 1])
    del sys.argv[place : place + 2]
    chosen = community(path)
    run_command(
        __doc__.split("\n")[0],
        ("whole", "adapters"),
        lambda *, quick, only: measure(chosen, quick=quick, only=only),
    )


if __name__ == "__main__":
    main()
