"""Pipelines: what waits for what, what is remembered, and what runs again."""

import json

import pytest
import yaml
from pydantic import ValidationError

from evaluation.config import EvaluationConfig, ReconstructionEvaluation
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
def ledger(tmp_path, pipeline) -> PipelineState:
    """The ledger of a pipeline that has come to its end."""
    ledger = PipelineState(tmp_path)
    for name in stage_order(pipeline):
        finish(pipeline, ledger, name)
    return ledger


def finish(pipeline: Pipeline, ledger: PipelineState, name: str) -> None:
    ledger.directory(name).mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(runner.stage_settings(pipeline, name)))
    read = runner.input_ids(pipeline, ledger, name)
    ledger.write(name, StageRecord(new_id(), pipeline.stages[name].kind, settings, read, 1.0))


def changed(key: str, value: object) -> Pipeline:
    tree = json.loads(json.dumps(STAGES))
    stage, *parents, last = key.split(".")
    node = tree[stage]
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    return Pipeline.model_validate({"name": "small", "stages": tree})


def test_a_reference_anywhere_in_a_stage_is_a_dependence(pipeline):
    assert {name: dependencies(pipeline, name) for name in pipeline.stages} == {
        "text": [],
        "dvae": [],
        "tokens": ["dvae"],
        "prior": ["dvae", "text", "tokens"],
        "page": ["prior"],
    }


def test_every_stage_comes_after_what_it_needs():
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


def test_values_are_replaced_and_are_no_dependence():
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
    with pytest.raises(ValidationError, match=r"values\.dvae: is the name of a stage"):
        Pipeline.model_validate({"name": "small", "values": {"dvae": "x"}, "stages": STAGES})


def test_what_is_remembered_of_a_stage_does_not_depend_on_where_runs_lie(pipeline):
    assert runner.stage_settings(pipeline, "prior")["set"]["data"]["url"] == "${tokens}/set"


def test_settings_of_any_depth_become_dotted_overrides(pipeline, tmp_path):
    prior = resolve_stage(pipeline, "prior", tmp_path)
    assert stage_overrides(prior) == [
        f"data.url={tmp_path}/tokens/set",
        f"data.text.tokenizer={tmp_path}/text/model",
        f"data.encoder={tmp_path}/dvae/model",
    ]


def test_overrides_of_a_stage_say_to_a_recipe_what_the_file_said(tmp_path):
    stage = TrainStage(
        kind="train",
        recipe="recipes/emoji_dvae.yaml",
        set={
            "optimizer": {"lr": {"peak": 1e-5, "decay": "constant"}, "betas": [0.5, 0.75]},
            "data.select": [{"split": "concept", "part": "train", "where": {"tone": ["none"]}}],
            "ema": None,
            "data.memory": False,
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
    assert recipe.data.memory is False
    assert recipe.name == "007"
    assert recipe.description == stage.set["description"]


def test_overrides_of_a_pipeline_reach_into_its_stages():
    overrides = ["stages.base.set.steps=7", "stages.tokenizer.vocab=300", "name=other"]
    pipeline = load_pipeline(QUICKSTART, overrides)
    assert stage_overrides(pipeline.stages["base"])[-1] == "steps=7"
    assert pipeline.stages["tokenizer"].vocab == 300
    assert pipeline.name == "other"


JUDGED = {
    "kind": "evaluate",
    "evaluation": {
        "name": "back",
        "autoencoder": "${dvae}/model",
        "pictures": {"url": "data/emoji"},
    },
}


def test_an_evaluate_stage_judges_a_system_or_an_autoencoder():
    pipeline = Pipeline.model_validate({"name": "small", "stages": {**STAGES, "back": JUDGED}})
    assert isinstance(pipeline.stages["back"].evaluation, ReconstructionEvaluation)
    assert dependencies(pipeline, "back") == ["dvae"]
    system = load_pipeline(QUICKSTART).stages["dalle"]
    assert isinstance(system.evaluation, EvaluationConfig)
    again = Pipeline.model_validate(pipeline.model_dump(mode="json"))
    assert again == pipeline


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("pictures", "lmit"), "stages.back.evaluation.pictures.lmit: unknown key"),
        (("batch",), "stages.back.evaluation.batch: Input should be a valid integer"),
    ],
)
def test_a_fault_of_an_evaluation_is_named_by_the_keys_that_were_written(
    refused, tmp_path, keys, message
):
    tree = json.loads(json.dumps({"name": "wrong", "stages": {**STAGES, "back": JUDGED}}))
    node = tree["stages"]["back"]["evaluation"]
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = "x"
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert f"{path}: {message}" in refused("run", path, "--runs", tmp_path / "runs")


def test_pipelines_and_recipes_are_told_apart():
    with pytest.raises(UserError, match="a recipe is for `train`"):
        load_pipeline("recipes/emoji_dvae.yaml")
    with pytest.raises(UserError, match="is a pipeline, not a recipe; use `mezzotint run"):
        load_recipe(QUICKSTART)


def test_a_misspelt_recipe_key_is_refused_before_any_stage_starts():
    with pytest.raises(UserError, match=r"stages\.base: recipes/emoji_base\.yaml: stepz: unknown"):
        load_pipeline(QUICKSTART, ["stages.base.set.stepz=3"])


