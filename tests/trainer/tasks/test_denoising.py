"""The denoising task: every network, every condition, every loss, without an engine."""

import pytest
import torch
from bare import Bare
from pydantic import TypeAdapter, ValidationError
from torch import nn

from data_pipeline.batch import Batch
from mezzotint.common.errors import UserError
from models.config import ModelConfig
from models.diffusion.condition import Condition
from models.diffusion.losses import denoising_loss
from models.diffusion.process import ProcessConfig
from models.diffusion.schedules.ve_schedule import EDMSchedule
from models.diffusion.weighting import SnrClamped
from trainer.recipe import load
from trainer.rng import drop_class, drop_text, micro_batches
from trainer.task import Step, Task
from trainer.tasks.conditioning.inputs import ConditionInputs
from trainer.tasks.conditions import LowResolutionCondition, random_crop
from trainer.tasks.denoising import DenoisingConfig, offset_noise

COUNT, CLASSES = 8, 3
UNET = {
    **{"kind": "unet", "image_size": 16, "channels": 16, "multipliers": (1, 2), "depth": 1},
    **{"attention": (8,), "head_width": 8, "groups": 8},
}
TEXT = {"vocab": 20, "length": 5, "width": 16, "layers": 1, "heads": 2}
LABELS = {"classes": CLASSES, "null_class": True}
LEARNED = {"prediction_type": "noise", "variance": "learned"}
PATCHES = {
    **{"kind": "text_diffusion", "image_size": 16, "patch": 4, "width": 32, "layers": 2},
    **{"heads": 2, "text_vocab": 20, "text_length": 5},
}
LARGER = {"kind": "super_resolution", "low_size": 8, "image_size": 16, "channels": (16, 16)}
SMALL_IMAGE = {"low_resolution": {"size": 8}}
BY_CLASS = {"kind": "class", "drop": 0.2}
BY_TEXT = {"kind": "text", "drop": 0.2}
BY_IMAGE = {"kind": "low_resolution", "crop": 8}
CASES = {
    "nothing": (UNET, {}),
    "class": ({**UNET, **LABELS}, {"condition": BY_CLASS}),
    "caption": ({**UNET, "text": TEXT}, {"condition": BY_TEXT}),
    "patches": (PATCHES, {"condition": BY_TEXT}),
    "larger": (LARGER, {"condition": BY_IMAGE}),
    "class and image": (
        {**UNET, **LABELS, **SMALL_IMAGE},
        {"condition": {"kind": "several", "conditions": [BY_CLASS, {"kind": "low_resolution"}]}},
    ),
    "hybrid": (
        {**UNET, **LABELS, "process": LEARNED},
        {"condition": BY_CLASS, "loss": {"kind": "hybrid", "steps": 100}},
    ),
    "edm": (
        {**UNET, "process": {"prediction_type": "edm", "schedule": {"kind": "edm"}}},
        {"loss": {"kind": "simple"}, "times": {"kind": "log_normal"}},
    ),
    "importance": (
        {**UNET, "process": {"prediction_type": "noise"}},
        {"loss": {"kind": "simple"}, "times": {"kind": "importance", "steps": 4, "history": 2}},
    ),
    "latents": (
        {**UNET, "image_channels": 4},
        {"target": {"kind": "array", "name": "latents", "scale": 0.5}},
    ),
}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(count=COUNT):
    generator = rng(1)
    return Batch(
        keys=("",) * count,
        captions=("",) * count,
        image=(torch.rand(count, 3, 1, 1, generator=generator) * 2 - 1).expand(-1, -1, 16, 16),
        text=torch.randint(1, 20, (count, 5), generator=generator),
        label=torch.arange(count) % CLASSES,
        arrays={"latents": 2 * torch.randn(count, 4, 16, 16, generator=generator)},
    )


def network(settings):
    torch.manual_seed(0)
    return TypeAdapter(ModelConfig).validate_python(settings).build()


def task(model, **settings):
    return DenoisingConfig.model_validate({"kind": "denoising", **settings}).build(model)


