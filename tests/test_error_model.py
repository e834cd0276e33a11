"""The stand-in teacher's errors, without HTTP: against the matrix they come from, and the same for the same seed."""

import json
import math
from collections import Counter

import pytest
from stand_in import MATRIX, make_errors, make_task

from src.errors import ConfigError
from src.labeling.error_model import CONTENT_FAULTS, StandInTeacher

# Above this many standard deviations no seed should ever land: about 1 in 16,000 per comparison.
FAR = 4.0


@pytest.mark.parametrize("shared", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("truth", MATRIX)
def test_each_pass_errs_as_the_confusion_matrix_says(truth: str, shared: float) -> None:
    teacher = StandInTeacher(make_task(), make_errors("measured", shared_errors=shared))
    n, row = 3000, MATRIX[truth]
    for question in ("0", "1"):
        said = Counter(teacher.label(f"item{i}", truth, question) for i in range(n))
        for name, count in zip(MATRIX, row, strict=True):
            share = count / sum(row)
            assert abs(said[name] / n - share) <= FAR * math.sqrt(share * (1 - share) / n), name


@pytest.mark.parametrize("shared", [0.0, 0.7, 1.0])
def test_passes_share_errors_to_the_degree_that_the_formula_says(shared: float) -> None:
    teacher = StandInTeacher(make_task(), make_errors("measured", shared_errors=shared))
    n, row = 4000, MATRIX["pear"]
    e = 1 - row[3] / sum(row)
    same_wrong = sum((count / (sum(row) - row[3])) ** 2 for count in (*row[:3], *row[4:]))

    def agreement(rate: float) -> float:
        return (1 - rate) ** 2 + rate**2 * same_wrong

    hard = shared * e
    expected = hard + (1 - hard) * agreement((1 - shared) * e / (1 - hard))
    pairs = [(teacher.label(f"item{i}", "pear", "0"), teacher.label(f"item{i}", "pear", "1")) for i in range(n)]
    agreed = sum(first == second for first, second in pairs) / n
    assert abs(agreed - expected) <= FAR * math.sqrt(expected * (1 - expected) / n)
    if shared > 0:
        assert agreed > agreement(e) + FAR * math.sqrt(agreement(e) / n * (1 - agreement(e)))


@pytest.mark.parametrize(("confusion", "rate", "expected"), [({}, None, 0.10), ({}, 0.3, 0.3), (MATRIX, 0.3, 0.3)])
def test_without_a_matrix_errors_spread_evenly_and_a_given_rate_goes_first(
    confusion: dict[str, list[int]], rate: float | None, expected: float
) -> None:
    teacher = StandInTeacher(make_task(confusion=confusion), make_errors("measured", error_rate=rate))
    n = 4000
    said = Counter(teacher.label(f"item{i}", "apple", "0") for i in range(n))
    assert abs(1 - said["apple"] / n - expected) <= FAR * math.sqrt(expected * (1 - expected) / n)
    for name, count in zip(list(MATRIX)[1:], MATRIX["apple"][1:], strict=True):
        share = expected * (count / 43 if confusion else 1 / 4)
        assert abs(said[name] / n - share) <= FAR * math.sqrt(share * (1 - share) / n), name


def test_confidence_is_high_and_a_floor_drops_more_of_the_wrong() -> None:
    teacher = StandInTeacher(make_task(), make_errors("measured", error_rate=0.5))
    spoken: dict[bool, list[float]] = {True: [], False: []}
    for i in range(2000):
        reply = teacher.reply(f"item{i}", "apple", "0", 0)
        if reply.kind == "label":
            answer = json.loads(reply.content)
            spoken[teacher.task.map_label(answer["label"]) == "apple"].append(answer["confidence"])
    dropped = {right: sum(value < 0.9 for value in values) / len(values) for right, values in spoken.items()}
    assert 0.05 < dropped[True] < 0.12 and 0.25 < dropped[False] < 0.40
    assert len(set(spoken[True])) < 10 and sum(spoken[False]) / len(spoken[False]) > 0.85


@pytest.mark.parametrize("name", MATRIX)
def test_variants_map_back_and_differ(name: str) -> None:
    task = make_task()
    variants = StandInTeacher(task, make_errors()).variants(name)
    assert len(variants) >= 3 and name not in variants
    assert {task.map_label(variant) for variant in variants} == {name}


def test_variants_are_said() -> None:
    teacher = StandInTeacher(make_task(), make_errors(label_variants=1.0))
    said = {json.loads(teacher.reply(f"item{i}", "sweet_pepper", "0", 0).content)["label"] for i in range(60)}
    assert {"sweet pepper", "sweet-pepper", "SWEET_PEPPER", "sweetpepper"} <= said and "sweet_pepper" not in said


@pytest.mark.parametrize("file", ["none", "measured"])
def test_the_seed_decides_everything(file: str) -> None:
    def replies(seed: int) -> list[object]:
        teacher = StandInTeacher(make_task(), make_errors(file, seed=seed))
        return [teacher.reply(f"item{i}", "pear", question, 0) for i in range(200) for question in ("a", "b")]

    assert replies(1) == replies(1)
    assert replies(1) != replies(2)


def test_draws_do_not_change_with_the_process() -> None:
    # Pinned: whoever changes the way of drawing changes the figures of every rehearsal so far.
    teacher = StandInTeacher(make_task(), make_errors("measured", error_rate=0.5))
    said = [teacher.label(f"item{i}", "apple", "0") for i in range(8)]
    assert said == ["apple", "orange", "pear", "apple", "apple", "pear", "sweet_pepper", "mushroom"]


def test_faults_are_drawn_anew_when_a_question_is_put_again() -> None:
    teacher = StandInTeacher(make_task(), make_errors(broken_json=0.3, refusal=0.2, error_rate=0.5))
    kinds = [[teacher.reply(f"item{i}", "apple", "0", asked).kind for asked in range(2)] for i in range(1000)]
    first = Counter(kind for kind, _ in kinds)
    assert abs(first["broken_json"] - 300) < FAR * math.sqrt(210) and abs(first["refusal"] - 200) < FAR * math.sqrt(160)
    again = Counter(second for kind, second in kinds if kind != "label")
    assert abs(again["label"] / again.total() - 0.5) < FAR * math.sqrt(0.25 / again.total())
    # What is not a fault stays: the answer itself is the question's.
    replies = [[teacher.reply(f"item{i}", "apple", "0", asked) for asked in range(2)] for i in range(100)]
    assert all(a.content == b.content for a, b in replies if a.kind == b.kind == "label")


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("refusal", 1.5, "refusal=1.5"),
        ("error_rate", -0.1, "error_rate=-0.1"),
        ("hang_s", -1.0, "hang_s=-1.0"),
        ("burst_every", -1, "burst_every=-1"),
        ("latency_ms_median", float("nan"), "latency_ms_median=nan"),
        ("confidence_values", [2.0], "confidence_values=[2.0]"),
        ("confidence_wrong", [0.5, 0.5], "confidence_wrong=[0.5, 0.5]"),
        ("confidence_right", [0.0], "confidence_right=[0.0]"),
    ],
)
def test_values_out_of_range_name_the_key(key: str, value: object, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_errors(**{key: value})
    assert str(caught.value).startswith(f"rehearsal.errors.{named} is not allowed")


def test_faults_that_exclude_each_other_sum_to_at_most_one() -> None:
    with pytest.raises(ConfigError, match=r"broken_json.*=1\.2"):
        make_errors(refusal=0.6, empty=0.6)


@pytest.mark.parametrize("fault", CONTENT_FAULTS)
@pytest.mark.parametrize("dress", ["fenced_json", "surrounding_prose"])
def test_a_dress_mends_no_fault(fault: str, dress: str) -> None:
    teacher = StandInTeacher(make_task(), make_errors(**{fault: 1.0, dress: 1.0}))
    for i in range(50):
        content = teacher.reply(f"item{i}", "apple", "0", 0).content
        inner = content[content.find("{") : content.rfind("}") + 1]
        try:
            label = json.loads(inner)["label"]
        except ValueError:
            continue
        assert fault == "unknown_label" and teacher.task.map_label(label) is None


def test_latency_is_lognormal_around_its_median() -> None:
    teacher = StandInTeacher(make_task(), make_errors(latency_ms_median=40, latency_sigma=0.4))
    delays = sorted(teacher.reply(f"item{i}", "apple", "0", 0).delay_s for i in range(2001))
    # The median's standard error is 1.25 * sigma / sqrt(n) of itself.
    assert abs(math.log(delays[1000] / 0.040)) < FAR * 1.25 * 0.4 / math.sqrt(2001)
    assert abs(math.log(delays[1683] / delays[1000]) - 0.4) < 0.06, "one standard deviation up"
