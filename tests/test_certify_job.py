"""`python -m src.certify` on a small student of real digits: what it promises, what that costs, and what it refuses."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import yaml
from conftest import composed
from jobs import call, runs
from mlflow.entities import Run
from scipy.stats import binom

from src import certify
from src.calibration.calibrators import from_dict, to_logits
from src.calibration.certificate import lower_bound
from src.calibration.ledger import read_ledger
from src.config import Job, read
from src.data.dataset import Dataset, open_dataset
from src.store import Store
from src.student.checkpoint import Trained, load
from src.student.distil import distil
from src.student.images import decode
from src.task import Annotation, Item, Label
from src.tracking import open_run
from src.written import recorded

# The smallest network that timm has; it learns digits in seconds.
SMALL = ("+experiment=digits", "rehearsal=always", "data.gold_size=300", "data.test_size=800",
         "data.near_duplicates=null", "student.name=test_resnet", "student.pretrained=false", "student.input_size=32",
         "student.batch_size=16", "student.export=false", "student.learning_rate=5e-3", "trainer.max_epochs=4",
         "trainer.accelerator=cpu")
TEACHER, PROMPT = "rehearsal:teacher", "prompt"
TARGET = "calibration.target_precision="


class Trainings:
    """Training runs as `src.train` leaves them, with one student that learned from the truth."""

    def __init__(self, home: Path) -> None:
        self.cfg = composed("job", *SMALL, f"home={home}")
        self.job: Job = read(self.cfg, Job)
        job, self.home = self.job, home
        self.dataset: Dataset = open_dataset(job.task, job.data, home=home, download=False, stand_in=False)
        splits = self.dataset.splits
        labels = [Label(item.key, item.truth, True, "truth") for item in [*splits.train, *splits.validation]]
        self.checkpoint = distil(labels, splits, job.task, job.student, job.trainer, sharpen=job.data.shown.sharpen,
                                 max_pixels=job.data.max_pixels, seed=0, out=home, log=lambda *_, **__: None,
                                 download=False, need_weights=False).checkpoint

    def run(self, checkpoint: bytes | None = None, **tags: str) -> str:
        """Leave one more run, with another checkpoint or other tags, and return its id."""
        own = {"dataset_hash": self.dataset.hash, "rehearsal": "REHEARSAL (stand-in teacher)", "annotator": TEACHER,
               "prompt_hash": PROMPT, **tags}
        tracking = self.job.tracking
        with open_run(uri=tracking.uri, experiment=tracking.experiment, artifacts=Path(tracking.artifacts),
                      name="digits s0", tags=own) as run:
            run.text(yaml.safe_dump(recorded(self.cfg), sort_keys=False), "config.yaml")
            (self.home / "again").mkdir(exist_ok=True)
            (self.home / "again" / "mobilenet.pt").write_bytes(checkpoint or self.checkpoint.read_bytes())
            run.file(self.home / "again" / "mobilenet.pt")
        return run.id

    def books(self) -> list[float]:
        return [entry.delta for entry in read_ledger(self.home / "certifications.jsonl")]

    def predict(self, items: list[Item], calibrator: dict) -> tuple[np.ndarray, np.ndarray]:
        """Confidences and answers."""
        student = load(self.checkpoint)
        images = decode(items, student.input_size, sharpen=student.sharpen, max_pixels=10**6)
        probabilities = from_dict(calibrator)(to_logits(student.predict(images)))
        return probabilities.max(axis=1), np.array(student.classes)[probabilities.argmax(axis=1)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    return Trainings(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def trained(made: Trainings) -> str:
    """A run whose teacher errs on the first 40 of gold's choose part."""
    store = Store(made.job.store)
    wrong = dict(zip(made.job.task.names, [*made.job.task.names[1:], made.job.task.names[0]], strict=True))
    store.add([Annotation(item.key, TEACHER, PROMPT, "digits",
                          label=wrong[str(item.truth)] if n < 40 else item.truth)
               for n, item in enumerate(made.dataset.splits.choose)])
    store.close()
    return made.run()


