"""The page about a run: complete in itself, safe whatever it is about, and with the figures that the files hold."""

import base64
import io
import json
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import composed
from jobs import call, runs
from PIL import Image

from src import certify, cost, evaluate, label, report, train
from src.calibration.calibrate import calibrate
from src.calibration.gold_needed import highest_target, needed_gold
from src.data.splits import Splits
from src.errors import DataError
from src.metrics import proportion, score
from src.record import images_of
from src.reporting.findings import Findings, Replay, read_findings
from src.reporting.plot import Plot, dollars, percents
from src.reporting.report import MISTAKES, page
from src.reporting.wording import breakable, plain_name
from src.task import Item
from src.written import recorded

HOSTILE = ['<script>alert(1)</script>', 'a"onerror="alert(1)', "</style><img_src=x>", "plain_name"]
WHEN = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)
LONG = ["a_very_long_class_name_" + "x" * 60, "Donaudampfschifffahrtsgesellschaft" * 3, "ok"]
DIGITS = ["+experiment=digits", "rehearsal=always", "rehearsal/errors=none", "data.gold_size=40", "data.test_size=60",
          "labeler.max_items=100"]
SMALL = [*DIGITS, "student.pretrained=false", "student.input_size=32", "student.batch_size=16", "trainer.max_epochs=2",
         "trainer.accelerator=cpu"]
CERTIFICATE = {"statement": "Certified: so and so.", "rehearsal": False, "runtime": "torch", "dtype": "fp32",
               "student": "abc", "target_precision": 0.9, "delta": 0.025, "certified": True, "n": 150,
               "threshold": 0.7977, "accepted": 100, "errors": 3, "precision_lower_bound": 0.9148, "coverage": 0.6667,
               "coverage_interval": [0.585, 0.741], "gold_needed": None}
REFUSED = {**CERTIFICATE, "statement": "Not certified: 3454 gold items would.", "target_precision": 0.95,
           "certified": False, "threshold": None}


