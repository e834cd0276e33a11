"""A student that is registered: what the registry says of it, and by which names it is found again."""

from pathlib import Path

import mlflow
import pandas as pd
import pytest
from jobs import call, runs
from mlflow.entities import Run

from src import evaluate, report, train
from src.tracking import run_of

pytestmark = pytest.mark.slow
SMALL = ["+experiment=digits", "rehearsal=always", "rehearsal/errors=none", "data.gold_size=40", "data.test_size=60",
         "labeler.max_items=60", "student.pretrained=false", "student.input_size=32", "student.batch_size=16",
         "student.export=false", "trainer.max_epochs=1", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    assert call(train.main, *SMALL, f"home={home}", "tracking.register=digits-student") == 0
    mlflow.set_tracking_uri(f"sqlite:///{home}/mlflow.db")
    return home


@pytest.fixture(scope="module")
def run(home: Path) -> Run:
    return runs(home)[0]


def test_the_registry_says_what_it_is_and_where_it_is_from(home: Path, run: Run) -> None:
    client = mlflow.MlflowClient()
    version = client.get_model_version("digits-student", "1")
    accuracy = run.data.metrics["test/accuracy"]
    assert version.description.startswith(f"REHEARSAL (stand-in teacher). Accuracy {accuracy:.3f} [")
    assert version.run_id == run.info.run_id and f"src.certify run={run.info.run_id}" in version.description
    assert version.tags["task"] == "digits" and version.tags["rehearsal"].startswith("REHEARSAL")
    assert "run=digits-student@champion" in client.get_registered_model("digits-student").description
    logged = mlflow.search_logged_models([run.info.experiment_id], output_format="list")[0]
    assert logged.tags["mlflow.note.content"] == version.description
    assert f"/models/{logged.model_id})" in run.data.tags["mlflow.note.content"]


def test_its_own_example_fits_its_signature_and_gets_an_answer(home: Path) -> None:
    model = mlflow.pyfunc.load_model("models:/digits-student/1")
    signature = model.metadata.signature
    assert signature.inputs.input_names() == ["image"]
    assert signature.outputs.input_names()[:2] == ["label", "confidence"]
    example = model.input_example
    assert isinstance(example, pd.DataFrame) and example["image"][0].startswith(b"\x89PNG")
    answer = model.predict(example)
    assert answer.columns.tolist() == signature.outputs.input_names() and f"p_{answer.label[0]}" in answer.columns


def test_any_name_of_it_is_taken_for_its_run(home: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    mlflow.MlflowClient().set_registered_model_alias("digits-student", "champion", "1")
    uri = f"sqlite:///{home}/mlflow.db"
    for name in ("digits-student", "digits-student/1", "models:/digits-student/1", "models:/digits-student@champion"):
        assert run_of(uri, name) == (run.info.run_id, "models:/digits-student/1")
    assert call(report.main, f"home={home}", "run=models:/digits-student/1") == 0
    command = (f"home={home}", "accelerator=cpu", "ask=never")
    assert call(evaluate.main, *command, "run=models:/digits-student@champion") == 0
    assert runs(home)[0].data.tags["flywheel.evaluates"] == run.info.run_id
    capsys.readouterr()
    assert call(evaluate.main, *command, "run=models:/digits-student/2") == 1
    told = capsys.readouterr().err
    assert "run='models:/digits-student/2' is neither a run's id nor a registered model" in told


def test_a_name_that_cannot_be_registered_costs_nothing(home: Path, run: Run,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a/b", run.data.tags["prompt"].split("/")[1]):  # the latter is the prompt's
        assert call(train.main, *SMALL, f"home={home}", f"tracking.register={name}", "task.user_prompt=again") == 1
        assert f"tracking.register='{name}' is not allowed" in capsys.readouterr().err
        assert "label/requests" not in runs(home)[0].data.metrics and runs(home)[0].info.status == "FAILED"
