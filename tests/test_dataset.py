"""Bringing items: prepared once, never half, a stand-in only where one is allowed, and what was done is told."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from sklearn.datasets import load_digits

from src.data import digits
from src.data.dataset import Dataset, NearDuplicates, open_dataset
from src.data.images import load
from src.data.spec import DataSpec, Shown
from src.errors import ConfigError, DataError, DataUnavailable
from src.task import Item, TaskSpec

ROOT = Path(__file__).parents[1]
TASK = TaskSpec(name="fruit", version=1, kind="classify", classes={"apple": "", "pear": ""}, aliases={},
                system_prompt="", user_prompt="", metric="accuracy")
IN_PLACE = {"_target_": "src.data.folder.in_place", "_partial_": True}
calls: list[str] = []


def items_of(dataset: Dataset) -> list[Item]:
    """All items, part by part."""
    return [item for part in dataset.splits.sizes() for item in getattr(dataset.splits, part)]


# Sources, as `conf/data/source/` names them by `_target_`.


def paint(into: Path, *, root: Path | None, classes: Sequence[str], download: bool, first: int = 0) -> Path:
    """20 pictures of each class; `first` makes them others than those of another source."""
    calls.append(f"paint, download={download}")
    for c, name in enumerate(classes):
        (into / name).mkdir(parents=True)
        for n in range(20):
            Image.new("RGB", (4, 4), (c * 100, first + n, 0)).save(into / name / f"{n:02d}.png")
    return into


def interrupted(into: Path, *, root: Path | None, classes: Sequence[str], download: bool) -> Path:
    """Killed half-way the first time."""
    if "interrupted" in calls:
        return paint(into, root=root, classes=classes, download=download)
    calls.append("interrupted")
    paint(into, root=root, classes=classes[:1], download=download)
    raise KeyboardInterrupt


def unavailable(into: Path, *, root: Path | None, classes: Sequence[str], download: bool) -> Path:
    calls.append(f"unavailable, download={download}")
    into.mkdir(parents=True)
    raise DataUnavailable("the real images are not here.")


def source(function: str, **options: Any) -> dict[str, Any]:
    return {"_target_": f"{__name__}.{function}", "_partial_": True, **options}


def make_spec(function: str = "paint", **changes: Any) -> DataSpec:
    fields: dict[str, Any] = {
        "name": "painted", "kind": "images", "source": source(function), "stand_in": None, "drawn": False, "root": None,
        "truth_csv": None, "text_column": None, "truth_column": None, "group_column": None, "gold_csv": None,
        "gold_size": 8, "test_size": 10, "validation_share": 0.2, "split_seed": 0, "near_duplicates": 10,
        "max_pixels": 10_000, "shown": Shown(size=224, sharpen=True, jpeg_quality=90),
    }
    return DataSpec(**(fields | changes))


def open_in(home: Path, spec: DataSpec, task: TaskSpec = TASK, *, download: bool = False,
            stand_in: bool = True) -> Dataset:
    return open_dataset(task, spec, home=home, download=download, stand_in=stand_in)


def composed(*overrides: str) -> tuple[TaskSpec, DataSpec]:
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        cfg = compose(overrides=list(overrides))
    task = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TaskSpec), cfg.task))
    spec = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataSpec), cfg.data))
    assert isinstance(task, TaskSpec)
    assert isinstance(spec, DataSpec)
    return task, spec


@pytest.fixture(autouse=True)
def forget_calls() -> None:
    calls.clear()


def test_images_are_brought_once_and_read_again(tmp_path: Path) -> None:
    first, second = open_in(tmp_path, make_spec()), open_in(tmp_path, make_spec())
    assert calls == ["paint, download=False"]
    assert first == second
    assert first.splits.sizes() == {"choose": 4, "certify": 4, "train": 18, "validation": 4, "test": 10}
    assert len(items_of(first)) == 40
    assert (first.name, first.root.parent, first.drawn, first.broken) == ("painted", tmp_path / "data", False, {})


def test_a_folder_is_named_by_what_made_it(tmp_path: Path) -> None:
    other_task = replace(TASK, name="veg")
    specs = [(make_spec(), TASK), (make_spec(source=source("paint", first=100)), TASK), (make_spec(root="x"), TASK),
             (make_spec(), other_task)]
    roots = [open_in(tmp_path, spec, task).root for spec, task in specs]
    assert len(set(roots)) == len(calls) == 4
    assert open_in(tmp_path, make_spec(gold_size=10, split_seed=3)).root == roots[0]
    assert len(calls) == 4


def test_the_hash_names_content_and_split(tmp_path: Path) -> None:
    first = open_in(tmp_path / "a", make_spec()).hash
    assert first == open_in(tmp_path / "b", make_spec()).hash
    assert len({first, open_in(tmp_path / "a", make_spec(split_seed=1)).hash,
                open_in(tmp_path / "a", make_spec(source=source("paint", first=100))).hash}) == 3


def test_whether_to_download_is_handed_on(tmp_path: Path) -> None:
    open_in(tmp_path, make_spec(), download=True)
    assert calls == ["paint, download=True"]


def test_what_was_interrupted_is_brought_again_and_whole(tmp_path: Path) -> None:
    spec = make_spec("interrupted")
    with pytest.raises(KeyboardInterrupt):
        open_in(tmp_path, spec)
    left = [path for path in (tmp_path / "data").iterdir() if path.is_dir()]
    assert [path.suffix for path in left] == [".partial"]
    assert len(list(left[0].rglob("*.png"))) == 20
    dataset = open_in(tmp_path, spec)
    assert len(items_of(dataset)) == 40
    assert [path for path in (tmp_path / "data").iterdir() if path.is_dir()] == [dataset.root]


def test_images_that_lie_somewhere_stay_there(tmp_path: Path) -> None:
    paint(tmp_path / "mine", root=None, classes=TASK.names, download=False)
    spec = make_spec(source=IN_PLACE, root=str(tmp_path / "mine"))
    assert open_in(tmp_path / "home", spec).root == tmp_path / "mine"
    assert list((tmp_path / "home").rglob("*.png")) == []


def test_a_home_sign_in_a_path_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    paint(tmp_path / "mine", root=None, classes=TASK.names, download=False)
    spec = make_spec(source=IN_PLACE, root="~/mine")
    assert open_in(tmp_path / "home", spec).root == tmp_path / "mine"


# Stand-ins


def test_drawn_images_stand_in_where_they_may(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = open_in(tmp_path, make_spec("unavailable", stand_in=source("paint")))
    assert dataset.drawn
    assert calls == ["unavailable, download=False", "paint, download=False"]
    assert "Warning: the real images are not here. REHEARSAL goes on with drawn images" in capsys.readouterr().out


@pytest.mark.parametrize(("stand_in", "allowed"), [(source("paint"), False), (None, True)])
def test_elsewhere_missing_images_are_an_error(tmp_path: Path, stand_in: dict[str, Any] | None, allowed: bool) -> None:
    with pytest.raises(DataUnavailable, match=r"the real images are not here\."):
        open_in(tmp_path, make_spec("unavailable", stand_in=stand_in), stand_in=allowed)
    assert calls == ["unavailable, download=False"]


def test_real_images_are_used_where_they_are_at_hand(tmp_path: Path) -> None:
    dataset = open_in(tmp_path, make_spec(stand_in=source("paint", first=100)))
    assert not dataset.drawn
    assert len(calls) == 1


def test_a_source_that_draws_says_so(tmp_path: Path) -> None:
    assert open_in(tmp_path, make_spec(drawn=True)).drawn


def test_cifar100_that_is_nowhere_says_the_way_out(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    spec = make_spec(source={"_target_": "src.data.cifar100.bring", "_partial_": True})
    with pytest.raises(DataUnavailable, match=rf"CIFAR-100 is not in {tmp_path}.*data\.root=….*data=rendered"):
        open_in(tmp_path, spec)


# Bad input


def test_a_class_without_images(tmp_path: Path) -> None:
    task = replace(TASK, classes={"apple": "", "pear": "", "plum": "", "fig": ""})
    root = paint(tmp_path / "mine", root=None, classes=TASK.names, download=False)
    spec = make_spec(source=IN_PLACE, root=str(root))
    with pytest.raises(DataError, match=rf"No image of class plum, fig to learn from in {root}.*conf/task/fruit\.yaml"):
        open_in(tmp_path / "home", spec, task)


def test_a_class_with_test_images_alone(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    paint(root / "train", root=None, classes=["apple"], download=False)
    paint(root / "test", root=None, classes=["apple", "pear"], download=False, first=100)
    spec = make_spec(source=IN_PLACE, root=str(root))
    with pytest.raises(DataError, match="No image of class pear to learn from"):
        open_in(tmp_path / "home", spec)


def test_nothing_with_known_truth(tmp_path: Path) -> None:
    root = tmp_path
    Image.new("RGB", (4, 4)).save(root / "a.png")
    spec = make_spec(source=IN_PLACE, root=str(root))
    with pytest.raises(DataError, match=rf"No item in {root} has a known truth.*data\.gold_csv=FILE"):
        open_in(tmp_path / "home", spec)


def test_gold_that_lacks_a_class_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = paint(tmp_path / "mine", root=None, classes=TASK.names, download=False)
    rows = "".join(f"apple/{n:02d}.png,apple\n" for n in range(10))
    (tmp_path / "gold.csv").write_text("file,label\n" + rows)
    spec = make_spec(source=IN_PLACE, root=str(root),
                     gold_csv=str(tmp_path / "gold.csv"))
    dataset = open_in(tmp_path / "home", spec)
    assert "Warning: No gold item of class pear" in capsys.readouterr().out
    assert dataset.splits.sizes() == {"choose": 5, "certify": 5, "train": 24, "validation": 6, "test": 0}


def test_broken_images_and_copies_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = paint(tmp_path / "mine", root=None, classes=TASK.names, download=False)
    (root / "apple/cut.png").write_bytes((root / "apple/00.png").read_bytes()[:40])
    (root / "apple/copy.png").write_bytes((root / "apple/00.png").read_bytes())
    spec = make_spec(source=IN_PLACE, root=str(root))
    dataset = open_in(tmp_path / "home", spec)
    told = capsys.readouterr().out
    assert "Warning: 1 broken image(s) set aside: apple/cut.png (" in told
    assert "1 duplicate files merged" in told
    assert (list(dataset.broken), dataset.duplicates, len(items_of(dataset))) == (["apple/cut.png"], 1, 40)


def test_test_images_without_truth_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "mine"
    paint(root / "train", root=None, classes=TASK.names, download=False)
    paint(root / "test", root=None, classes=["apple"], download=False, first=100)
    Image.new("RGB", (4, 4), "white").save(root / "test/loose.png")
    spec = make_spec(source=IN_PLACE, root=str(root))
    assert len(open_in(tmp_path / "home", spec).splits.test) == 20
    assert f"1 of 21 images in {root / 'test'} have no known truth" in capsys.readouterr().out


# Near-duplicates


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8))


def test_near_duplicates_are_counted_and_what_was_moved_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 20 training images, three are copies of test images and two of each other."""
    root = tmp_path / "mine"
    for n in range(20):
        for part, image in (("train", noise(n)), ("test", noise(100 + n) if n < 8 else None)):
            if image:
                (root / part / TASK.names[n % 2]).mkdir(parents=True, exist_ok=True)
                image.save(root / part / TASK.names[n % 2] / f"{n}.png")
    for n in range(3):
        noise(100 + n).save(root / "train" / TASK.names[n % 2] / f"copy{n}.jpg", quality=80)
    noise(4).resize((96, 96)).save(root / "train" / TASK.names[0] / "large.png")
    options: dict[str, Any] = {"source": IN_PLACE, "root": str(root), "gold_size": 4}
    dataset = open_in(tmp_path / "home", make_spec(**options))
    assert dataset.near_duplicates == NearDuplicates(items=8, clusters=4, largest=2)
    assert dataset.splits.moved == 3 and len(dataset.splits.test) == 8 and len(items_of(dataset)) == 29
    told = " ".join(capsys.readouterr().out.split())
    assert "8 near-duplicates in 4 cluster(s), the largest of 2; 3 items moved out to keep groups and" in told
    plain = open_in(tmp_path / "home", make_spec(**options, near_duplicates=None))
    assert plain.near_duplicates == NearDuplicates(0, 0, 0) and plain.splits.moved == 0
    assert "near-duplicates" not in capsys.readouterr().out