class Parsed(HTMLParser):
    """Tags with their attributes, in order, and all text that a reader sees, one string without runs of blanks."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.hidden = 0
        self.feed(text)
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.hidden += tag == "style"
        if tag in ("td", "th", "p", "li", "dt", "dd", "br", "h2", "div"):
            self.words.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag == "style"

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def write(folder: Path, *, names: list[str], student: bool = True, seed: int = 0) -> None:
    """A run's files: 40 labels of which 36 are accepted, 30 gold items, and 60 of test with 45 answered rightly."""
    rng = np.random.default_rng(seed)
    config = recorded(composed("job", "rehearsal=always", "data=rendered"))
    config["home"] = "mlruns"
    config["task"] |= {"name": "fruit", "classes": {name: f"what {name} is" for name in names}, "confusion": {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    rows = []
    for n in range(40):
        name = names[n % len(names)]
        fate = {36: ("false", "passes disagree"), 37: ("false", "passes disagree"), 38: ("false", "failed: refusal"),
                39: ("true", "reviewed")}.get(n, ("true", ""))
        votes = f"{name} | {names[0]}" if n in (35, 36, 37) else f"{name} | {name}"
        rows.append((f"item{n:02}", f"train/{n:02}.png", name, fate[0], "someone", fate[1], "0.9", "0.95", votes,
                     "looks like <b>it</b>"))
    columns = ["item", "file", "label", "accepted", "source", "reason", "confidence", "probability", "votes", "why"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "labels_llm.csv", index=False)
    (folder / "prompt.txt").write_text("Say <em>what</em> it is.")
    (folder / "datacard.md").write_text("# Datacard\n<iframe src=x>")
    tables = folder / "tables"
    tables.mkdir()
    (tables / "annotators.json").write_text(pd.DataFrame(
        [("openrouter.ai/some/model?temperature=0#1", 0.9, 0.8, 0.95, 30)],
        columns=["annotator", "accuracy", "low", "high", "n"]).to_json(orient="split", index=False))
    confusion = pd.DataFrame(np.eye(len(names), dtype=int) * 5, columns=names)
    confusion.iloc[0, 1] = 2
    confusion.insert(0, "truth", names)
    (tables / "confusion_teacher_gold.json").write_text(confusion.to_json(orient="split", index=False))
    if not student:
        return
    frames, parts, found = [], {}, {}
    for part, n, wrong in (("validation", 12, 3), ("gold", 30, 6), ("test", 60, 15)):
        truth = np.arange(n) % len(names)
        answer = np.where(np.arange(n) < wrong, (truth + 1) % len(names), truth)
        confidence = np.where(np.arange(n) < wrong, rng.uniform(0.4, 0.72, n), rng.uniform(0.6, 0.99, n))
        probabilities = np.full((n, len(names)), ((1 - confidence) / (len(names) - 1))[:, None])
        probabilities[np.arange(n), answer] = confidence
        found[part] = (probabilities, truth)
        frame = pd.DataFrame(probabilities.round(6), columns=[f"p_{name}" for name in names])
        first = pd.DataFrame({"item": [f"{part}{k:02}" for k in range(n)], "part": part,
                              "target": [names[k] for k in truth], "answer": [names[k] for k in answer],
                              "confidence": confidence.round(6)})
        frames.append(pd.concat([first, frame], axis=1))
        scores = score(probabilities, truth, names)
        parts[part] = {"scores": scores.flat(part), "per_class": [row._asdict() for row in scores.per_class],
                       "confusion": scores.confusion.tolist()}
    pd.concat(frames).to_csv(folder / "predictions.csv", index=False)
    calibrated = calibrate("temperature" if len(names) < 30 else "none", *found["gold"], 0.9)
    (folder / "calibration.json").write_text(json.dumps(
        {"classes": names, "target_precision": 0.9, **calibrated.to_dict()}))
    (folder / "eval.json").write_text(json.dumps({
        "input_size": 96, "dataset": {"name": "drawer", "choose": 30, "certify": 50, "train": 28, "validation": 12},
        "training": {"train/items": 24.0}, "parts": {part: parts[part] for part in ("gold", "test")},
        "speed": {"items_per_second": 1234.0, "batch_size": 32, "p50_ms": 6.5, "p95_ms": 7.1, "device": "cpu"}}))


def find(folder: Path, stand_ins: str = "", images: Mapping[str, Path] | None = None,
         cost: Path | None = None) -> Findings:
    accepted = proportion(27, 30)
    figures = {"label/gold_accuracy_accepted": accepted.value, "label/gold_accuracy_accepted_low": accepted.low,
               "label/gold_accuracy_accepted_high": accepted.high, "label/gold_accuracy_accepted_n": 30.0,
               "label/cost_usd": 1.85, "label/cost_usd_this_run": 0.5, "label/requests": 21.0, "label/reused": 79.0,
               "label/kappa": 0.875}
    return read_findings(folder, run="f" * 32, when=WHEN, stand_ins=stand_ins, figures=figures, cost=cost,
                         images=images)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write(folder, names=["apple", "pear", "plum"])
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> Findings:
    return find(folder)


def replay() -> Replay:
    columns = {"best_cheap": False, "n": 500.0, "judged": 500.0, "escalation_rate_low": 0.2,
               "escalation_rate_high": 0.3, "accuracy_low": 0.88, "accuracy_high": 0.93, "coverage": 0.76,
               "human_rate": 0.02, "human_rate_low": 0.01, "human_rate_high": 0.04}
    rows: list[dict[str, Any]] = [
        {"what": "cascade, certified at 0.9", "kind": "cascade", "accuracy": 0.908, "escalation_rate": 0.24,
         "llm_usd_per_million": 36.81, "mean_ms": 1.0, "student_accuracy": 0.9, "student_accuracy_low": 0.85,
         "student_accuracy_high": 0.93},
        {"what": "cascade, the same", "kind": "cascade", "accuracy": 0.908, "escalation_rate": 0.24,
         "llm_usd_per_million": 36.81},
        {"what": "LLM alone", "kind": "llm", "accuracy": 0.91, "escalation_rate": 1.0, "llm_usd_per_million": 155.886},
        {"what": "nobody knows", "kind": "other", "accuracy": None, "escalation_rate": 1.0}]
    return Replay("e" * 32, WHEN, pd.DataFrame([{**columns, **row} for row in rows]))


def test_the_page_is_complete_in_itself_and_runs_nothing(found: Findings) -> None:
    text = page(replace(found, certificates=[CERTIFICATE], replays=[replay()]))
    parsed = Parsed(text)
    assert not {"script", "iframe", "link", "object", "embed", "form"} & {tag for tag, _ in parsed.tags}
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    outside = [value for _, attributes in parsed.tags for name, value in attributes.items()
               if name in ("src", "href", "action", "srcset") and not (value or "").startswith(("data:image/", "#"))]
    assert not outside and "url(" not in text and "@import" not in text
    policy = next(meta["content"] for meta in parsed.all("meta") if "content" in meta and "http-equiv" in meta)
    assert policy and "default-src 'none'" in policy
    assert len(text) < 2_000_000


def test_it_can_be_read_by_everybody(found: Findings) -> None:
    parsed = Parsed(page(replace(found, certificates=[CERTIFICATE, REFUSED], replays=[replay()])))
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {(anchor["href"] or "")[1:] for anchor in parsed.all("a")} | {one["for"] for one in parsed.all("label")}
    assert targets <= set(ids) and {"student", "money", "promise"} <= targets
    assert all(image.get("alt") for image in parsed.all("img"))
    assert all(drawn.get("role") == "img" and drawn.get("aria-label") for drawn in parsed.all("svg"))
    assert all("scope" in head for head in parsed.all("th"))
    assert parsed.all("html")[0]["lang"] == "en" and any(m.get("name") == "viewport" for m in parsed.all("meta"))
    # A table that folds on a phone says in each cell what its column is called.
    folding = False
    for tag, attributes in parsed.tags:
        if tag == "table":
            folding = attributes.get("class") == "folding"
        assert tag != "td" or not folding or attributes.get("data-what")


def test_its_colours_can_be_told_apart_in_light_and_dark() -> None:
    css = (Path(report.__file__).parent / "reporting/report.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, re.S)
    themes = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks]
    assert len(themes) == 3  # light, dark, paper

    def luminance(colour: str) -> float:
        parts = [int(colour[k:k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for theme in themes[:2]:
        for ink, ground in (("ink", "page"), ("soft", "page"), ("soft", "panel"), ("link", "page"), ("red", "panel"),
                            ("green", "panel"), ("alarm-ink", "alarm"), ("ink", "heat"), ("ink", "panel")):
            light, dark = sorted((luminance(theme[ink]), luminance(theme[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def test_whatever_comes_from_outside_is_text(tmp_path: Path) -> None:
    write(tmp_path, names=HOSTILE)
    hostile = '<svg onload="alert(1)">'
    told = replace(find(tmp_path, f"REHEARSAL {hostile}"), run=hostile,
                   certificates=[{**CERTIFICATE, "statement": hostile, "runtime": hostile}],
                   replays=[Replay(hostile, WHEN, replay().rows.assign(what=hostile))])
    told.config["teacher"]["model"] = told.config["student"]["name"] = told.config["home"] = hostile
    told.labels.loc[:, ["file", "reason", "source", "why"]] = hostile
    parsed, plain = Parsed(page(told)), Parsed(page(find(tmp_path)))
    assert {tag for tag, _ in parsed.tags} == {tag for tag, _ in plain.tags}
    for tag in ("script", "img", "em", "iframe"):
        assert not parsed.all(tag), tag
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert hostile in parsed.text and "Say <em>what</em> it is." in parsed.text and "<iframe src=x>" in parsed.text
    assert all(name in parsed.text for name in HOSTILE)


def test_the_figures_are_those_of_the_files(found: Findings) -> None:
    parsed = Parsed(page(found))
    right = proportion(45, 60)
    assert f"Right answers 75.0% [{right.low:.1%}, {right.high:.1%}], n=60" in parsed.text
    assert "Macro-F1" in parsed.text and "Right answers on gold 80.0%" in parsed.text
    agreed = proportion(9, 12)
    assert f"Agrees with its teacher 75.0% [{agreed.low:.1%}, {agreed.high:.1%}], n=12" in parsed.text
    accepted = proportion(27, 30)
    assert f"90.0% {accepted.low:.1%} to {accepted.high:.1%}, from 30 items" in parsed.text
    # 37 accepted: 35 agreed, one though votes differ, one by a person.
    assert "labelled 40 items. 37 labels were accepted" in parsed.text
    for ending in ("accepted: 35 (87.5%)", "accepted, though opinions differ: 1", "accepted, by a person: 1",
                   "passes disagree: 2", "failed: 1"):
        assert ending in parsed.text
    assert "All labels $1.85" in parsed.text and "1,000 accepted labels $50.00" in parsed.text  # 1850 / 37
    assert "This run $0.50 21 requests; 79 answers" in parsed.text
    assert "apple taken for pear (2 of 7)" in parsed.text  # the teacher on gold
    assert "apple taken for pear (5 of 20)" in parsed.text  # the student on test
    assert f"({MISTAKES} of" not in parsed.text and len(re.findall("truth: ", parsed.text)) == 15
    assert "0.875" in parsed.text and "1,234/s" in parsed.text
    apples = proportion(15, 20)
    assert f"apple 75% [{apples.low:.0%}, {apples.high:.0%}], n=20" in parsed.text


def test_thresholds_are_of_the_mended_confidence(found: Findings) -> None:
    parsed, said = Parsed(page(found)), found.part("test")
    assert found.calibration is not None
    probabilities = said[[f"p_{name}" for name in found.classes]].to_numpy()
    logits = np.log(probabilities) / found.calibration["calibrator"]["temperature"]
    confidence = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).max(axis=1)
    taken = confidence >= 0.7
    share = proportion(int(taken.sum()), 60)
    right = proportion(int((taken & (said.target == said.answer).to_numpy()).sum()), int(taken.sum()))
    assert 0 < share.value < 1 and not np.array_equal(taken, said.confidence.to_numpy() >= 0.7)
    assert (f"70% {share.value:.1%} [{share.low:.1%}, {share.high:.1%}], n=60 "
            f"{right.value:.1%} [{right.low:.1%}, {right.high:.1%}], n={right.n}") in parsed.text


def test_a_rehearsal_says_so_wherever_one_looks(found: Findings) -> None:
    note = "REHEARSAL (stand-in teacher, drawn images)"
    loud, real = Parsed(page(replace(found, stand_ins=note))), Parsed(page(found))
    assert loud.text.strip().startswith("REHEARSAL · fruit")  # the window's title
    assert note in loud.text and "nothing was paid" in loud.text and "the pictures are drawn" in loud.text
    badges = [one for one in loud.all("span") if one.get("class") == "badge"]
    assert len(badges) == len(loud.all("h1")) + len(loud.all("h2")) - 2  # but for the commands and the words
    assert "REHEARSAL" not in real.text and "stand-in" not in real.text
    copied = Parsed(page(replace(found, stand_ins="recorded answers")))
    assert "RECORDED ANSWERS" in copied.text and "REHEARSAL" not in copied.text


def test_what_is_promised(found: Findings) -> None:
    granted = Parsed(page(replace(found, certificates=[REFUSED, CERTIFICATE]))).text
    assert "Granted: 90%" in granted and "Refused: 95%" in granted and "at least 90% of those answers" in granted
    assert "3 of 100 such answers were wrong, so 91.5% or more are right" in granted
    assert "66.7% [58.5%, 74.1%], n=150" in granted and "would take" not in granted
    older = {**CERTIFICATE, "certified": False, "statement": "An older one."}
    assert "An older one." not in Parsed(page(replace(found, certificates=[CERTIFICATE, older]))).text
    refused = Parsed(page(replace(found, certificates=[REFUSED]))).text
    assert "cannot be left to answer by itself yet: 95% right answers were asked for" in refused
    assert "3454 gold items would" in refused and "Granted" not in refused


def test_without_a_certificate_it_says_how_much_gold_one_takes(found: Findings) -> None:
    told, said = Parsed(page(found)).text, found.part("gold")
    order = np.argsort(-said.confidence.to_numpy(), kind="stable")  # one temperature for all keeps the order of these
    right = (said.target == said.answer).to_numpy()[order]
    errors = int((~right[:15]).sum())
    needed = needed_gold(0.9, (errors + 0.5) / 16, 0.5, 0.025)
    assert f"the surest 50% {errors} of 15 about {needed:,}" in told
    assert "all items 6 of 30 no number would do" in told
    assert f"never more than {highest_target(50, 0.025):.1%}" in told and "Nobody has asked for a certificate" in told


def test_a_cascade_in_a_table_and_a_picture(found: Findings) -> None:
    parsed = Parsed(page(replace(found, replays=[replay(), replay()])))
    assert ("A · cascade, certified at 0.9 90.8% [88.0%, 93.0%], n=490 90.0% [85.0%, 93.0%], n=380 "
            "24.0% [20.0%, 30.0%] 2.0% [1.0%, 4.0%]") in parsed.text
    assert "$36.81" in parsed.text and "$155.89" in parsed.text and "1 earlier replay of this student" in parsed.text
    assert "A million items, all by the LLM $155.89" in parsed.text
    assert "D · nobody knows – – 100.0%" in parsed.text
    marks = re.findall(r'class="mark"[^>]*>([^<]+)<', page(replace(found, replays=[replay()])))
    assert marks == ["A, B", "C"]  # the same place has one mark; what has no accuracy has none
    assert "not replayed for this student yet" in Parsed(page(found)).text


def test_the_first_lines_are_the_answer(found: Findings) -> None:
    """Is it worth it, how far can it be trusted, what is left to others, what does it save."""
    def first(**known: Any) -> str:
        text = Parsed(page(replace(found, **known))).text
        return text[text.index("In short"):text.index("What was labelled")]

    whole = first(certificates=[CERTIFICATE], replays=[replay()])
    assert whole.startswith("In short The student can answer about 67% of the items by itself, and at least 90% of "
                            "those answers are right: that is certified. With the LLM for the rest, 91% of the answers "
                            "are right; the LLM alone gets 91% (their intervals overlap")
    assert "asked about 24% of the items, and its bill for a million items falls from $155.89 to $36.81." in whole
    assert "People decide 2.0% of the items." in whole and "to people 2.0% [1.0%, 4.0%]" in whole
    # $36.81 for 24% is $153.375 for all that is asked: 1 - 0.3 × 153.375 / 155.886 = 70.5%, 1 - 0.2 × … = 80.3%.
    assert "Off the LLM's bill 76.4% 70.5% to 80.3%, from 500 items $36.81 instead of $155.89" in whole
    finer = {**CERTIFICATE, "target_precision": 0.975}
    assert "at least 97.5% of those answers" in first(certificates=[finer]) and "97.5% or more" in \
        first(certificates=[finer]), "rounded up, it would promise more than was certified"
    none = first()
    assert "The student alone is right on about 75% of the items." in none and "nothing is certified yet" in none
    assert "is not measured yet" in none and "no promise" in none
    refused = first(certificates=[REFUSED], replays=[uncertified()])
    assert "cannot be left to answer by itself yet: 95% right answers were asked for" in refused
    assert "With a usual threshold, which promises nothing, and the LLM for the rest, 91%" in refused


def uncertified() -> Replay:
    """Without a certificate the first cascade asks the LLM about everything, and the usual threshold stands beside."""
    rows = replay().rows.copy()
    rows.loc[0, ["what", "escalation_rate", "llm_usd_per_million"]] = ["cascade, nothing certified", 1.0, 155.886]
    rows.loc[1, "what"] = "cascade, usual threshold for 0.9"
    return Replay("e" * 32, WHEN, rows)


def test_what_it_saves_by_volume(found: Findings) -> None:
    text = Parsed(page(replace(found, replays=[replay()]))).text
    assert "1,000,000 $156 $36.81 [$30.68, $46.01] $119 [$110, $125] 20,000 [10,000, 40,000]" in text
    # $1.85 at 109.87 to 125.21 dollars saved of a million items
    assert "What the labels cost is back after about 15,000 to 17,000 items" in text
    dearer = replay().rows.assign(llm_usd_per_million=[200.0, 200.0, 155.886, None])
    text = Parsed(page(replace(found, replays=[Replay("e" * 32, WHEN, dearer)]))).text
    assert "does not fall: $200.00 instead of $155.89" in text and "takes nothing off the bill" in text
    free = replay().rows.assign(llm_usd_per_million=[0.0, 0.0, 0.0, None])
    text = Parsed(page(replace(found, replays=[Replay("e" * 32, WHEN, free)]))).text
    assert "the LLM's price is not known" in text and "What the student takes off" not in text


def test_what_src_cost_found_comes_into_the_page(folder: Path, tmp_path: Path) -> None:
    told = "The flywheel does not pay at 5,000 items a month. <b>So it is.</b>"
    (tmp_path / "cost.json").write_text(json.dumps(
        {"verdict": "does not pay", "statement": told, "inputs": {"volume": 5000.0, "escalation_rate": 1.0}}))
    text = Parsed(page(find(folder, cost=tmp_path / "cost.json"))).text
    assert told in text and "works them out" not in text
    # It was not worked out with what the cascade beside it escalates.
    assert "counted and 100% of the items escalated, it does not pay at 5,000 items a month." in text
    assert "src.cost works them out" in Parsed(page(find(folder))).text
    (tmp_path / "cost.json").write_text("[")
    with pytest.raises(DataError, match=r"cost\.json of run"):
        find(folder, cost=tmp_path / "cost.json")


def test_labels_without_a_student(tmp_path: Path) -> None:
    write(tmp_path, names=["apple", "pear"], student=False)
    parsed = Parsed(page(find(tmp_path)))
    assert "No student was trained" in parsed.text and "src.train" in parsed.text and "src.certify" not in parsed.text
    assert not {"student", "confidence", "promise", "cascade"} & {one.get("id") for one in parsed.all("section")}
    accepted = proportion(27, 30)
    assert (f"37 of 40 items have a label. Of 30 such labels that were checked, 90% are right (95% interval "
            f"{accepted.low:.0%} to {accepted.high:.0%})") in parsed.text


@pytest.mark.parametrize("rows", [40, 0])
def test_without_gold_and_with_every_answer_failed(tmp_path: Path, rows: int) -> None:
    write(tmp_path, names=["apple", "pear"], student=False)
    labels = pd.read_csv(tmp_path / "labels_llm.csv", dtype=str).head(rows)
    labels.assign(accepted="false", label="", source="", reason="failed: refusal", votes="? | ?", why="").to_csv(
        tmp_path / "labels_llm.csv", index=False)
    for path in (tmp_path / "tables").iterdir():
        path.unlink()
    parsed = Parsed(page(replace(find(tmp_path), figures={})))
    assert "No label was accepted, so there is nothing to learn from yet." in parsed.text
    assert "No gold was answered in this run, so nothing here says how right the labels are" in parsed.text
    assert f"What became of {rows} items" in parsed.text and "said:" not in parsed.text
    assert (f"failed: {rows} (100.0%)" in parsed.text) == bool(rows)


def test_labels_that_nobody_checked(tmp_path: Path) -> None:
    write(tmp_path, names=["apple", "pear"], student=False)
    assert "How right these are is not known" in Parsed(page(replace(find(tmp_path), figures={}))).text


def test_gold_alone_without_a_test_part(tmp_path: Path) -> None:
    write(tmp_path, names=["apple", "pear"])
    held = json.loads((tmp_path / "eval.json").read_text())
    del held["parts"]["test"]
    (tmp_path / "eval.json").write_text(json.dumps(held))
    said = pd.read_csv(tmp_path / "predictions.csv")
    said[said.part != "test"].to_csv(tmp_path / "predictions.csv", index=False)
    assert "judged once on 30 items of gold, whose truth is known and which no choice was made on but its calibration" \
        in Parsed(page(find(tmp_path))).text
    for name in ("predictions.csv", "calibration.json"):
        (tmp_path / name).unlink()
    bare = Parsed(page(find(tmp_path)))
    assert "Which items it gets wrong was not written down" in bare.text
    assert "confidence" not in {one.get("id") for one in bare.all("section")}


def test_texts_are_shown_as_words(tmp_path: Path) -> None:
    write(tmp_path, names=["apple", "pear"], student=False)
    labels = pd.read_csv(tmp_path / "labels_llm.csv", dtype=str, keep_default_na=False)
    labels.insert(2, "text", ["<i>Long</i> " + "word " * 90] * len(labels))
    labels.to_csv(tmp_path / "labels_llm.csv", index=False)
    parsed = Parsed(page(find(tmp_path)))
    assert parsed.text.count("<i>Long</i> word") == 13 and "picture not at hand" not in parsed.text
    assert max(map(len, parsed.words)) < 300 and "…" in parsed.text
    assert "src.train" not in parsed.text  # there is no student for texts


def test_names_that_a_spreadsheet_would_run(tmp_path: Path) -> None:
    """They stand in the file with a quote before them, and are counted all the same."""
    write(tmp_path, names=["-1", "+1"], student=False)
    labels = pd.read_csv(tmp_path / "labels_llm.csv", dtype=str, keep_default_na=False)
    labels.assign(label="'" + labels.label).to_csv(tmp_path / "labels_llm.csv", index=False)
    text = Parsed(page(find(tmp_path))).text
    assert "-1 what -1 is 18" in text and "+1 what +1 is 19" in text


def test_every_picture_says_what_its_axes_are(found: Findings) -> None:
    text = page(replace(found, replays=[replay()]))
    drawn = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(drawn) == 3
    for plot, axes in zip(drawn, (("how sure the student says it is", "right answers"),
                                  ("share of items that it answers, surest first", "right answers among these"),
                                  ("the LLM&#39;s cost of a million items", "right answers")), strict=True):
        written = re.findall(r"<text[^>]*>([^<]+)</text>", plot)
        assert set(axes) <= set(written)
        assert {"100%"} <= set(written) and (axes[0].startswith("the LLM") <= any("$" in word for word in written))


def test_pictures_lie_inside_small_and_upright(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (600, 300), "red").save(tmp_path / "large.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = {"test00": tmp_path / "large.png", "test01": tmp_path / "broken.png", "test02": tmp_path / "gone.png"}
    parsed = Parsed(page(find(folder, images=images)))
    (image,) = parsed.all("img")
    decoded = Image.open(io.BytesIO(base64.b64decode((image["src"] or "").split(",")[1])))
    assert decoded.size == (128, 64) and decoded.format == "JPEG"
    assert image["alt"] == "truth apple, student pear"
    assert parsed.text.count("picture not at hand") == 15 - 1 + 3 + 10 + 3  # mistakes, doubted, accepted, left out


def test_pictures_of_what_certifies_are_shown_to_nobody() -> None:
    parts = ("choose", "certify", "train", "validation", "test")
    items = {part: [Item(part, Path(f"{part}.png"), part)] for part in parts}
    text = Item("text", "words", "text")
    found = images_of(Splits(**{**items, "train": [*items["train"], text]}, moved=0))
    assert found == {part: Path(f"{part}.png") for part in ("choose", "train", "validation", "test")}


def test_many_classes_have_no_table_that_nobody_can_read(tmp_path: Path) -> None:
    write(tmp_path, names=[f"class_{n:02}" for n in range(77)])
    parsed = Parsed(page(find(tmp_path)))
    assert "one of 77 classes, which stand below" in parsed.text and "the 10 that it finds hardest" in parsed.text
    folded = {one: parsed.text.count(one) for one in ("class_00 0% [0%, 98%]", "class_70 –")}
    assert folded == {"class_00 0% [0%, 98%]": 2, "class_70 –": 1}  # the hardest stand before all; none of 70 is known
    assert not [table for table in parsed.all("table") if table.get("class") == "heat"]
    assert "Mistaken most often: class_00 taken for class_01" in parsed.text


@pytest.mark.parametrize(("name", "content"), [("eval.json", "{"), ("predictions.csv", ""),
                                               ("tables/annotators.json", '{"rows": 1}'), ("config.yaml", "a: [")])
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    write(tmp_path, names=["apple", "pear"])
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=f"{Path(name).name} of run='{'f' * 32}' cannot be read"):
        find(tmp_path)


def test_a_run_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no config.yaml and no labels_llm.csv.*src.train or src.label"):
        find(tmp_path)


def test_where_things_lie_on_a_plot() -> None:
    plot = Plot((0, 10), (0.5, 1), (), (), "", "", width=200, height=100, left=20, right=120, top=10, bottom=60)
    assert (plot.x(0), plot.x(10), plot.y(0.5), plot.y(1), plot.y(0.1)) == (20, 120, 60, 10, 60)
    assert plot.line([(0, 0.5), (5, 0.75)]) == "M20.0,60.0L70.0,35.0"
    assert plot.band([(0, 0.5, 1), (10, 0.5, 1)]) == "M20.0,10.0L120.0,10.0L120.0,60.0L20.0,60.0Z"
    assert [name for _, name in percents(0.7, 1)] == ["70%", "80%", "90%", "100%"]
    assert [name for _, name in percents(0.0, 1)] == ["0%", "20%", "40%", "60%", "80%", "100%"]
    assert [name for _, name in dollars(180)] == ["$0", "$50", "$100", "$150"]
    assert [name for _, name in dollars(0.36)] == ["$0", "$0.1", "$0.2", "$0.3"]
    assert [name for _, name in dollars(1.0)] == ["$0", "$0.25", "$0.5", "$0.75", "$1"]


def test_names_as_people_read_them() -> None:
    assert plain_name("rehearsal:openrouter.ai/x/y?temperature=0#ab") == "openrouter.ai/x/y (stand-in)"
    assert plain_name("reviewer") == "reviewer"
    assert breakable("a_<b>") == "a_<wbr>&lt;b&gt;"


def test_a_labelling_job_leaves_a_page_and_it_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(label.main, *DIGITS, f"home={tmp_path}") == 0
    (made,) = runs(tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    first = Parsed(Path(client.download_artifacts(made.info.run_id, "report.html")).read_text())
    assert "labelled 100 items. 100 labels were accepted" in first.text and "REHEARSAL (stand-in teacher)" in first.text
    assert len(first.all("img")) == 10 and "picture not at hand" not in first.text
    client.log_text(made.info.run_id, "old", "report.html")
    assert call(report.main, f"run={made.info.run_id}", f"home={tmp_path}") == 0
    again = Parsed(Path(client.download_artifacts(made.info.run_id, "report.html")).read_text())
    started = re.compile(r"started \S+ \S+ UTC")  # the run's start, which the job itself takes to be now
    assert started.sub("", again.text) == started.sub("", first.text) and again.all("img") == first.all("img")
    assert len(runs(tmp_path)) == 1  # a page is no run of its own
    capsys.readouterr()
    assert call(report.main, f"run={'0' * 32}", f"home={tmp_path}") == 1
    assert f"run='{'0' * 32}' is not a run" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_found_out_later_comes_into_the_page(tmp_path: Path) -> None:
    """About half a minute: a student is trained, certified and put before its teacher."""
    assert call(train.main, *SMALL, f"home={tmp_path}") == 0
    (trained,) = runs(tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")

    def read() -> Parsed:
        return Parsed(Path(client.download_artifacts(trained.info.run_id, "report.html")).read_text())

    first = read()
    assert f"{trained.data.metrics['test/accuracy']:.1%}" in first.text and "Nobody has asked for a cert" in first.text
    assert "not replayed for this student yet" in first.text and len(first.all("img")) > 20
    assert call(certify.main, f"run={trained.info.run_id}", f"home={tmp_path}", "calibration.target_precision=0.8",
                "accelerator=cpu") == 0
    assert "Refused: 80%" in read().text
    assert call(evaluate.main, f"run={trained.info.run_id}", f"home={tmp_path}", "accelerator=cpu") == 0
    last = read()
    assert "LLM alone" in last.text and "student alone" in last.text and "Refused: 80%" in last.text
    assert "1,000,000 items a month" not in last.text
    # The newest training, as one who does not know its id would name it.
    assert call(cost.main, "run=latest", "volume=1000000", f"home={tmp_path}") == 0
    assert call(report.main, f"run={trained.info.run_id}", f"home={tmp_path}") == 0
    said = json.loads(next(tmp_path.glob("artifacts/*/*/artifacts/cost.json")).read_text())["statement"]
    assert "1,000,000 items a month" in said and said.split(". ")[0] in read().text


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")),
                    reason="no Chromium and chromedriver here (Debian: apt install chromium-driver)")
def test_in_a_browser_nothing_runs_off_the_screen_and_contents_lead_somewhere(tmp_path: Path) -> None:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1000,800"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium")
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as driver:
        for place, names in enumerate((HOSTILE, LONG, [f"class_number_{n:02}" for n in range(77)])):
            (folder := tmp_path / str(place)).mkdir()
            write(folder, names=names)
            made = replace(find(folder, "REHEARSAL (stand-in teacher)"), certificates=[CERTIFICATE, REFUSED],
                           replays=[replay()], run="r" * 90)
            (path := folder / "report.html").write_text(page(made))
            for width in (320, 360, 1280):
                driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                       {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False})
                driver.get(path.as_uri())
                script = "const page = document.documentElement; return page.scrollWidth - page.clientWidth"
                assert driver.execute_script(script) == 0, (names[0], width)
        # MLflow shows it in a frame of this kind, in which links within a page lead nowhere.
        driver.get("data:text/html,<iframe style='width:900px;height:600px'></iframe>")
        driver.execute_script("document.querySelector('iframe').srcdoc = arguments[0]", path.read_text())
        driver.switch_to.frame(0)
        until = time.monotonic() + 20
        while not (found := driver.find_elements("css selector", "nav label[for=at-money]")):
            assert time.monotonic() < until
        found[0].click()
        top = driver.execute_script("return document.querySelector('#money').getBoundingClientRect().top")
        assert -5 <= top < 300, "the section is not what is seen now"
