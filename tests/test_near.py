"""Near-duplicates of images: copies made on purpose are found, different pictures are not, and nothing leaks."""

import io
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SHARED
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_digits, load_sample_images

from src.data.folder import scan
from src.data.near import ALIKE, NAMESAKES, SIDE, Look, candidates, correlation, look, near_duplicates
from src.data.rendered import draw
from src.data.splits import split
from src.task import Item, TaskSpec

SHAPES = Path(__file__).parents[1] / "conf" / "data" / "source" / "rendered.yaml"
BITS = 10


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def scaled(image: Image.Image, x: float, y: float) -> Image.Image:
    return image.resize((round(image.width * x), round(image.height * y)), Image.Resampling.BICUBIC)


def cropped(image: Image.Image, share: float, rng: random.Random) -> Image.Image:
    """A part with `share` of each side, anywhere, at the size of the whole."""
    width, height = round(image.width * share), round(image.height * share)
    x, y = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((x, y, x + width, y + height)).resize(image.size, Image.Resampling.BICUBIC)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "re-encoded": lambda image: jpeg(image, 50),
    "enlarged": lambda image: scaled(image, 2, 2),
    "stretched": lambda image: scaled(image, 1.15, 1),
    "brightened": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "dimmed": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


def recall(images: Sequence[Image.Image], copy: Callable[[Image.Image], Image.Image]) -> float:
    """The share of copies that are near-duplicates of their originals, of the images that are compared at all."""
    pairs = [(original, look(copy(image))) for image in images if (original := look(image))]
    close = [(a, b) for a, b in pairs if b and (a.hash ^ b.hash).bit_count() <= BITS]
    return float((correlation(*map(details_of, zip(*close, strict=True))) >= ALIKE).sum() / len(pairs)) if close else 0


def details_of(looks: Iterable[Look]) -> NDArray[np.int8]:
    return np.frombuffer(b"".join(seen.detail for seen in looks), np.int8).reshape(-1, SIDE, SIDE)


def looks_of(images: Sequence[Image.Image]) -> dict[str, Look]:
    return {f"{n:05d}": seen for n, image in enumerate(images) if (seen := look(image))}


def pairs_found(looks: dict[str, Look], classes: Sequence[Any]) -> dict[str, tuple[int, int]]:
    """How many pairs there are by hash and after detail, and how many of these are of two classes."""
    hashes = np.array([seen.hash for seen in looks.values()], np.uint64)
    details = details_of(looks.values())
    known = np.array(classes)[[int(name) for name in looks]]
    pairs = candidates(hashes, BITS)
    fit = correlation(details[pairs[0]], details[pairs[1]]) >= ALIKE
    crossing = known[pairs[0]] != known[pairs[1]]
    return {"hash": (len(fit), int(crossing.sum())), "detail": (int(fit.sum()), int((crossing & fit).sum()))}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    """200 drawn pictures, 32×32, no two of them copies."""
    root = draw(tmp_path_factory.mktemp("drawn"), train_per_class=40, test_per_class=0, seed=5,
                shapes=OmegaConf.load(SHAPES).shapes)
    return [Image.open(path).convert("RGB") for path in sorted(root.rglob("*.png"))]


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """66 pieces, 160×128, of the two photographs that come with scikit-learn; they do not overlap by more than half."""
    return [Image.fromarray(whole[y : y + 128, x : x + 160]) for whole in load_sample_images().images
            for y in range(0, whole.shape[0] - 128, 64) for x in range(0, whole.shape[1] - 160, 80)]


# What is found


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found(kind: str, drawn: list[Image.Image], photographs: list[Image.Image]) -> None:
    assert recall(drawn, COPIES[kind]) >= 0.98
    assert recall(photographs, COPIES[kind]) >= 0.95


def test_slight_crops_are_mostly_found(drawn: list[Image.Image]) -> None:
    """And the smaller the crop, the fewer: what the module's text says."""
    rng = random.Random(0)
    found = [recall(drawn, lambda image, share=share: cropped(image, share, rng)) for share in (0.97, 0.94, 0.9)]
    assert found[0] >= 0.8 and 0.25 <= found[1] <= 0.75 and found[2] <= 0.35


def test_mirrored_copies_are_not_found(drawn: list[Image.Image]) -> None:
    assert recall(drawn, ImageOps.mirror) <= 0.02


