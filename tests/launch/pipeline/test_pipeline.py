"""Pipelines: dependencies, records of finished stages, and stages that run again."""

import json

import pytest
import yaml
from pydantic import ValidationError

from evaluation.config import ReconstructionConfig, TextToImageConfig
from launch.pipeline import runner
from launch.pipeline.config import (
    DeriveStage,
    Pipeline,
    TrainStage,
    dependencies,
    load_pipeline,
    resolve_stage,
    stage_order,
    stage_overrides,
    substitute,
)
from launch.pipeline.state import PipelineState, StageRecord, new_id
from mezzotint.common.errors import UserError
from trainer.recipe import load as load_recipe

QUICKSTART = "recipes/pipelines/quickstart.yaml"
STAGES = {
    "text": {"kind": "tokenizer", "data": {"url": "data/emoji"}, "vocab": 400},
    "dvae": {"kind": "train", "recipe": "recipes/emoji_dvae.yaml"},
    "tokens": {"kind": "derive", "data": {"url": "data/emoji"}, "model": "${dvae}/model"},
    "prior": {
        "kind": "train",
        "recipe": "recipes/emoji_prior.yaml",
        "set": {
            "data": {"url": "${tokens}/set", "text": {"tokenizer": "${text}/model"}},
            "data.encoder": "${dvae}/model",
        },
    },
    "page": {"kind": "page", "title": "Result", "after": ["prior"]},
}


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline.model_validate({"name": "small", "stages": STAGES})


@pytest.fixture
def state(tmp_path, pipeline) -> PipelineState:
    """The state of a finished pipeline."""
    state = PipelineState(tmp_path)
    for name in stage_order(pipeline):
        finish(pipeline, state, name)
    return state


def finish(pipeline: Pipeline, state: PipelineState, name: str) -> None:
    state.directory(name).mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(runner.stage_settings(pipeline, name)))
    inputs = runner.input_ids(pipeline, state, name)
    state.write(name, StageRecord(new_id(), pipeline.stages[name].kind, settings, inputs, 1.0))


def changed(key: str, value: object) -> Pipeline:
    tree = json.loads(json.dumps(STAGES))
    stage, *parents, last = key.split(".")
    node = tree[stage]
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    return Pipeline.model_validate({"name": "small", "stages": tree})


def test_a_reference_anywhere_in_a_stage_is_a_dependency(pipeline):
    assert {name: dependencies(pipeline, name) for name in pipeline.stages} == {
        "text": [],
        "dvae": [],
        "tokens": ["dvae"],
        "prior": ["dvae", "text", "tokens"],
        "page": ["prior"],
    }


def test_every_stage_comes_after_its_dependencies():
    pipeline = load_pipeline(QUICKSTART)
    found = stage_order(pipeline)
    assert sorted(found) == sorted(pipeline.stages)
    for name in pipeline.stages:
        assert all(
            found.index(needed) < found.index(name) for needed in dependencies(pipeline, name)
        )


def test_the_cascades_stages_wait_for_no_other_model():
    pipeline = load_pipeline(QUICKSTART)
    assert dependencies(pipeline, "base") == ["tokenizer"]
    assert dependencies(pipeline, "upsampler") == []


def test_references_become_directories(pipeline, tmp_path):
    tokens = resolve_stage(pipeline, "tokens", tmp_path)
    assert isinstance(tokens, DeriveStage)
    assert tokens.model == f"{tmp_path}/dvae/model"
    prior = resolve_stage(pipeline, "prior", tmp_path)
    assert isinstance(prior, TrainStage)
    assert prior.set["data"]["url"] == f"{tmp_path}/tokens/set"
    assert "${" not in yaml.safe_dump(prior.model_dump(mode="json"))


def test_values_are_replaced_and_are_no_dependency():
    tree = json.loads(json.dumps(STAGES))
    tree["dvae"]["set"] = {"data.url": "${pairs}/people"}
    pipeline = Pipeline.model_validate(
        {"name": "small", "values": {"pairs": "s3://bucket"}, "stages": tree}
    )
    assert dependencies(pipeline, "dvae") == []
    dvae = substitute(pipeline.stages["dvae"], pipeline.values)
    assert isinstance(dvae, TrainStage)
    assert dvae.set["data.url"] == "s3://bucket/people"


def test_a_value_with_the_name_of_a_stage_is_refused():
    with pytest.raises(ValidationError, match=r"values\.dvae: is also the name of a stage"):
        Pipeline.model_validate({"name": "small", "values": {"dvae": "x"}, "stages": STAGES})


def test_the_recorded_settings_do_not_depend_on_the_run_directory(pipeline):
    assert runner.stage_settings(pipeline, "prior")["set"]["data"]["url"] == "${tokens}/set"


def test_settings_of_any_depth_become_dotted_overrides(pipeline, tmp_path):
    prior = resolve_stage(pipeline, "prior", tmp_path)
    assert stage_overrides(prior) == [
        f"data.url={tmp_path}/tokens/set",
        f"data.text.tokenizer={tmp_path}/text/model",
        f"data.encoder={tmp_path}/dvae/model",
    ]


