"""The round trip through Label Studio: what it is given, checked by its own SDK, and what its exports bring back.

The exports here have the shapes that Label Studio 1.23 wrote in a trial on loopback.
"""

import base64
import io
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from src.errors import ReviewError
from src.quality import label_studio_tasks
from src.quality.label_studio_answers import Imported, import_answers
from src.quality.label_studio_tasks import embedded, export_tasks, labeling_config, local
from src.quality.review_list import Listed
from src.store import Store
from src.task import Annotation, Item, Label, TaskSpec

TASK = TaskSpec(
    name="fruit", version=3, kind="classify", aliases={"apples": "apple"}, system_prompt="", user_prompt="",
    classes={"apple": "round & <red>", "pear": 'long, often "green"', "+1": ""}, metric="accuracy",
)
A, B, C, D = (letter * 64 for letter in "abcd")
SDK = Path(os.environ.get("LABEL_STUDIO_PYTHON", Path(__file__).parents[1] / ".venv/label-studio/bin/python"))
needs_sdk = pytest.mark.skipif(not SDK.exists(), reason="Label Studio's SDK is not there: make label-studio, or give "
                                                        "the interpreter that has it as LABEL_STUDIO_PYTHON")


@pytest.fixture
def items(tmp_path: Path) -> dict[str, Item]:
    """A tiny image, a large one, one of an awkward name, and one between."""
    found = {}
    for key, name, size in ((A, "tiny.png", (32, 40)), (B, "large.jpg", (1600, 1000)), (C, "ä b#1.png", (300, 300)),
                            (D, "plain.png", (300, 400))):
        path = tmp_path / "data" / "fruit" / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (200, 30, 30)).save(path)
        found[key] = Item(key, path, f"train/{name}")
    return found


LISTED = [
    Listed(Label(A, "apple", True, "x/v1#gemini", "", 0.9, ("apple", "apple"), "red", 0.97), "kept"),
    Listed(Label(B, "pear", True, "x/v1#gemini", "admits doubt: guess", 0.5, ("pear", "pear")), "admits doubt: guess"),
    Listed(Label(C, None, False, "x/v1#gemini", "passes disagree", None, ("apple", None)), "passes disagree"),
    Listed(Label(D, "+1", False, "x/v1#gemini", "confidence not said", None, ("+1",)), "confidence not said"),
]


def exported(tmp_path: Path, items: dict[str, Item], address: Callable[[Path], str],
             listed: list[Listed] = LISTED) -> list[dict[str, Any]]:
    export_tasks(tmp_path / "out/tasks.json", listed, items, TASK, address=address)
    tasks: list[dict[str, Any]] = json.loads((tmp_path / "out/tasks.json").read_text())
    return tasks


# Out


def test_a_task_says_what_was_predicted_and_how_sure_that_is(tmp_path: Path, items: dict[str, Item]) -> None:
    tasks = exported(tmp_path, items, local(tmp_path / "data/fruit"))
    assert [task["data"]["item"] for task in tasks] == [A, B, C, D]
    assert tasks[0]["data"] == {"item": A, "task": "fruit", "file": "train/tiny.png", "why_listed": "kept",
                                "votes": "apple | apple", "why": "red",
                                "image": "/data/local-files/?d=fruit/train/tiny.png"}
    (prediction,) = tasks[0]["predictions"]
    assert (prediction["model_version"], prediction["score"]) == ("x/v1#gemini", 0.97)
    assert prediction["result"] == [{"id": "a" * 10, "from_name": "label_final", "to_name": "image",
                                     "type": "choices", "value": {"choices": ["apple"]}}]
    assert [[p["score"] for p in task["predictions"]] for task in tasks] == [[0.97], [0.5], [], [None]]


def test_a_spot_check_goes_without_its_label(tmp_path: Path, items: dict[str, Item]) -> None:
    spot, = exported(tmp_path, items, embedded(10**7), [replace(LISTED[0], why="spot check")])
    told = json.dumps(spot["data"])
    assert spot["predictions"] == [] and "apple" not in told and "red" not in told
    assert (spot["data"]["item"], spot["data"]["why_listed"], spot["data"]["votes"]) == (A, "spot check", "")


