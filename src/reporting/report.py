"""`report.html`: what a run found, on one page, for somebody who has never opened MLflow.

One file without a script and without anything from elsewhere; pictures lie inside it. It is made of a run's findings
alone, so that it can be made again at any time. Whatever comes from outside (class names, file names, what a model
wrote) is escaped by the template. Every figure that decides something carries its interval and n.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from src.address import keys_to_find
from src.calibration.calibrators import from_dict, to_logits
from src.calibration.gold_needed import highest_target, least_gold, needed_gold
from src.metrics import Floats, Interval, proportion
from src.reporting.findings import Findings, interval
from src.reporting.plot import accuracy_curve, reliability
from src.reporting.wording import (
    about,
    breakable,
    count,
    dollar,
    exact,
    percent,
    plain_name,
    whole_dollars,
)
from src.reporting.worth import cascades, money, together

MISTAKES, REJECTED, ACCEPTED, CONTRADICTED = 18, 6, 10, 6  # pictures of each kind
SIDE = 128  # pixels of a picture's longer side at most: 42 of them are 0.2 MB
MATRIX_CLASSES = 15  # a larger table of confusions cannot be read; the pairs stand in words in any case
WORST = 10  # classes, where there are more than that
CONFUSED = 6
LEAST_SURE = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
TEXT_SHOWN = 280  # characters of an item that is a text
PLANNED = (1.0, 0.7, 0.5)  # shares of gold's items, surest first, for which a promise is planned
PARTS = {"choose": "gold to calibrate and choose by", "certify": "gold that certifies", "train": "to learn from",
         "validation": "to stop the training by", "test": "to judge by in the end"}

pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
                    lstrip_blocks=True)


def page(found: Findings) -> str:
    """The whole file."""
    replayed = cascades(found)
    parts: dict[str, Any] = {
        "labelled": labelled(found), "quality": quality(found), "student": student(found),
        "promise": promise(found), "cascades": replayed, "money": money(found, replayed)}
    return pages.get_template("report.html.j2").render(
        run=found.run, when=found.when, stand_ins=found.stand_ins, rehearsal=found.stand_ins.startswith("REHEARSAL"),
        task=found.config["task"], classes=found.classes, student_name=found.config["student"]["name"],
        many=len(found.classes) > MATRIX_CLASSES, calibration=calibration(found), commands=commands(found),
        prompt=found.prompt, datacard=found.datacard, answer=answer(**parts), **parts,
    )


def answer(*, labelled: Mapping[str, Any], quality: Mapping[str, Any], student: Mapping[str, Any] | None,
           promise: Mapping[str, Any] | None, cascades: Mapping[str, Any] | None,
           money: Mapping[str, Any]) -> list[str]:
    """What a reader with a minute takes away, the most important sentence first."""
    if not labelled["accepted"]:
        return ["No label was accepted, so there is nothing to learn from yet."]
    right = quality["accepted_gold"] or quality["audit"]
    if student is None or promise is None:
        labels = f"{labelled['accepted']:,} of {labelled['n']:,} items have a label."
        return [f"{labels} Of {right.n:,} such labels that were checked, {right.value:.0%} are right (95% interval "
                f"{right.low:.0%} to {right.high:.0%})." if right else
                f"{labels} How right these are is not known: nobody checked any."]
    if best := promise["best"]:
        told = [f"The student can answer about {best['coverage']:.0%} of the items by itself, and at least "
                f"{exact(best['target_precision'])} of those answers are right: that is certified."]
    elif promise["certificates"]:
        least = min(one["target_precision"] for one in promise["certificates"])
        told = [f"The student cannot be left to answer by itself yet: {exact(least)} right answers were asked for, "
                "and its gold does not show them."]
    else:
        told = [f"The student alone is right on about {student['accuracy'].value:.0%} of the items. From which "
                "confidence on it can be left to answer by itself is open: nothing is certified yet."]
    told += together(cascades) if cascades and cascades["used"] else \
        ["What student and LLM are worth together, and what that saves, is not measured yet."]
    if money["cost"]:
        rate, used = money["cost"]["escalated"], cascades["used"] if cascades else None
        same = used and math.isclose(rate, used["escalated"].value, abs_tol=5e-4)
        counted = "hosting, people and labels counted" + ("" if same else f" and {rate:.0%} of the items escalated")
        told.append(f"With {counted}, {money['cost']['verdict']} at {money['cost']['volume']:,.0f} items a month.")
    return told


def labelled(found: Findings) -> dict[str, Any]:
    """What was labelled, by whom, and what became of it."""
    config, labels, figures = found.config, found.labels, found.figures
    accepted = labels.accepted == "true"
    teachers = [config["teacher"], *config.get("panel", {}).values()]
    arbiter = config.get("arbiter")
    sizes = (found.evaluation or {}).get("dataset", {})
    return {
        "n": len(labels), "accepted": int(accepted.sum()),
        "share": proportion(int(accepted.sum()), len(labels)) if len(labels) else None,
        "data": sizes.get("name") or config["data"]["name"],
        "teachers": [teacher["model"] for teacher in teachers], "arbiter": arbiter["model"] if arbiter else None,
        "recorded": any(teacher.get("answers") for teacher in teachers), "passes": config["labeler"]["passes"],
        "consensus": config["quality"]["consensus"], "people": int((labels.reason == "reviewed").sum()),
        "failed": int(figures.get("label/failed", 0)), "endings": endings(labels),
        "sources": labels[accepted].source.value_counts().to_dict(),
        "parts": [(PARTS.get(name, name), size) for name, size in sizes.items() if isinstance(size, int)],
        "by_class": [(str(name), meaning, int((labels[accepted].label == str(name)).sum()))
                     for name, meaning in config["task"]["classes"].items()],
        "examples": _examples(found, labels[accepted & ~labels.reason.isin(["reviewed"])], ACCEPTED, "label"),
        "rejected": _examples(found, labels[~accepted], REJECTED, "reason"),
    }


def endings(labels: pd.DataFrame) -> list[tuple[str, int, str]]:
    """What became of the labels, how many, and whether it is good: `kept`, `doubt` or `lost`."""
    accepted = labels.accepted == "true"
    people, votes = labels.reason == "reviewed", labels.votes.str.split(" | ", regex=False)
    split = votes.map(lambda given: len({vote for vote in given if vote not in ("", "?")}) > 1)
    rows = [("accepted", int((accepted & ~people & ~split).sum()), "kept"),
            ("accepted, though opinions differ", int((accepted & ~people & split).sum()), "doubt"),
            ("accepted, by a person", int((accepted & people).sum()), "kept")]
    reasons = labels[~accepted].reason.str.split(":").str[0].replace("", "no reason given").value_counts()
    rows += [(str(reason), int(n), "lost") for reason, n in reasons.items()]
    return [row for row in rows if row[1]]


def quality(found: Findings) -> dict[str, Any]:
    """How good the labels are, as far as gold, people and a second opinion can tell."""
    figures = found.figures
    judged = [{"name": row["annotator"], "accuracy": Interval(row["accuracy"], row["low"], row["high"], row["n"])}
              for row in found.annotators.to_dict("records")]
    confused = [(name, pairs) for name, table in found.confusions.items() if (pairs := _pairs(*_matrix(table)))]
    known = {
        "accepted_gold": interval(figures, "label/gold_accuracy_accepted"),
        "teacher": interval(figures, "label/gold_accuracy"), "judged": judged,
        "truth": interval(figures, "label/truth_accuracy"), "audit": interval(figures, "label/audit_accuracy"),
        "reviewers": interval(figures, "label/reviewer_agreement"),
        "agreement": interval(figures, "label/mapped_agreement"), "spelt": interval(figures, "label/agreement"),
        "kappa": figures.get("label/kappa"), "opinions": interval(figures, "label/effective_opinions"),
        "gold_needed": int(figures["label/gold_needed"]) if figures.get("label/gold_needed") else None,
        "second_looks": int(figures.get("label/second_looks", 0)), "confused": confused,
    }
    told = ("accepted_gold", "judged", "truth", "audit", "reviewers", "agreement", "opinions")
    return {**known, "known": any(known[name] for name in told) or known["kappa"] is not None}


def student(found: Findings) -> dict[str, Any] | None:
    """What the student does on items that it never saw, and where it fails; None where none was trained."""
    if found.evaluation is None:
        return None
    parts = found.evaluation["parts"]
    part = "test" if "test" in parts else "gold"
    scores = parts[part]["scores"]
    names, matrix = [str(row["name"]) for row in parts[part]["per_class"]], np.array(parts[part]["confusion"])
    said = found.part(part)
    wrong = said[said.target != said.answer].sort_values("confidence", ascending=False, kind="stable")
    learned = found.part("validation")
    rows = [_class_row(name, matrix, place, row) for place, (name, row) in
            enumerate(zip(names, parts[part]["per_class"], strict=True))]
    seen = [row for row in rows if row["support"]]
    doubted = learned[learned.target != learned.answer].sort_values("confidence", ascending=False, kind="stable")
    agreed = int((learned.target == learned.answer).sum())
    return {
        "part": part, "n": int(scores[f"{part}/n"]),
        "accuracy": interval(scores, f"{part}/accuracy", f"{part}/n"),
        "f1": interval(scores, f"{part}/f1_macro", f"{part}/n"),
        "on_gold": interval(parts.get("gold", {}).get("scores", {}), "gold/accuracy", "gold/n"),
        "agreement": proportion(agreed, len(learned)) if len(learned) else None,
        "trained_on": int(found.evaluation.get("training", {}).get("train/items", 0)),
        "speed": found.evaluation.get("speed"), "input_size": found.evaluation.get("input_size"),
        "per_class": rows, "worst": sorted(seen, key=lambda row: row["f1"] or 0.0)[:WORST],
        "matrix": _shares(names, matrix) if len(names) <= MATRIX_CLASSES else None, "names": names,
        "confused": _pairs(names, matrix),
        "mistakes": [_answered(found, row) for row in wrong.head(MISTAKES).itertuples()],
        "wrong": int(matrix.sum() - matrix.trace()),
        "doubted": [_answered(found, row) for row in doubted.head(CONTRADICTED).itertuples()],
        "contradicted": len(doubted), "validation": len(learned),
    }


def calibration(found: Findings) -> dict[str, Any] | None:
    """What the student's confidence is worth, before and after it was mended on gold."""
    if found.calibration is None or found.predictions is None:
        return None
    before, after = found.calibration["before"], found.calibration["after"]
    part = "test" if len(found.part("test")) else "gold"
    said = found.part(part)
    confidence, correct = _calibrated(found, said)
    rows = []
    for least in LEAST_SURE:
        taken = confidence >= least
        rows.append({"least": least, "share": proportion(int(taken.sum()), len(said)),
                     "right": proportion(int((taken & correct).sum()), int(taken.sum())) if taken.any() else None})
    return {"before": before, "after": after, "method": found.calibration["calibrator"]["method"],
            "n": after["n"], "diagram": reliability(before, after), "part": part, "thresholds": rows,
            "curve": accuracy_curve(confidence, correct), "of": len(said)}


