"""Folders, class folders and CSV files → items, and what is said where they do not fit."""

import csv
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from src.data.folder import Scan, describe_broken, image_files, in_place, scan
from src.errors import DataError
from src.task import Item, TaskSpec

TASK = TaskSpec(
    name="fruit", version=1, kind="classify", classes={"apple": "red", "pear": "green"}, aliases={"apples": "apple"},
    system_prompt="", user_prompt="", metric="accuracy",
)


def draw(path: Path, seed: int = 0, note: str = "") -> Path:
    """A small picture; `note` changes the file's bytes and not its looks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngImagePlugin.PngInfo()
    if note:
        info.add_text("note", note)
    Image.new("RGB", (4, 4), (seed % 256, seed // 256, 7)).save(path, "PNG", pnginfo=info)
    return path


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def read(root: Path, **options: Path) -> Scan:
    return scan(root, TASK, max_pixels=10_000, near_bits=10, **options)


def by_name(items: list[Item]) -> dict[str, Item]:
    return {item.name: item for item in items}


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Permissions do not bind root: be somebody else meanwhile."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# What a folder may hold


def test_a_gold_csv_leaves_the_truth_of_the_test_folders(tmp_path: Path) -> None:
    """What is to be labelled lies plainly in train/; test/ is in class folders, as people have it."""
    name = TASK.names[0]
    for n, place in enumerate(("train/a.png", "train/b.png", f"test/{name}/c.png")):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (n * 50, 0, 0)).save(tmp_path / place)
    (tmp_path / "gold.csv").write_text(f"file,label\na.png,{name}\n")
    found = scan(tmp_path, TASK, max_pixels=100, near_bits=None, gold_csv=tmp_path / "gold.csv")
    assert [item.truth for item in found.test] == [name]
    assert {item.name: item.truth for item in found.train} == {"train/a.png": name, "train/b.png": None}


def test_train_and_test_with_class_folders(tmp_path: Path) -> None:
    draw(tmp_path / "train/apple/a.png", 1)
    draw(tmp_path / "train/pear/b.png", 2)
    draw(tmp_path / "test/apple/c.png", 3)
    draw(tmp_path / "elsewhere.png", 4)
    found = read(tmp_path)
    assert {name: item.truth for name, item in by_name(found.train).items()} == {
        "train/apple/a.png": "apple", "train/pear/b.png": "pear"}
    assert {name: item.truth for name, item in by_name(found.test).items()} == {"test/apple/c.png": "apple"}
    assert (found.gold, found.broken, found.duplicates) == (frozenset(), {}, 0)


def test_an_item_is_named_by_its_bytes_and_points_to_its_file(tmp_path: Path) -> None:
    path = draw(tmp_path / "apple/a.png")
    (item,) = read(tmp_path).train
    assert item.key == hashlib.sha256(path.read_bytes()).hexdigest()
    assert item.payload == path
    assert (item.name, item.group, item.attributes) == ("apple/a.png", None, {})


def test_class_folders_alone_are_training_and_aliases_are_class_folders_too(tmp_path: Path) -> None:
    draw(tmp_path / "Apples/deep/er/a.png", 1)
    draw(tmp_path / "pear/b.png", 2)
    draw(tmp_path / "loose.png", 3)
    found = read(tmp_path)
    assert {item.name: item.truth for item in found.train} == {
        "Apples/deep/er/a.png": "apple", "pear/b.png": "pear", "loose.png": None}
    assert found.test == []


def test_plain_files_have_no_truth(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 1)
    draw(tmp_path / "b.PNG", 2)
    assert [(item.name, item.truth) for item in read(tmp_path).train] == [("a.png", None), ("b.PNG", None)]


def test_hidden_files_and_other_files_are_left_alone(tmp_path: Path) -> None:
    draw(tmp_path / "apple/a.png", 1)
    draw(tmp_path / "apple/._a.png", 2)
    draw(tmp_path / ".cache/b.png", 3)
    write(tmp_path / "apple/notes.txt", "no image")
    write(tmp_path / "apple/Thumbs.db", "no image")
    found = read(tmp_path)
    assert [item.name for item in found.train] == ["apple/a.png"]
    assert found.broken == {}


def test_a_folder_that_is_itself_hidden_is_read(tmp_path: Path) -> None:
    draw(tmp_path / ".data/apple/a.png")
    assert len(read(tmp_path / ".data").train) == 1


def test_linked_folders_are_read(tmp_path: Path) -> None:
    draw(tmp_path / "far/a.png", 1)
    (tmp_path / "root").mkdir()
    (tmp_path / "root/apple").symlink_to(tmp_path / "far")
    assert [(item.name, item.truth) for item in read(tmp_path / "root").train] == [("apple/a.png", "apple")]


def test_files_come_in_one_order(tmp_path: Path) -> None:
    names = ["b/1.png", "a/2.png", "a/10.png", "B/1.png", "a.png"]
    for name in names:
        draw(tmp_path / name)
    assert image_files(tmp_path) == sorted(tmp_path / name for name in names)


# What cannot be read


def test_no_folder_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data=folder needs data\.root=FOLDER"):
        in_place(tmp_path / "into", root=None, classes=TASK.names, download=False)


@pytest.mark.parametrize("name", ["nowhere", "file.png"])
def test_a_folder_that_is_none(tmp_path: Path, name: str) -> None:
    draw(tmp_path / "file.png")
    with pytest.raises(DataError, match=rf"data\.root='{tmp_path / name}' is not a folder"):
        in_place(tmp_path / "into", root=tmp_path / name, classes=TASK.names, download=False)


def test_a_folder_is_used_where_it_lies(tmp_path: Path) -> None:
    assert in_place(tmp_path / "into", root=tmp_path, classes=TASK.names, download=False) == tmp_path
    assert not (tmp_path / "into").exists()


def test_an_empty_folder(tmp_path: Path) -> None:
    write(tmp_path / "readme.txt", "nothing here")
    with pytest.raises(DataError, match=rf"No images in {tmp_path}\. Files ending in \.bmp, .*\.webp are read"):
        read(tmp_path)


def test_test_without_train(tmp_path: Path) -> None:
    draw(tmp_path / "test/apple/a.png")
    with pytest.raises(DataError, match=rf"{tmp_path} holds test/ but no train/.*{tmp_path / 'train'}"):
        read(tmp_path)


@pytest.mark.parametrize("locked", ["", "apple"])
@pytest.mark.parametrize("mode", [0o000, 0o300])
def test_a_folder_that_may_not_be_read(tmp_path: Path, locked: str, mode: int, request: pytest.FixtureRequest) -> None:
    root = tmp_path / "root"
    draw(root / "apple/a.png")
    base = Path(tempfile.gettempdir()).resolve()
    for parent in (tmp_path, *tmp_path.parents):
        if parent.is_relative_to(base) and parent != base:
            parent.chmod(0o755)
    (root / locked).chmod(mode)
    request.getfixturevalue("unprivileged")
    try:
        with pytest.raises(DataError, match=rf"{root / locked} cannot be read \(Permission denied\): check its"):
            read(root)
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        (root / locked).chmod(0o755)


def test_links_that_go_round_in_a_circle_end(tmp_path: Path) -> None:
    a, b = draw(tmp_path / "apple/a.png", 1), draw(tmp_path / "pear/b.png", 2)
    (tmp_path / "apple/again").symlink_to(tmp_path)
    assert image_files(tmp_path) == [a, b]
    (tmp_path / "apple/other").symlink_to(tmp_path / "pear")
    (tmp_path / "pear/other").symlink_to(tmp_path / "apple")
    assert image_files(tmp_path) == [a, tmp_path / "apple/other/b.png", b, tmp_path / "pear/other/a.png"]
    with pytest.raises(DataError, match="are the same image with two truths"):
        read(tmp_path)


def test_one_broken_image_among_many_is_set_aside_and_named(tmp_path: Path) -> None:
    for n in range(20):
        draw(tmp_path / f"apple/{n:02d}.png", n)
    whole = (tmp_path / "apple/00.png").read_bytes()
    (tmp_path / "apple/cut.png").write_bytes(whole[:50])
    write(tmp_path / "apple/text.jpg", "not an image")
    (tmp_path / "apple/gone.png").symlink_to(tmp_path / "nowhere.png")
    Image.new("RGB", (101, 100)).save(tmp_path / "apple/huge.png")
    found = read(tmp_path)
    assert len(found.train) == 20
    assert found.broken.keys() == {f"apple/{name}" for name in ("cut.png", "text.jpg", "gone.png", "huge.png")}
    assert found.broken["apple/huge.png"] == "101x100 pixels, more than data.max_pixels=10000"
    assert "No such file" in found.broken["apple/gone.png"]
    told = describe_broken(found.broken)
    assert told.startswith("4 broken image(s) set aside: ")
    assert "apple/text.jpg (not an image of a known kind)" in told


def test_of_many_broken_images_five_are_named() -> None:
    told = describe_broken({f"{n}.png": "cut" for n in range(7)})
    assert told == "7 broken image(s) set aside: " + "; ".join(f"{n}.png (cut)" for n in range(5)) + "; …"


def test_nothing_but_broken_images(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write(tmp_path / name, "not an image")
    with pytest.raises(DataError, match=rf"None of the 2 images in {tmp_path} can be read.*a\.png \(not an image"):
        read(tmp_path)


def test_a_folder_that_is_no_class(tmp_path: Path) -> None:
    draw(tmp_path / "train/plum/a.png")
    folder = tmp_path / "train/plum"
    with pytest.raises(DataError, match=rf"{folder} is not a class of task fruit.*apple, pear.*truth_csv"):
        read(tmp_path)


# The same image more than once


def test_copies_are_merged_and_counted(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "c/a.png"):
        draw(tmp_path / "apple" / name)
    found = read(tmp_path)
    assert [item.name for item in found.train] == ["apple/a.png"]
    assert found.duplicates == 2


def test_a_copy_of_a_test_image_is_not_trained_on(tmp_path: Path) -> None:
    draw(tmp_path / "test/apple/a.png", 1)
    draw(tmp_path / "train/apple/z.png", 1)
    draw(tmp_path / "train/apple/b.png", 2)
    found = read(tmp_path)
    assert [item.name for item in found.test] == ["test/apple/a.png"]
    assert [item.name for item in found.train] == ["train/apple/b.png"]
    assert found.duplicates == 1


def test_a_copy_with_truth_gives_it_to_the_one_without(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "pear/b.png")
    (item,) = read(tmp_path).train
    assert (item.name, item.truth) == ("a.png", "pear")


@pytest.mark.parametrize("first", ["train", "test"])
def test_two_truths_of_one_image_are_refused(tmp_path: Path, first: str) -> None:
    draw(tmp_path / first / "apple/a.png")
    draw(tmp_path / "train/pear/b.png")
    two = rf"{first}/apple/a\.png \(apple\) and train/pear/b\.png \(pear\)"
    with pytest.raises(DataError, match=rf"{two} are the same image with two truths"):
        read(tmp_path)


def test_look_alikes_are_two_items_with_one_twin(tmp_path: Path) -> None:
    draw(tmp_path / "apple/a.png", 1)
    draw(tmp_path / "apple/b.png", 1, note="another file")
    draw(tmp_path / "apple/c.png", 2)
    a, b, c = read(tmp_path).train
    assert a.key != b.key
    assert a.twin == b.twin != c.twin


def blobs(seed: int, size: int = 64) -> Image.Image:
    """A picture with detail, which hashes can tell from others."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("bits", [10, 0, None])