@pytest.mark.parametrize(("copies", "warned"), [(30, True), (18, False)])
def test_a_large_cluster_is_told(
    tmp_path: Path, copies: int, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    root = paint(tmp_path / "mine", root=None, classes=TASK.names, download=False)
    for n in range(copies):
        noise(0).save(root / "apple" / f"copy{n:02d}.jpg", quality=60 + n)
    dataset = open_in(tmp_path / "home", make_spec(source=IN_PLACE, root=str(root)))
    assert dataset.near_duplicates == NearDuplicates(copies, 1, copies)
    told = " ".join(capsys.readouterr().out.split())
    named = "apple/copy00.jpg, apple/copy01.jpg, apple/copy02.jpg"
    assert (f"Warning: 30 of 70 items count as near-duplicates of each other and stay in one part: {named}" in told
            and "data.near_duplicates=null" in told) == warned


# Texts


def csv_spec(root: Path, **changes: Any) -> DataSpec:
    return make_spec(**({"name": "csv", "kind": "texts", "source": {"_target_": "src.data.texts.in_place",
                                                                    "_partial_": True},
                         "root": str(root), "text_column": "text", "truth_column": "gold", "near_duplicates": None}
                        | changes))


def rows_of(count: int) -> str:
    return "text,gold,film\n" + "".join(f"sentence {n},{TASK.names[n % 2]},film {n // 3}\n" for n in range(count))


def test_texts_are_read_and_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(rows_of(60) + "sentence 5,pear,film 1\nSentence 8!,apple,film 99\n,apple,x\n")
    dataset = open_in(tmp_path / "home", csv_spec(path, group_column="film"))
    assert (dataset.kind, dataset.root, dataset.name, dataset.drawn) == ("texts", path, "csv", False)
    assert (dataset.duplicates, dataset.near_duplicates) == (1, NearDuplicates(2, 1, 2))
    assert dataset.broken == {"rows.csv:64": "empty"}
    sides: dict[str | None, set[str]] = {}
    for part in dataset.splits.sizes():
        for item in getattr(dataset.splits, part):
            sides.setdefault(item.group, set()).add(part)
    assert len(sides) == 21 and all(len(parts) == 1 for parts in sides.values())
    assert sides["film 99"] == sides["film 2"]
    told = " ".join(capsys.readouterr().out.split())
    assert "Warning: 1 broken row(s) set aside: rows.csv:64 (empty)" in told
    assert "1 duplicate texts merged; 2 near-duplicates in 1 cluster(s), the largest of 2" in told


def test_texts_without_truth_need_gold(tmp_path: Path) -> None:
    path, gold = tmp_path / "rows.csv", tmp_path / "gold.csv"
    path.write_text(rows_of(30))
    with pytest.raises(DataError, match=r"No item in .*gold_csv=FILE \(columns text,label\), or name .*truth_column"):
        open_in(tmp_path / "home", csv_spec(path, truth_column=None))
    gold.write_text("text,label\n" + "".join(f"sentence {n},{TASK.names[n % 2]}\n" for n in range(8)))
    dataset = open_in(tmp_path / "home", csv_spec(path, truth_column=None, gold_csv=str(gold)))
    assert dataset.splits.sizes() == {"choose": 4, "certify": 4, "train": 18, "validation": 4, "test": 0}


def test_a_class_without_texts(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(rows_of(30))
    with pytest.raises(DataError, match=r"No text of class plum to learn from in .*rows\.csv"):
        open_in(tmp_path / "home", csv_spec(path), replace(TASK, classes={"apple": "", "pear": "", "plum": ""}))


@pytest.mark.parametrize(("key", "value"), [("text_column", None), ("truth_csv", "truth.csv")])
def test_keys_that_do_not_go_with_texts(tmp_path: Path, key: str, value: str | None) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{key}={value!r} is not allowed"):
        csv_spec(tmp_path, **{key: value})


def test_the_config_for_texts(tmp_path: Path) -> None:
    """As `conf/` says, through Hydra."""
    path = tmp_path / "rows.csv"
    path.write_text("text,gold\n" + "".join(f"film {n},{('neg', 'pos')[n % 2]}\n" for n in range(1000)))
    task, spec = composed("+task=movie_reviews", "+data=csv", f"data.root={path}", "data.truth_column=gold")
    dataset = open_in(tmp_path / "home", spec, task)
    assert dataset.splits.sizes() == {"choose": 100, "certify": 100, "train": 255, "validation": 45, "test": 500}
    assert {item.truth for item in dataset.splits.pool} == {"negative", "positive"}


# The digits that come with scikit-learn


@pytest.fixture(scope="module")
def digit_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, TaskSpec]:
    """As `conf/` says, through Hydra."""
    task, spec = composed("+task=digits", "+data=digits")
    return open_in(tmp_path_factory.mktemp("digits"), spec, task, stand_in=False), task


def test_digits_are_real_and_of_the_classes_that_scikit_learn_says(digit_set: tuple[Dataset, TaskSpec]) -> None:
    dataset, task = digit_set
    known = load_digits()
    assert not dataset.drawn
    assert len(items_of(dataset)) + dataset.duplicates == len(known.target) == 1797
    assert dataset.splits.sizes()["test"] == 400
    for item in items_of(dataset)[::50]:
        n = int(Path(item.name).stem)
        assert task.names.index(str(item.truth)) == known.target[n]
        ink = (255 - np.asarray(load(Path(item.payload), 100))[..., 0].astype(float)) * 16 / 255
        assert np.abs(ink - known.images[n]).max() <= 16 / 255


def test_digits_need_ten_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data=digits has ten classes, the task has 2: use it with task=digits"):
        digits.bring(tmp_path, root=None, classes=TASK.names, download=False)