def promise(found: Findings) -> dict[str, Any] | None:
    """The certificates, one for each thing promised; without any, what gold would allow."""
    if found.evaluation is None:
        return None
    newest: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for one in found.certificates:
        newest.setdefault((one["target_precision"], one.get("runtime"), one.get("dtype"), one.get("student")), one)
    granted = [one for one in newest.values() if one["certified"]]
    refused = [one for one in newest.values() if not one["certified"]]
    return {"certificates": [*granted, *refused], "best": granted[0] if granted else None,
            "plan": None if newest else _plan(found)}


def commands(found: Findings) -> list[tuple[str, str]]:
    """What can be done next, and how: pairs of words and a command."""
    home = found.config.get("home", "mlruns")
    uri = found.config.get("tracking", {}).get("uri", f"sqlite:///{home}/mlflow.db")
    python, run = ".venv/bin/python -m", f"run={found.run}{keys_to_find(home, uri)}"
    key = found.config["teacher"].get("key_env")
    rows = []
    if found.stand_ins.startswith("REHEARSAL") and key:
        rows.append(("Do it for real: the same command with a key, once the figures here look plausible. It costs "
                     "money; the limit is labeler.max_cost_usd.", f"export {key}=…"))
    rows.append((f"Correct labels by hand: write a class into the column label_final of "
                 f"{found.config.get('home', 'mlruns')}/review/{found.config['task']['name']}/review_labels.csv, then "
                 "run the same command again. It imports what you wrote.", ""))
    if found.evaluation is None:
        if "text" not in found.labels:  # there is no student for texts
            rows.append(("Train a student on these labels: the same keys, with src.train in the place of src.label.",
                         f"{python} src.train …"))
        return [*rows, ("Make this page again.", f"{python} src.report {run}")]
    rows += [("See how much gold a promise takes. Asks nobody, spends nothing.",
              f"{python} src.certify {run} plan=true"),
             ("Promise how right the student's answers are. Once you have chosen this run: each time spends confidence "
              "in the gold set aside for it.", f"{python} src.certify {run}"),
             ("See what student and LLM are worth together, on items that neither learned from.",
              f"{python} src.evaluate {run}"),
             ("Work out what it saves at your volume, with hosting and people counted.",
              f"{python} src.cost {run} volume=1000000"),
             ("Serve it over HTTP.", f"{python} src.serve {run}"),
             ("Make this page again, with everything found out since.", f"{python} src.report {run}")]
    return rows


