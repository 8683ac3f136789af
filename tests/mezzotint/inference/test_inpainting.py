"""Models that are trained to inpaint: their masks, their start, what they are given in sampling."""

from dataclasses import replace
from functools import partial

import pytest
import saved_network
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.batch import Batch
from mezzotint.common.errors import UserError
from mezzotint.common.latent_scaling import LatentScaling
from mezzotint.inference.config import DiffusionSystem, LatentSystem
from mezzotint.inference.editing import ImageEdit, inpaints
from mezzotint.inference.generator import GenerationRequest, Prompt
from mezzotint.inference.images import from_bytes
from mezzotint.inference.load import load_generator
from models import store
from models.autoencoders.autoencoder import AutoencoderConfig
from models.diffusion.condition import Condition
from models.diffusion.inpainting import coarse_mask, random_masks
from models.diffusion.unet.diffusers import to_diffusers
from models.diffusion.unet.network import UNetConfig
from models.first_stage import FirstStage
from models.nn.initialization import materialize
from trainer.task import Step
from trainer.tasks.denoising import DenoisingConfig
from trainer.tasks.targets import LatentDecoder

CPU = torch.device("cpu")
SCALING = LatentScaling(mean=0.3, std=2.0, samples=10)
STAGE = AutoencoderConfig.model_validate(
    {
        "image_size": 16,
        "channels": 4,
        "pyramid": {
            "kind": "resnet", "width": 4, "multipliers": [1, 2], "blocks": 1, "groups": 2,
        },
        "bottleneck": {"kind": "gaussian"},
    }
)  # fmt: skip

saved = partial(saved_network.saved, spread=0.05)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def unet(**settings):
    sizes = {"image_size": 8, "image_channels": 4, "channels": 8, "multipliers": (1,), "depth": 1}
    return UNetConfig(**sizes | {"groups": 4, "attention": (), "head_width": 4} | settings)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("inpainting")
    stage = saved(root / "kl", STAGE)
    found = FirstStage(model=stage, digest=store.describe(stage).digest, scaling=SCALING)
    saved(root / "base", unet(), first_stage=found)
    saved(root / "trained", unet(inpainting={}), first_stage=found)
    saved(root / "pixels", unet(image_size=16, image_channels=3, inpainting={"mask": False}))
    return root


def begun(config, **settings):
    """A task and its network, as they are when training starts."""
    with torch.device("meta"):
        network = config.build()
    task = DenoisingConfig.model_validate({"kind": "denoising", **settings}).build(network)
    for _ in materialize(network, 0, "model", device=CPU):
        pass
    return task, network


@given(seed=st.integers(0, 2**31), everything=st.sampled_from([0.0, 0.5, 1.0]))
def test_masks_are_rectangles_or_everything(seed, everything):
    masks = random_masks(32, 12, everything, rng(seed), CPU)
    assert masks.shape == (32, 1, 12, 12)
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    shares = masks.flatten(1).mean(dim=1)
    assert bool((shares > 0).all())
    assert everything < 1 or bool((shares == 1).all())


def test_a_network_starts_as_the_one_that_it_goes_on_from(home):
    _, network = begun(
        unet(inpainting={}), condition={"kind": "inpainting"}, start=str(home / "base")
    )
    base = store.load(str(home / "base"))
    x, t = torch.randn((2, 4, 8, 8), generator=rng()), torch.tensor([0.2, 0.9])
    given = Condition(
        mask=torch.ones(2, 1, 8, 8), masked=torch.randn((2, 4, 8, 8), generator=rng(1))
    )
    with torch.no_grad():
        expected, found = base(x, t, Condition()), network(x, t, given)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert network.stem.weight.shape[1] == 9
    assert not bool(network.stem.weight[:, 4:].any())


def test_new_channels_start_at_0_also_without_a_start():
    _, network = begun(unet(inpainting={"mask": False}), condition={"kind": "inpainting"})
    assert network.stem.weight.shape[1] == 8
    assert not bool(network.stem.weight[:, 4:].any())
    assert bool(network.stem.weight[:, :4].all())


def test_a_start_of_other_weights_is_refused(home):
    with pytest.raises(UserError, match=r"task\.start: .* for the weight"):
        begun(unet(channels=16), start=str(home / "base"))
    with pytest.raises(UserError, match=r"task\.start: "):
        begun(unet(), start=str(home / "absent"))


def test_training_gives_masked_latents_of_the_first_stage(home):
    class Recording:
        def __call__(self, x, t, condition):
            self.condition = condition
            return torch.zeros_like(x)

    task, _ = begun(
        unet(inpainting={}),
        condition={"kind": "inpainting", "everything": 0.0},
        target={"kind": "latents", "scaling": SCALING.model_dump()},
    )
    task.decoder = LatentDecoder(store.describe(str(home / "trained")).first_stage)
    images = torch.rand((4, 3, 16, 16), generator=rng()) * 2 - 1
    latents = torch.randn((4, 4, 8, 8), generator=rng())
    batch = Batch(("a",) * 4, ("",) * 4, image=images, arrays={"latents": latents})
    engine = Recording()
    next(task.losses({"model": engine}, batch, Step(0, rng())))
    masks = random_masks(4, 16, 0.0, rng(), CPU)
    space = load_generator(LatentSystem(model=str(home / "trained")), precision="fp32").space
    with torch.no_grad():
        expected = space.encode(images * (1 - masks))
    torch.testing.assert_close(engine.condition.masked, expected)
    assert torch.equal(engine.condition.mask, coarse_mask(masks, (8, 8)))


@pytest.mark.parametrize("name", ["trained", "pixels"])
def test_sampling_gives_the_mask_and_keeps_pixels(home, name):
    kind = LatentSystem if name == "trained" else DiffusionSystem
    config = kind.model_validate({"model": str(home / name), "sampling": {"steps": 3}})
    system, seen = load_generator(config, precision="fp32"), []
    network = system.network

    class Watching:
        process, config = network.process, network.config

        def __call__(self, x, t, condition):
            seen.append(condition)
            return network(x, t, condition)

    watched = replace(system, network=Watching())
    image = from_bytes(torch.randint(0, 256, (16, 16, 3), generator=rng(3), dtype=torch.uint8))
    mask = torch.zeros(1, 16, 16)
    mask[:, :, 8:] = 1
    request = GenerationRequest((Prompt(),), edit=ImageEdit(image, mask=mask))
    images = watched.generate(request).images[0, 0]
    assert torch.equal(from_bytes(images)[:, :, :8], image[:, :, :8])
    with torch.no_grad():
        expected = system.space.encode((image * (1 - mask))[None])
    torch.testing.assert_close(seen[0].masked, expected)
    watched.generate(GenerationRequest((Prompt(),)))
    assert bool((seen[-1].mask == 1).all())
    assert inpaints(config.model)
    assert not inpaints(str(home / "base"))


def test_a_network_without_its_inputs_and_an_export_are_refused(home):
    network = store.load(str(home / "trained"))
    with pytest.raises(UserError, match="needs a mask"):
        network(torch.zeros(1, 4, 8, 8), torch.zeros(1), Condition())
    with pytest.raises(UserError, match=r"model\.inpainting"):
        to_diffusers(network.state_dict(), network.config)
