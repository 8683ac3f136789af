"""An autoencoder evaluated from its model directory, and the metrics in closed form."""

import json
import math

import pytest
import torch

from evaluation.config import ReconstructionConfig
from evaluation.evaluate import evaluate
from evaluation.metrics.psnr import psnr
from evaluation.metrics.ssim import ssim
from evaluation.reconstruction import GRID
from evaluation.result import EvaluationResult
from launch.evaluate import evaluate_in_processes
from mezzotint.common.errors import UserError
from models import store
from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.bottleneck import Gaussian, Identity
from models.autoencoders.discriminator import PatchDiscriminatorConfig
from models.autoencoders.dvae import DVAEConfig
from models.autoencoders.hierarchical import VQVAE2Config
from models.autoencoders.quantizer import EmaVectorQuantizerConfig
from models.autoencoders.strided import StridedPyramid

STRIDED = StridedPyramid(width=16, halvings=1, blocks=1, residual_width=8, patch=2)
EMA = EmaVectorQuantizerConfig(codes=16)


def noise(count, size, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, size, size, 3), generator=rng, dtype=torch.uint8)


def test_psnr_is_that_of_its_definition():
    real = torch.full((2, 16, 16, 3), 100, dtype=torch.uint8)
    off = real.clone()
    off[0] += 5
    assert psnr(off, real)[0].item() == pytest.approx(20 * math.log10(255 / 5))
    assert psnr(off, real)[1].item() == math.inf


def test_ssim_is_that_of_its_definition_window_by_window():
    first, second = noise(1, 13), noise(1, 13, seed=1)
    offset = torch.arange(11.0, dtype=torch.float64) - 5
    line = torch.exp(-(offset**2) / 4.5)
    window = torch.outer(line, line) / torch.outer(line, line).sum()
    values = []
    for colour in range(3):
        for top in range(3):
            for left in range(3):
                x, y = (
                    each[0, top : top + 11, left : left + 11, colour].double()
                    for each in (first, second)
                )
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                cxy = (window * (x - mx) * (y - my)).sum()
                one, two = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                values.append(
                    (2 * mx * my + one)
                    * (2 * cxy + two)
                    / ((mx**2 + my**2 + one) * (vx + vy + two))
                )
    assert ssim(first, second).item() == pytest.approx(torch.stack(values).mean().item(), rel=1e-9)
    assert ssim(first, first).item() == pytest.approx(1.0)


MODELS = {
    "dvae": DVAEConfig(image_size=16, vocab=16, width=16, groups=2, patch=2, initial_width=8),
    "vqvae": AutoencoderConfig(image_size=16, channels=4, pyramid=STRIDED, bottleneck=EMA),
    "vqvae2": VQVAE2Config(image_size=16, channels=8, pyramid=STRIDED, bottleneck=EMA),
    "kl": AutoencoderConfig(image_size=16, channels=4, pyramid=STRIDED, bottleneck=Gaussian()),
    "ae": AutoencoderConfig(image_size=16, channels=4, pyramid=STRIDED, bottleneck=Identity()),
}


def configured(tmp_path, **settings):
    return ReconstructionConfig(
        kind="reconstruction",
        name="tiny",
        autoencoder=str(tmp_path / "model"),
        images={"url": "data/emoji", "limit": 12},
        batch=5,
        precision="fp32",
        **settings,
    )


def evaluated(tmp_path, model, processes=1, **settings):
    torch.manual_seed(0)
    directory = tmp_path / "model"
    store.save(str(directory), model, model.build().state_dict(), card="tiny")
    config = configured(tmp_path, **settings)
    if processes > 1:
        evaluate_in_processes(config, tmp_path / "out", lambda *_: None, processes=processes)
    else:
        evaluate(config, tmp_path / "out")
    return json.loads((tmp_path / "out" / "evaluation.json").read_text())


@pytest.mark.parametrize("name", MODELS)
def test_every_autoencoder_is_evaluated_with_its_protocol(tmp_path, name):
    tree = evaluated(tmp_path, MODELS[name], features=None)
    assert EvaluationResult.read(tmp_path / "out" / "evaluation.json").kind == "reconstruction"
    assert (tmp_path / "out" / "grid_reconstructions.png").is_file()
    assert "| psnr | test |" in (tmp_path / "out" / "report.md").read_text()
    psnr = tree["metrics"]["psnr"]["test"]
    assert psnr["n"] == tree["protocol"]["images"]["images"] == 12
    assert psnr["low"] <= psnr["value"] <= psnr["high"]
    assert -1 <= tree["metrics"]["ssim"]["test"]["value"] <= 1


@pytest.mark.parametrize("name", MODELS)
def test_no_tensor_is_made_on_the_default_device(tmp_path, name):
    tree = evaluated(tmp_path, MODELS[name], features=None)
    config = configured(tmp_path, features=None)
    with torch.device("meta"):
        result = evaluate(config, tmp_path / "meta")
    assert result.metrics["psnr"]["test"].value == tree["metrics"]["psnr"]["test"]["value"]


def test_codes_have_a_rate_by_size_and_by_use(tmp_path):
    metrics = evaluated(tmp_path, MODELS["vqvae2"], features=None)["metrics"]
    assert metrics["code_positions"] == {"top": 4, "bottom": 16}
    assert metrics["bits_per_pixel"]["top"] == pytest.approx(4 * 4 / 256)
    assert metrics["bits_per_pixel"]["total"] == pytest.approx(20 * 4 / 256)
    assert 1 <= metrics["code_perplexity"]["bottom"] <= metrics["codes_used"]["bottom"] <= 16
    assert metrics["codebook_size"]["bottom"] == 16
    assert metrics["entropy_bits_per_pixel"]["bottom"] <= metrics["bits_per_pixel"]["bottom"]


def test_gaussian_latents_have_the_rate_of_their_divergence_and_plain_ones_none(tmp_path):
    metrics = evaluated(tmp_path, MODELS["kl"], features=None)["metrics"]
    assert metrics["bits_per_pixel"]["total"] > 0
    assert "codebook_size" not in metrics
    plain = evaluated(tmp_path / "plain", MODELS["ae"], features=None)["metrics"]
    assert "bits_per_pixel" not in plain


def test_the_reconstruction_distance_is_named_after_its_network(tmp_path):
    tree = evaluated(tmp_path, MODELS["ae"])
    distance = tree["metrics"]["reconstruction_fd_efficientnet_lite0"]["test"]
    assert distance["value"] > 0
    assert "12 images for 1280" in distance["sample_size_warning"]


@pytest.mark.processes
@pytest.mark.parametrize("name", ["vqvae2", "kl"])
def test_two_processes_give_the_metrics_of_one(tmp_path, name):
    one, two = (
        evaluated(tmp_path / str(processes), MODELS[name], processes) for processes in (1, 2)
    )
    assert one | {"seconds": {}} == two | {"seconds": {}}
    grids = [(tmp_path / processes / "out" / GRID).read_bytes() for processes in ("1", "2")]
    assert grids[0] == grids[1]


def test_another_kind_of_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds a patch_discriminator; name an autoencoder"):
        evaluated(tmp_path, PatchDiscriminatorConfig(width=8, layers=1), features=None)
