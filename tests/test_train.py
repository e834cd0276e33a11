"""The whole job, end to end, on real digits with the stand-in teacher; small, so the figures themselves mean little."""

import atexit
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from jobs import call, runs
from mlflow.entities import Run
from PIL import Image

from src import evaluate, label, train
from src.calibration.calibrate import calibrate
from src.calibration.calibrators import from_dict, to_dict
from src.cascade.policy import Policy
from src.store import Store
from src.student import runtimes
from src.student.checkpoint import load
from src.student.protocol import as_seen

SMALL = ["+experiment=digits", "rehearsal=always", "rehearsal/errors=none", "data.gold_size=40", "data.test_size=60",
         "labeler.max_items=100", "student.pretrained=false", "student.input_size=32", "student.batch_size=16",
         "trainer.max_epochs=2", "trainer.accelerator=cpu"]
METRICS = {"label/agreement", "label/kappa", "label/mapped_agreement", "label/gold_accuracy", "label/accepted",
           "label/failed", "label/cost_usd", "label/requests", "val/loss", "val/teacher_agreement", "train/loss",
           "gold/accuracy", "gold/f1_macro", "test/accuracy", "test/f1_macro", "test/ece", "test/aurc",
           "test/coverage_at_precision_95", "calibration/ece_before", "calibration/ece_after",
           "calibration/brier_before", "calibration/brier_after", "calibration_test/ece_after",
           "throughput/items_per_second", "latency/p50_ms", "latency/p95_ms"}
