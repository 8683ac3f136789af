"""`mezzotint evaluate` as an MLflow run of its own."""

import pytest
from mlflow import MlflowClient

from evaluation.metrics.intervals import Score
from evaluation.result import EvaluationResult
from launch import errors
from launch import evaluate as evaluation
from mezzotint.common.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns of its store in a folder
YAML = """\
kind: reconstruction
name: small
autoencoder: dvae/model
images: {url: data}
"""


@pytest.fixture
def evaluate(mezzotint, monkeypatch, tmp_path):
    """The command with a result that is given, in a folder of its own."""
    (tmp_path / "evaluation.yaml").write_text(YAML)
    monkeypatch.chdir(tmp_path)

    def command(result):
        def give(config, out, progress, **_):
            if isinstance(result, Exception):
                raise result
            out.mkdir(exist_ok=True)
            result.write(out)
            return result

        monkeypatch.setattr(evaluation, "evaluate_in_processes", give)
        return mezzotint("evaluate", "evaluation.yaml", "--out", "scores")

    return command


def result(value: float) -> EvaluationResult:
    score = Score(value, value - 1, value + 1, 4)
    return EvaluationResult("reconstruction", "small", {}, {"psnr": {"test": score}}, {})


def test_without_a_store_an_evaluation_leaves_its_result_only(evaluate, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert evaluate(result(20.0)).code == 0
    assert not (tmp_path / "scores" / "tracking").exists()


def test_an_evaluation_is_a_run_in_the_experiment_that_mlflow_s_variables_name(
    evaluate, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "photos")
    assert evaluate(result(20.0)).code == 0
    assert evaluate(result(30.0)).code == 0
    assert evaluate(UserError("data: no such file; pack it")).code == errors.BAD_INPUT
    client = MlflowClient(tracking_uri=str(tmp_path / "mlruns"))
    identifier = client.get_experiment_by_name("photos").experiment_id
    runs = client.search_runs([identifier], order_by=["attributes.start_time"])
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED", "FAILED"]
    assert [run.data.metrics.get("psnr/test/value") for run in runs] == [20.0, 30.0, None]
    assert runs[0].info.run_name == "scores"
    assert runs[0].data.params["autoencoder"] == "dvae/model"
    assert runs[2].data.tags["mezzotint.error"] == "data: no such file; pack it"
    kept = {entry.path for entry in client.list_artifacts(runs[1].info.run_id, "evaluation")}
    assert kept == {"evaluation/evaluation.json", "evaluation/report.md"}
