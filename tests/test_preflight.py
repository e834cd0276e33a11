"""The look at a handful of answers before the rest is paid for: blind teachers stop, good ones pass."""

import io
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from picture_survey import pictures, put
from PIL import Image
from scripted_server import HOW, TASK, make_survey
from stand_in import make_errors

from src.errors import TeacherError
from src.labeling.ask import Answers
from src.labeling.preflight import KNOWN, blank, chosen, objection
from src.store import Store
from src.task import Annotation, Failure, Item, TaskSpec

PROSE = "What a lovely fruit! I would call it an apple."


def task_of(classes: int) -> TaskSpec:
    names = [f"class_{n}" for n in range(classes)]
    return TaskSpec(name="t", version=1, kind="classify", classes=dict.fromkeys(names, ""), aliases={},
                    system_prompt="", user_prompt="", metric="accuracy")


def gold_of(task: TaskSpec, *counts: int) -> list[Item]:
    """So many items of each class."""
    truths = [name for name, count in zip(task.names, counts, strict=True) for _ in range(count)]
    return [Item(f"{n}", "", f"{n}", truth=truth) for n, truth in enumerate(truths)]


def said(label: str | None, item: str = "0", failure: Failure | None = None, why: str = "") -> Annotation:
    return Annotation(item, "t", "p", "t", label=label, failure=failure, why=why, reply=f'{{"content": "{why}"}}')


def object_to(answers: Sequence[str | None], truths: Sequence[str], *, failure: Failure | None = None, why: str = "",
              of_blank: str | None = None, task: TaskSpec = TASK, images: bool = True) -> str | None:
    """To answers to as many items, None being the failure."""
    given = [said(label, str(n), None if label else failure, "" if label else why) for n, label in enumerate(answers)]
    return objection(given, said(of_blank, "blank") if of_blank else None,
                     {str(n): truth for n, truth in enumerate(truths)}, task, images=images)


# What is asked about


def test_known_items_are_of_as_many_classes_as_there_are() -> None:
    def picked(*counts: int) -> list[int]:
        task = task_of(len(counts))
        found = Counter(item.truth for item in chosen(gold_of(task, *counts), task))
        return [found[name] for name in task.names]

    assert picked(50, 50) == [4, 4] and picked(99, 1) == [7, 1] and picked(1, 2, 97) == [1, 2, 5]
    assert picked(*[5] * 20) == [1] * 8 + [0] * 12 and picked(2, 1) == [2, 1] and picked(0, 0) == [0, 0]
    unknown = [replace(item, truth=None) for item in gold_of(TASK, 10, 10)]
    assert chosen(unknown, TASK) == []


def test_a_blank_is_nothing_of_the_usual_size() -> None:
    picture = blank(replace(HOW, size=48))
    assert isinstance(picture, bytes)
    with Image.open(io.BytesIO(picture)) as image:
        assert (image.format, image.size, len(image.getcolors() or [])) == ("JPEG", (48, 48), 1)
    text = blank(None)
    assert isinstance(text, str) and text and not any(map(str.isalnum, text))


# What is made of the answers

HALVES = ["apple", "pear"] * 4


def test_one_class_for_all_stops_and_the_blank_tells_too() -> None:
    why = object_to(["apple"] * 8, HALVES, of_blank="Apple")
    assert why and why.startswith("All 8 answers about gold items of 2 classes are 'apple', and so is the one about a "
                                  "blank item: the teacher does not seem to see the items.")
    other = object_to(["pears"] * 8, HALVES, of_blank="apple")
    assert other and "are 'pear': the teacher" in other and "image_url" in other
    of_texts = object_to(["pear"] * 8, HALVES, images=False)
    assert of_texts and "are 'pear': the teacher" in of_texts and "image" not in of_texts and "text part" in of_texts
    # With a few answers missing still.
    assert object_to(["apple"] * 7 + [None], HALVES, failure=Failure.TIMEOUT)


@pytest.mark.parametrize(("failure", "why", "told"), [
    (Failure.INVALID_JSON, PROSE, f"invalid_json 8): the teacher ignores the answer's schema. One says '{PROSE}'"),
    (Failure.TRUNCATED, "", "truncated 8)"),
    (Failure.REFUSAL, "I can't help with that.", 'One says "I can\'t help with that."'),
    (Failure.EMPTY, "", "empty 8)"),
])
def test_answers_that_cannot_be_used_stop_with_an_example(failure: Failure, why: str, told: str) -> None:
    found = object_to([None] * 8, HALVES, failure=failure, why=why)
    assert found and told in found and "teacher.json_mode" in found and "labeler.retry_failed=true" in found


def test_an_unknown_label_is_shown() -> None:
    unknown = [said("Granny Smith", str(n), Failure.UNKNOWN_LABEL) for n in range(8)]
    found = objection(unknown, None, {str(n): truth for n, truth in enumerate(HALVES)}, TASK, images=True)
    assert found and "unknown_label 8" in found and "One says 'label: Granny Smith'" in found


