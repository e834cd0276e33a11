"""Items → gold (choose, certify), labelled pool (training, validation) and test, leak-free.

Depends on the items and the seed alone: each cluster of items gets a rank from a hash of the seed and its smallest
key, so the order of files, the machine and everything that is trained have no say, and items added later do not
reshuffle the others. Knows nothing about labels, teachers or images.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields

from src.errors import DataError
from src.task import Item


@dataclass(frozen=True)
class Splits:
    """Disjoint parts; no group and no two identical-looking items stand on two sides.

    `choose` and `certify` are the two halves of gold: the first is for calibration and choices, the second for the
    guarantee alone. `train` and `validation` are the pool that a teacher labels. `moved` counts items that left their
    part because a group or a twin of theirs stands elsewhere; they are in none.
    """

    choose: list[Item]
    certify: list[Item]
    train: list[Item]
    validation: list[Item]
    test: list[Item]
    moved: int

    @property
    def pool(self) -> list[Item]:
        """Training and validation in labelling order: the first n are a random sample for every n."""
        return sorted(self.train + self.validation, key=lambda item: item.key)

    def sizes(self) -> dict[str, int]:
        return {f.name: len(getattr(self, f.name)) for f in fields(self) if f.name != "moved"}


def split(items: Sequence[Item], test: Sequence[Item], *, gold: frozenset[str], gold_size: int, test_size: int,
          validation_share: float, seed: int, classes: int) -> Splits:
    """Part the items. Raises DataError where a part cannot be what it has to be.

    `test` are the items of a test part that exists already, else `test_size` items with known truth become one.
    `gold`, where not empty, are the keys that are gold; else `gold_size` items with known truth are. Parts are
    stratified by truth where it is known; where groups are large, sizes are as near as whole groups come.
    """
    clusters = _clusters([*test, *items])
    held = {item.key for item in test}
    free = [c for c in clusters if not any(i.key in held for i in c)]
    chosen = [c for c in free if any(i.key in gold for i in c)]
    free = [c for c in free if not any(i.key in gold for i in c)]
    tested = [[i] for i in test if i.truth]
    if not test and any(i.truth for c in free for i in c):
        tested, free = _take(free, test_size, seed, "test")
    if not gold:
        chosen, free = _take(free, gold_size, seed, "gold")
    golden = [kept for c in chosen if (kept := [i for i in c if i.truth and (not gold or i.key in gold)])]
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
             "test": [[i for i in c if i.truth] for c in tested]}
    found = {name: sorted((i for c in part for i in c), key=lambda item: item.key) for name, part in parts.items()}
    placed = {item.key for part in found.values() for item in part}
    return Splits(**found, moved=sum(item.key not in placed for item in items))


def _clusters(items: Sequence[Item]) -> list[list[Item]]:
    """Items that must stay together: same group, or same looks; each cluster and the list of them in one order."""
    parent: dict[Hashable, Hashable] = {}

    def root(node: Hashable) -> Hashable:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for item in items:
        for kind, value in (("group", item.group), ("twin", item.twin)):
            if value is not None:
                parent[root((kind, value))] = root(("item", item.key))
    found: dict[Hashable, list[Item]] = defaultdict(list)
    for item in sorted(items, key=lambda item: item.key):
        found[root(("item", item.key))].append(item)
    return sorted(found.values(), key=lambda cluster: cluster[0].key)


def _take(clusters: Sequence[list[Item]], size: int, seed: int, salt: str) -> tuple[list[list[Item]], list[list[Item]]]:
    """Clusters with about `size` items, each class in proportion; and the clusters that are left.

    For gold and test, only clusters with known truth can be taken: they are the only ones that can be judged.
    """
    need_truth = salt in ("gold", "test", "choose")
    strata: dict[str, list[list[Item]]] = defaultdict(list)
    for cluster in clusters:
        known = Counter(item.truth for item in cluster if item.truth).most_common(1)
        if known or not need_truth:
            strata[known[0][0] if known else ""].append(cluster)
    sizes = {name: sum(map(len, stratum)) for name, stratum in strata.items()}
    quotas = _quotas(sizes, min(size, sum(sizes.values())))
    taken: set[str] = set()
    owed = 0
    for name, stratum in sorted(strata.items()):
        owed += quotas[name]  # what whole clusters gave one class too much or too little, the next one settles
        for cluster in sorted(stratum, key=lambda c: _rank(seed, salt, c[0].key)):
            if len(cluster) <= 2 * owed:  # nearer with it than without
                taken.add(cluster[0].key)
                owed -= len(cluster)
    return [c for c in clusters if c[0].key in taken], [c for c in clusters if c[0].key not in taken]


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


def _rank(seed: int, salt: str, key: str) -> str:
    return hashlib.sha256(f"{seed}:{salt}:{key}".encode()).hexdigest()
