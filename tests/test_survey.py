"""The door to the labeler: rehearsals that come out the same twice, and a process that is left as it was found."""

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scripted_server import TASK, make_spec, make_survey, make_teacher, make_texts
from stand_in import make_errors

from src.errors import QualityError, TeacherError
from src.labeling.ask import RehearsalSpec, Survey
from src.store import Store
from src.task import Annotation

ROOT = Path(__file__).parents[1]


def rehearsed(path: Path, **errors: Any) -> list[Annotation]:
    """What a new store holds of 60 texts, two passes, in the order of questions."""
    store, items = Store(path), make_texts(60)
    rehearsal = RehearsalSpec("always", make_errors("measured", latency_ms_median=1, retry_after_s=0.01, **errors), {})
    survey = Survey(task=TASK, teachers=[make_teacher("http://127.0.0.1:9/v1")], arbiter=None, how=None, store=store,
                    spec=make_spec(passes=2, concurrency=8, max_attempts=12), rehearsal=rehearsal, max_pixels=1,
                    seed=0, job="")
    survey.run(items[:10], items[10:], lambda annotations: None)
    found = store.read()
    store.close()
    return sorted(found, key=lambda a: (a.item, a.pass_index, a.attempt))


def told(annotations: list[Annotation]) -> list[tuple[object, ...]]:
    return [(a.item, a.pass_index, a.attempt, a.label, a.failure, a.confidence, a.why, a.cost_usd, a.shown_hash)
            for a in annotations]


def test_a_rehearsal_comes_out_the_same_again(tmp_path: Path) -> None:
    # It listens on another port each time. Bursts hit whoever comes, and change nothing where tries are left.
    often = {"error_rate": 0.3, "shared_errors": 0.2, "broken_json": 0.1, "overloaded": 0.1, "burst_every": 20,
             "burst_length": 2}
    first, second = (told(rehearsed(tmp_path / name, **often)) for name in ("a.db", "b.db"))
    assert first == second
    truths = {item.key: item.truth for item in make_texts(60)}
    labels = [(TASK.map_label(str(label)), truths[str(item)]) for item, _, _, label, *_ in first if label]
    assert 0.1 < sum(label != truth for label, truth in labels) / len(labels) < 0.5
    assert len({confidence for *_, confidence, _, _, _ in first}) > 3 and any(row[4] for row in first)
    assert told(rehearsed(tmp_path / "c.db", **often, seed=1)) != first


def test_the_garbage_collector_sees_everything_again_afterwards(tmp_path: Path) -> None:
    before = gc.get_freeze_count()
    rehearsed(tmp_path / "a.db")
    assert gc.get_freeze_count() == before

    def stop(_: object) -> None:
        assert gc.get_freeze_count() > before
        raise QualityError("enough")

    store = Store(tmp_path / "a.db")
    with pytest.raises((QualityError, TeacherError), match="enough"):
        make_survey("http://127.0.0.1:9/v1", store, dry_run=False).run([], [], stop)
    assert gc.get_freeze_count() == before
    store.close()


def test_what_a_job_needs_at_its_end_is_not_loaded_before() -> None:
    # It takes memory while a million items are asked about.
    heavy = {"matplotlib", "sklearn", "scipy.stats", "scipy.sparse.csgraph", "cleanlab", "crowdkit"}
    program = f"import sys, src.label; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"
