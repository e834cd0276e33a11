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
    part because a group or a twin of theirs stands elsewhere.
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
    stratified by truth where it is known.
    """
    clusters = _clusters([*test, *items])
    held = {item.key for item in test}
    moved = [item for c in clusters if any(i.key in held for i in c) for item in c if item.key not in held]
    free = [c for c in clusters if not any(i.key in held for i in c)]
    parts: dict[str, list[Item]] = {"test": [i for i in test if i.truth]}
    if not test and test_size and any(c[0].truth for c in free) and not gold:
        parts["test"], free = _take(free, test_size, seed, "test")
    if gold:
        chosen = [c for c in free if any(i.key in gold for i in c)]
        moved += [item for c in chosen for item in c if item.key not in gold]
        golden = [[i for i in c if i.key in gold] for c in chosen]
        free = [c for c in free if not any(i.key in gold for i in c)]
        size = sum(map(len, golden))
    else:
        taken, free = _take(free, gold_size, seed, "gold")
        golden, size = _clusters(taken), len(taken)
    if size < classes:
        raise DataError(
            f"{size} gold items for {classes} classes are too few: give at least one of each, better 100 to 300 "
            "(data.gold_size, or more rows in data.gold_csv)."
        )
    parts["choose"], rest = _take(golden, (size + 1) // 2, seed, "choose")
    parts["certify"] = [item for c in rest for item in c]
    pool = sum(map(len, free))
    if pool < 2:
        raise DataError(f"After gold and test, {pool} item(s) are left to label: lower data.gold_size or data.test_size.")
    parts["validation"], rest = _take(free, max(1, round(pool * validation_share)), seed, "validation")
    parts["train"] = [item for c in rest for item in c]
    return Splits(**{name: sorted(part, key=lambda item: item.key) for name, part in parts.items()}, moved=len(moved))


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


def _take(clusters: Sequence[list[Item]], size: int, seed: int, salt: str) -> tuple[list[Item], list[list[Item]]]:
    """About `size` items, each class in proportion, whole clusters only; and the clusters that are left.

    For gold and test, only clusters with known truth can be taken: they are the only ones that can be judged.
    """
    need_truth = salt in ("gold", "test", "choose")
    strata: dict[str, list[list[Item]]] = defaultdict(list)
    for cluster in clusters:
        truth = Counter(item.truth or "" for item in cluster).most_common(1)[0][0]
        if truth or not need_truth:
            strata[truth].append(cluster)
    available = sum(len(c) for stratum in strata.values() for c in stratum)
    taken: list[Item] = []
    keys: set[str] = set()
    quotas = _quotas({name: sum(map(len, stratum)) for name, stratum in strata.items()}, min(size, available))
    for name, stratum in sorted(strata.items()):
        count = 0
        for cluster in sorted(stratum, key=lambda c: _rank(seed, salt, c[0].key)):
            if count + len(cluster) > quotas[name] and (count or len(cluster) > 2 * max(quotas[name], 1)):
                continue
            if count >= quotas[name]:
                break
            taken += cluster
            keys.add(cluster[0].key)
            count += len(cluster)
    return taken, [c for c in clusters if c[0].key not in keys]


def _quotas(sizes: dict[str, int], total: int) -> dict[str, int]:
    """Largest-remainder shares of `total`, by class size; every class that exists gets one where `total` allows."""
    available = sum(sizes.values())
    exact = {name: total * size / available for name, size in sizes.items()} if available else {}
    quota = {name: int(share) for name, share in exact.items()}
    left = total - sum(quota.values())
    for name in sorted(exact, key=lambda name: (quota[name] > 0, quota[name] - exact[name], name))[:left]:
        quota[name] += 1
    return quota


def _rank(seed: int, salt: str, key: str) -> str:
    return hashlib.sha256(f"{seed}:{salt}:{key}".encode()).hexdigest()