def test_local_addresses_are_relative_and_quoted(tmp_path: Path, items: dict[str, Item]) -> None:
    tasks = exported(tmp_path, items, local(tmp_path / "data/fruit"))
    assert tasks[2]["data"]["image"] == "/data/local-files/?d=fruit/train/%C3%A4%20b%231.png"
    with pytest.raises(ReviewError, match=r"does not lie below .*images=embedded"):
        exported(tmp_path, items, local(tmp_path / "elsewhere/fruit"))


def test_embedded_images_are_the_image_and_of_bounded_size(tmp_path: Path, items: dict[str, Item]) -> None:
    sizes = []
    for task in exported(tmp_path, items, embedded(10**7)):
        kind, payload = task["data"]["image"].split(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(payload))) as image:
            sizes.append(image.size)
            assert np.abs(np.asarray(image, int).mean((0, 1)) - (200, 30, 30)).max() < 3
    assert sizes == [(224, 280), (640, 400), (300, 300), (300, 400)]


def test_a_broken_image_is_named_and_the_old_file_stays(tmp_path: Path, items: dict[str, Item]) -> None:
    exported(tmp_path, items, embedded(10**7))
    before = (tmp_path / "out/tasks.json").read_bytes()
    Path(items[B].payload).write_bytes(b"nothing")
    with pytest.raises(ReviewError, match=r"large\.jpg cannot be shown"):
        exported(tmp_path, items, embedded(10**7))
    assert (tmp_path / "out/tasks.json").read_bytes() == before
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"tasks.json", "label_studio_config.xml"}