def test_overrides_of_a_stage_keep_the_values_of_the_file(tmp_path):
    stage = TrainStage(
        kind="train",
        recipe="recipes/emoji_dvae.yaml",
        set={
            "optimizer": {"lr": {"peak": 1e-5, "decay": "constant"}, "betas": [0.5, 0.75]},
            "data.select": [{"split": "concept", "part": "train", "where": {"tone": ["none"]}}],
            "ema": None,
            "data.cache_in_memory": False,
            "name": "007",
            "description": "one: two, #three 'four' " + "long " * 60,
        },
    )
    recipe = load_recipe(stage.recipe, stage_overrides(stage))
    assert (recipe.optimizer.lr.peak, recipe.optimizer.lr.decay) == (1e-5, "constant")
    assert recipe.optimizer.lr.warmup == load_recipe(stage.recipe).optimizer.lr.warmup
    assert recipe.optimizer.betas == (0.5, 0.75)
    assert recipe.data.select[0].where == {"tone": ("none",)}
    assert recipe.ema is None
    assert recipe.data.cache_in_memory is False
    assert recipe.name == "007"
    assert recipe.description == stage.set["description"]


def test_overrides_of_a_pipeline_reach_into_its_stages():
    overrides = ["stages.base.set.steps=7", "stages.tokenizer.vocab=300", "name=other"]
    pipeline = load_pipeline(QUICKSTART, overrides)
    assert stage_overrides(pipeline.stages["base"])[-1] == "steps=7"
    assert pipeline.stages["tokenizer"].vocab == 300
    assert pipeline.name == "other"


EVALUATED = {
    "kind": "evaluate",
    "evaluation": {
        "kind": "reconstruction",
        "name": "back",
        "autoencoder": "${dvae}/model",
        "images": {"url": "data/emoji"},
    },
}


def test_an_evaluate_stage_takes_a_system_or_an_autoencoder():
    pipeline = Pipeline.model_validate({"name": "small", "stages": {**STAGES, "back": EVALUATED}})
    assert isinstance(pipeline.stages["back"].evaluation, ReconstructionConfig)
    assert dependencies(pipeline, "back") == ["dvae"]
    system = load_pipeline(QUICKSTART).stages["dalle"]
    assert isinstance(system.evaluation, TextToImageConfig)
    again = Pipeline.model_validate(pipeline.model_dump(mode="json"))
    assert again == pipeline


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("images", "lmit"), "stages.back.evaluation.images.lmit: unknown key"),
        (("batch",), "stages.back.evaluation.batch: Input should be a valid integer"),
    ],
)
def test_an_error_in_an_evaluation_names_the_keys_of_the_file(refused, tmp_path, keys, message):
    tree = json.loads(json.dumps({"name": "wrong", "stages": {**STAGES, "back": EVALUATED}}))
    node = tree["stages"]["back"]["evaluation"]
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = "x"
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert f"{path}: {message}" in refused("run", path, "--runs", tmp_path / "runs")


def test_pipelines_and_recipes_are_distinguished():
    with pytest.raises(UserError, match="use `train` for a recipe"):
        load_pipeline("recipes/emoji_dvae.yaml")
    with pytest.raises(UserError, match="is a pipeline, not a recipe; use `mezzotint run"):
        load_recipe(QUICKSTART)


def test_a_misspelt_recipe_key_is_refused_before_any_stage_starts():
    with pytest.raises(UserError, match=r"stages\.base: recipes/emoji_base\.yaml: stepz: unknown"):
        load_pipeline(QUICKSTART, ["stages.base.set.stepz=3"])


def test_finished_stages_with_the_same_settings_and_inputs_are_skipped(pipeline, state):
    assert all(runner.is_up_to_date(pipeline, state, name) for name in pipeline.stages)


def test_unfinished_stages_run_and_their_downstream_stages_wait(pipeline, state):
    (state.directory("tokens") / "stage.json").unlink()
    assert not runner.is_up_to_date(pipeline, state, "tokens")
    assert runner.input_ids(pipeline, state, "prior") is None
    assert not runner.is_up_to_date(pipeline, state, "prior")
    assert runner.is_up_to_date(pipeline, state, "dvae")


@pytest.mark.parametrize(
    ("key", "value", "difference"),
    [
        ("text.vocab", 300, "vocab was 400 and is now 300"),
        ("tokens.data.image.size", 32, "data.image was None and is now "),
        ("prior.set.steps", 5, "set.steps was None and is now 5"),
        ("page.title", "Other", "title was 'Result' and is now 'Other'"),
    ],
)
def test_a_finished_stage_with_other_settings_is_refused_by_the_key(state, key, value, difference):
    name = key.split(".")[0]
    with pytest.raises(UserError) as caught:
        runner.is_up_to_date(changed(key, value), state, name)
    message = str(caught.value)
    assert message.startswith(f"{state.directory(name)}: is finished with other settings: ")
    assert difference in message
    assert f"run the stage again with --redo {name}" in message