FILES = {"labels_llm.csv", "review_labels.csv", "eval.json", "mobilenet.pt", "datacard.md", "prompt.txt", "config.yaml",
         "calibration.json", "predictions.csv", "model.onnx", "report.html"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def first(home: Path) -> Run:
    """One training run, which the tests look at from all sides."""
    assert call(train.main, *SMALL, f"home={home}") == 0
    return runs(home)[0]


def test_one_finished_run_with_the_agreed_names(first: Run, home: Path) -> None:
    assert len(runs(home)) == 1 and first.info.status == "FINISHED"
    assert first.data.metrics.keys() >= METRICS
    assert first.data.tags["rehearsal"] == "REHEARSAL (stand-in teacher)"
    assert first.data.metrics["label/requests"] == 2 * (20 + 100) + 1  # preflight asks about a blank picture
    assert first.data.metrics["label/gold_accuracy"] == 1.0  # the error model is `none`
    params = first.data.params
    assert params["labeler.max_items"] == "100" and params["student.name"] == "mobilenetv3_small_100"
    assert first.data.tags["prompt_hash"] and first.inputs.dataset_inputs[0].dataset.name == "digits"


def test_the_files_are_there_and_hold_what_they_say(first: Run, home: Path) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    assert {file.path for file in client.list_artifacts(first.info.run_id)} >= FILES
    pictures = {Path(file.path).stem for file in client.list_artifacts(first.info.run_id, "figures")}
    assert pictures >= {"confusion_test", "confusion_gold", "per_class_test", "mistakes_test", "coverage_test",
                        "labels", "reliability"}
    tables = {Path(file.path).stem for file in client.list_artifacts(first.info.run_id, "tables")}
    assert tables == {"per_class_test", "per_class_gold", "confusion_test", "confusion_gold", "annotators",
                      "confusion_teacher_gold"}
    folder = Path(client.download_artifacts(first.info.run_id, ""))
    labels = pd.read_csv(folder / "labels_llm.csv")
    assert len(labels) == 100 and labels.accepted.all()
    summary = json.loads((folder / "eval.json").read_text())
    assert summary["rehearsal"].startswith("REHEARSAL")
    assert summary["parts"]["test"]["scores"]["test/accuracy"] == first.data.metrics["test/accuracy"]
    assert sum(map(sum, summary["parts"]["test"]["confusion"])) == 60
    card = (folder / "datacard.md").read_text()
    assert "REHEARSAL" in card and "100 accepted labels" in card and first.data.tags["prompt_hash"][:16] in card
    assert torch.load(folder / "mobilenet.pt", weights_only=True)["task"] == "digits"


def test_the_exported_student_answers_like_the_checkpoint(first: Run, home: Path) -> None:
    folder = Path(mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db").download_artifacts(first.info.run_id, ""))
    exported, original = runtimes.load(folder / "model.onnx", "onnxruntime"), load(folder / "mobilenet.pt")
    images = [Image.open(path) for path in sorted((home / "data").rglob("*.png"))[:20]]
    assert exported.predict(as_seen(exported, images)) == pytest.approx(original.predict_images(images), abs=1e-5)
    assert exported.classes == original.classes


def test_every_prediction_is_written_down_with_what_it_should_have_been(first: Run, home: Path) -> None:
    folder = Path(mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db").download_artifacts(first.info.run_id, ""))
    said = pd.read_csv(folder / "predictions.csv", dtype={"target": str, "answer": str})
    right = (said.target == said.answer).groupby(said.part).mean()
    assert right["test"] == first.data.metrics["test/accuracy"]
    assert right["gold"] == first.data.metrics["gold/accuracy"]
    classes = [name.removeprefix("p_") for name in said.columns[5:]]
    probabilities = said.iloc[:, 5:].to_numpy()
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-4)
    assert [classes[n] for n in probabilities.argmax(axis=1)] == said.answer.tolist()
    labels = pd.read_csv(folder / "labels_llm.csv", dtype=str).set_index("item")
    learned = said[said.part == "validation"]
    assert len(learned) and learned.target.tolist() == labels.loc[learned.item, "label"].tolist()
    # Nothing about gold's certify part: 20 of gold are choose.
    assert said.part.value_counts()["gold"] == 20 and said.item.is_unique


def test_the_calibration_is_fitted_on_gold_alone(first: Run, home: Path) -> None:
    folder = Path(mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db").download_artifacts(first.info.run_id, ""))
    said = pd.read_csv(folder / "predictions.csv", dtype={"target": str, "answer": str})
    gold, stored = said[said.part == "gold"], json.loads((folder / "calibration.json").read_text())
    names = stored["classes"]
    probabilities = gold[[f"p_{name}" for name in names]].to_numpy()
    truth = np.array([names.index(name) for name in gold.target])
    again = calibrate("temperature", probabilities / probabilities.sum(axis=1, keepdims=True), truth, 0.95)
    assert stored["fitted_on"] == 20 and stored["calibrator"]["method"] == "temperature"
    # Stored predictions have six digits.
    assert stored["calibrator"]["temperature"] == pytest.approx(to_dict(again.calibrator)["temperature"], rel=0.01)
    assert first.data.metrics["calibration/ece_after"] == stored["after"]["ece_equal_width"]


def test_gold_and_test_are_never_labelled_for_training(first: Run, home: Path) -> None:
    folder = Path(mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db").download_artifacts(first.info.run_id, ""))
    labelled = set(pd.read_csv(folder / "labels_llm.csv").item)
    prepared = home / "data"
    keys = {hashlib.sha256(path.read_bytes()).hexdigest() for path in prepared.rglob("*.png")}
    assert labelled <= keys
    asked = {a.item for a in Store(home / "annotations.db").read()}
    # Gold's choose part and preflight's blank picture; nobody was asked about certify or test.
    assert len(asked - labelled) == 20 + 1 and len((asked - labelled) & keys) == 20


def test_the_model_loads_from_mlflow_and_answers_like_the_checkpoint(first: Run, home: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{home}/mlflow.db")
    model = mlflow.search_logged_models(experiment_ids=[first.info.experiment_id], output_format="list")[0]
    loaded = mlflow.pyfunc.load_model(model.model_uri)
    paths = sorted((home / "data").rglob("*.png"))[:5]
    answers = loaded.predict(pd.DataFrame({"image": [path.read_bytes() for path in paths]}))
    folder = Path(mlflow.MlflowClient().download_artifacts(first.info.run_id, "mobilenet.pt"))
    expected = load(folder).predict_images([Image.open(path) for path in paths])
    assert answers.confidence.tolist() == pytest.approx(expected.max(axis=1).tolist(), abs=1e-5)
    assert answers.label.tolist() == [load(folder).classes[n] for n in expected.argmax(axis=1)]


def test_again_it_re_uses_every_label(first: Run, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(label.main, *SMALL, f"home={home}", "seed=1") == 0
    again = runs(home)[0]
    assert again.data.metrics["label/requests"] == 0 and again.data.metrics["label/reused"] == 240
    assert again.data.tags["dataset_hash"] == first.data.tags["dataset_hash"]  # `seed` is for training alone
    told = capsys.readouterr().out
    assert "0 questions to ask" in told and "240 answers re-used" in told


def test_evaluate_gives_the_same_figures_in_a_run_of_its_own(first: Run, home: Path) -> None:
    assert call(evaluate.main, f"home={home}", f"run={first.info.run_id}", "accelerator=cpu") == 0
    judged = runs(home)[0]
    assert judged.data.tags["flywheel.evaluates"] == first.info.run_id
    for name in ("test/accuracy", "test/f1_macro", "gold/accuracy", "test/ece"):
        assert judged.data.metrics[name] == pytest.approx(first.data.metrics[name], abs=1e-6)


@pytest.mark.slow
def test_another_runtime_is_measured_and_gives_the_same(first: Run, home: Path,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    command = (f"home={home}", f"run={first.info.run_id}", "accelerator=cpu", "ask=never")
    assert call(evaluate.main, *command, "runtime=onnxruntime") == 0
    judged = runs(home)[0]
    assert (judged.data.tags["runtime"], judged.data.tags["dtype"]) == ("onnxruntime", "fp32")
    assert judged.data.metrics["test/accuracy"] == first.data.metrics["test/accuracy"]
    assert judged.data.metrics["test/ece"] == pytest.approx(first.data.metrics["test/ece"], abs=1e-4)
    assert "chosen" in capsys.readouterr().out
    assert call(evaluate.main, *command, "dtype=int8") == 1
    assert "dtype='int8' is not allowed" in capsys.readouterr().err


def test_evaluate_replays_the_cascade_and_asks_nothing_twice(first: Run, home: Path,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    command = (f"home={home}", f"run={first.info.run_id}", "accelerator=cpu")
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    folder = Path(client.download_artifacts(first.info.run_id, ""))
    said = pd.read_csv(folder / "predictions.csv", dtype={"target": str, "answer": str})
    test, stored = said[said.part == "test"], json.loads((folder / "calibration.json").read_text())
    probabilities = test[[f"p_{name}" for name in stored["classes"]]].to_numpy() + 1e-12
    calibrated = from_dict(stored["calibrator"])(np.log(probabilities))
    surest = np.sort(calibrated.max(axis=1))
    policy = Policy(float(surest[19:21].mean()), 0.5, 0.1)
    assert call(evaluate.main, *command, f"cascade.threshold={policy.threshold}", "cascade.audit_share=0.1") == 0
    told, run = capsys.readouterr().out, runs(home)[0]
    sure = calibrated.max(axis=1) >= policy.threshold
    audited = np.array([policy.audits(key) for key in test.item])
    acts = sure & ~audited
    right = (test.target == test.answer).to_numpy()
    figures = run.data.metrics
    assert 0 < acts.sum() < 60
    assert figures["cascade/threshold"] == policy.threshold
    assert figures["cascade/coverage"] == pytest.approx(acts.mean())
    assert figures["cascade/student_accuracy"] == pytest.approx(right[acts].mean())
    # The stand-in teacher makes no mistake here; where it corrects a student who is audited, a person decides.
    assert figures["cascade/teacher_accuracy"] == 1.0
    assert figures["cascade/human_rate"] == pytest.approx((sure & audited & ~right).mean())
    assert "nothing is promised of it" in told and "REHEARSAL" in told
    pictures = {Path(file.path).stem for file in client.list_artifacts(run.info.run_id, "figures")}
    assert pictures >= {"cost_accuracy", "coverage_accuracy", "escalations_by_answer", "escalations_by_truth"}
    compared = json.loads(Path(client.download_artifacts(run.info.run_id, "tables/cascade.json")).read_text())
    alone = dict(zip((row[0] for row in compared["data"]),
                     (row[compared["columns"].index("accuracy")] for row in compared["data"]), strict=True))
    assert alone["LLM alone"] == 1.0
    assert alone["student alone"] == pytest.approx(first.data.metrics["test/accuracy"])
    assert call(evaluate.main, *command, "ask=never") == 0
    assert runs(home)[0].data.metrics["label/requests"] == 0
    assert "Nothing is certified at 0.95 for this student in fp32 on torch" in capsys.readouterr().out
    assert runs(home)[0].data.metrics["cascade/coverage"] == 0


def test_the_cascade_is_replayed_on_other_images(first: Run, home: Path, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    command = (f"home={home}", f"run={first.info.run_id}", "accelerator=cpu", "cascade.threshold=0.5")
    known = next((home / "data").rglob("*.png"))
    Image.open(known).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "new.png")
    (tmp_path / "seen.png").write_bytes(known.read_bytes())
    assert call(evaluate.main, *command, f"items={tmp_path}") == 0
    told = " ".join(capsys.readouterr().out.split())
    seen_before = "1 of 2 images" in told  # it may have been one of test's
    assert "1 of 1 items have no known truth" in told or (not seen_before and "of 2 items have no known truth" in told)
    assert "The teacher has said nothing about these" in told
    assert call(evaluate.main, *command, f"items={tmp_path / 'nowhere'}") == 1
    assert "is not a folder" in capsys.readouterr().err


def test_a_persons_edits_are_imported_and_trained_on(first: Run, home: Path,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    review = home / "review" / "digits" / "review_labels.csv"
    labels = pd.read_csv(Path(mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db").download_artifacts(
        first.info.run_id, "labels_llm.csv")))
    # A threshold above every confidence puts all items before a person, and trains on what the person said alone.
    assert call(label.main, *SMALL, f"home={home}", "quality.min_confidence=1") == 1
    frame = pd.read_csv(review, dtype=str, keep_default_na=False)
    assert len(frame) == len(labels)
    frame.loc[:, "label_final"] = frame["label"]
    frame.loc[0, "label_final"] = "nine" if frame.loc[0, "label"] != "nine" else "eight"
    frame.to_csv(review, index=False)
    capsys.readouterr()
    assert call(train.main, *SMALL, f"home={home}", "student.export=false", "quality.min_confidence=1",
                "quality.reviewer=ada", "trainer.max_epochs=1") == 0
    assert "100 edit(s) imported" in capsys.readouterr().out
    latest = runs(home)[0]
    assert latest.data.metrics["label/requests"] == 0
    table = pd.read_csv(Path(mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db").download_artifacts(
        latest.info.run_id, "labels_llm.csv")))
    assert latest.data.metrics["label/accepted"] == 100 and set(table.source) == {"human:ada"}
    assert table.set_index("item").label[frame.loc[0, "item"]] == frame.loc[0, "label_final"]


def test_dry_run_asks_nobody_and_leaves_no_run(home: Path, first: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = len(runs(home))
    assert call(train.main, *SMALL, f"home={home}", "labeler.max_items=200", "labeler.dry_run=true") == 0
    told = capsys.readouterr().out
    assert "200 questions to ask, estimated cost $" in told and len(runs(home)) == before


def test_a_dry_run_tells_what_the_real_teacher_would_be_asked(tmp_path: Path, first: Run,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    """Without its key: that is needed to ask, not to plan."""
    for mode in ("auto", "never"):
        wanted = ["+experiment=digits", f"home={tmp_path}", f"rehearsal={mode}", "data.gold_size=40"]
        assert call(label.main, *wanted, "labeler.max_items=50", "labeler.dry_run=true") == 0
        told = capsys.readouterr().out
        assert "Labels: openrouter.ai/" in told and "140 questions to ask" in told
    assert not (tmp_path / "mlflow.db").exists()


def test_a_failed_jobs_run_is_failed(home: Path, first: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(train.main, *SMALL, f"home={home}", "data.gold_size=5") == 1
    assert "gold items for 10 classes are too few" in capsys.readouterr().err
    failed = runs(home)[0]
    assert failed.info.status == "FAILED" and "10 classes" in failed.data.tags["flywheel.error"]


@pytest.mark.parametrize("override", ["student.name=nonesuch", "student.weights=none.pt", "trainer.accelerator=cuda"])
def test_a_student_that_cannot_be_trained_is_found_before_anything_is_asked(
    override: str, home: Path, first: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(train, "make_labels", lambda **_: pytest.fail("labels were asked for"))
    before = len(runs(home))
    assert call(train.main, *SMALL, f"home={home}", override) == 1
    key, value = override.split("=")
    assert f"{key}='{value}' is not allowed" in capsys.readouterr().err and len(runs(home)) == before


def test_an_interrupted_jobs_run_is_killed(home: Path, first: Run, monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "record_labels", interrupt)
    assert call(train.main, *SMALL, f"home={home}") == 130
    assert runs(home)[0].info.status == "KILLED"
    assert "the same command goes on from here" in capsys.readouterr().out


def test_a_run_whose_process_was_killed_is_closed_by_the_next(home: Path, first: Run) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    orphan = client.create_run(first.info.experiment_id, tags={"flywheel.host": first.data.tags["flywheel.host"],
                                                               "flywheel.pid": "999999999"})
    assert call(label.main, *SMALL, f"home={home}") == 0
    assert client.get_run(orphan.info.run_id).info.status == "KILLED"


@pytest.mark.parametrize(("overrides", "message"), [
    (["rehearsal=never"], "rehearsal='never' is not allowed: the teacher needs a key: export OPENROUTER_API_KEY=…"),
    (["data=folder"], "data=folder needs data.root=FOLDER"),
    (["data=folder", "data.root=/nonexistent"], "data.root='/nonexistent' is not a folder"),
    (["data.gold_size=5"], "gold items for 10 classes are too few"),
    (["data=rendered"], "There are no drawings of zero, one"),
    (["student.weights=none.safetensors"], "student.weights='none.safetensors' is not allowed"),
    (["labeler.max_cost_usd=0.001", "task.user_prompt=again"],
     "labeler.max_cost_usd=0.001 is reached"),
])
def test_a_users_mistake_is_a_short_message(overrides: list[str], message: str, home: Path, first: Run,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    assert call(train.main, *SMALL, f"home={home}", *overrides) == 1
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told


def test_unknown_runs_are_refused(home: Path, first: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(evaluate.main, f"home={home}", "run=0123456789abcdef0123456789abcdef") == 1
    assert "is not a run at sqlite:///" in capsys.readouterr().err
    unfinished = next(run for run in runs(home) if run.info.status == "FAILED")
    assert call(evaluate.main, f"home={home}", f"run={unfinished.info.run_id}") == 1
    assert "it is not a finished training run" in capsys.readouterr().err


def test_a_multirun_is_one_parent_and_pays_once(tmp_path: Path, home: Path, first: Run,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    closing: list[tuple[Callable[..., None], tuple[str, ...]]] = []
    monkeypatch.setattr(atexit, "register", lambda close, *args: closing.append((close, args)))
    (tmp_path / "data").symlink_to(home / "data")  # all else is new, and its labels are yet to be paid for
    status = call(label.main, "-m", *SMALL, f"home={tmp_path}", f"tracking.uri=sqlite:///{home}/mlflow.db",
                  "quality.min_confidence=0,2,0.5")
    for close, args in closing:
        close(*args)
    found = runs(home)
    parent = next(run for run in found if run.data.tags.get("flywheel.stage") == "sweep")
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    # 2 is no confidence: that job fails before it opens a run, and the other two still run.
    assert status == 1 and [child.info.status for child in children] == ["FINISHED", "FINISHED"]
    assert sorted(child.data.metrics["label/requests"] for child in children) == [0, 241]
    assert sorted(child.data.metrics["label/reused"] for child in children) == [0, 240]
    assert parent.data.metrics["label/requests"] == 241 and parent.info.status == "FAILED"
    assert "quality.min_confidence=2.0 is not allowed" in parent.data.tags["flywheel.failed.1"]


def test_nothing_but_the_stand_in_was_asked(first: Run, home: Path) -> None:
    annotators = {a.annotator for a in Store(home / "annotations.db").read()}
    assert all(name.startswith(("rehearsal:", "human:")) for name in annotators)
