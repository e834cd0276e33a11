"""One open run: curves that are sent together, prompts that are registered once, pages that link."""

from collections.abc import Iterator

import mlflow
import pytest

from src.reporting import notes
from src.tracking import Run, open_run

PROMPT = {"system": "Say {one} word.", "user": 'Which of ["a", "b"]? {"label": "<one>"}', "schema": {"type": "object"}}


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """One database for all: making it takes seconds."""
    home = tmp_path_factory.mktemp("home")
    return {"uri": f"sqlite:///{home}/mlflow.db", "experiment": "t", "artifacts": home / "artifacts", "name": "r",
            "tags": {}}


@pytest.fixture
def client(where: dict[str, object]) -> Iterator[mlflow.MlflowClient]:
    yield mlflow.MlflowClient(str(where["uri"]))


def curve(client: mlflow.MlflowClient, run: Run, name: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run.id, name))


def test_every_point_of_a_curve_arrives(where: dict[str, object], client: mlflow.MlflowClient) -> None:
    with open_run(**where) as run:  # type: ignore[arg-type]
        for step in range(2500):  # more than MLflow takes at once
            run.metrics({"train/step_loss": 1 / (1 + step)}, step)
        run.metrics({"val/teacher_agreement": 0.5}, 1)
        run.metrics({"val/teacher_agreement": 0.4}, 2)
    assert curve(client, run, "train/step_loss") == [(step, 1 / (1 + step)) for step in range(2500)]
    assert client.get_run(run.id).data.metrics["val/teacher_agreement"] == 0.4


def test_points_wait_for_each_other_and_figures_do_not(where: dict[str, object], client: mlflow.MlflowClient) -> None:
    with open_run(**where) as run:  # type: ignore[arg-type]
        run.metrics({"a": 1.0}, 0)  # the first is sent at once: the page shows that training has begun
        run._curves.sent_at += 1000
        run.metrics({"a": 2.0}, 1)
        run.metrics({"figure": 3.0})
        assert curve(client, run, "a") == [(0, 1.0)] and client.get_run(run.id).data.metrics["figure"] == 3.0
    assert curve(client, run, "a") == [(0, 1.0), (1, 2.0)]


@pytest.mark.parametrize(("ending", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_the_curve_of_a_job_that_ended_badly_is_kept(ending: type[BaseException], status: str, where: dict[str, object],
                                                     client: mlflow.MlflowClient) -> None:
    with pytest.raises(ending), open_run(**where) as run:  # type: ignore[arg-type]
        run.metrics({"a": 1.0}, 0)
        run.metrics({"a": 2.0}, 1)
        raise ending("gone")
    assert curve(client, run, "a") == [(0, 1.0), (1, 2.0)] and client.get_run(run.id).info.status == status


def test_a_prompt_is_registered_once(where: dict[str, object], client: mlflow.MlflowClient) -> None:
    addresses = []
    for digest in ("1f", "1f", "2e"):
        with open_run(**where) as run:  # type: ignore[arg-type]
            addresses.append(run.prompt("fruit/kinds-1", **PROMPT, digest=digest))  # type: ignore[arg-type]
    assert addresses == ["prompts:/fruit-kinds-1/1", "prompts:/fruit-kinds-1/1", "prompts:/fruit-kinds-1/2"]
    mlflow.set_tracking_uri(str(where["uri"]))
    kept = mlflow.genai.load_prompt("prompts:/fruit-kinds-1/1")
    assert [part["content"] for part in kept.template] == [PROMPT["system"], PROMPT["user"]]
    assert kept.tags["prompt_hash"] == "1f" and kept.response_format == PROMPT["schema"]


def test_a_run_says_what_it_belongs_to(where: dict[str, object], client: mlflow.MlflowClient,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    with open_run(**{**where, "name": "sweep a=1,2"}) as parent:  # type: ignore[arg-type]
        pass
    monkeypatch.setenv("FLYWHEEL_PARENT_RUN", parent.id)
    with open_run(**where) as run:  # type: ignore[arg-type]
        links = run.links("models:/m-12ab")
        run.describe("*x*")
    assert links == {"sweep a=1,2": f"#/experiments/1/runs/{parent.id}",
                     "the logged model": "#/experiments/1/models/m-12ab"}
    assert client.get_run(run.id).data.tags["mlflow.note.content"] == "*x*"


def test_a_page_shows_names_as_they_are() -> None:
    text = notes.training(note="REHEARSAL", task="a|b", teacher="g/[x]", student="net *1*", links={"up": "#/1"},
                          figures=[("accuracy", "0.8 [0.7, 0.9], n=10")])
    assert text.startswith("**REHEARSAL**") and "a\\|b" in text and "g/\\[x\\]" in text and "net \\*1\\*" in text
    assert "| accuracy | 0.8 \\[0.7, 0.9\\], n=10 |" in text and "[up](#/1)" in text