pages.filters.update(percent=percent, exact=exact, dollar=dollar, whole=whole_dollars, about=about, plain=plain_name,
                     name=breakable, count=count)


def _examples(found: Findings, labels: pd.DataFrame, count: int, by: str) -> list[dict[str, Any]]:
    """Some labels with their pictures or texts, as many of each value of `by` as can be. Keys are hashes, so that the
    first of them are a random draw."""
    ordered = labels.sort_values("item", kind="stable")
    turn = ordered.groupby(ordered[by]).cumcount()
    drawn = ordered.assign(turn=turn).sort_values(["turn", by, "item"], kind="stable").head(count)
    return [{"label": row["label"], "reason": row["reason"], "why": row["why"], "said": _said(row["votes"]),
             "picture": _picture(found, row["item"]), "text": _shortened(row.get("text", ""))}
            for row in drawn.to_dict("records")]


def _shortened(text: str) -> str:
    return text if len(text) <= TEXT_SHOWN else f"{text[:TEXT_SHOWN - 1].rstrip()}…"


def _said(votes: str) -> str:
    """Different answers to one item; nothing where none of them could be used."""
    given = votes.split(" | ")
    return ", ".join(dict.fromkeys("nothing usable" if vote == "?" else vote for vote in given if vote)) \
        if set(given) - {"", "?"} else ""


