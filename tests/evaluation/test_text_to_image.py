"""Systems from model directories to evaluation.json, with untrained networks of a few kB."""

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from data_pipeline.packing.shard_writer import RawSample, write_shards
from data_pipeline.text.tokenizer import Tokenizer
from evaluation.config import TextToImageConfig
from evaluation.evaluate import evaluate
from evaluation.result import EvaluationResult
from launch.evaluate import evaluate_in_processes
from mezzotint.common.errors import UserError
from mezzotint.inference.generator import GenerationRequest, Prompt, image_generator
from mezzotint.inference.images import from_bytes, to_bytes
from mezzotint.inference.load import load_generator
from models import store
from models.autoencoders.dvae import DVAEConfig
from models.autoencoders.hierarchical import VQVAE2Config
from models.autoencoders.levels import level_shapes
from models.autoencoders.quantizer import EmaVectorQuantizerConfig
from models.autoencoders.strided import StridedPyramid
from models.autoregressive.prior import PriorConfig
from models.clip import ClipConfig
from models.diffusion.super_resolution import SuperResolutionConfig
from models.diffusion.text_diffusion import TextDiffusionConfig
from models.nn.random import BatchGenerator

LENGTH = 6
CAPTIONS = [
    f"{who} {what}: {tone} skin tone"
    for who in ("woman", "man", "person")
    for what in ("pilot", "cook", "judge")
    for tone in ("light", "dark")
]


