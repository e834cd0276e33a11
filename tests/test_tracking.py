"""One open run: curves that are sent together, prompts that are registered once, views and pages that link."""

import json
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from matplotlib.figure import Figure

from src.errors import ConfigError, TrackingError
from src.reporting import notes
from src.tracking import PARENT, SWEPT, Run, open_run, prepare, views
from src.tracking.server import shown, why

PROMPT = {"system": "Say {one} word.", "user": 'Which of ["a", "b"]? {"label": "<one>"}', "schema": {"type": "object"},
          "template": "Which of {{ classes | tojson }}?"}
VIEW = "mlflow.sharedViewState."


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
    assert kept.tags["template"] == PROMPT["template"] and "First sent by r (" in kept.commit_message
    whole = client.get_prompt("fruit-kinds-1")  # it has two hashes, so that none is the prompt's
    assert "prompt_hash" not in whole.tags
    assert whole.tags["_mlflow_experiment_ids"] == f",{client.get_experiment_by_name('t').experiment_id},"


def test_a_run_says_what_it_belongs_to(where: dict[str, object], client: mlflow.MlflowClient,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    with open_run(**{**where, "name": "sweep a=1,2"}) as parent:  # type: ignore[arg-type]
        pass
    monkeypatch.setenv(PARENT, parent.id)
    with open_run(**where) as run:  # type: ignore[arg-type]
        links = run.links("models:/m-12ab")
        run.describe("*x*")
    shown = "#/experiments/1/runs?viewStateShareKey={}&compareRunsMode=CHART"
    assert links == {"sweep a=1,2": f"#/experiments/1/runs/{parent.id}",
                     "its jobs compared": shown.format(f"flywheel-sweep-{parent.id[:8]}"),
                     "the logged model": "#/experiments/1/models/m-12ab",
                     "all trainings compared": shown.format("flywheel-trainings")}
    assert client.get_run(run.id).data.tags["mlflow.note.content"] == "*x*"


def test_what_differs_comes_first_in_a_name_and_a_closed_run_names_no_process(
        where: dict[str, object], client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_run(**where) as parent:  # type: ignore[arg-type]
        assert "flywheel.process" in client.get_run(parent.id).data.tags
    assert "flywheel.process" not in client.get_run(parent.id).data.tags
    monkeypatch.setenv(PARENT, parent.id)
    monkeypatch.setenv(SWEPT, json.dumps({"job": 3, "values": {"labeler.max_items": "600", "seed": "1"}}))
    with open_run(**{**where, "name": "s1 64px net"}) as run:  # type: ignore[arg-type]
        pass
    assert client.get_run(run.id).info.run_name == "max_items=600 s1 64px net"


def kept_view(client: mlflow.MlflowClient, key: str) -> dict[str, object]:
    kept = json.loads(client.get_experiment_by_name("t").tags[VIEW + key])
    assert kept.keys() == {"name", "createdAt", "updatedAt", "state"} and isinstance(kept["state"], str)
    return {"name": kept["name"], "createdAt": kept["createdAt"], **json.loads(kept["state"])}


def test_the_ui_is_offered_views_that_compare(where: dict[str, object], client: mlflow.MlflowClient,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    with open_run(**{**where, "name": "sweep a=1,2"}) as parent:  # type: ignore[arg-type]
        pass
    monkeypatch.setenv(PARENT, parent.id)
    monkeypatch.setenv(SWEPT, json.dumps({"job": 0, "values": {"student.a": "1", "seed": "0"}}))
    with open_run(**where) as run:  # type: ignore[arg-type]
        assert run.compare("f1_macro").endswith(f"viewStateShareKey={views.key_of(parent.id)}&compareRunsMode=CHART")
        sweep, every = kept_view(client, views.key_of(parent.id)), kept_view(client, views.TRAININGS)
        run.compare("f1_macro")
    assert (sweep["name"], every["name"]) == ("sweep a=1,2", "Trainings")
    assert sweep["searchFilter"] == f"tags.`mlflow.parentRunId` = '{parent.id}'"
    assert {"params.`student.a`", "params.`seed`", "metrics.`test/f1_macro`"} <= set(sweep["selectedColumns"])  # type: ignore[call-overload]
    axes = next(chart for chart in sweep["compareRunCharts"] if chart["type"] == "PARALLEL")  # type: ignore[attr-defined]
    assert axes["selectedParams"] == ["student.a"] and axes["selectedMetrics"][-1] == "test/f1_macro"
    assert sweep["orderByKey"] != "attributes.start_time"  # by which the UI would fold the jobs away
    sections = {section["uuid"] for section in sweep["compareRunSections"]}  # type: ignore[attr-defined]
    assert {chart["metricSectionId"] for chart in sweep["compareRunCharts"]} <= sections  # type: ignore[attr-defined]
    assert kept_view(client, views.TRAININGS) == every  # the second time nothing was written
    found = client.search_runs(["1"], str(sweep["searchFilter"]))
    assert [one.info.run_id for one in found] == [run.id]


def test_views_and_notes_of_the_users_own_are_left_alone(where: dict[str, object], client: mlflow.MlflowClient,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    own = {VIEW + "0b1c": '{"name": "mine", "createdAt": 1, "updatedAt": 1, "state": "{}"}',
           "mlflow.note.content": "Ask Ada."}
    for tag, text in own.items():
        client.set_experiment_tag("1", tag, text)
    for number in range(views.MOST_SWEEPS + 3):
        views.offer(client, "1", metric="accuracy", sweep=f"{number:032x}"[::-1], sweep_name=f"s{number}")
    tags = client.get_experiment("1").tags
    assert own.items() <= tags.items()
    ours = [tag for tag in tags if tag.startswith(VIEW + views.SWEEP)]
    assert len(ours) <= views.MOST_SWEEPS + 1 and VIEW + views.key_of(f"{views.MOST_SWEEPS + 2:032x}"[::-1]) in ours


def test_pictures_that_compare_are_logged_as_such(where: dict[str, object], client: mlflow.MlflowClient) -> None:
    with open_run(**where) as run:  # type: ignore[arg-type]
        for name in ("confusion_test", "labels"):
            run.figure(Figure(figsize=(1, 1)), name)
    assert [file.path for file in client.list_artifacts(run.id, "figures")] == ["figures/confusion_test.png",
                                                                               "figures/labels.png"]
    grid = {file.path.split("+")[0] for file in client.list_artifacts(run.id, "images")}
    assert grid == {"images/confusion_test"} and client.get_run(run.id).data.tags["mlflow.loggedImages"] == "True"


def test_a_name_that_the_registry_does_not_take_is_found_at_once(where: dict[str, object],
                                                                 client: mlflow.MlflowClient) -> None:
    with open_run(**where) as run:  # type: ignore[arg-type]
        run.prompt("taken", **PROMPT, digest="1f")  # type: ignore[arg-type]
        client.create_registered_model("mine")
        for name in ("mine", "new"):
            run.check_register(name)
        for name in ("a/b", "a:b", " ", "taken"):
            with pytest.raises(ConfigError, match=f"tracking.register='{name}' is not allowed"):
                run.check_register(name)


def test_a_page_shows_names_as_they_are() -> None:
    text = notes.training(note="REHEARSAL", headline="Accuracy 0.8 [0.7, 0.9], n=10", task="a|b", teacher="g/[x]",
                          student="net *1*", links={"up": "#/1"}, figures=[("accuracy", "0.8 [0.7, 0.9], n=10")])
    assert "a\\|b" in text and "g/\\[x\\]" in text and "net \\*1\\*" in text
    assert "| accuracy | 0.8 \\[0.7, 0.9\\], n=10 |" in text
    assert text.endswith("the student that was kept.")
    first, _, links, *_ = text.splitlines()  # the UI shows no more
    assert first == "**REHEARSAL**. **Accuracy 0.8 \\[0.7, 0.9\\], n=10**." and links.startswith("[up](#/1)")
    model = notes.model(note="", headline="Accuracy 0.8", task="t", student="net", classes=["a*", "b"], run="12")
    assert model.startswith("Accuracy 0.8.") and "one of a\\*, b," in model and "src.certify run=12" in model


@pytest.mark.parametrize("address", ["postgresql://user:s3cret@host/db", "http://user:s3cret@127.0.0.1:1",
                                     "postgresql://host/db?user=me&password=s3cret"])
def test_no_message_tells_a_password(address: str) -> None:
    said = f"{shown(address)} {why(OSError(f'no way to {address}' + chr(10) + 'more'))}"
    assert "s3cret" not in said and "no way to" in said and "more" not in said


@pytest.mark.parametrize("address", ["postgresql://user:12@s3cret@host/db", "http://user:12/s3cret@127.0.0.1:1"])
def test_an_address_that_would_be_cut_within_its_password_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="write @ as %40") as refused:
        prepare(address, "t", tmp_path)
    assert "s3cret" not in str(refused.value) and "user:***@" in str(refused.value)


@pytest.mark.parametrize("own", [None, ValueError("the job's own"), KeyboardInterrupt()])
def test_a_server_that_goes_away_hides_no_error_and_makes_no_traceback(
        own: BaseException | None, where: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(type(own) if own else TrackingError) as told, open_run(**where) as run:  # type: ignore[arg-type]
        run.metrics({"loss": 1.0}, step=1)
        mlflow.set_tracking_uri("http://127.0.0.1:9")
        if own:
            raise own
    assert told.value is own or "The labels are kept; run again when it answers." in str(told.value)
    assert mlflow.active_run() is None  # the next job of a sweep opens its own


def test_the_ui_finds_a_swept_folder_among_the_parameters(where: dict[str, object], client: mlflow.MlflowClient,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    with open_run(**where) as parent:  # type: ignore[arg-type]
        pass
    monkeypatch.setenv(PARENT, parent.id)
    monkeypatch.setenv(SWEPT, json.dumps({"job": 0, "values": {"student/augment": "wide", "seed": "1"}}))
    with open_run(**where) as run:  # type: ignore[arg-type]
        pass
    assert client.get_run(run.id).data.params == {"student/augment": "wide"}