def test_scheduling_keys_are_not_among_the_settings(state):
    assert runner.is_up_to_date(changed("dvae.cores", 2), state, "dvae")


def test_a_finished_stage_with_changed_inputs_is_refused(pipeline, state):
    finish(pipeline, state, "dvae")
    with pytest.raises(UserError, match=r"tokens: is finished .* its inputs have changed \(dvae"):
        runner.is_up_to_date(pipeline, state, "tokens")


@pytest.mark.parametrize("content", ["{", "[]", '{"id": "a"}', '{"nonsense": 1}'])
def test_an_unreadable_stage_file_is_named(pipeline, state, content):
    path = state.directory("dvae") / "stage.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        runner.is_up_to_date(pipeline, state, "dvae")
    assert str(caught.value).startswith(f"{path}: cannot be read; remove the file to run")


def test_redo_archives_a_stage_and_its_downstream_stages_only(pipeline, state, tmp_path):
    (state.directory("tokens") / "set").mkdir()
    runner.archive_stage(pipeline, state, "tokens")
    assert sorted(path.name for path in tmp_path.glob("[a-z]*")) == ["dvae", "text"]
    archived = {path.name.split(".")[1]: path for path in tmp_path.glob(".*")}
    assert sorted(archived) == ["page", "prior", "tokens"]
    assert (archived["tokens"] / "set").is_dir()
    unfinished = [
        name for name in pipeline.stages if not runner.is_up_to_date(pipeline, state, name)
    ]
    assert unfinished == ["tokens", "prior", "page"]


def test_redo_twice_keeps_both_archives_and_refuses_an_unknown_stage(pipeline, state, tmp_path):
    runner.archive_stage(pipeline, state, "page")
    finish(pipeline, state, "page")
    runner.archive_stage(pipeline, state, "page")
    assert len(list(tmp_path.glob(".page.*"))) == 2
    with pytest.raises(UserError, match="--redo pages: no such stage; there are text, dvae,"):
        runner.archive_stage(pipeline, state, "pages")


def test_a_finished_pipeline_starts_no_process_and_writes_no_tracking(tmp_path, monkeypatch):
    tree = {"name": "one", "stages": {"text": STAGES["text"]}}
    pipeline, state = Pipeline.model_validate(tree), PipelineState(tmp_path / "one")
    finish(pipeline, state, "text")
    monkeypatch.setattr(runner.subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
    result = runner.run_pipeline(pipeline, tmp_path)
    assert (result.skipped, result.done, result.failed) == (["text"], [], [])
    assert not (tmp_path / "mlflow.db").exists()


def test_the_pipeline_file_of_a_run_round_trips(tmp_path):
    pipeline = load_pipeline(QUICKSTART, ["stages.base.set.optimizer.lr.peak=1e-5"])
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(pipeline.model_dump(mode="json"), sort_keys=False))
    assert load_pipeline(path) == pipeline


def trains(**settings: object) -> dict[str, object]:
    return {"kind": "train", "recipe": "recipes/emoji_base.yaml", "set": settings}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            {
                "base": trains(**{"data.text.tokenizer": "${tokeniser}/model"}),
                "text": STAGES["text"],
            },
            "stages.base: refers to ${tokeniser}, which is neither a stage nor a value; there",
        ),
        ({"base": {**trains(), "after": ["none"]}}, "stages.base.after: none is not a stage"),
        (
            {"a": trains(**{"data.url": "${b}"}), "b": {**trains(), "after": ["a"]}},
            " waits for ",
        ),
        ({"a": trains(**{"data.url": "${a}/set"})}, "stages: a waits for a"),
        ({"text": {**STAGES["text"], "vocabb": 3}}, "vocabb: unknown key"),
        ({"text": {**STAGES["text"], "vocab": 0}}, "vocab: Input should be greater than 0"),
        ({"text": {**STAGES["text"], "kind": "tokeniser"}}, "there is no 'tokeniser'; choose "),
        ({}, "stages: "),
        ({"a/b": STAGES["text"]}, "stages.a/b"),
    ],
)
def test_an_invalid_pipeline_starts_nothing(refused, tmp_path, stages, message):
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"name": "wrong", "stages": stages}))
    found = refused("run", path, "--runs", tmp_path / "runs")
    assert found.startswith(f"{path}: ")
    assert message in found
    assert not (tmp_path / "runs").exists()


def test_redo_of_an_unknown_stage_names_the_stages(refused, tmp_path):
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"name": "one", "stages": {"text": STAGES["text"]}}))
    runs = tmp_path.with_name(f"{tmp_path.name}-runs")
    message = refused("run", path, "--redo", "txt", "--runs", runs)
    assert message == "--redo txt: no such stage; there are text"