def test_a_file_larger_than_label_studio_takes_is_not_written(
    tmp_path: Path, items: dict[str, Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_studio_tasks, "MAX_BYTES", 2_000)
    with pytest.raises(ReviewError, match=r"0 of 4 tasks fill .*images=local"):
        exported(tmp_path, items, embedded(10**7))
    assert list((tmp_path / "out").iterdir()) == []
    assert len(exported(tmp_path, items, local(tmp_path / "data/fruit"))) == 4


def test_texts_go_as_they_are(tmp_path: Path) -> None:
    text = "http://no.link <b>bold</b> " + "long " * 500
    items = {A: Item(A, text, "reviews.csv:12")}
    (task,) = exported(tmp_path, items, embedded(1), LISTED[:1])
    assert task["data"]["text"] == text and "image" not in task["data"]
    assert task["predictions"][0]["result"][0]["to_name"] == "text"
    assert '<Text name="text" value="$text" />' in (tmp_path / "out/label_studio_config.xml").read_text()


def test_no_tasks_are_an_empty_list(tmp_path: Path, items: dict[str, Item]) -> None:
    assert exported(tmp_path, items, embedded(10**7), []) == []


CHECK = """
import json, sys
from pathlib import Path
from label_studio_sdk.converter import Converter
from label_studio_sdk.label_interface import LabelInterface
folder = Path(sys.argv[1])
config = (folder / "label_studio_config.xml").read_text()
interface, faults = LabelInterface(config), []
interface.validate()
for task in json.loads((folder / "tasks.json").read_text()):
    # Not with its predictions: in SDK 2.1 validate_task calls validate_prediction without one.
    if not interface.validate_task({"data": task["data"]}):
        faults.append("task " + task["data"]["item"])
    for prediction in task["predictions"]:
        faults += interface.validate_prediction(prediction, return_errors=True)
if (folder / "export.json").exists():
    Converter(config, str(folder)).convert_to_json_min(str(folder / "export.json"), str(folder / "min"), is_dir=False)
print(json.dumps({"faults": faults, "choices": sorted(interface.get_control("label_final").labels)}))
"""


def judged(folder: Path) -> dict[str, Any]:
    """What Label Studio's own SDK says of the config and the tasks in this folder."""
    done = subprocess.run([SDK, "-c", CHECK, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@needs_sdk
def test_label_studios_own_validator_accepts_it(tmp_path: Path, items: dict[str, Item]) -> None:
    exported(tmp_path, items, embedded(10**7))
    assert judged(tmp_path / "out") == {"faults": [], "choices": ["+1", "apple", "pear"]}
    texts = {key: Item(key, f"text <{key[0]}>", f"reviews.csv:{n}") for n, key in enumerate(items)}
    exported(tmp_path, texts, embedded(1))
    assert judged(tmp_path / "out")["faults"] == []


@needs_sdk
def test_the_validator_would_refuse_other_tasks(tmp_path: Path, items: dict[str, Item]) -> None:
    tasks = exported(tmp_path, items, embedded(10**7))
    tasks[0]["predictions"][0]["result"][0]["value"] = {"choices": "apple"}
    tasks[1]["predictions"][0]["score"] = 1.5
    del tasks[2]["data"]["image"]
    (tmp_path / "out/tasks.json").write_text(json.dumps(tasks))
    faults = judged(tmp_path / "out")["faults"]
    assert len(faults) == 3 and "Invalid value" in faults[0] and "Score" in faults[1] and faults[2] == f"task {C}"


@needs_sdk
def test_json_min_as_the_sdk_makes_it_says_the_same(tmp_path: Path, items: dict[str, Item], store: Store) -> None:
    exported(tmp_path, items, local(tmp_path / "data/fruit"))
    export = full(tmp_path / "out/export.json", EVERYBODY)
    assert judged(tmp_path / "out")["faults"] == []
    assert import_answers(export, store, task=TASK, items=items).new == 4
    again = Store(tmp_path / "other.db")
    assert import_answers(tmp_path / "out/min/result.json", again, task=TASK, items=items).new == 4
    assert words(again) == words(store)
    again.close()


# Back


Given = tuple[str, Any, str | list[str] | None, int]  # item, who, choice (None: skipped), minute


def at(minute: int) -> str:
    return f"2026-11-22T19:{minute:02}:36.466346Z"


def full(path: Path, given: list[Given], *, task: str = "fruit", control: str = "label_final") -> Path:
    """As Label Studio's export "JSON"."""
    entries = []
    for number, key in enumerate(dict.fromkeys(item for item, *_ in given), start=17):
        annotations = [{
            "id": place, "completed_by": who, "was_cancelled": chosen is None, "ground_truth": False,
            "result": [{"from_name": control, "to_name": "image", "type": "choices",
                        "value": {"choices": [chosen] if isinstance(chosen, str) else chosen}}] if chosen else [],
            "created_at": at(0), "updated_at": at(minute), "lead_time": 1.5, "task": number,
        } for place, (item, who, chosen, minute) in enumerate(given) if item == key]
        entries.append({"id": number, "annotations": annotations, "file_upload": "1-tasks.json", "drafts": [],
                        "predictions": [number], "project": 1, "total_annotations": len(annotations),
                        "data": {"item": key, "task": task, "file": "train/x.png", "image": "data:,"}})
    path.write_text(json.dumps(entries))
    return path


def flat(path: Path, given: list[Given], *, task: str = "fruit", control: str = "label_final") -> Path:
    """As Label Studio's export "JSON-MIN"."""
    numbers = {key: n for n, key in enumerate(dict.fromkeys(item for item, *_ in given), start=17)}
    path.write_text(json.dumps([
        {"item": item, "task": task, "file": "train/x.png", "image": "data:,", "id": numbers[item],
         **({control: chosen if isinstance(chosen, str) else {"choices": chosen}} if chosen else {}),
         "annotator": who["email"] if isinstance(who, dict) else who, "annotation_id": place, "created_at": at(0),
         "updated_at": at(minute), "lead_time": 1.5}
        for place, (item, who, chosen, minute) in enumerate(given) if chosen is not None
    ] + [{"item": D, "task": task, "id": 99, "annotator": None, "annotation_id": None, "created_at": None,
          "updated_at": None, "lead_time": None}]))
    return path


SHAPES = {"JSON": full, "JSON-MIN": flat}
Shape = Callable[..., Path]
EVERYBODY: list[Given] = [(A, 1, "apple", 1), (A, 2, "pear", 2), (B, 1, "pear", 3), (C, {"id": 3, "email": "Eve@x.org"},
                                                                                   "+1", 4)]


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> Shape:
    return SHAPES[request.param]


def words(store: Store) -> list[tuple[str, str, str | None, int]]:
    """Item, annotator, label, minute; oldest first."""
    return [(a.item[0], a.annotator, a.label, a.created_at.minute) for a in store.read(task="fruit")]


def test_everybody_is_an_annotator_of_their_own(tmp_path: Path, store: Store, shape: Shape) -> None:
    found = import_answers(shape(tmp_path / "export.json", EVERYBODY), store, task=TASK, items=[A, B, C, D])
    assert found == Imported(new=4, people=3, known=0, empty=0)
    assert words(store) == [("a", "human:1", "apple", 1), ("a", "human:2", "pear", 2), ("b", "human:1", "pear", 3),
                            ("c", "human:eve@x.org", "+1", 4)]
    first = store.read(task="fruit")[0]
    assert first.created_at == datetime(2026, 11, 22, 19, 1, 36, 466346, tzinfo=UTC)
    assert (first.prompt_hash, first.task_version, first.provider, first.cost_usd) == ("fruit@3", 3, "label_studio", 0)


def test_the_same_file_again_brings_nothing_and_a_changed_mind_does(tmp_path: Path, store: Store, shape: Shape) -> None:
    items = [A, B, C, D]
    before = shape(tmp_path / "before.json", EVERYBODY)
    import_answers(before, store, task=TASK, items=items)
    for make in SHAPES.values():
        again = make(tmp_path / "again.json", EVERYBODY)
        assert import_answers(again, store, task=TASK, items=items) == Imported(0, 0, 4, 0)
    changed = shape(tmp_path / "changed.json", [*EVERYBODY[1:], (A, 1, "pear", 9)])
    assert import_answers(changed, store, task=TASK, items=items) == Imported(1, 1, 3, 0)
    assert import_answers(before, store, task=TASK, items=items) == Imported(0, 0, 4, 0)
    assert words(store)[-1] == ("a", "human:1", "pear", 9) and len(words(store)) == 5


def test_the_latest_of_one_persons_answers_counts(tmp_path: Path, store: Store, shape: Shape) -> None:
    given: list[Given] = [(A, 1, "pear", 7), (A, 1, "apple", 3), (B, 1, "apple", 2), (B, 1, "pear", 5)]
    found = import_answers(shape(tmp_path / "export.json", given), store, task=TASK, items=[A, B, C, D])
    assert found.new == 2 and words(store) == [("b", "human:1", "pear", 5), ("a", "human:1", "pear", 7)]


def test_skipped_and_empty_annotations_say_nothing(tmp_path: Path, store: Store, shape: Shape) -> None:
    given: list[Given] = [(A, 1, "apple", 1), (A, 1, None, 5), (B, 2, "", 2), (C, 1, None, 3)]
    found = import_answers(shape(tmp_path / "export.json", given), store, task=TASK, items=[A, B, C, D])
    assert (found.new, found.empty) == (1, 3 if shape is full else 1)  # JSON-MIN leaves out what was skipped
    assert words(store) == [("a", "human:1", "apple", 1)]


def test_a_choice_that_was_skipped_afterwards_is_none(tmp_path: Path, store: Store) -> None:
    export = full(tmp_path / "export.json", EVERYBODY)
    entries = json.loads(export.read_text())
    entries[1]["annotations"][0]["was_cancelled"] = True
    export.write_text(json.dumps(entries))
    assert import_answers(export, store, task=TASK, items=[A, B, C, D]) == Imported(3, 3, 0, 1)
    assert "b" not in [item for item, *_ in words(store)]


def test_aliases_and_spellings_are_classes(tmp_path: Path, store: Store, shape: Shape) -> None:
    import_answers(shape(tmp_path / "export.json", [(A, 1, "Apples", 1), (B, 1, ["pear", "Pear"], 2)]), store,
                   task=TASK, items=[A, B, C, D])
    assert words(store) == [("a", "human:1", "apple", 1), ("b", "human:1", "pear", 2)]


def test_a_file_may_be_newer_than_what_the_person_said_elsewhere_since(
    tmp_path: Path, store: Store, shape: Shape
) -> None:
    store.add([Annotation(item=A, annotator="human:1", prompt_hash="fruit@3", task="fruit", label="pear",
                          created_at=datetime(2026, 11, 22, 19, 30, tzinfo=UTC))])
    found = import_answers(shape(tmp_path / "export.json", EVERYBODY), store, task=TASK, items=[A, B, C, D])
    assert (found.new, found.known) == (3, 1)


def test_answers_without_a_time_are_told_by_their_label(tmp_path: Path, store: Store, shape: Shape) -> None:
    def timeless(given: list[Given]) -> Path:
        path = shape(tmp_path / "export.json", given)
        path.write_text(path.read_text().replace("updated_at", "x").replace("created_at", "y"))
        return path

    counts = [import_answers(timeless(given), store, task=TASK, items=[A, B, C, D]).new
              for given in (EVERYBODY, EVERYBODY, [(A, 1, "pear", 0), *EVERYBODY[1:]])]
    assert counts == [4, 0, 1]


STRANGE: dict[str, tuple[list[Given], dict[str, str], str]] = {
    "unknown choice": ([*EVERYBODY, (D, 1, "plum", 1)], {},
                       r"task 20: 'plum' is not a class.*Classes: apple, pear, \+1"),
    "two classes": ([*EVERYBODY, (B, 2, ["apple", "pear"], 1)], {}, "task 18: human:2 chose apple and pear"),
    "unknown item": ([*EVERYBODY, ("e" * 64, 1, "pear", 1)], {}, r"1 task\(s\) .*: 20 \(unknown item 'e+'\)"),
    "another task": (EVERYBODY, {"task": "veg"}, r"task\(s\) that are not of task 'fruit'.*17 \(of task 'veg'\)"),
    "another control": (EVERYBODY, {"control": "choice"}, "none of 4 annotations holds a choice named label_final"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_what_does_not_fit_is_named_and_nothing_is_imported(
    tmp_path: Path, store: Store, shape: Shape, case: str
) -> None:
    given, options, message = STRANGE[case]
    path = shape(tmp_path / "export.json", given, **options)
    with pytest.raises(ReviewError, match=rf"(?s){path}.*{message}.*") as error:
        import_answers(path, store, task=TASK, items=[A, B, C, D])
    assert "Nothing was imported" in str(error.value)
    assert words(store) == []


@pytest.mark.parametrize(("text", "message"), [
    ("", "is not JSON"), ("item,label_final\n", "is not JSON"), ("{}", "is not a list of tasks"),
    ("[1]", "is not a list of tasks"), ("[]", "holds no annotations"),
    ('[{"data": {"item": "a", "task": "fruit"}, "predictions": []}]', "holds no annotations"),
    ('[{"id": 5, "data": [], "annotations": []}]', "task 5 is not as Label Studio exports it"),
    ('[{"id": 5, "data": {"item": "a", "task": "fruit"}, "annotations": [7]}]', "task 5 is not as"),
    ('[{"id": 5, "item": "a", "task": "fruit", "annotation_id": 3, "annotator": 1, "label_final": 4}]', "task 5 is"),
    ('[{"id": 5, "item": "a", "task": "fruit", "annotation_id": 3, "annotator": 1, "label_final": "pear", '
     '"updated_at": "yesterday"}]', "task 5 is not as Label Studio exports it: Invalid isoformat"),
])
def test_what_is_no_export_is_refused(tmp_path: Path, store: Store, text: str, message: str) -> None:
    path = tmp_path / "export.json"
    path.write_text(text)
    with pytest.raises(ReviewError, match=f"{path}.*{message}.*Export, then JSON or JSON-MIN"):
        import_answers(path, store, task=TASK, items=["a"])
    with pytest.raises(ReviewError, match=r"missing\.json cannot be read"):
        import_answers(tmp_path / "missing.json", store, task=TASK, items=["a"])
    assert words(store) == []


def test_the_config_holds_the_tasks_classes_and_nothing_else() -> None:
    config = labeling_config(replace(TASK, aliases={}, classes={"a<b": "", "c": 'x "y"'}), texts=False)
    assert '<Choice value="a&lt;b" />' in config and 'hint="x &quot;y&quot;"' in config
    assert config.count("<Choice ") == 2 and 'toName="image"' in config
