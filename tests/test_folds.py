"""Out-of-fold probabilities: nobody answers for what they learned from, and every item gets an answer."""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from src.config import Job
from src.errors import DataError
from src.student.distil import student
from src.student.fit import Fitted, fit
from src.student.folds import deal_folds, out_of_fold
from src.student.images import decode
from src.student.labelled import LabelledImages
from src.student.network import build
from src.task import Item, Label

NAMES = ["red", "green", "blue"]
# The smallest network that timm has: a step takes a quarter of the default one's time.
QUICK = ("student.name=test_resnet", "student.pretrained=false", "student.input_size=32", "student.batch_size=8",
         "student.learning_rate=3e-3", "student.label_smoothing=0", "trainer.max_epochs=1", "trainer.patience=0",
         "trainer.accelerator=cpu", "student.augment.crop_scale=1",
         *(f"student.augment.{name}=0" for name in ("rotation_degrees", "brightness", "contrast", "saturation", "hue")))


@pytest.fixture
def job(make_job: Callable[..., Job]) -> Job:
    found = make_job(*QUICK)
    found.task = replace(found.task, classes=dict.fromkeys(NAMES, ""), aliases={}, confusion={})
    return found


def pictures(folder: Path, groups: int, copies: int) -> list[Item]:
    """`copies` items for each of `groups` pictures, a picture a group."""
    found = []
    for group, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (groups, 4, 4, 3), dtype=np.uint8)):
        path = folder / f"{group:02d}.png"
        Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)).save(path)
        found += [Item(f"{group:02d}-{n:02d}", path, path.name, group=f"group{group}") for n in range(copies)]
    return found


def named(items: Iterable[Item], names: Sequence[str]) -> list[Label]:
    """Accepted labels that say the same of a whole group, in the order of the groups."""
    return [Label(item.key, names[int((item.group or "").removeprefix("group"))], True, "somebody") for item in items]


def answers(job: Job, items: Sequence[Item], labels: Sequence[Label], also: Sequence[Item], out: Path,
            folds: int = 2) -> dict[str, NDArray[np.float64]]:
    return out_of_fold(items, labels, also, job.task, job.student, job.trainer, folds=folds, sharpen=False,
                       max_pixels=2000, seed=0, out=out, download=False, need_weights=False)


def train(job: Job, learned: Sequence[Item], validation: Sequence[Item], labels: Sequence[Label], out: Path) -> Fitted:
    data = LabelledImages(learned, validation, {label.item: label for label in labels}, NAMES, input_size=32,
                          batch_size=8, sharpen=False, max_pixels=2000, seed=0)
    return fit(data, partial(build, job.student, len(NAMES), download=False, need_weights=False), job.student,
               job.trainer, seed=0, logger=None, checkpoints=out)


def test_random_labels_stay_at_chance_though_a_student_can_learn_them(job: Job, tmp_path: Path) -> None:
    items = pictures(tmp_path, groups=24, copies=24)
    labels = named(items, random.Random(1).sample(NAMES * 8, 24))
    learned = train(job, items, items, labels, tmp_path / "all")
    assert learned.val_agreement > 0.85  # by heart
    found = answers(job, items, labels, [], tmp_path)
    right = np.mean([NAMES[found[label.item].argmax()] == label.label for label in labels])
    assert right < 1 / 3 + 2.5 * np.sqrt(1 / 3 * 2 / 3 / 24)  # 24 independent guesses of one of three


