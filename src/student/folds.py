"""What students say about items that they did not learn from: out-of-fold probabilities.

Contract: the pool is dealt into folds; for each of them a student learns from the accepted labels of the others and
answers for all items of this one. So no answer was learned from the item's own label, nor from that of one of its group
or of a look-alike, and it may be weighed against the label. Knows nothing about what that leads to.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from src.console import say, warn
from src.data.splits import _clusters as clusters
from src.errors import DataError
from src.student.distil import student
from src.student.fit import fit
from src.student.images import decode
from src.student.labelled import MIN_TRAIN, LabelledImages, accepted
from src.student.network import build
from src.student.spec import StudentSpec, TrainerSpec
from src.task import Item, Label, TaskSpec

# One of so many parts of what a student may learn from chooses its best epoch. The fold that it answers for must not.
VALIDATION_PARTS = 6


@dataclass(frozen=True)
class Fold:
    """A student's items: it learns from `train`, its best epoch is chosen by `validation`, all with accepted labels,
    and it answers for `held`, labelled or not."""

    train: list[Item]
    validation: list[Item]
    held: list[Item]


def out_of_fold(items: Sequence[Item], labels: Sequence[Label], also: Sequence[Item], task: TaskSpec,
                spec: StudentSpec, trainer: TrainerSpec, *, folds: int, sharpen: bool, max_pixels: int, seed: int,
                out: Path, download: bool, need_weights: bool) -> dict[str, NDArray[np.float64]]:
    """C probabilities by item key, for the pool `items` and for `also`, which nobody learns from.

    Each of the pool's items is answered for by the one student that did not learn from its fold, each of `also` by one
    as well: the mean of several would be surer and more right than what it is compared with. Takes `folds` trainings;
    the same seed gives the same answers, whatever the items' order. Images only; checkpoints lie below `out` while it
    runs. Raises DataError for fewer labels than the folds need.
    """
    if shared := {item.key for item in items} & {item.key for item in also}:
        raise ValueError(f"{len(shared)} item(s) of `also` are in the pool, and would be learned from")
    by_item = {label.item: label for label in labels}
    parts = deal_folds(items, by_item, folds=folds, seed=seed)
    _warn_unseen(parts, by_item, task)
    torch.manual_seed(seed)
    network = build(spec, len(task.names), download=download, need_weights=need_weights)
    everything = [*items, *also]
    images = decode(everything, spec.input_size, sharpen=sharpen, max_pixels=max_pixels,
                    what="decoding images for out-of-fold students")
    decoded = {item.key: image for item, image in zip(everything, images, strict=True)}
    found: dict[str, NDArray[np.float64]] = {}
    dealt = sorted(also, key=lambda item: item.key)
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="folds-", dir=out) as checkpoints:
        for n, fold in enumerate(parts, start=1):
            data = LabelledImages(
                fold.train, fold.validation, by_item, task.names, input_size=spec.input_size,
                batch_size=spec.batch_size, sharpen=sharpen, max_pixels=max_pixels, seed=seed, decoded=decoded,
            )
            fitted = fit(data, partial(deepcopy, network), spec, trainer, seed=seed, logger=None,
                         checkpoints=Path(checkpoints, str(n)), what=f"training out-of-fold student {n} of {folds}")
            answering = replace(student(fitted, task, spec, sharpen=sharpen), device=fitted.device)
            held = [*fold.held, *dealt[n - 1::folds]]
            answers = answering.predict(torch.stack([decoded[item.key] for item in held]))
            found |= zip((item.key for item in held), answers, strict=True)
    _say_agreement(found, by_item, task, folds)
    return found


def deal_folds(items: Sequence[Item], labels: Mapping[str, Label], *, folds: int, seed: int) -> list[Fold]:
    """The pool in `folds` parts of about equal size, each with about its share of every accepted class.

    Groups and look-alikes stay together, between folds and between training and validation. Depends on the items, their
    accepted labels and the seed alone. Raises DataError where a student would have too little to learn from.
    """
    if folds < 2:
        raise ValueError(f"folds={folds}: out of fold takes 2 or more")
    dealt = _deal([list(cluster) for cluster in clusters(items)], labels, folds, f"{seed}:fold")
    found = []
    for n, held in enumerate(dealt):
        others = (cluster for m, part in enumerate(dealt) if m != n for cluster in part)
        learned = [known for cluster in others if (known := accepted(cluster, labels))]
        parts = [_flat(part) for part in _deal(learned, labels, VALIDATION_PARTS, f"{seed}:validation") if part]
        validation = min(parts, key=len, default=[])  # where groups are large, the smallest judges
        train = [item for part in parts if part is not validation for item in part]
        found.append(Fold(sorted(train, key=lambda item: item.key), validation, _flat(held)))
    if any(len(fold.train) < MIN_TRAIN or not fold.validation or not fold.held for fold in found):
        known = accepted(items, labels)
        raise DataError(
            f"{len(known)} accepted label(s) in {len(clusters(known))} group(s) are too few for quality.folds={folds} "
            f"students: each needs {MIN_TRAIN} to learn from, and others to be chosen by, beside the fold that it "
            "answers for. Raise labeler.max_items, lower what quality.min_… asks or quality.folds, or do without a "
            "student's opinion (another quality.consensus than crowdlab, quality.second_look_share=0)."
        )
    return found


def _deal(clusters: Sequence[list[Item]], labels: Mapping[str, Label], parts: int,
          salt: str) -> list[list[list[Item]]]:
    """Each cluster goes where its classes are rarest so far, then where there is most room: large ones first, and those
    of one size and class in the order of their hashes."""
    def classes(cluster: list[Item]) -> Counter[str]:
        given = (labels.get(item.key) for item in cluster)
        return Counter((label.label or "") if label and label.accepted else "" for label in given)

    def order(cluster: list[Item]) -> tuple[int, list[str], str]:
        rank = hashlib.sha256(f"{salt}:{cluster[0].key}".encode()).hexdigest()
        return -len(cluster), sorted(classes(cluster)), rank

    dealt: list[list[list[Item]]] = [[] for _ in range(parts)]
    held: list[Counter[str]] = [Counter() for _ in range(parts)]
    for cluster in sorted(clusters, key=order):
        own = classes(cluster)
        fits = [(sum(n * of[name] for name, n in own.items()), of.total()) for of in held]
        chosen = fits.index(min(fits))
        dealt[chosen].append(cluster)
        held[chosen] += own
    return dealt


def _flat(part: Sequence[list[Item]]) -> list[Item]:
    return sorted((item for cluster in part for item in cluster), key=lambda item: item.key)


def _warn_unseen(folds: Sequence[Fold], labels: Mapping[str, Label], task: TaskSpec) -> None:
    """Say which classes some student cannot answer, since no label that it learns from names them."""
    seen = Counter(name for fold in folds for name in {labels[item.key].label for item in fold.train})
    if unseen := [f"{name} ({len(folds) - seen[name]})" for name in task.names if seen[name] < len(folds)]:
        warn(f"Out of fold: classes with so few accepted labels that some of {len(folds)} students see none, and will "
             f"hardly answer them: {', '.join(unseen)}.")


def _say_agreement(found: Mapping[str, NDArray[np.float64]], labels: Mapping[str, Label], task: TaskSpec,
                   folds: int) -> None:
    agrees = [task.names[int(found[key].argmax())] == label.label for key, label in labels.items()
              if key in found and label.accepted and label.label]
    say(f"Out of fold: {folds} students answered for {len(found)} items that they had not learned from"
        + (f"; agreement with their accepted labels {np.mean(agrees):.3f}, n={len(agrees)}" if agrees else ""))