def test_what_is_finished_with_the_same_settings_and_inputs_is_skipped(pipeline, ledger):
    assert all(runner.is_up_to_date(pipeline, ledger, name) for name in pipeline.stages)


def test_what_has_not_finished_runs_and_what_reads_it_waits(pipeline, ledger):
    (ledger.directory("tokens") / "stage.json").unlink()
    assert not runner.is_up_to_date(pipeline, ledger, "tokens")
    assert runner.input_ids(pipeline, ledger, "prior") is None
    assert not runner.is_up_to_date(pipeline, ledger, "prior")
    assert runner.is_up_to_date(pipeline, ledger, "dvae")


@pytest.mark.parametrize(
    ("key", "value", "difference"),
    [
        ("text.vocab", 300, "vocab was 400 and is now 300"),
        ("tokens.data.image.size", 32, "data.image was None and is now "),
        ("prior.set.steps", 5, "set.steps was None and is now 5"),
        ("page.title", "Other", "title was 'Result' and is now 'Other'"),
    ],
)
def test_a_finished_stage_with_other_settings_is_refused_by_the_key(ledger, key, value, difference):
    name = key.split(".")[0]
    with pytest.raises(UserError) as caught:
        runner.is_up_to_date(changed(key, value), ledger, name)
    message = str(caught.value)
    assert message.startswith(f"{ledger.directory(name)}: is finished with other settings: ")
    assert difference in message
    assert f"run the stage again with --redo {name}" in message


def test_how_a_stage_is_scheduled_is_not_among_its_settings(ledger):
    assert runner.is_up_to_date(changed("dvae.cores", 2), ledger, "dvae")


def test_a_stage_whose_input_was_made_anew_is_refused_with_the_inputs(pipeline, ledger):
    finish(pipeline, ledger, "dvae")
    with pytest.raises(UserError, match=r"tokens: is finished .* what it read has changed \(dvae"):
        runner.is_up_to_date(pipeline, ledger, "tokens")


@pytest.mark.parametrize("content", ["{", "[]", '{"id": "a"}', '{"nonsense": 1}'])
def test_a_stage_file_that_cannot_be_read_is_named(pipeline, ledger, content):
    path = ledger.directory("dvae") / "stage.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        runner.is_up_to_date(pipeline, ledger, "dvae")
    assert str(caught.value).startswith(f"{path}: cannot be read; remove the file to run")


def test_redo_moves_a_stage_and_what_reads_it_aside_and_nothing_else(pipeline, ledger, tmp_path):
    (ledger.directory("tokens") / "set").mkdir()
    runner.archive_stage(pipeline, ledger, "tokens")
    assert sorted(path.name for path in tmp_path.glob("[a-z]*")) == ["dvae", "text"]
    aside = {path.name.split(".")[1]: path for path in tmp_path.glob(".*")}
    assert sorted(aside) == ["page", "prior", "tokens"]
    assert (aside["tokens"] / "set").is_dir()
    unfinished = [
        name for name in pipeline.stages if not runner.is_up_to_date(pipeline, ledger, name)
    ]
    assert unfinished == ["tokens", "prior", "page"]


def test_redo_twice_keeps_both_and_redo_of_an_unknown_stage_is_refused(pipeline, ledger, tmp_path):
    runner.archive_stage(pipeline, ledger, "page")
    finish(pipeline, ledger, "page")
    runner.archive_stage(pipeline, ledger, "page")
    assert len(list(tmp_path.glob(".page.*"))) == 2
    with pytest.raises(UserError, match="--redo pages: no such stage; there are text, dvae,"):
        runner.archive_stage(pipeline, ledger, "pages")


def test_a_finished_pipeline_starts_no_process_and_writes_no_tracking(tmp_path, monkeypatch):
    tree = {"name": "one", "stages": {"text": STAGES["text"]}}
    pipeline, ledger = Pipeline.model_validate(tree), PipelineState(tmp_path / "one")
    finish(pipeline, ledger, "text")
    monkeypatch.setattr(runner.subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
    result = runner.run_pipeline(pipeline, tmp_path)
    assert (result.skipped, result.done, result.failed) == (("text",), (), ())
    assert not (tmp_path / "mlflow.db").exists()


def test_the_pipeline_a_run_was_started_with_can_be_read_again(tmp_path):
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
            "stages.base: refers to ${tokeniser}, which is no stage and no value; there are base",
        ),
        ({"base": {**trains(), "after": ["none"]}}, "stages.base.after: none is no stage"),
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
def test_a_pipeline_with_a_fault_starts_nothing(refused, tmp_path, stages, message):
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"name": "wrong", "stages": stages}))
    found = refused("run", path, "--runs", tmp_path / "runs")
    assert found.startswith(f"{path}: ")
    assert message in found
    assert not (tmp_path / "runs").exists()


def test_redoing_a_stage_that_is_none_is_refused_with_those_there_are(refused, tmp_path):
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"name": "one", "stages": {"text": STAGES["text"]}}))
    runs = tmp_path.with_name(f"{tmp_path.name}-runs")
    message = refused("run", path, "--redo", "txt", "--runs", runs)
    assert message == "--redo txt: no such stage; there are text"