def test_refused_requests_stop_with_the_servers_words() -> None:
    words = "image_url is only supported by certain models"
    found = object_to([None] * 8, HALVES, failure=Failure.BAD_REQUEST, why=words)
    assert found and found.startswith(f"8 of the first 8 requests were refused: '{words}'.")
    assert "takes this kind of item" in found and "labeler.retry_failed=true" in found


@pytest.mark.parametrize("failure", [Failure.INVALID_JSON, Failure.BAD_REQUEST])
def test_less_than_half_may_be_an_accident(failure: Failure) -> None:
    assert object_to([None] * 4 + HALVES[4:], HALVES, failure=failure)
    assert object_to([None] * 3 + HALVES[3:], HALVES, failure=failure) is None


def test_nearly_all_wrong_stops() -> None:
    swapped = ["pear", "apple"] * 4
    assert (object_to(swapped, HALVES) or "").startswith("Only 0 of the first 8 answers about gold items are right")
    assert (object_to([*swapped[:7], "pear"], HALVES) or "").startswith("Only 1 of")
    assert object_to([*swapped[:6], "apple", "pear"], HALVES) is None


@pytest.mark.parametrize(("answers", "truths"), [
    (HALVES, HALVES),
    (["apple"] * 8, ["apple"] * 8),
    # Of the rare class gold has too few to tell a blind teacher from one that missed them.
    (["apple"] * 8, [*["apple"] * 6, "pear", "pear"]),
    (["apple"] * 3, ["apple", "pear", "pear"]),
    ([], []),
])
def test_what_says_nothing_stops_nothing(answers: list[str | None], truths: list[str]) -> None:
    assert object_to(answers, truths) is None


@pytest.mark.parametrize("failure", [failure for failure in Failure if failure.transient])
def test_trouble_that_passes_is_no_reason(failure: Failure) -> None:
    assert object_to([None] * 8, HALVES, failure=failure) is None


def stopped(counts: tuple[int, ...], answer: Callable[[random.Random, str, list[str]], str], draws: int = 100_000
            ) -> float:
    """The share of draws in which a teacher is stopped that answers so, given truth and the other classes."""
    chance, task = random.Random(0), task_of(len(counts))
    truths = [str(item.truth) for item in chosen(gold_of(task, *counts), task)]
    others = {truth: [name for name in task.names if name != truth] for truth in task.names}
    drawn = Counter(tuple(answer(chance, truth, others[truth]) for truth in truths) for _ in range(draws))
    return sum(times for answers, times in drawn.items() if object_to(answers, truths, task=task)) / draws


def right_with(accuracy: float) -> Callable[[random.Random, str, list[str]], str]:
    return lambda chance, truth, others: truth if chance.random() < accuracy else chance.choice(others)


@pytest.mark.parametrize("counts", [(9, 9), (19, 1), (17, 3), (3, 3), (4, 3), (4, 4, 4)], ids=str)
def test_a_good_teacher_passes(counts: tuple[int, ...]) -> None:
    assert stopped(counts, right_with(0.9)) <= 0.001


@pytest.mark.parametrize("counts", [(20, 1, 1), (2,) * 5], ids=str)
def test_a_good_teacher_passes_whose_mistakes_are_all_of_one_kind(counts: tuple[int, ...]) -> None:
    assert stopped(counts, lambda chance, truth, others: truth if chance.random() < 0.9 else "class_0") <= 0.001


@pytest.mark.parametrize("counts", [(9, 9), (2,) * 5], ids=str)
def test_a_fair_teacher_nearly_always_passes(counts: tuple[int, ...]) -> None:
    assert stopped(counts, right_with(0.65), draws=2000) <= 0.015


@pytest.mark.parametrize("counts", [(9, 9), (17, 3), (4, 3), (4, 4, 4), (2,) * 5, (30,) * 10], ids=str)
def test_a_blind_teacher_with_one_answer_never_passes(counts: tuple[int, ...]) -> None:
    for answer in (f"class_{n}" for n in range(len(counts))):
        assert stopped(counts, lambda chance, truth, others, answer=answer: answer, draws=1) == 1.0


def test_a_blind_teacher_that_guesses_is_mostly_stopped_where_there_are_many_classes() -> None:
    """The rest is found when all of gold was asked about: eight answers cannot tell more."""
    assert stopped((30,) * 10, right_with(0.1), draws=1000) > 0.75


# Before a run

Says = Callable[[str], str | int]


def reply(label: str) -> str:
    return json.dumps({"label": label, "confidence": 0.9, "why": "because"})


def truth_of(text: str) -> str:
    """Texts name their fruit; the blank one names none."""
    return next((name for name in TASK.names if name in text), "apple")