def test_drawn_pictures_and_pieces_of_photographs_are_no_copies_of_each_other(
    drawn: list[Image.Image], photographs: list[Image.Image]
) -> None:
    assert near_duplicates(looks_of([*drawn, *photographs]), BITS) == {}


def test_hashes_alone_would_merge_what_detail_keeps_apart() -> None:
    """Light and shape alike, as in two pictures of apples on white, and other detail on them."""

    def cells(count: int, strength: float, seed: int) -> NDArray[np.float32]:
        coarse = np.random.default_rng(seed).normal(0, strength, (count, count)).astype(np.float32)
        return np.asarray(Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC))

    def seen(detail: int) -> tuple[Image.Image, Look]:
        image = Image.fromarray((128 + cells(8, 50, seed=0) + cells(32, 24, seed=detail)).clip(0, 255).astype(np.uint8))
        found = look(image)
        assert found
        return image, found

    (image, one), (_, other) = seen(100), seen(200)
    copy = look(jpeg(image.convert("RGB"), 60))
    assert copy and (one.hash ^ other.hash).bit_count() <= BITS
    assert near_duplicates({"one": one, "other": other, "copy": copy}, BITS) == {"one": "copy", "copy": "copy"}


def test_a_copy_of_a_copy_is_in_the_cluster(drawn: list[Image.Image]) -> None:
    """Each crop fits the one before; the cluster is named by its first name, and the order given has no say."""
    image = next(i for i in drawn if recall([i], lambda image: image.crop((1, 0, 32, 32)).resize((32, 32))))
    big = image.resize((640, 640), Image.Resampling.BICUBIC)
    steps = {f"step {n}": look(big.crop((n * 10, 0, n * 10 + 560, 560))) for n in range(8)}
    kept = {name: seen for name, seen in steps.items() if seen}
    ends = {name: kept[name] for name in ("step 0", "step 7")}
    assert near_duplicates(ends, BITS) == {}
    found = near_duplicates(kept, BITS)
    assert found == dict.fromkeys(kept, "step 0")
    assert near_duplicates(dict(reversed(kept.items())), BITS) == found


def test_pictures_that_say_too_little_are_not_compared() -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    assert look(noise)
    assert look(noise.resize((SIDE - 1, 100))) is None
    assert look(Image.new("RGB", (100, 100), "white")) is None
    assert look(Image.fromarray(np.tile(np.arange(100, dtype=np.uint8), (100, 1)))) is None  # a plain gradient
    assert near_duplicates({}, BITS) == {}


# Candidates against every pair


