"""The drawn data set: what `draw` writes, that it repeats itself, and that its pixels alone do not give it away."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from src.data.rendered import SIDE, draw

CONF = Path(__file__).parents[1] / "conf" / "data" / "source" / "rendered.yaml"


@pytest.fixture(scope="module")
def shapes() -> Any:
    return OmegaConf.load(CONF).shapes


def _bytes(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*.png"))}


def _pixels(file: Path) -> Any:
    with Image.open(file) as image:
        return np.asarray(image, np.float32)


def test_writes_the_counted_pictures_of_every_class(tmp_path: Path, shapes: Any) -> None:
    told: list[float] = []
    root = draw(tmp_path / "pictures", train_per_class=3, test_per_class=2, seed=0, shapes=shapes, told=told.append)
    expected = {
        f"{folder}/{name}/{name}_{number:05d}.png"
        for folder, count in (("train", 3), ("test", 2))
        for name in ("apple", "mushroom", "orange", "pear", "sweet_pepper")
        for number in range(1, count + 1)
    }
    assert set(_bytes(root)) == expected
    assert {_pixels(file).shape for file in root.rglob("*.png")} == {(SIDE, SIDE, 3)}
    assert len(told) == len(expected) and told == sorted(told) and told[-1] == 1


def test_same_seed_same_bytes(tmp_path: Path, shapes: Any) -> None:
    first, again, other = (
        _bytes(draw(tmp_path / str(i), train_per_class=4, test_per_class=2, seed=seed, shapes=shapes))
        for i, seed in enumerate((0, 0, 1))
    )
    assert first == again
    assert all(first[name] != other[name] for name in first)
    assert len(set(first.values())) == len(first)  # no two pictures alike: train and test have no picture in common


def test_a_picture_depends_on_neither_counts_nor_other_classes(tmp_path: Path, shapes: Any) -> None:
    many = _bytes(draw(tmp_path / "many", train_per_class=4, test_per_class=1, seed=0, shapes=shapes))
    few = _bytes(draw(tmp_path / "few", train_per_class=2, test_per_class=0, seed=0, shapes={"pear": shapes.pear}))
    assert len(few) == 2 and few.items() <= many.items()


def test_unknown_key_in_a_description_is_an_error(tmp_path: Path) -> None:
    view = {"colours": [[[0, 1], [0, 1], [0, 1]]], "parts": [{"profile": [0, 1, 0], "sise": [1, 1]}]}
    with pytest.raises(TypeError, match="sise"):
        draw(tmp_path, train_per_class=1, test_per_class=0, seed=0, shapes={"thing": [view]})


def test_pixels_alone_do_not_tell_the_classes(tmp_path: Path, shapes: Any) -> None:
    """A linear reader of pixels must stay below 0.80, or beating it would prove nothing about the student."""
    root = draw(tmp_path, train_per_class=100, test_per_class=40, seed=0, shapes=shapes)

    def read(folder: str) -> tuple[Any, list[str]]:
        files = sorted((root / folder).rglob("*.png"))
        return np.array([_pixels(file).ravel() for file in files]), [file.parent.name for file in files]

    train, test = read("train"), read("test")
    best = max(
        make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=200, tol=1e-3)).fit(*train).score(*test)
        for c in (1e-3, 1e-2)
    )
    assert 0.3 < best < 0.80
