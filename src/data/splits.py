"""Items → gold (choose, certify), labelled pool (training, validation) and test, leak-free.

Depends on the items and the seed alone: each cluster of items gets a rank from a hash of the seed and its smallest
key, so the order of files, the machine and everything that is trained have no say, and items added later do not
reshuffle the others. Knows nothing about labels, teachers or images.
"""

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from itertools import compress
from operator import attrgetter
from typing import TypeAlias

from src.errors import DataError
from src.task import Item

Cluster: TypeAlias = tuple[Item, ...]  # items that must stay together, in order of key
_key = attrgetter("key")


@dataclass(frozen=True)
class Splits:
    """Disjoint parts; no group and no two identical-looking items stand on two sides.

    `choose` and `certify` are the two halves of gold: the first is for calibration and choices, the second for the
    guarantee alone. `train` and `validation` are the pool that a teacher labels. `moved` counts items that left their
    part because a group or a twin of theirs stands elsewhere; they are in none. `first` are the keys in the pool that
    are labelled before all others, in order.
    """

    choose: list[Item]
    certify: list[Item]
    train: list[Item]
    validation: list[Item]
    test: list[Item]
    moved: int
    first: tuple[str, ...] = ()

    @property
    def pool(self) -> list[Item]:
        """Training and validation in labelling order: behind `first`, the first n are a random sample for every n."""
        rank = {key: place for place, key in enumerate(self.first)}
        return sorted(self.train + self.validation, key=lambda item: (rank.get(item.key, len(rank)), item.key))

    def sizes(self) -> dict[str, int]:
        return {f.name: len(getattr(self, f.name)) for f in fields(self) if f.name not in ("moved", "first")}