@pytest.fixture(scope="module")
def first(made: Trainings, trained: str) -> Run:
    """The first certification, at 0.9."""
    assert call(certify.main, f"home={made.home}", f"run={trained}", f"{TARGET}0.9", "accelerator=cpu") == 0
    return runs(made.home)[0]


def document(run: Run, made: Trainings, name: str) -> dict:
    client = mlflow.MlflowClient(f"sqlite:///{made.home}/mlflow.db")
    return json.loads(Path(client.download_artifacts(run.info.run_id, name)).read_text())


def test_the_certificate_is_what_its_own_threshold_gives_on_certify(made: Trainings, first: Run, trained: str) -> None:
    calibration, certificate = (document(first, made, f"{name}.json") for name in ("calibration", "certificate"))
    assert certificate["certified"] and certificate["run"] == trained and certificate["n"] == 150
    items = made.dataset.splits.certify
    confidence, answers = made.predict(items, calibration["calibrator"])
    taken = confidence >= certificate["threshold"]
    right = int((answers == [item.truth for item in items])[taken].sum())
    assert (certificate["accepted"], certificate["errors"]) == (taken.sum(), taken.sum() - right)
    assert certificate["precision_lower_bound"] == pytest.approx(lower_bound(right, int(taken.sum()), 0.025))
    assert certificate["precision_lower_bound"] >= 0.9 and certificate["coverage"] == pytest.approx(taken.mean())
    assert calibration["classes"] == made.job.task.names and calibration["fitted_on"] == 150


def test_the_figures_stand_in_a_run_of_their_own(made: Trainings, first: Run, trained: str) -> None:
    certificate = document(first, made, "certificate.json")
    assert first.info.status == "FINISHED" and first.data.tags["flywheel.certifies"] == trained
    assert first.data.tags["rehearsal"] == "REHEARSAL (stand-in teacher)"
    assert certificate["rehearsal"] == "REHEARSAL (stand-in teacher)"
    found = first.data.metrics
    for metric, key in (("threshold", "threshold"), ("coverage", "coverage"), ("errors", "errors"),
                        ("precision_lower_bound", "precision_lower_bound"), ("delta", "delta")):
        assert found[f"cascade/{metric}"] == pytest.approx(certificate[key])
    assert found["cascade/escalation_rate"] == pytest.approx(1 - found["cascade/coverage"])
    assert found["cascade/certified"] == 1 and found["cascade/delta_left"] == pytest.approx(0.025)
    assert {f"calibration/{name}_{when}" for name in ("ece", "ece_equal_mass", "brier", "confidence")
            for when in ("before", "after")} <= found.keys()
    client = mlflow.MlflowClient(f"sqlite:///{made.home}/mlflow.db")
    assert [file.path for file in client.list_artifacts(first.info.run_id, "figures")] == ["figures/certificate.png"]


def test_agreement_with_the_teacher_is_another_figure(made: Trainings, first: Run) -> None:
    calibration, certificate = (document(first, made, f"{name}.json") for name in ("calibration", "certificate"))
    items = made.dataset.splits.choose
    confidence, answers = made.predict(items, calibration["calibrator"])
    taken = confidence >= certificate["threshold"]
    agrees = (answers == [item.truth for item in items]) & (np.arange(150) >= 40)
    # Where the teacher errs the student may err alike, seldom.
    told = certificate["teacher_agreement"]
    assert told["n"] == taken.sum() and told["value"] == pytest.approx(agrees[taken].mean(), abs=0.02)
    assert told["value"] < 0.85 < certificate["precision_lower_bound"]