def with_neighbours(count: int, seed: int) -> NDArray[np.uint64]:
    """Random hashes, most of them a few bits from another one, some equal."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2**64, count // 4, dtype=np.uint64)
    found = base[rng.integers(0, len(base), count)]
    for _ in range(7):
        found ^= np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64)
    found[: count // 10] = found[-(count // 10) :]
    return found


@pytest.mark.parametrize("bits", [0, 1, 4, 10, 16])
def test_candidates_are_exactly_the_pairs_within_the_distance(bits: int) -> None:
    hashes = with_neighbours(400, bits)
    i, j = np.triu_indices(len(hashes), 1)
    near = np.bitwise_count(hashes[i] ^ hashes[j]) <= bits
    expected = set(zip(i[near].tolist(), j[near].tolist(), strict=True))
    found = list(zip(*candidates(hashes, bits).tolist(), strict=True))
    assert set(found) == expected and len(found) == len(expected) > 20


def test_a_hash_that_very_many_share_does_not_cost_their_square() -> None:
    hashes = np.zeros(5000, np.uint64)
    pairs = candidates(hashes, BITS)
    assert pairs.shape[1] <= 5000 * NAMESAKES
    looks = {f"{n:04d}": Look(0, bytes([n % 2 or 255, *range(100), *bytes(SIDE * SIDE - 101)])) for n in range(5000)}
    assert set(near_duplicates(looks, BITS).values()) == {"0000"}


# No leak


def test_near_duplicates_never_straddle_gold_training_and_test(drawn: list[Image.Image], tmp_path: Path) -> None:
    """Copies with truth and without, in a pool that is parted, and beside a test/ folder that is given."""
    names = ["one", "two"]
    task = TaskSpec(name="t", version=1, kind="classify", classes=dict.fromkeys(names, ""), aliases={},
                    system_prompt="", user_prompt="", metric="accuracy")
    for n, image in enumerate(drawn[:120]):
        folder = tmp_path / "train" / names[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{n}.png")
        if n % 3 == 0:
            jpeg(image, 60).save(folder / f"{n}-copy.png")
        if n % 3 == 1:
            scaled(image, 2, 2).save(tmp_path / "train" / f"{n}-copy.png")  # of unknown truth
    options: dict[str, Any] = {"gold": frozenset(), "gold_size": 30, "test_size": 40, "validation_share": 0.2,
                               "classes": 2}

    def sides(test: Sequence[Item], items: Sequence[Item], seed: int) -> tuple[dict[str, set[str]], Counter[str], int]:
        """Each picture's parts, by the number that its name begins with; parts' sizes; what was moved."""
        splits = split(items, test, seed=seed, **options)
        found: dict[str, set[str]] = {}
        for part in splits.sizes():
            for item in getattr(splits, part):
                found.setdefault(Path(item.name).stem.split("-")[0], set()).add(part)
        return found, Counter(splits.sizes()), splits.moved

    whole = scan(tmp_path, task, max_pixels=10_000, near_bits=BITS)
    for seed in range(5):
        found, sizes, moved = sides([], whole.train, seed)
        assert len(found) == 120 and all(len(parts) == 1 for parts in found.values())
        assert sizes.total() + moved == 200 and moved > 0  # copies of unknown truth of what is gold or test

    for n in range(60):
        kept = tmp_path / "test" / names[n % 2]
        kept.mkdir(parents=True, exist_ok=True)
        ImageEnhance.Brightness(drawn[n]).enhance(0.8).save(kept / f"{n}-dim.png")
    given = scan(tmp_path, task, max_pixels=10_000, near_bits=BITS)
    found, sizes, moved = sides(given.test, given.train, 0)
    assert all(len(parts) == 1 for parts in found.values())
    assert all(found[str(n)] == {"test"} for n in range(60))
    assert sizes["test"] == 60 and sizes.total() + moved == 260
    assert moved >= 100  # 60 originals and their 40 copies
    plain = scan(tmp_path, task, max_pixels=10_000, near_bits=None)
    leaking, _, _ = sides(plain.test, plain.train, 0)
    assert any(len(parts) > 1 for parts in leaking.values())


# The figures that the module tells


def test_digits_are_too_small_to_compare_and_would_chain(tmp_path: Path) -> None:
    digits = [Image.fromarray(np.uint8(255 - x * 255 / 16)).convert("RGB") for x in load_digits().images]
    assert looks_of(digits) == {}
    enlarged = near_duplicates(looks_of([image.resize((32, 32), Image.Resampling.BICUBIC) for image in digits]), BITS)
    assert 100 < max(Counter(enlarged.values()).values()) < len(digits) / 2


@pytest.mark.slow
def test_figures_on_drawn_pictures(tmp_path: Path) -> None:
    root = draw(tmp_path, train_per_class=500, test_per_class=0, seed=2026, shapes=OmegaConf.load(SHAPES).shapes)
    files = sorted(root.rglob("*.png"))
    looks = looks_of([Image.open(path).convert("RGB") for path in files])
    found = pairs_found(looks, [path.parent.name for path in files])
    assert found["hash"] == pytest.approx((23, 4), abs=6)
    assert found["detail"] == pytest.approx((1, 0), abs=2)
    assert max(Counter(near_duplicates(looks, BITS).values()).values(), default=1) <= 3


@pytest.mark.shared
def test_figures_on_photographs() -> None:
    files = sorted((SHARED / "cifar5").rglob("*.png"))
    images = [Image.open(path).convert("RGB") for path in files]
    looks = looks_of(images)
    found = pairs_found(looks, [path.parent.name for path in files])
    assert found["hash"][0] == pytest.approx(104, abs=15) and found["hash"][1] == pytest.approx(14, abs=5)
    assert found["detail"][0] == pytest.approx(54, abs=6) and found["detail"][1] <= 4
    clusters = Counter(near_duplicates(looks, BITS).values())
    assert len(clusters) == pytest.approx(38, abs=5) and max(clusters.values()) <= 10
    some = images[::10]
    assert all(recall(some, copy) >= 0.99 for copy in COPIES.values())
    rng = random.Random(0)
    shares = {share: recall(some, lambda image, share=share: cropped(image, share, rng)) for share in (0.97, 0.94)}
    assert shares[0.97] == pytest.approx(0.9, abs=0.06) and shares[0.94] == pytest.approx(0.44, abs=0.1)
