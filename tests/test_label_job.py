"""`python -m src.label` as a whole: what a run that ends before its time leaves, and what its tables say of whom."""

from pathlib import Path

import numpy as np
import pytest
from jobs import call, runs
from PIL import Image

from src import label
from src.labeling.ask import PREFLIGHT
from src.store import Store

KEYS = ["task=digits", "data=folder", "rehearsal=always", "data.gold_size=40", "data.test_size=20",
        "labeler.max_items=40", "quality.reviewer=ada"]
ARBITER = ["+teacher@arbiter=gemini_flash", "arbiter.model=strong"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"):
        (root / name).mkdir()
        for n in range(12):  # noise will do: the stand-in teacher knows the truth by the file
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(root / name / f"{n:02}.png")
    return root


def keys(home: Path, photos: Path, *further: str) -> list[str]:
    return [*KEYS, f"home={home}", f"data.root={photos}", *further]


def test_a_run_that_is_stopped_says_that_its_money_is_a_rehearsals(photos: Path, tmp_path: Path,
                                                                   capsys: pytest.CaptureFixture[str]) -> None:
    assert call(label.main, *keys(tmp_path, photos, "labeler.max_cost_usd=0.004")) == 1
    assert "labeler.max_cost_usd=0.004 is reached" in capsys.readouterr().err
    run, = runs(tmp_path)
    assert run.info.status == "FAILED" and run.data.metrics["label/cost_usd_this_run"] > 0
    assert run.data.tags["rehearsal"] == "REHEARSAL (stand-in teacher)"


def test_a_probability_that_nothing_reaches_is_named_with_its_way_out(photos: Path, tmp_path: Path,
                                                                      capsys: pytest.CaptureFixture[str]) -> None:
    assert call(label.main, *keys(tmp_path, photos, "quality.min_probability=0.9999", *ARBITER,
                                  "rehearsal.errors.error_rate=0.3", "rehearsal.errors.shared_errors=0")) == 1
    told = capsys.readouterr()
    assert "probability below 0.9999" in told.err and "min_confidence" not in told.err
    assert "lower quality.min_probability=0.9999; " in told.err and "data.gold_size of about" in told.err
    assert "rehearsal" in runs(tmp_path)[0].data.tags
    # An arbiter's preflight is about items on which nobody disagrees.
    listed = next(tmp_path.rglob("labels_llm.csv")).read_text(encoding="utf-8-sig")
    store = Store(tmp_path / "annotations.db")
    strong = [a for a in store.read(replies=False) if "strong" in a.annotator]
    store.close()
    assert sum(a.pass_index == PREFLIGHT for a in strong) > 5
    asked = {a.item for a in strong if a.pass_index == 0 and a.label and a.item not in listed}
    cells = [line.split("│") for line in told.out.splitlines() if line.count("│") == 3]  # long names fold
    names, figures = ("".join("".join(row[column] for row in cells).split()) for column in (1, 2))
    assert "accuracyongold,onwhatitwasaskedalone" in names and names.count("onwhatitwasaskedalone") == 1
    assert asked and f"],n={len(asked)}" in figures
