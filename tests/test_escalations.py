"""What a server escalated is labelled before all else, and never leaks into what judges."""

import hashlib
import io
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import composed
from jobs import call, runs
from PIL import Image
from test_dataset import IN_PLACE, TASK, make_spec, open_in

from src import label
from src.config import Job, read
from src.data.dataset import Dataset, askable
from src.data.escalations import served_folder
from src.errors import ConfigError
from src.reopen import Past
from src.serving.payloads import Payloads
from src.store import DecisionLog, Logged, Store
from src.task import Annotation, Item

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def png(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG"} | options))
    return buffer.getvalue()


def noise(seed: int, size: int = 48) -> Image.Image:
    """Blotches that no other seed's look like."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    fine = np.random.default_rng(seed + 10**6).integers(0, 60, (size, size, 3), np.uint8)
    large = np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC))
    return Image.fromarray(np.minimum(large.astype(int) + fine, 255).astype(np.uint8))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for c, name in enumerate(TASK.names):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for n in range(20):
            (tmp_path / "mine" / name / f"{n:02}.png").write_bytes(png(noise(100 * c + n)))
    return tmp_path


def opened(home: Path, escalations: str | None = "served", **changes: Any) -> Dataset:
    return open_in(home / "runs", make_spec(source=IN_PLACE, root=str(home / "mine"), escalations=escalations,
                                            **changes))


def kept(home: Path) -> Payloads:
    return Payloads(served_folder(home / "runs", TASK.name), 30, 10**9)


def keep(home: Path, payload: bytes, age_s: float = 0, truth: str | None = None) -> str:
    key = hashlib.sha256(payload).hexdigest()
    path = kept(home).keep(key, payload, truth)
    at = NOON.timestamp() - age_s
    os.utime(path, (at, at))
    return key


def again(item: Item) -> bytes:
    """The item in other bytes, a little brighter: it looks the same."""
    assert isinstance(item.payload, Path)
    image = Image.open(item.payload).convert("RGB")
    return png(Image.fromarray(np.minimum(np.asarray(image).astype(int) + 3, 255).astype(np.uint8)), format="BMP")


def keys(items: list[Item]) -> list[str]:
    return [item.key for item in items]


def test_they_join_the_pool_before_all_others_oldest_first(home: Path) -> None:
    before = opened(home, None)
    own = before.splits.pool[20]
    new = [keep(home, png(noise(1000 + n)), age_s=100 - n) for n in range(5)]
    old = keep(home, png(noise(2000)), age_s=9999, truth="pear")
    there = keep(home, Path(own.payload).read_bytes(), age_s=50)  # in the pool before
    dataset = opened(home)
    splits = dataset.splits
    assert splits.first == (old, *new, there) and keys(splits.pool)[:7] == [old, *new, there]
    assert keys(splits.pool)[7:] == [key for key in keys(before.splits.pool) if key != there]
    for part in ("choose", "certify", "test"):
        assert getattr(splits, part) == getattr(before.splits, part), "nothing else moves"
    assert splits.validation == before.splits.validation and len(splits.train) == len(before.splits.train) + 6
    truths = {item.key: item.truth for item in splits.pool}
    assert truths[old] == "pear" and truths[there] == own.truth and all(truths[key] is None for key in new)


def test_what_stands_in_gold_or_test_is_left_out_by_bytes_and_by_looks(home: Path,
                                                                      capsys: pytest.CaptureFixture[str]) -> None:
    splits = opened(home, None).splits
    judging = [splits.choose[0], splits.certify[0], splits.test[0]]
    for item in judging:
        assert isinstance(item.payload, Path)
        keep(home, item.payload.read_bytes())
        keep(home, again(item))
    in_validation, in_train = keep(home, again(splits.validation[0])), keep(home, again(splits.train[0]))
    capsys.readouterr()
    found = opened(home)
    assert set(found.splits.first) == {in_validation, in_train}
    assert "(2 are labelled first; 6 left out" in " ".join(capsys.readouterr().out.split())
    assert in_validation in keys(found.splits.validation) and in_train in keys(found.splits.train)
    by_key = {item.key: item for item in found.splits.pool}
    assert by_key[in_validation].twin == splits.validation[0].twin and by_key[in_train].twin == splits.train[0].twin


def test_what_was_set_apart_with_gold_stays_apart(home: Path) -> None:
    """One group stands in gold; what moved out with it must not come back as an escalation."""
    rows = "\n".join(f"{name}/{n:02}.png,{name},{'g' if n < 4 else ''}" for name in TASK.names for n in range(20))
    (home / "truth.csv").write_text("file,label,group\n" + rows + "\n")
    (home / "gold.csv").write_text("file,label\n" + "\n".join(f"{name}/{n:02}.png,{name}" for name in TASK.names
                                                               for n in (0, 10, 11)) + "\n")
    csvs = {"truth_csv": str(home / "truth.csv"), "gold_csv": str(home / "gold.csv")}
    plain = opened(home, None, **csvs)
    assert plain.splits.moved == 6
    keep(home, (home / "mine/pear/01.png").read_bytes())
    assert opened(home, **csvs).splits.first == ()


def test_the_hash_tells_of_them_and_not_of_their_age(home: Path) -> None:
    plain = opened(home, None)
    assert opened(home) == plain, "nothing is kept yet"
    first = [keep(home, png(noise(1000 + n)), age_s=n) for n in range(2)]
    two = opened(home)
    assert two.splits.first == tuple(reversed(first)) and two.hash != plain.hash and two.own_hash == plain.hash
    for n, key in enumerate(first):  # as a careless copy might leave them
        os.utime(kept(home).find(key) or "", (NOON.timestamp() + n,) * 2)
    younger = opened(home)
    assert younger.splits.first == tuple(first) and younger.hash == two.hash and opened(home, None).hash == plain.hash
    keep(home, png(noise(1002)))
    assert opened(home).hash not in (two.hash, plain.hash) and opened(home).own_hash == plain.hash
    assert opened(home).hash[:12] != two.hash[:12], "tables show no more of it"


def test_a_run_can_be_certified_though_others_are_kept_by_then(home: Path) -> None:
    """Gold and test never held any: what judges a student is what it was when it was trained."""
    keep(home, png(noise(1000)))
    stored: Any = SimpleNamespace(tags={"dataset_hash": opened(home).hash})
    keep(home, png(noise(1001)))
    job: Any = None
    assert Past(stored, job, opened(home)).same_items and Past(stored, job, opened(home, None)).same_items
    assert not Past(stored, job, opened(home, split_seed=1)).same_items


def test_broken_ones_are_told_and_what_vanishes_is_not_missed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, broken = keep(home, png(noise(1000))), keep(home, png(noise(1001))[:200])
    found = opened(home)
    assert found.splits.first == (good,)
    assert list(found.broken) == [f"served/{broken[:2]}/{broken}.png"]
    assert "1 broken image(s) set aside: served/" in capsys.readouterr().out
    assert kept(home).expire(NOON + timedelta(days=99)) == 2
    assert opened(home).splits.first == ()
    assert "No escalations are kept in" in " ".join(capsys.readouterr().out.split())


def test_a_stand_in_is_not_asked_what_nobody_knows_nor_a_real_one_what_was_rehearsed(
        home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unknown = [keep(home, png(noise(1000 + n))) for n in range(2)]
    known = keep(home, png(noise(2000)), truth="pear")
    dataset = opened(home)
    rehearsed, real = (askable(dataset, TASK, home=home / "runs", rehearsed=how) for how in (True, False))
    assert rehearsed.splits.first == (known,) and set(real.splits.first) == set(unknown)
    assert not {*unknown} & {*keys(rehearsed.splits.pool)} and known not in keys(real.splits.pool)
    assert len({dataset.hash, rehearsed.hash, real.hash}) == 3
    told = " ".join(capsys.readouterr().out.split())
    assert "2 of 3 escalations are left out: nobody knows their truth" in told
    assert "1 of 3 escalations are left out: a rehearsal's server kept them" in told
    plain = opened(home, None)
    assert askable(plain, TASK, home=home / "runs", rehearsed=True) == plain


@pytest.mark.parametrize(("changes", "told"), [
    ({"escalations": "all"}, "data.escalations='all' is not allowed: served, or null"),
    ({"escalations": "served", "kind": "texts", "text_column": "text"}, "only images are served"),
])
def test_other_values_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make_spec(**changes)


# As a whole


def logged(item: str, n: int, **changes: Any) -> Logged:
    even = (0.1,) * 10
    row = Logged(f"{n:032x}", 0, 0, item, "digits", 1, "run:x", "", even, None, None, "teacher", "doubtful", None)
    return replace(row, **changes)


def test_a_servers_escalations_are_what_src_label_asks_about_first(tmp_path: Path,
                                                                   capsys: pytest.CaptureFixture[str]) -> None:
    """As a server leaves them: payloads kept, steps logged, one answered by a person."""
    job = read(composed("job", "task=digits", f"home={tmp_path}"), Job)
    payloads = Payloads(served_folder(tmp_path, "digits"), 30, 10**9)
    log = DecisionLog(tmp_path / "annotations.db")
    rng, served = np.random.default_rng(7), []
    for n in range(8):
        payload = png(Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)))
        key = hashlib.sha256(payload).hexdigest()
        path = payloads.keep(key, payload, truth=job.task.names[n] if n < 6 else None)
        os.utime(path, (NOON.timestamp() + n, NOON.timestamp() + n))
        log.append([logged(key, n)])
        served.append(key)
    store = Store(tmp_path / "annotations.db")
    log.append([logged(served[2], 2, step=1, answer="nine", route="human", human="teacher_unsure",
                       annotator="human:ada")])
    store.add([Annotation(served[2], "human:ada", "", "digits", label="nine", task_version=job.task.version)])
    pictures = tmp_path / "pictures"
    for name in job.task.names:
        (pictures / name).mkdir(parents=True)
        for n in range(12):
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(pictures / name / f"{n:02}.png")
    assert call(label.main, "task=digits", "data=folder", "rehearsal=always", f"home={tmp_path}",
                f"data.root={pictures}", "data.gold_size=40", "data.test_size=20", "labeler.max_items=10",
                "data.escalations=served") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "8 are labelled first" in told and "2 of 8 escalations are left out" in told
    listed = next(tmp_path.rglob("labels_llm.csv")).read_text(encoding="utf-8-sig").splitlines()
    assert len(listed) == 11 and all(any(key in line for line in listed) for key in served[:6])
    assert not any(key in line for line in listed for key in served[6:])
    by_person = next(line for line in listed if served[2] in line)
    assert "nine" in by_person and "reviewed" in by_person
    asked = {a.item for a in store.read(replies=False) if not a.annotator.startswith("human:")}
    assert set(served[:6]) <= asked and not set(served[6:]) & asked
    hash_, = {run.data.tags["dataset_hash"] for run in runs(tmp_path)}
    assert "+" in hash_
    store.close()
    log.close()