def test_near_duplicates_get_one_twin_where_they_are_sought(tmp_path: Path, bits: int | None) -> None:
    for part in ("train", "test"):
        (tmp_path / part / "apple").mkdir(parents=True)
    for n in range(5):
        blobs(n).save(tmp_path / f"train/apple/{n}.png")
    blobs(0).save(tmp_path / "train/apple/same.png", compress_level=1)
    blobs(0).save(tmp_path / "test/apple/copy.jpg", quality=70)
    found = scan(tmp_path, TASK, max_pixels=10_000, near_bits=bits)
    items = by_name([*found.train, *found.test])
    twins = {Path(name).stem: item.twin for name, item in items.items()}
    assert twins["0"] == twins["same"]
    assert (twins["0"] == twins["copy"]) == (bits is not None)
    assert len(set(twins.values())) == (5 if bits is not None else 6)


# Truth from a CSV


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    for n in range(4):
        draw(tmp_path / f"images/{n}.png", n)
    return tmp_path / "images"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_truth_groups_and_attributes_come_from_a_csv(plain: Path, encoding: str) -> None:
    rows = "file,label,group,city\n0.png,Apples,g1,Köln\n1.png,pear,,\n2.png,pear,g1,Rom\n"
    found = read(plain, truth_csv=write(plain.parent / "truth.csv", rows, encoding))
    items = by_name(found.train)
    assert {name: (item.truth, item.group, item.attributes) for name, item in items.items()} == {
        "0.png": ("apple", "g1", {"city": "Köln"}),
        "1.png": ("pear", None, {"city": ""}),
        "2.png": ("pear", "g1", {"city": "Rom"}),
        "3.png": (None, None, {}),
    }
    assert found.gold == frozenset()