def _answered(found: Findings, row: Any) -> dict[str, Any]:
    return {"truth": row.target, "answer": row.answer, "confidence": row.confidence,
            "picture": _picture(found, row.item), "item": row.item}


def _picture(found: Findings, item: str) -> str | None:
    """A small picture as a data URI."""
    image = found.picture(item)
    if image is None:
        return None
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    small.save(encoded, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _matrix(table: pd.DataFrame) -> tuple[list[str], np.ndarray[Any, Any]]:
    return [str(name) for name in table.columns[1:]], table.iloc[:, 1:].to_numpy(dtype=int)


def _pairs(names: Sequence[str], matrix: np.ndarray[Any, Any]) -> list[tuple[str, str, int, int]]:
    """Truth, answer, how often, of how many: the pairs of classes that are mistaken most often."""
    pairs = [(names[truth], names[answer], int(matrix[truth, answer]), int(matrix[truth].sum()))
             for truth, answer in np.argwhere(matrix) if truth != answer]
    return sorted(pairs, key=lambda pair: -pair[2])[:CONFUSED]


def _shares(names: Sequence[str], matrix: np.ndarray[Any, Any]) -> list[tuple[str, list[tuple[int, float, bool]]]]:
    """By true class, each answer's count, its share of the row, and whether it is right."""
    support = matrix.sum(axis=1).clip(min=1)
    return [(name, [(int(n), float(n / support[place]), place == other) for other, n in enumerate(matrix[place])])
            for place, name in enumerate(names)]


def _class_row(name: str, matrix: np.ndarray[Any, Any], place: int, row: Mapping[str, Any]) -> dict[str, Any]:
    hits, support, answered = (int(n) for n in (matrix[place, place], matrix[place].sum(), matrix[:, place].sum()))
    return {"name": name, "f1": row["f1"], "support": support, "answered": answered,
            "recall": proportion(hits, support) if support else None,
            "precision": proportion(hits, answered) if answered else None}


def _calibrated(found: Findings, said: pd.DataFrame) -> tuple[Floats, np.ndarray[Any, Any]]:
    """[N] calibrated confidences of the student's answers, and whether they are right."""
    assert found.calibration is not None
    names = [str(name) for name in found.calibration["classes"]]
    probabilities = said[[f"p_{name}" for name in names]].to_numpy(dtype=float)
    probabilities /= probabilities.sum(axis=1, keepdims=True)  # six digits stand in the file
    calibrated = from_dict(found.calibration["calibrator"])(to_logits(probabilities))
    truth = np.array([names.index(name) for name in said.target], dtype=np.int64)
    return calibrated.max(axis=1), calibrated.argmax(axis=1) == truth


def _plan(found: Findings) -> dict[str, Any] | None:
    """How much gold a promise would take, by what gold's half for choosing shows; None without calibration."""
    said = found.part("gold")
    if found.calibration is None or not len(said):
        return None
    spec = found.config.get("calibration", {})
    target = float(found.calibration["target_precision"])
    delta = float(spec.get("delta", 0.05)) * float(spec.get("spend", 0.5))
    n = int((found.evaluation or {}).get("dataset", {}).get("certify", 0))
    confidence, correct = _calibrated(found, said)
    order = np.argsort(-confidence, kind="stable")
    rows = []
    for share in PLANNED:
        taken = correct[order[:max(1, round(share * len(order)))]]
        errors = int((~taken).sum())
        try:
            gold = needed_gold(target, (errors + 0.5) / (len(taken) + 1), share, delta)
        except ValueError:
            gold = None
        rows.append({"share": share, "errors": errors, "of": len(taken), "gold": gold})
    return {"target": target, "confidence": 1 - delta, "certify": n, "highest": highest_target(n, delta) if n else None,
            "least": least_gold(target, delta), "rows": rows, "n": len(said)}
