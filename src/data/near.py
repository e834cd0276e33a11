"""Pictures that are nearly the same: re-encoded, resized, brightened or slightly cropped copies of one another.

Two steps. Perceptual hashes (64-bit pHash, from `imagehash`) within a Hamming distance name the candidates; then the
fine detail of the two pictures has to fit, at the best of a few shifts. The second step is what keeps distinct
pictures apart: round things on white all have neighbouring hashes, but not the same detail. Measured with 10 bits
(tests/test_near.py makes these figures):

                                        pairs by hash     pairs after detail     largest cluster
    2,500 photographs of CIFAR-100    104 (14 crossing)      54 (2 crossing)           8
    2,500 drawn pictures               23  (4 crossing)       1 (0 crossing)           2

Crossing pairs are of two classes. Among the photographs CIFAR-100's own near-duplicates are found: by eye about five
in six pairs show one photograph twice, some of them recoloured. No two drawn pictures are copies. Of copies made on
purpose 99% or more are found when they are re-encoded (JPEG, quality 50), resized, stretched, brightened or dimmed by
a fifth, or grey; 9 in 10 when cropped to 97% of each side, 4 in 10 at 94%, few at 90%; none when mirrored or turned.

A copy of a copy belongs to the cluster, so pictures of hardly any detail could chain: scikit-learn's 1,797 digits,
8×8, would make one cluster of 281 once they are enlarged. Pictures below 32×32 are therefore not compared, and the
data set tells of a cluster that has grown large. Knows nothing about files, labels or splits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

SIDE = 32  # what pHash looks at; a smaller picture would have to be enlarged, and interpolation looks alike everywhere
BLUR = ImageFilter.GaussianBlur(2)  # what it takes away is shape and light, which other pictures share
SHIFT = 2  # pixels of SIDE by which a crop may move things
ALIKE = 0.7  # correlation of detail from which on two pictures are one
FAINT = 2.0  # grey levels: below, the detail is noise
NAMESAKES = 16  # a hash that many pictures share says little: each is compared with so many of them
BLOCK = 2048  # pairs compared at a time: about 16 MB
HASH_BITS = 64
WINDOW = slice(SHIFT, SIDE - SHIFT)

Pairs = NDArray[np.intp]  # 2 × pairs


@dataclass(frozen=True, slots=True)
class Look:
    """What a picture looks like: its perceptual hash, and SIDE × SIDE signed bytes of fine detail."""

    hash: int
    detail: bytes


def look(image: Image.Image) -> Look | None:
    """None where there is too little to go by: fewer than SIDE pixels on a side, or hardly any detail."""
    if min(image.size) < SIDE:
        return None
    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3)
    detail = np.asarray(grey, np.int16) - np.asarray(grey.filter(BLUR), np.int16)
    if np.sqrt(np.mean(detail.astype(np.float32) ** 2)) < FAINT:
        return None
    found = np.packbits(imagehash.phash(grey).hash).tobytes()
    return Look(int.from_bytes(found, "big"), detail.clip(-128, 127).astype(np.int8).tobytes())


def near_duplicates(looks: Mapping[str, Look], bits: int) -> dict[str, str]:
    """Each picture that has a near-duplicate → the first name, in alphabetical order, in its cluster.

    `bits` is the largest Hamming distance of two hashes, 0 to 64. A copy of a copy belongs to the cluster. The order
    of `looks` has no say.
    """
    from scipy.sparse import coo_array  # take memory while a million texts are asked about
    from scipy.sparse.csgraph import connected_components

    names = sorted(looks)
    if len(names) < 2:
        return {}
    hashes = np.array([looks[name].hash for name in names], np.uint64)
    details = np.frombuffer(b"".join(looks[name].detail for name in names), np.int8).reshape(-1, SIDE, SIDE)
    joined = np.empty((2, 0), np.intp)
    pairs = candidates(hashes, bits)
    cluster = np.arange(len(names))
    for start in range(0, pairs.shape[1], BLOCK):
        block = pairs[:, start : start + BLOCK]
        block = block[:, cluster[block[0]] != cluster[block[1]]]
        block = block[:, correlation(details[block[0]], details[block[1]]) >= ALIKE]
        if block.size:
            joined = np.concatenate([joined, block], axis=1)
            edges = coo_array((np.ones(joined.shape[1], np.int8), (joined[0], joined[1])), (len(names), len(names)))
            cluster = connected_components(edges, directed=False)[1]
    first: dict[int, str] = {}
    for number in np.unique(joined):  # in alphabetical order
        first.setdefault(cluster[number], names[number])
    return {names[number]: first[cluster[number]] for number in np.unique(joined)}


def candidates(hashes: NDArray[np.uint64], bits: int) -> Pairs:
    """Pairs of pictures with hashes within `bits`, the smaller number above; those with one hash come first.

    Of a hash that more than NAMESAKES pictures share, not every pair is named.
    """
    order = np.argsort(hashes, kind="stable")
    distinct, start, count = np.unique(hashes[order], return_index=True, return_counts=True)
    rank = np.arange(len(hashes)) - np.repeat(start, count)
    first = np.repeat(start, count)
    same = [np.stack([first[rank > n] + n, np.flatnonzero(rank > n)]) for n in range(min(NAMESAKES, count.max() - 1))]
    u, v, distance = _neighbours(distinct, bits)
    # The nearest first: they join most, and what has been joined is not compared again.
    u, v = (x[np.argsort(distance, kind="stable")] for x in (u, v))
    most = min(NAMESAKES, int(count.max()))
    other = [np.stack([start[u[some]] + m, start[v[some]] + n]) for m in range(most) for n in range(most)
             if (some := (count[u] > m) & (count[v] > n)).any()]
    return np.sort(order[np.concatenate([np.empty((2, 0), np.intp), *same, *other], axis=1)], axis=0)


def _neighbours(hashes: NDArray[np.uint64], bits: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.uint8]]:
    """Every pair of distinct `hashes` within `bits`, once, and its distance.

    Of bits + 3 stretches of a hash, at least three are equal in such a pair: only hashes that agree in three are
    compared. 100,000 hashes take seconds, where all 5·10⁹ pairs would take minutes.
    """
    stretches = min(bits + 3, HASH_BITS)
    edges = [round(n * HASH_BITS / stretches) for n in range(stretches + 1)]
    widths = np.diff(edges).tolist()
    masks = [np.uint64(((1 << width) - 1) << edge) for edge, width in zip(edges, widths, strict=False)]
    parts = [(hashes & mask) >> np.uint64(edge) for edge, mask in zip(edges, masks, strict=False)]
    found: list[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.uint8]]] = []
    for chosen in combinations(range(stretches), 3):
        key = np.zeros(len(hashes), np.uint64)
        for n in chosen:
            key = (key << np.uint64(widths[n])) | parts[n]
        if sum(widths[n] for n in chosen) <= 16:
            key = key.astype(np.uint16)  # NumPy sorts these by radix, ten times as fast
        order = np.argsort(key, kind="stable")
        key, ordered = key[order], hashes[order]
        # Pairs are counted where their first three equal stretches are chosen, and not again.
        before = [masks[n] for n in range(chosen[-1]) if n not in chosen]
        at, step = np.flatnonzero(key[1:] == key[:-1]), 1
        while at.size:
            apart = ordered[at] ^ ordered[at + step]
            distance = np.bitwise_count(apart)
            near = distance <= bits
            for mask in before:
                near &= (apart & mask) != 0
            if near.any():
                found.append((order[at[near]], order[at[near] + step], distance[near]))
            step += 1
            at = at[at < len(key) - step]
            at = at[key[at] == key[at + step]]
    if not found:
        return np.empty(0, np.intp), np.empty(0, np.intp), np.empty(0, np.uint8)
    u, v, distance = (np.concatenate(column) for column in zip(*found, strict=True))
    return u, v, distance


def correlation(a: NDArray[np.int8], b: NDArray[np.int8]) -> NDArray[np.float32]:
    """Of two stacks of detail, pairs × SIDE × SIDE: at the best shift of one against the other's middle, -1 to 1."""
    best = np.full(len(a), -1, np.float32)
    moving, middle = a.astype(np.float32), b[:, WINDOW, WINDOW].astype(np.float32)
    energy = np.einsum("pij,pij->p", middle, middle)
    for y in range(2 * SHIFT + 1):
        for x in range(2 * SHIFT + 1):
            moved = moving[:, y : SIDE - 2 * SHIFT + y, x : SIDE - 2 * SHIFT + x]
            scale = np.sqrt(energy * np.einsum("pij,pij->p", moved, moved))
            best = np.maximum(best, np.einsum("pij,pij->p", moved, middle) / np.maximum(scale, 1e-6))
    return best