def step(index=0, seed=None):
    return Step(index, rng(index if seed is None else seed))


@pytest.mark.parametrize("case", CASES)
def test_a_few_steps_lower_the_loss_of_every_network(case):
    model, settings = CASES[case]
    model = network(model)
    trained = task(model, **settings)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    curve = []
    for index in range(12):
        again = step(index, seed=0)  # the same times and noise, so that losses compare
        (loss,) = trained.losses({"model": Bare(model)}, batch(), again)
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
        trained.after_update(again)
        curve.append(loss.value.item())
    assert sum(curve[-4:]) < 0.9 * sum(curve[:4])
    pictures = trained.preview({"model": model}, batch(), rng())
    shapes = {name: tuple(picture.shape) for name, picture in pictures.items()}
    small = {"bilinear"} if "image" in case or case == "larger" else set()
    wanted = set() if case == "latents" else {"real", "samples", *small}
    assert shapes == dict.fromkeys(wanted, (COUNT, 3, 16, 16))


def test_captions_are_emptied_before_times_and_noise_are_sampled():
    model, sampled = network(PATCHES), rng(3)
    (loss,) = task(model, condition=BY_TEXT).losses({"model": Bare(model)}, batch(), step(seed=3))
    condition = Condition(text=drop_text(batch().tokens, 0.2, sampled))
    t = (torch.arange(COUNT) + torch.rand(COUNT, generator=sampled)) / COUNT
    noise = torch.randn(COUNT, 3, 16, 16, generator=sampled)
    weight = SnrClamped(low=0.05, high=5.0)
    wanted = denoising_loss(model, model.process, batch().images, condition, t, noise, weight)
    assert loss.value.item() == wanted.value.mean().item()
    assert loss.metrics["x0_mse"].item() == wanted.metrics["x0_mse"].mean().item()


def test_the_micro_batches_of_a_step_share_the_strata():
    model = network(UNET)
    seen = []

    class Listens(Bare):
        def __call__(self, x, t, condition):
            seen.append(t)
            return super().__call__(x, t, condition)

    for microbatch in range(3):
        here = Step(0, rng(microbatch), microbatch, 3)
        list(task(model).losses({"model": Listens(model)}, batch(), here))
    assert sorted((torch.cat(seen) * 24).floor().int().tolist()) == list(range(24))


def test_a_fraction_of_the_classes_means_no_class():
    label = torch.zeros(4000, dtype=torch.int64)
    dropped = (drop_class(label, 0.1, CLASSES, rng()) == CLASSES).float()
    assert float(dropped.mean()) == pytest.approx(0.1, abs=3 * (0.09 / 4000) ** 0.5)
    assert drop_class(label, 0.0, CLASSES, rng()) is label


def test_micro_batches_keep_labels_with_their_images():
    parts = list(micro_batches(batch(), 4, torch.device("cpu")))
    assert torch.equal(torch.cat([part.labels for part in parts]), batch().labels)
    assert torch.equal(torch.cat([part.images for part in parts]), batch().images)