def image(index):
    rng = torch.Generator().manual_seed(index)
    pixels = torch.randint(0, 256, (16, 16, 3), generator=rng, dtype=torch.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(written, "PNG")
    return written.getvalue()


def save(directory, config, tokenizer=None):
    torch.manual_seed(0)
    network = config.build()
    # What starts at zero would make every network the same blank one.
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.02 * torch.randn(weight.shape))
    length = LENGTH if tokenizer else None
    store.save(
        str(directory),
        config,
        network.state_dict(),
        card="tiny",
        tokenizer=tokenizer,
        text_length=length,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A shard set of 18 images and untrained model directories."""
    root = tmp_path_factory.mktemp("home")
    keys = [f"k{index:02d}" for index in range(len(CAPTIONS))]
    write_shards(
        [
            RawSample(
                key,
                {"png": image(index), "txt": caption.encode(), "json": b"{}"},
                parts={"composition": "train" if index >= 5 else "test"},
            )
            for index, (key, caption) in enumerate(zip(keys, CAPTIONS, strict=True))
        ],
        str(root / "set"),
        name="tiny",
        licence="none",
        provenance={},
        shard_size=10,
        fields={"png": "image", "txt": "caption", "json": "nothing"},
        splits={"composition": "the first five held out"},
    )
    tokenizer = Tokenizer.train(CAPTIONS, 60)
    text = {"text_vocab": 60, "text_length": LENGTH}
    save(
        root / "dvae",
        DVAEConfig(image_size=16, vocab=16, width=8, groups=2, patch=2, initial_width=8),
    )
    prior = PriorConfig(image_vocab=16, grid=(4, 4), width=16, layers=2, heads=2, **text)
    save(root / "prior", prior, tokenizer)
    pyramid = StridedPyramid(width=8, halvings=1, blocks=1, residual_width=8, patch=2)
    codes = EmaVectorQuantizerConfig(codes=16)
    levels = VQVAE2Config(image_size=16, channels=8, pyramid=pyramid, bottleneck=codes)
    save(root / "vqvae2", levels)
    for name, shape in level_shapes(levels, text_vocab=60, text_length=LENGTH).items():
        save(root / name, PriorConfig(width=16, layers=1, heads=2, **asdict(shape)), tokenizer)
    clip = {"vision_width": 16, "vision_layers": 1, "text_width": 16, "text_layers": 1}
    save(
        root / "clip",
        ClipConfig(image_size=16, patch=8, head_width=8, embed=8, **clip, **text),
        tokenizer,
    )
    base = TextDiffusionConfig(image_size=8, patch=4, width=16, layers=2, heads=2, **text)
    save(root / "base", base, tokenizer)
    save(
        root / "upsampler",
        SuperResolutionConfig(low_size=8, image_size=16, channels=(8,), blocks=1),
    )
    return root


def system(home, kind):
    systems = {
        "dalle": {
            "prior": str(home / "prior"),
            "dvae": str(home / "dvae"),
            "ranker": str(home / "clip"),
            "candidates": 3,
            "sampling": {"guidance": 1.5},
        },
        "hierarchy": {
            "priors": [str(home / "top"), str(home / "bottom")],
            "autoencoder": str(home / "vqvae2"),
            "ranker": str(home / "clip"),
            "candidates": 2,
            "sampling": {"guidance": 1.5},
        },
        "cascade": {
            "base": str(home / "base"),
            "upsampler": str(home / "upsampler"),
            "base_sampling": {"steps": 2, "guidance": 2.0},
            "upsampler_sampling": {"steps": 2, "level": 0.1},
        },
    }
    return {"kind": kind, **systems[kind]}


def configured(home, kind, **changes):
    tree = {
        "kind": "text_to_image",
        "name": kind,
        "system": system(home, kind),
        "reference": {"url": str(home / "set")},
        "clip": str(home / "clip"),
        "limit": {"test": 4, "train": 3},
        "batch": 2,
        "retrieval_choices": 6,
    }
    return TextToImageConfig.model_validate(tree | changes)


@dataclass(frozen=True)
class Evaluated:
    directory: Path
    tree: dict[str, Any]
    phases: set[str]


@pytest.fixture(scope="module", params=["dalle", "hierarchy", "cascade"])
def evaluated(request, home, tmp_path_factory):
    """Each system, evaluated once."""
    out = tmp_path_factory.mktemp(request.param)
    phases = set()
    evaluate(configured(home, request.param), out, progress=lambda phase, *_: phases.add(phase))
    return Evaluated(out, json.loads((out / "evaluation.json").read_text()), phases)


def test_every_figure_comes_with_its_interval_and_number_of_captions(evaluated):
    metrics = evaluated.tree["metrics"]
    for figure in ("exact_match", "clip_retrieval", "clip_score", "exact_match_real_images"):
        for part, count in (("composition", 4), ("train", 3)):
            score = metrics[figure][part]
            assert score["low"] <= score["value"] <= score["high"]
            assert score["n"] == count
    assert metrics["clip_score_shuffled_captions"].keys() == {"composition", "train"}


def test_figures_name_the_networks_and_settings_behind_them(evaluated):
    protocol = evaluated.tree["protocol"]
    assert protocol["images"] == {"composition": 4, "train": 3}
    assert protocol["features"]["weights_sha256"].startswith("579344248a93")
    assert protocol["reference"]["images"] == 18
    assert {"sampler", "steps", "guidance", "digests", "precision"} <= protocol["system"].keys()
    assert "Wilson" in protocol["intervals"]
    assert len(protocol["clip"]["digest"]) == 64
    against = (
        "real images"
        if evaluated.tree["protocol"]["system"]["kind"] == "cascade"
        else "reconstructions"
    )
    assert f"distinct {against}" in protocol["exact_match"]


def test_captions_that_are_cut_are_in_the_protocol_and_in_the_report(evaluated, home):
    result = EvaluationResult.read(evaluated.directory / "evaluation.json")
    cut = evaluated.tree["protocol"]["captions_cut"]
    tokenizer = Tokenizer(store.tokenizer_bytes(str(home / "clip")))
    wanted = {caption: tokenizer.lost(caption, LENGTH) for caption in CAPTIONS}
    assert set(cut["lost"]) >= {"model", "clip"}
    for lost in cut["lost"].values():
        assert len(lost) == cut["captions"]
        assert all(wanted[caption] == end for caption, end in lost.items())
    (sentence, *_) = result.cut_captions()
    assert sentence.startswith(f"{cut['captions']} of {cut['captions']} captions are longer than")
    assert f"Caution: {sentence}." in (evaluated.directory / "report.md").read_text()


def test_the_distance_says_how_few_images_it_rests_on(evaluated):
    distances = evaluated.tree["metrics"]["fd_efficientnet_lite0"]
    held_out = distances["composition"]
    assert (held_out["images"], held_out["reference_images"]) == (4, 5)
    assert distances["real_train"]["images"] == 4
    assert "1280 feature dimensions" in held_out["sample_size_warning"]


def test_images_and_a_summary_are_left(evaluated, read_samples):
    written = {path.name for path in evaluated.directory.iterdir()}
    assert {"grid_held_out.png", "grid_train.png", "samples.jsonl", "report.md"} <= written
    assert "| exact_match | composition |" in (evaluated.directory / "report.md").read_text()
    assert len(read_samples(evaluated.directory).prompts) == 7
    assert {"reference", "generate", "features"} <= evaluated.phases


def test_priors_are_reranked_and_the_cascade_is_not(evaluated, read_samples):
    metrics = evaluated.tree["metrics"]
    if evaluated.tree["protocol"]["system"]["kind"] == "cascade":
        assert "exact_match_best_of_n" not in metrics
        return
    count = read_samples(evaluated.directory).candidates.shape[1]
    assert list(metrics["exact_match_best_of_n"]) == ["1", "2", "3"][:count]
    means = [score["value"] for score in metrics["clip_score_best_of_n"].values()]
    assert means == sorted(means)
    assert (evaluated.directory / "grid_candidates.png").is_file()


def test_the_same_evaluation_again_gives_the_same_images_and_figures(
    evaluated, home, tmp_path, read_samples
):
    evaluate(configured(home, evaluated.tree["protocol"]["system"]["kind"]), tmp_path)
    again = json.loads((tmp_path / "evaluation.json").read_text())
    assert again | {"seconds": {}} == evaluated.tree | {"seconds": {}}
    assert torch.equal(
        read_samples(tmp_path).candidates, read_samples(evaluated.directory).candidates
    )


def test_no_tensor_is_made_on_the_default_device(evaluated, home, tmp_path):
    config = configured(home, evaluated.tree["protocol"]["system"]["kind"])
    with torch.device("meta"):
        result = evaluate(config, tmp_path)
    # torch leaves some fused kernels out under such a default, so the last digits differ
    numbers = EvaluationResult.read(evaluated.directory / "evaluation.json").numbers()
    for name, value in result.numbers().items():
        assert name.startswith("seconds/") or value == pytest.approx(numbers[name], abs=1e-3)


@pytest.mark.processes
def test_two_processes_give_the_images_and_metrics_of_one(evaluated, home, tmp_path, read_samples):
    config = configured(home, evaluated.tree["protocol"]["system"]["kind"])
    evaluate_in_processes(config, tmp_path, lambda *_: None, device="cpu", processes=2)
    tree = json.loads((tmp_path / "evaluation.json").read_text())
    assert tree | {"seconds": {}} == evaluated.tree | {"seconds": {}}
    one, two = (read_samples(path).candidates for path in (evaluated.directory, tmp_path))
    assert torch.equal(one, two)


def test_several_samples_per_caption_count_captions_in_the_intervals(home, tmp_path):
    config = configured(home, "cascade", samples_per_caption=3, limit={"test": 2, "train": 0})
    evaluate(config, tmp_path)
    tree = json.loads((tmp_path / "evaluation.json").read_text())
    assert tree["protocol"]["images"] == {"composition": 6}
    assert tree["metrics"]["exact_match"]["composition"]["n"] == 2


@pytest.mark.parametrize("kind", ["dalle", "hierarchy"])
def test_images_with_equal_codes_are_reconstructed_to_equal_bytes(home, kind):
    generator = load_generator(configured(home, kind).system)
    images = torch.zeros(130, 16, 16, 3, dtype=torch.uint8)
    reconstructed = generator.reconstruct(images)
    assert (reconstructed == reconstructed[:1]).all()


@pytest.mark.parametrize(
    ("kind", "setting", "wrong"),
    [
        ("dalle", "prior", "dvae"),
        ("dalle", "dvae", "vqvae2"),
        ("hierarchy", "autoencoder", "dvae"),
        ("cascade", "upsampler", "base"),
        ("cascade", "base", "clip"),
    ],
)
def test_a_directory_with_another_kind_of_model_is_named(home, kind, setting, wrong):
    tree = system(home, kind) | {setting: str(home / wrong)}
    config = configured(home, kind, system=tree)
    with pytest.raises(UserError, match=f"system.{setting}: .*{wrong} holds a"):
        load_generator(config.system)


def test_a_hierarchy_generates_and_reconstructs_as_its_parts_do(home):
    config = configured(home, "hierarchy").system
    generator = load_generator(config, precision="fp32")
    request = GenerationRequest(tuple(map(Prompt, CAPTIONS[:3])), number=2, seed=2)
    result = generator.generate(request)
    assert result.images.shape == (3, 2, 16, 16, 3)
    assert result.scores is not None
    rows = [(number, prompt) for prompt in request.prompts for number in range(2)]
    rng = BatchGenerator.of([image_generator(2, *row) for row in rows])
    text = generator.tokenizer(CAPTIONS[:3]).repeat_interleave(2, dim=0)
    with torch.no_grad():
        plain = generator.autoencoder.decode(generator.sample_codes(text, rng))
        back = generator.autoencoder.reconstruct(from_bytes(result.images[:, 0]))
    assert int((result.images.flatten(0, 1).int() - to_bytes(plain).int()).abs().max()) <= 1
    assert torch.equal(generator.reconstruct(result.images[:, 0]), to_bytes(back))


def test_a_clip_setting_without_a_clip_model_is_named(home, tmp_path):
    config = configured(home, "cascade", clip=str(home / "base"))
    with pytest.raises(UserError, match="not a CLIP model"):
        evaluate(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_candidates_without_a_ranker_are_refused(home):
    tree = system(home, "dalle") | {"ranker": None}
    with pytest.raises(ValueError, match="set ranker"):
        configured(home, "dalle", system=tree)


def test_more_retrieval_choices_than_captions_are_refused(home, tmp_path):
    with pytest.raises(UserError, match="retrieval_choices"):
        evaluate(configured(home, "cascade", retrieval_choices=50), tmp_path / "out")