def split(items: Sequence[Item], test: Sequence[Item], *, gold: frozenset[str], gold_size: int, test_size: int,
          validation_share: float, seed: int, classes: int) -> Splits:
    """Part the items. Raises DataError where a part cannot be what it has to be.

    `test` are the items of a test part that exists already, else `test_size` items with known truth become one.
    `gold`, where not empty, are the keys that are gold; else `gold_size` items with known truth are. Parts are
    stratified by truth where it is known; where groups are large, sizes are as near as whole groups come.
    """
    clusters = _clusters([*test, *items])
    held = {item.key for item in test}
    _, free = _part(clusters, held)
    chosen, free = _part(free, gold)
    tested: list[Cluster] = [(i,) for i in test if i.truth]
    if not test and any(i.truth for c in free for i in c):
        tested, free = _take(free, test_size, seed, "test")
    if not gold:
        chosen, free = _take(free, gold_size, seed, "gold")
    judged = (tuple(i for i in c if i.truth and (not gold or i.key in gold)) for c in chosen)
    golden = [cluster for cluster in judged if cluster]
    size = sum(map(len, golden))
    if size < classes:
        raise DataError(
            f"{size} gold items for {classes} classes are too few: give at least one of each, better 100 to 300 "
            f"(more rows in data.gold_csv, or a larger data.gold_size={gold_size}, and a smaller "
            f"data.test_size={test_size} if that leaves nothing). Groups stay whole, and large ones may not fit."
        )
    choose, certify = _take(golden, (size + 1) // 2, seed, "choose")
    pool = sum(map(len, free))
    if len(free) < 2:
        raise DataError(
            f"After gold and test, {pool} item(s) in {len(free)} group(s) are left to label, and training and "
            f"validation need one group each: add items, or lower data.gold_size={gold_size} or "
            f"data.test_size={test_size}."
        )
    validation, train = _take(free, min(max(1, round(pool * validation_share)), pool - 1), seed, "validation")
    if not validation or not train:  # a few large groups: the smallest one judges training
        train, validation = sorted(free, key=len)[1:], sorted(free, key=len)[:1]
    parts = {"choose": choose, "certify": certify, "train": train, "validation": validation,
             "test": [tuple(i for i in c if i.truth) for c in tested]}
    found = {name: sorted((i for c in part for i in c), key=_key) for name, part in parts.items()}
    placed = sum(map(len, found.values())) - (len(found["test"]) if test else 0)
    return Splits(found["choose"], found["certify"], found["train"], found["validation"], found["test"],
                  moved=len(items) - placed)


def _clusters(items: Sequence[Item]) -> list[Cluster]:
    """Items that must stay together: same group, or same looks; each cluster and the list of them in order of key."""
    ordered = sorted(items, key=_key)
    above = list(range(len(ordered)))  # a forest: each item's place, or that of another one in its cluster

    def root(place: int) -> int:
        while above[place] != place:
            above[place] = above[above[place]]
            place = above[place]
        return place

    tied = False
    for name in ("group", "twin"):
        values = list(map(attrgetter(name), ordered))
        first: dict[str, int] = {}
        for place, value in enumerate(values if values.count(None) < len(values) else []):
            if value is not None and (other := first.setdefault(value, place)) != place:
                above[root(place)] = root(other)
                tied = True
    if not tied:
        return list(zip(ordered, strict=True))
    found: dict[int, list[Item]] = defaultdict(list)
    for place, item in enumerate(ordered):
        found[root(place)].append(item)
    return list(map(tuple, found.values()))  # in order as well: each began where its first item stands


def _part(clusters: list[Cluster], keys: Collection[str]) -> tuple[list[Cluster], list[Cluster]]:
    """Clusters with an item that is named in `keys`, and those without."""
    if not keys:
        return [], clusters
    named = [any(item.key in keys for item in cluster) for cluster in clusters]
    return list(compress(clusters, named)), [c for c, has in zip(clusters, named, strict=True) if not has]


def _take(clusters: list[Cluster], size: int, seed: int, salt: str) -> tuple[list[Cluster], list[Cluster]]:
    """Clusters with about `size` items, each class in proportion; and the clusters that are left.

    For gold and test, only clusters with known truth can be taken: they are the only ones that can be judged.
    """
    need_truth = salt in ("gold", "test", "choose")
    strata: dict[str, list[int]] = defaultdict(list)  # places in `clusters`
    sizes: dict[str, int] = defaultdict(int)
    for place, cluster in enumerate(clusters):
        name = _class(cluster)
        if name or not need_truth:
            strata[name].append(place)
            sizes[name] += len(cluster)
    quotas = _quotas(sizes, min(size, sum(sizes.values())))
    rank = _ranks(seed, salt)
    left = bytearray(b"\1") * len(clusters)
    owed = 0
    for name, stratum in sorted(strata.items()):
        owed += quotas[name]  # what whole clusters gave one class too much or too little, the next one settles
        if owed <= 0:
            continue
        # By rank; a heap, since most of a large stratum is never looked at, and of bytes, which cost Python the least.
        queue = [rank(clusters[place][0].key) + place.to_bytes(8, "big") for place in stratum]
        heapq.heapify(queue)
        while queue and owed > 0:
            place = int.from_bytes(heapq.heappop(queue)[-8:], "big")
            if len(clusters[place]) <= 2 * owed:  # nearer with it than without
                left[place] = 0
                owed -= len(clusters[place])
    return [c for c, stays in zip(clusters, left, strict=True) if not stays], list(compress(clusters, left))


def _class(cluster: Cluster) -> str:
    """The most frequent known class, or nothing."""
    if len(cluster) == 1:
        return cluster[0].truth or ""
    known = Counter(item.truth for item in cluster if item.truth).most_common(1)
    return known[0][0] if known else ""


def _quotas(sizes: dict[str, int], total: int) -> dict[str, int]:
    """Largest-remainder shares of `total`, by class size; every class that exists gets one where `total` allows."""
    available = sum(sizes.values())
    exact = {name: total * size / available for name, size in sorted(sizes.items()) if size}
    least = int(total >= len(exact))
    quota = {name: max(least, int(share)) for name, share in exact.items()}
    while sum(quota.values()) < total:
        quota[max(quota, key=lambda name: exact[name] - quota[name])] += 1
    while sum(quota.values()) > total:
        quota[max(quota, key=lambda name: (quota[name] > 1, quota[name] - exact[name]))] -= 1
    return quota


def _ranks(seed: int, salt: str) -> Callable[[str], bytes]:
    """A key's place in an order that only `seed` and `salt` decide."""
    begun = hashlib.sha256(f"{seed}:{salt}:".encode())

    def rank(key: str) -> bytes:
        whole = begun.copy()
        whole.update(key.encode())
        return whole.digest()

    return rank