def test_crops_are_windows_at_whole_low_resolution_pixels():
    image = torch.arange(16.0).expand(64, 1, 16, 16) + 100 * torch.arange(16.0)[:, None]
    windows = random_crop(image, 8, 4, rng())
    corners = {(int(w[0, 0, 0]) // 100, int(w[0, 0, 0]) % 100) for w in windows}
    assert corners == {(row, column) for row in (0, 4, 8) for column in (0, 4, 8)}
    assert torch.equal(windows[0] - windows[0, 0, 0, 0], image[0, :, :8, :8])
    inputs = ConditionInputs(batch(), image, network({**UNET, **SMALL_IMAGE}), rng(), None, None)
    made = LowResolutionCondition(kind="low_resolution").eval_condition(Condition(), inputs)
    assert made.low_res[0, 0, 0, :2].tolist() == [50.5, 52.5]


class Vectors(nn.Module):
    """A denoiser of vectors, of a kind that the task has never heard of."""

    def __init__(self):
        super().__init__()
        self.process = ProcessConfig(prediction_type="edm", schedule=EDMSchedule()).build()
        self.config = type("Settings", (), {"conditioning": frozenset({"class"})})()
        self.inner = nn.Linear(7 + CLASSES, 7)

    def forward(self, x, t, condition):
        conditional = nn.functional.one_hot(condition.label, CLASSES).float()
        return self.inner(torch.cat([x, conditional], dim=1))


def test_vectors_are_denoised_by_a_network_of_any_kind():
    model = Vectors()
    trained = task(
        model,
        target={"kind": "array", "name": "vectors", "mean": 1.0, "scale": 0.25},
        condition={"kind": "class"},
        loss={"kind": "simple"},
    )
    data = Batch(("",), ("",), arrays={"vectors": torch.ones(1, 7)}, label=torch.tensor([2]))
    (loss,) = trained.losses({"model": Bare(model)}, data, step())
    loss.value.backward()
    assert float(model.inner.weight.grad.abs().sum()) > 0
    assert trained.preview({"model": model}, data, rng()) == {}


def test_importance_learns_from_all_processes_and_is_checkpointed(monkeypatch):
    settings, seen = {"kind": "importance", "steps": 4, "history": 1}, []

    def twice(rows):
        seen.append(rows)
        return torch.cat([rows, rows * torch.tensor([1.0, 3.0])])

    monkeypatch.setattr("trainer.tasks.denoising.distributed.gather_rows", twice)
    model = network(CASES["importance"][0])
    trained = task(model, loss={"kind": "simple"}, times=settings)
    assert isinstance(trained, Task)
    for index in range(4):
        for microbatch in range(2):
            here = Step(index, rng(10 * index + microbatch), microbatch, 2)
            list(trained.losses({"model": Bare(model)}, batch(), here))
        trained.after_update(step(index))
    assert [len(rows) for rows in seen] == [2 * COUNT] * 4
    last = {float(t): float(loss) for rows in seen for t, loss in rows.tolist()}
    wanted = torch.tensor([3 * last[t] for t in (0.25, 0.5, 0.75, 1.0)], dtype=torch.float64)
    kept = torch.tensor(trained.state()["losses"], dtype=torch.float64)
    assert torch.allclose(kept[:, 0], wanted)
    again = task(model, loss={"kind": "simple"}, times=settings)
    again.restore(trained.state())
    assert again.state() == trained.state()
    both = [
        list(each.losses({"model": Bare(model)}, batch(), step(9))) for each in (trained, again)
    ]
    assert both[0][0].value.item() == both[1][0].value.item()
    fresh = task(model, loss={"kind": "simple"}, times=settings)
    (other,) = fresh.losses({"model": Bare(model)}, batch(), step(9))
    assert other.value.item() != both[0][0].value.item()


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (UNET, {"condition": BY_TEXT}, "gives text, but this model is conditioned on nothing"),
        (PATCHES, {}, "gives nothing, but this model is conditioned on text; name each"),
        (
            {**UNET, **LABELS, **SMALL_IMAGE},
            {"condition": BY_CLASS},
            "gives class, but this model is conditioned on class and low_resolution",
        ),
        (
            {**UNET, "classes": 3},
            {"condition": BY_CLASS},
            r"task.condition.drop: 0.2 .* set model.null_class=true, or drop=0",
        ),
        (
            {**UNET, **SMALL_IMAGE},
            {"condition": {"kind": "low_resolution", "crop": 9}},
            "task.condition.crop: 9 pixels are not a multiple of the model's factor 2",
        ),
        ({**UNET, "process": LEARNED}, {}, "a learned variance .* is trained by kind hybrid"),
        (UNET, {"loss": {"kind": "hybrid"}}, "and hybrid needs one"),
        (
            {"kind": "patch_discriminator"},
            {},
            "task.kind: denoising trains a diffusion network, which model is not",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused_by_its_key(model, settings, message):
    with pytest.raises(UserError, match=message):
        task(network(model), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": {"kind": "simple"}, "weight": {"kind": "snr"}}, "weight belongs to loss.kind"),
        ({"loss": {"kind": "hybrid"}, "times": {"kind": "uniform"}}, "set times.steps to 1000"),
        ({"loss": {"kind": "hybrid"}, "times": {"kind": "log_normal"}}, "times on those steps"),
        ({"condition": {"kind": "several", "conditions": [BY_TEXT]}}, "at least 2 items"),
        ({"condition": {"kind": "several", "conditions": [BY_TEXT, BY_TEXT]}}, "more than once"),
        ({"weight": {"low": 2.0, "high": 1.0}}, "low must not be above high"),
        ({"target": {"kind": "array", "name": "z", "scale": 0}}, "greater than 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        DenoisingConfig.model_validate({"kind": "denoising", **settings})


def test_a_weight_without_a_kind_is_the_clamped_ratio():
    recipe = load("recipes/emoji_base.yaml", ["task.weight={low: 0.1, high: 2.0}"])
    assert recipe.task.weight == SnrClamped(low=0.1, high=2.0)
    with pytest.raises(UserError, match=r"task.weight.hihg: unknown key"):
        load("recipes/emoji_base.yaml", ["task.weight={low: 0.1, hihg: 2.0}"])


@pytest.mark.parametrize(
    ("recipe", "key", "new"),
    [
        ("emoji_class", "model.process.predicts", "prediction_type"),
        ("emoji_class", "model.process.data_deviation", "sigma_data"),
        ("emoji_class", "model.counts_from_zero", "timestep_offset (0 or 1)"),
        ("emoji_class", "model.frequencies", "freq_shift (open: 0, closed: 1)"),
        ("emoji_dit", "task.of", "target"),
        ("emoji_dit", "task.target.deviations", "std"),
        ("emoji_dit", "task.loss.share", "vlb_weight"),
        ("emoji_upsampler", "model.augmentation.highest", "max_level"),
        ("unclip_upsampler_256", "model.low_resolution.tells_level", "condition_on_noise_level"),
        ("adm_classifier_64", "task.times.deviation", "std"),
    ],
)
def test_a_renamed_key_is_refused_with_its_new_name(recipe, key, new):
    path = f"recipes/{recipe}.yaml"
    with pytest.raises(UserError) as caught:
        load(path, [f"{key}=1"])
    assert f"{path}: {key}: was renamed to {new}; use the new name" in str(caught.value)


def test_offset_noise_is_one_number_for_each_channel():
    noise = torch.randn((4, 3, 5, 5), generator=rng())
    added = offset_noise(noise, 0.1, rng(1)) - noise
    numbers = torch.randn((4, 3, 1, 1), generator=rng(1))
    torch.testing.assert_close(added, (0.1 * numbers).expand_as(noise), atol=1e-6, rtol=1e-5)
    assert offset_noise(noise, 0.0, rng(1)) is noise


def test_noise_is_not_predicted_where_no_signal_is_left():
    schedule = {"kind": "discrete", "zero_terminal_snr": True}
    with pytest.raises(ValidationError, match="predict v or x0"):
        ProcessConfig(schedule=schedule, prediction_type="noise")
    assert ProcessConfig(schedule=schedule, prediction_type="v").prediction_type == "v"


@pytest.mark.parametrize("kind", ["min_snr", "snr", "v", "snr_clamped"])
def test_weight_0_at_the_last_step_is_said(kind, caplog):
    schedule = {"kind": "discrete", "zero_terminal_snr": True}
    model = {**UNET, "process": {"schedule": schedule, "prediction_type": "v"}}
    task = DenoisingConfig.model_validate({"kind": "denoising", "weight": {"kind": kind}})
    task.build(TypeAdapter(ModelConfig).validate_python(model).build())
    assert ("gives weight 0 to the last step" in caplog.text) == (kind in ("min_snr", "snr"))