def test_with_a_csv_folders_are_only_folders(tmp_path: Path) -> None:
    draw(tmp_path / "batch7/a.png", 1)
    draw(tmp_path / "pear/b.png", 2)
    truth = write(tmp_path / "truth.csv", "file,label\nbatch7/a.png,apple\n")
    assert {item.name: item.truth for item in read(tmp_path, truth_csv=truth).train} == {
        "batch7/a.png": "apple", "pear/b.png": None}


def test_a_small_gold_csv_is_gold_and_the_rest_unknown(plain: Path) -> None:
    found = read(plain, gold_csv=write(plain / "gold.csv", "file,label\n1.png,apple\n3.png,pear\n"))
    items = by_name(found.train)
    assert found.gold == {items["1.png"].key, items["3.png"].key}
    assert [items[f"{n}.png"].truth for n in range(4)] == [None, "apple", None, "pear"]


def test_gold_that_names_the_second_of_two_copies_is_gold(plain: Path) -> None:
    draw(plain / "copy.png", 0)
    found = read(plain, gold_csv=write(plain / "gold.csv", "file,label,group\ncopy.png,apple,g1\n"))
    item = by_name(found.train)["0.png"]
    assert (item.truth, item.group, found.gold) == ("apple", "g1", {item.key})


def test_a_hand_checked_label_goes_before_the_csv_and_keeps_its_group(plain: Path) -> None:
    truth = write(plain / "truth.csv", "file,label,group\n0.png,pear,g1\n1.png,pear,g2\n")
    gold = write(plain / "gold.csv", "file,label\n0.png,apple\n")
    found = read(plain, truth_csv=truth, gold_csv=gold)
    items = by_name(found.train)
    assert (items["0.png"].truth, items["0.png"].group) == ("apple", "g1")
    assert (items["1.png"].truth, items["1.png"].group) == ("pear", "g2")
    assert found.gold == {items["0.png"].key}