def test_every_item_is_answered_by_who_did_not_learn_from_it(job: Job, tmp_path: Path,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    items = pictures(tmp_path, groups=15, copies=3)
    pool, gold = items[:36], items[36:]
    labels = named(pool, NAMES * 5)
    labels[0] = replace(labels[0], accepted=False)
    labels[1] = Label(pool[1].key, None, True, "somebody", "passes disagree", distribution=(0.5, 0.5, 0.0))
    unasked = labels.pop(2).item
    found = answers(job, pool, labels, gold, tmp_path / "out", folds=3)
    told = capsys.readouterr().out
    assert "student 2 of 3" in told and told.count("starts from random weights") == 1
    assert found.keys() == {item.key for item in items} and unasked in found
    assert all(row.shape == (3,) and row.sum() == pytest.approx(1) for row in found.values())
    assert list((tmp_path / "out").iterdir()) == []

    by_item = {label.item: label for label in labels}
    expected: dict[str, np.ndarray] = {}
    for n, fold in enumerate(deal_folds(pool, by_item, folds=3, seed=0)):
        fitted = train(job, fold.train, fold.validation, labels, tmp_path / str(n))
        trained = student(fitted, job.task, job.student, sharpen=False)
        for part in (fold.held, sorted(gold, key=lambda item: item.key)[n::3]):
            images = decode(part, 32, sharpen=False, max_pixels=2000)
            expected |= zip((item.key for item in part), trained.predict(images), strict=True)
    assert expected.keys() == found.keys()
    assert all(np.allclose(found[key], row, atol=1e-6) for key, row in expected.items())

    # Labels of gold are not looked at, and the order of the items changes nothing.
    torch.manual_seed(7)
    again = answers(job, pool[::-1], [*named(gold, NAMES * 5), *labels[::-1]], gold, tmp_path / "out", folds=3)
    assert all(np.allclose(found[key], again[key], atol=1e-6) for key in found)
    with pytest.raises(ValueError, match=r"1 item\(s\) of `also` are in the pool"):
        answers(job, pool, labels, pool[:1], tmp_path)


def crowd(seed: int) -> tuple[list[Item], dict[str, Label]]:
    """Up to 200 items, some in groups, some alike, some without a label, some with one that was not accepted."""
    chance = random.Random(seed)
    items = [
        Item(f"{n:03d}", "", "", group=f"g{chance.randrange(60)}" if chance.random() < 0.4 else None,
             twin=f"t{chance.randrange(60)}" if chance.random() < 0.3 else None) for n in range(chance.randint(60, 200))
    ]
    labels = {item.key: Label(item.key, chance.choice(NAMES), chance.random() < 0.9, "somebody") for item in items
              if chance.random() < 0.8}
    return items, labels


@pytest.mark.parametrize("seed", range(20))
def test_folds_part_the_pool_and_keep_groups_and_twins_whole(seed: int) -> None:
    items, labels = crowd(seed)
    dealt = deal_folds(items, labels, folds=4, seed=seed)
    assert Counter(item.key for fold in dealt for item in fold.held) == Counter(item.key for item in items)
    accepted = {key for key, label in labels.items() if label.accepted}
    for fold in dealt:
        learned = [item.key for item in fold.train + fold.validation]
        assert sorted(learned) == sorted(accepted - {item.key for item in fold.held})
        parts = [{name for item in part for name in (item.group, item.twin) if name}
                 for part in (fold.train, fold.validation, fold.held)]
        assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
        assert len(fold.validation) < len(fold.train)
    assert deal_folds(items[::-1], labels, folds=4, seed=seed) == dealt
    assert deal_folds(items, labels, folds=4, seed=seed + 1) != dealt


def test_folds_hold_each_class_in_proportion() -> None:
    items = [Item(f"{n:03d}", "", "") for n in range(130)]
    given = [None] * 30 + ["red"] * 60 + ["green"] * 33 + ["blue"] * 7
    labels = {item.key: Label(item.key, name, True, "m") for item, name in zip(items, given, strict=True) if name}
    dealt = deal_folds(items, labels, folds=5, seed=0)
    for fold in dealt:
        held = Counter(given[int(item.key)] for item in fold.held)
        assert held["red"] == 12 and held[None] == 6 and held["green"] in (6, 7) and held["blue"] in (1, 2)
        judges = Counter(given[int(item.key)] for item in fold.validation)
        assert judges["red"] == 8 and judges["green"] in (4, 5) and judges["blue"] in (0, 1)  # a sixth of the rest
    assert max(len(fold.held) for fold in dealt) - min(len(fold.held) for fold in dealt) <= 1


def test_large_groups_of_one_class_leave_the_others_in_proportion() -> None:
    items = [Item(f"{n:02d}", "", "", group=f"red{n // 8}" if n < 24 else None) for n in range(48)]
    labels = {item.key: Label(item.key, "red" if item.group else "green", True, "m") for item in items}
    dealt = deal_folds(items, labels, folds=4, seed=0)
    assert [sum(item.group is None for item in fold.held) for fold in dealt] == [6, 6, 6, 6]


@pytest.mark.parametrize(("size", "groups", "folds"), [(3, None, 2), (5, None, 5), (40, 1, 2), (40, 2, 2), (40, 3, 4)])
def test_too_few_labels_are_named_before_anything_is_trained(size: int, groups: int | None, folds: int) -> None:
    items = [Item(f"{n:02d}", "", "", group=f"g{n % groups}" if groups else None) for n in range(size)]
    labels = {item.key: Label(item.key, "red", True, "m") for item in items}
    if size == 5:
        labels = dict(list(labels.items())[:2])
    with pytest.raises(DataError, match=rf"{len(labels)} accepted label\(s\) in {groups or len(labels)} group\(s\) "
                                        rf"are too few for quality\.folds={folds} students.*labeler\.max_items"):
        deal_folds(items, labels, folds=folds, seed=0)


def test_one_fold_is_none() -> None:
    with pytest.raises(ValueError, match="folds=1"):
        deal_folds([Item("a", "", "")], {}, folds=1, seed=0)


def test_a_class_that_a_student_cannot_know_is_named(job: Job, tmp_path: Path,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    items = [replace(item, group=None) for item in pictures(tmp_path, groups=6, copies=4)]
    labels = [Label(item.key, "blue" if n == 0 else NAMES[n % 2], True, "m") for n, item in enumerate(items)]
    answers(job, items, labels, [], tmp_path)
    told = capsys.readouterr().out
    # Only blue: one student answers for it, and the other may have been chosen by it.
    assert re.search(r"some of 2 students see none, and will hardly answer them: blue \([12]\)\.", told)