class Teaching(ThreadingHTTPServer):
    """`says` turns what is shown into an answer's content, or into a status that refuses it. `shown` is what was."""

    daemon_threads = True

    def __init__(self, says: Says) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.says = says
        self.shown: list[tuple[str, str]] = []

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Asked(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Teaching

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        shown = body["messages"][1]["content"][1]["text"]
        self.server.shown.append((body["model"], shown))
        said = self.server.says(shown if body["model"] != "blind" else "")
        answer: dict[str, Any] = {"error": {"message": "text is not supported", "code": said}}
        if isinstance(said, str):
            message = {"role": "assistant", "content": said}
            answer = {"choices": [{"index": 0, "finish_reason": "stop", "message": message}], "usage": {"cost": 0.001}}
        written = json.dumps(answer).encode()
        self.send_response(said if isinstance(said, int) else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(written)))
        self.end_headers()
        self.wfile.write(written)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def teaching(says: Says) -> Iterator[Teaching]:
    with Teaching(says) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def texts(count: int) -> list[Item]:
    return [Item(f"{n:064d}", f"Number {n} is a {TASK.names[n % 2]}.", f"{n}", truth=TASK.names[n % 2])
            for n in range(count)]


def run(server: Teaching, store: Store, count: int = 30, **changes: Any) -> Answers:
    items = texts(count)
    survey = make_survey(server.base_url, store, **{"preflight": True, **changes})
    return survey.run(items[:20], items[20:], lambda annotations: None)


def test_a_teacher_that_does_not_look_is_stopped_after_a_handful(store: Store) -> None:
    with teaching(lambda shown: reply("apple")) as server:
        with pytest.raises(TeacherError, match=r"Preflight, m: All 8 answers .* 'apple', and so is .* blank") as caught:
            run(server, store, passes=2)
        assert len(server.shown) == len(set(server.shown)) == KNOWN + 1
        assert "image" not in str(caught.value), "texts were shown"
        assert "What was answered is kept; labeler.preflight=false goes on all the same." in str(caught.value)
        assert len(store.read()) == KNOWN + 1
        # Whoever knows better may go on, and pays for nothing twice.
        assert run(server, store, preflight=False).asked.requests == 30 - KNOWN


def test_a_teacher_that_ignores_the_schema_is_stopped_and_asked_again_once_mended(store: Store) -> None:
    with teaching(lambda shown: PROSE) as server:
        with pytest.raises(TeacherError, match="8 of the first 8 answers cannot be used") as caught:
            run(server, store)
        assert PROSE in str(caught.value)
        assert len(server.shown) == 2 * (KNOWN + 1), "each was asked once more, with the fault named"
        server.says = lambda shown: reply(truth_of(shown))
        answers = run(server, store, retry_failed=True)
        assert Counter(TASK.map_label(a.label) for a in answers.annotations if a.failure is None) == {
            "apple": 15, "pear": 15}


def test_a_model_that_takes_no_such_item_is_stopped_in_its_servers_words(store: Store) -> None:
    with teaching(lambda shown: 400) as server:
        with pytest.raises(TeacherError, match="8 of the first 8 requests were refused: 'text is not supported'"):
            run(server, store)
        assert len(server.shown) == KNOWN + 1


def test_of_several_teachers_the_blind_one_is_named(store: Store) -> None:
    with teaching(lambda shown: reply(truth_of(shown))) as server:
        with pytest.raises(TeacherError, match="Preflight, blind: All 8 answers"):
            run(server, store, models=("m", "blind"))
        assert Counter(model for model, _ in server.shown) == {"m": KNOWN + 1, "blind": KNOWN + 1}


def test_a_good_teacher_goes_on_and_answers_nothing_twice(store: Store) -> None:
    with teaching(lambda shown: reply(truth_of(shown))) as server:
        answers = run(server, store)
        assert len(server.shown) == len(set(server.shown)) == 30 + 1
        assert {a.item for a in answers.annotations} == {item.key for item in texts(30)}, "the blank is no item"
        assert {a.label for a in answers.annotations if a.item == texts(2)[1].key} == {"pear"}
        # Where nothing is left to ask, nothing is looked at; where something is, the blank is known already.
        assert run(server, store).asked.requests == 0
        assert run(server, store, count=33).asked.requests == 3


def test_pictures_and_a_blank_one_go_the_same_way(store: Store, tmp_path: Path) -> None:
    answers = put(pictures(tmp_path, 12), store, errors=make_errors(error_rate=0.1), gold=8, preflight=True)
    assert answers.asked.requests == 12 + 1 and len(answers.annotations) == 12
    with pytest.raises(TeacherError, match="Only 0 of the first 8 answers"):
        put(pictures(tmp_path, 12), store, errors=make_errors(error_rate=1.0, seed=1), gold=8, preflight=True)