def test_asking_again_costs_nothing_and_asking_more_costs_less_each_time(
        made: Trainings, first: Run, trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert made.books() == [0.025]
    asked = [f"home={made.home}", f"run={trained}", "accelerator=cpu"]
    assert call(certify.main, *asked, f"{TARGET}0.9") == 0
    told = capsys.readouterr().out
    assert "0.025 of 0.05, in an earlier run" in told and made.books() == [0.025]
    again = document(runs(made.home)[0], made, "certificate.json")
    assert again["threshold"] == document(first, made, "certificate.json")["threshold"]
    # Just below what 150 items certify at best: a mistake or a doubt too many, and it is refused with what would help.
    assert call(certify.main, *asked, f"{TARGET}0.97") == 0
    told = capsys.readouterr().out
    assert "Not certified: a precision of 97.0% with confidence 98.75%" in told
    assert "new gold items would certify it" in told or "no amount of gold would" in told
    assert made.books() == [0.025, 0.0125]
    refused = runs(made.home)[0].data.metrics
    assert refused["cascade/certified"] == 0 and "cascade/threshold" not in refused


@pytest.mark.parametrize(("values", "message"), [
    ([f"{TARGET}0.999"], "target_precision=0.999 is not allowed: at most 0.9"),
    (["calibration.method=platt"], "calibration.method='platt' is not allowed"),
    (["calibration.targt=0.9"], "Could not override 'calibration.targt'"),
    (["accelerator=tpu"], "accelerator='tpu' is not allowed"),
])
def test_a_users_mistake_is_a_short_message_and_costs_nothing(
        values: list[str], message: str, made: Trainings, trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = made.books()
    assert call(certify.main, f"home={made.home}", f"run={trained}", *values) == 1
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told and made.books() == before


def another(made: Trainings, tmp_path: Path, change: Callable[[Trained], Trained]) -> bytes:
    change(load(made.checkpoint)).save(tmp_path / "mobilenet.pt")
    return (tmp_path / "mobilenet.pt").read_bytes()


@pytest.mark.parametrize(("what", "message"), [
    ("gold", "The items or their split are no longer those of run="),
    ("task", "answers version 1 of the task 'fruit' with"),
    ("file", "mobilenet.pt is not a student's checkpoint"),
    ("weights", "item 0 hold nan or infinity"),
])
def test_a_run_that_cannot_be_certified_is_refused(what: str, message: str, made: Trainings, tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    def spoil(student: Trained) -> Trained:
        for parameter in student.network.parameters():
            parameter.data.fill_(float("nan"))
        return student

    run = {"gold": lambda: made.run(dataset_hash="of another day"),
           "task": lambda: made.run(another(made, tmp_path, lambda student: replace(student, task="fruit"))),
           "file": lambda: made.run(b"no checkpoint"),
           "weights": lambda: made.run(another(made, tmp_path, spoil))}[what]()
    before = made.books()
    assert call(certify.main, f"home={made.home}", f"run={run}") == 1
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told and made.books() == before


def test_neither_run_nor_plan_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(certify.main, f"home={tmp_path}") == 1
    assert "run=None is not allowed: the id of a training run" in capsys.readouterr().err


def test_the_plan_needs_no_run_and_leaves_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(certify.main, f"home={tmp_path}", "plan=true", "gold_sizes=[600]", "calibration.spend=1") == 0
    told = capsys.readouterr().out
    assert "may break its promise with a chance of 0.05" in told
    most = [f"{int(binom.ppf(0.05, n, 0.1)) - 1} of {n}" for n in (300, 210, 150)]  # at 0.90
    assert ", ".join(most) in told and most[0] == "21 of 300"
    assert not (tmp_path / "mlflow.db").exists() and not (tmp_path / "certifications.jsonl").exists()


def test_the_plan_of_a_run_knows_what_its_gold_has_left(made: Trainings, first: Run, trained: str,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    before = made.books()
    assert call(certify.main, f"home={made.home}", f"run={trained}", "plan=true") == 0
    told = capsys.readouterr().out
    assert f"with a chance of {(0.05 - sum(before)) / 2:g}" in told and "│  300 │" in told
    assert made.books() == before
