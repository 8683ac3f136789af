"""Weights of other code: the same outputs here, the same weights back, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from safetensors import safe_open

from mezzotint.common.errors import UserError
from models.config import ModelConfig
from models.diffusion.condition import Condition
from models.diffusion.dit_weights import from_dit, to_dit
from models.diffusion.unet.diffusers import from_diffusers, to_diffusers
from models.diffusion.unet.diffusers_settings import config_of, read_settings, settings_of
from models.diffusion.unet.guided_diffusion import (
    PREFIX,
    flags,
    from_guided_diffusion,
    to_guided_diffusion,
)
from models.diffusion.unet.network import UNetConfig

HOME = Path(__file__).parent / "peers"
READ = {
    "guided_diffusion": from_guided_diffusion,
    "diffusers": from_diffusers,
    "dit": from_dit,
}
WRITE = {"guided_diffusion": to_guided_diffusion, "diffusers": to_diffusers, "dit": to_dit}
# of 1,000 steps counted from 0, their 3 and 941 are ours 4 and 942
TIMES = torch.tensor([4, 942]) / 1000
ADAPTER = TypeAdapter(ModelConfig)


class Case:
    """What `make_peers.py` kept of one peer."""

    def __init__(self, name):
        self.code = name.split(".")[0]
        with safe_open(HOME / "networks.safetensors", "pt") as file:
            note = json.loads(file.metadata()[name])
            prefix = f"{name}."
            self.given = {
                key.removeprefix(prefix): file.get_tensor(key)
                for key in file.keys()  # noqa: SIM118
                if key.startswith(prefix)
            }
        kind = {"kind": "dit" if self.code == "dit" else "unet"}
        self.config = ADAPTER.validate_python({**kind, **note["config"]})
        self.settings = note["settings"]
        self.weights = sampled(note["shapes"])
        for key in [key for key in self.given if key.startswith("kept.")]:
            self.weights[key.removeprefix("kept.")] = self.given.pop(key)

    def output(self, state):
        model = self.config.build().eval()
        model.load_state_dict(state, strict=True)
        conditional = {key: value for key, value in self.given.items() if key not in ("x", "out")}
        with torch.no_grad():
            return model(self.given["x"], TIMES, Condition(**conditional))


def sampled(shapes):
    """As in `make_peers.py`."""
    return {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(place))
        * (0.05 if len(shape) > 1 else 0.3)
        for place, (name, shape) in enumerate(sorted(shapes.items()))
    }


def names():
    with safe_open(HOME / "networks.safetensors", "pt") as file:
        return sorted(file.metadata())


@pytest.mark.parametrize("name", names())
def test_outputs_are_those_of_the_peer_and_its_weights_come_back(name):
    case = Case(name)
    state = READ[case.code](case.weights, case.config)
    assert float((case.output(state) - case.given["out"]).abs().max()) < 2e-5
    assert float(case.given["out"].abs().max()) > 0.2
    back = WRITE[case.code](state, case.config)
    if name == "diffusers.linear":
        # its edges are written as the convolutions they may also be
        back = {key: value.view(case.weights[key].shape) for key, value in back.items()}
    assert back.keys() == case.weights.keys()
    assert all(torch.equal(back[key], value) for key, value in case.weights.items())


@pytest.mark.parametrize("name", [name for name in names() if name.startswith("diffusers")])
def test_config_json_of_diffusers_says_the_network(name):
    case = Case(name)
    kind = "UNet2DModel" if case.config.transformer is None else "UNet2DConditionModel"
    read = read_settings({"_class_name": kind, "_version": "0", **case.settings}, "config.json")
    config = UNetConfig.model_validate(config_of(read, "config.json"))
    same = {"process": case.config.process, "head_width": case.config.head_width}
    assert config.model_copy(update=same) == case.config
    assert config.process.variance == case.config.process.variance
    written = settings_of(case.config)
    assert read_settings(written, "config.json").model_dump(
        exclude={"upcast_attention", "use_linear_projection", "attn_norm_num_groups"}
    ) == read.model_dump(
        exclude={"upcast_attention", "use_linear_projection", "attn_norm_num_groups"}
    )


def test_sines_before_cosines_are_turned_round():
    case = Case("diffusers.plain")
    half = case.config.channels // 2
    key = "time_embedding.linear_1.weight"
    other = {**case.weights, key: case.weights[key].roll(half, dims=1)}
    got = from_diffusers(other, case.config, sines_first=True)
    plain = from_diffusers(case.weights, case.config)
    assert all(torch.equal(got[name], value) for name, value in plain.items())


def test_older_names_of_attention_are_read():
    case = Case("diffusers.plain")
    older = {"to_q": "query", "to_k": "key", "to_v": "value"}
    weights = {}
    for name, value in case.weights.items():
        for new, old in {**older, "to_out.0": "proj_attn"}.items():
            name = name.replace(f".{new}.", f".{old}.")
        weights[name] = value
    assert weights.keys() != case.weights.keys()
    got = from_diffusers(weights, case.config)
    plain = from_diffusers(case.weights, case.config)
    assert all(torch.equal(got[name], value) for name, value in plain.items())


def test_a_checkpoint_of_latent_diffusion_is_read_without_its_other_parts():
    case = Case("guided_diffusion.latent")
    whole = {f"{PREFIX}{name}": value for name, value in case.weights.items()}
    got = from_guided_diffusion({**whole, "betas": torch.ones(3)}, case.config)
    assert got.keys() == from_guided_diffusion(case.weights, case.config).keys()


def test_flags_are_those_the_peer_was_made_with():
    made = flags(Case("guided_diffusion.latent").config)
    assert made["channel_mult"] == [1, 2]
    assert all(isinstance(each, int) for each in made["channel_mult"])
    assert made["attention_resolutions"] == [2]
    assert (made["num_heads"], made["num_head_channels"]) == (4, -1)
    assert (made["context_dim"], made["transformer_depth"]) == (24, 2)
    assert flags(Case("guided_diffusion.upsampler").config)["in_channels"] == 6
    assert flags(Case("guided_diffusion.adm").config)["out_channels"] == 6


@pytest.mark.parametrize("name", ["guided_diffusion.adm", "diffusers.conditional", "dit.dit"])
def test_missing_unexpected_and_misshapen_weights_are_named(name):
    case = Case(name)
    read, (first, *_, last) = READ[case.code], sorted(case.weights)
    without = {key: value for key, value in case.weights.items() if key != first}
    with pytest.raises(UserError, match=f"missing {first}; unexpected none"):
        read(without, case.config)
    with pytest.raises(UserError, match=r"missing none; unexpected more\.weight"):
        read({**case.weights, "more.weight": torch.ones(1)}, case.config)
    with pytest.raises(UserError, match=f"{last} has shape .*7,.*the model needs"):
        read({**case.weights, last: torch.ones(7, 7)}, case.config)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"text": {"vocab": 9, "length": 4, "width": 8, "heads": 1}}, "model.text"),
        ({"features": {"width": 8}}, "model.features without model.transformer"),
        ({"image_embedding": {"dim": 8}}, "model.image_embedding"),
    ],
)
def test_networks_that_the_others_do_not_have_are_refused(change, key):
    config = UNetConfig.model_validate({**Case("diffusers.plain").config.model_dump(), **change})
    for write in (to_guided_diffusion, to_diffusers):
        with pytest.raises(UserError, match=key):
            write({}, config)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("plain", {"_class_name": "UNet1DModel"}, "_class_name: UNet1DModel is not one of"),
        ("plain", {"act_fn": "gelu"}, "act_fn: 'gelu' has no network here"),
        ("plain", {"sample_size": None}, "sample_size: None"),
        ("plain", {"surprise": 1}, "surprise: 1 has no network here"),
        ("plain", {"up_block_types": ("UpBlock2D", "UpBlock2D")}, "do not mirror"),
        ("plain", {"block_out_channels": (32,)}, "not one for each"),
        ("plain", {"in_channels": 6}, "in_channels 6, out_channels 3: give --recipe"),
        ("plain", {"attn_norm_num_groups": 4}, "attn_norm_num_groups: 4"),
        ("conditional", {"attention_head_dim": (4, 4)}, "heads of several widths"),
        ("conditional", {"addition_embed_type": "text_time"}, "addition_embed_type: 'text_time'"),
    ],
)
def test_settings_that_have_no_network_here_are_refused_by_key(name, change, message):
    case = Case(f"diffusers.{name}")
    kind = "UNet2DModel" if name == "plain" else "UNet2DConditionModel"
    content = {"_class_name": kind, **case.settings, **change}
    with pytest.raises(UserError, match=message):
        config_of(read_settings(content, "config.json"), "config.json")