@pytest.mark.parametrize("name", ["a.png", "train/a.png", "./train/../train/a.png", "../data/train/a.png", "ABSOLUTE"])
@pytest.mark.parametrize("relative", [True, False])
def test_file_names_are_relative_to_what_people_think(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, relative: bool
) -> None:
    draw(tmp_path / "data/train/a.png")
    monkeypatch.chdir(tmp_path)
    root = Path("data") if relative else tmp_path / "data"
    rows = f"file,label\n{tmp_path / 'data/train/a.png' if name == 'ABSOLUTE' else name},pear\n"
    (item,) = read(root, truth_csv=write(tmp_path / "data/truth.csv", rows)).train
    assert item.truth == "pear"


def test_file_names_relative_to_a_csv_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "data/a.png")
    write(tmp_path / "truth.csv", "file,label\ndata/a.png,pear\n")
    monkeypatch.chdir(tmp_path)
    (item,) = read(tmp_path / "data", truth_csv=Path("truth.csv")).train
    assert item.truth == "pear"


BAD_ROWS = {
    "no label": ("file,class\n0.png,apple\n",
                 r"no column 'label' \(KEY needs the columns `file` and `label`\)\. Columns found: 'file', 'class'\."),
    "no file": ("name;label\n0.png;apple\n", r"no column 'file' \(KEY .*Columns found: 'name', 'label'\."),
    "no rows": ("file,label\n", "no row below its header: give each image and its class"),
    "nothing": ("", "needs the columns `file` and `label`.*It is empty"),
    "UTF-16": ("\0f\0i\0l\0e\0,\0l\0a\0b\0e\0l\0\n", "holds NUL bytes, as UTF-16 files do: save it as UTF-8"),
    "unknown label": ("file,label\n0.png,apple\n1.png,plum\n", r"line 3: 'plum' is not a class\. Classes: apple, pear"),
    "empty label": ("file,label\n0.png,\n", "line 2: '' is not a class"),
    "short row": ("file,label\n0.png\n", "line 2: '' is not a class"),
    "file comes last": ("label,file\napple\n", "line 2: there is no image ''"),
    "missing file": ("file,label\n9.png,apple\n", r"line 2: there is no image '9\.png' in .*images"),
    "a folder": ("file,label\n.,apple\n", r"line 2: there is no image '\.'"),
    "no image": ("file,label\nrows.csv,apple\n", r"line 2: there is no image 'rows\.csv'"),
    "two truths": ("file,label\n0.png,apple\n1.png,pear\n./0.png,pear\n",
                   r"line 4: '\./0\.png' is apple in a line above and pear here"),
}


@pytest.mark.parametrize("kind", ["truth_csv", "gold_csv"])
@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_csv_that_does_not_fit(plain: Path, case: str, kind: str) -> None:
    rows, message = BAD_ROWS[case]
    path = write(plain / "rows.csv", rows)
    with pytest.raises(DataError, match=rf"{path}.*{message.replace('KEY', f'data.{kind}')}"):
        read(plain, **{kind: path})


@pytest.mark.parametrize("kind", ["truth_csv", "gold_csv"])
def test_a_csv_that_cannot_be_read(plain: Path, kind: str) -> None:
    for path in (plain / "nowhere.csv", plain):
        with pytest.raises(DataError, match=rf"data\.{kind}='{path}' cannot be read: (No such file|Is a directory)"):
            read(plain, **{kind: path})
    latin = write(plain / "latin.csv", "file,label\n0.png,apple\nä.png,apple\n", "latin-1")
    with pytest.raises(DataError, match=rf"{latin}, line 3, is not UTF-8: save the file as UTF-8"):
        read(plain, **{kind: latin})


@pytest.mark.parametrize("bom", [False, True])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_spreadsheets_csv_is_read_whatever_its_delimiter(plain: Path, delimiter: str, bom: bool) -> None:
    rows = "file; label ;group;city;\r\n0.png;Apples;g1;Köln, am Rhein;\r\n\r\n1.png;pear\r\n"
    rows = rows.replace("Köln, am Rhein", '"Köln, am Rhein"').replace(";", delimiter)
    path = write(plain / "truth.csv", rows, "utf-8-sig" if bom else "utf-8")
    items = by_name(read(plain, truth_csv=path).train)
    assert {name: (item.truth, item.group, item.attributes) for name, item in items.items() if item.truth} == {
        "0.png": ("apple", "g1", {"city": "Köln, am Rhein"}), "1.png": ("pear", None, {"city": ""})}
    gold = write(plain / "gold.csv", rows)
    assert len(read(plain, gold_csv=gold).gold) == 2


def test_an_image_outside_the_folder_is_not_silently_gold(plain: Path) -> None:
    draw(plain.parent / "outside.png", 9)
    gold = write(plain.parent / "gold.csv", "file,label\noutside.png,apple\n")
    with pytest.raises(DataError, match=r"there is no image 'outside\.png' in"):
        read(plain, gold_csv=gold)


def test_names_with_commas_quotes_and_spaces(tmp_path: Path) -> None:
    name = 'a, "b" c.png'
    draw(tmp_path / name)
    with (tmp_path / "truth.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows([("file", "label"), (name, "pear")])
    (item,) = read(tmp_path, truth_csv=tmp_path / "truth.csv").train
    assert (item.name, item.truth) == (name, "pear")
