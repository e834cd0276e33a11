"""What is kept of escalated items: whole or not at all, once, for its time, and never more than allowed."""

import io
import os
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image

from src.data.folder import image_files
from src.data.images import SUFFIXES, load
from src.errors import StoreError
from src.serving import payloads as module
from src.serving.payloads import Payloads

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
KEY = "ab" + "0" * 62


def key(n: int) -> str:
    return f"{n:064x}"[::-1]


def aged(path: Path, at: datetime) -> Path:
    os.utime(path, (at.timestamp(), at.timestamp()))
    return path


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_an_image_is_kept_as_it_came_where_the_data_room_reads_it(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (200, 30, 30)).save(buffer, format=kind)
    path = Payloads(tmp_path, 1, 10**6).keep(KEY, buffer.getvalue())
    assert path.read_bytes() == buffer.getvalue() and path.parent.name == "ab" and path.stem == KEY
    assert path.suffix in SUFFIXES and image_files(tmp_path) == [path] and load(path, 10**6).size == (40, 40)
    assert (path.suffix == ".png") == (kind in ("PNG", "PPM"))
    assert Payloads(tmp_path, 1, 10**6).find(KEY) == path


def test_a_known_truth_is_a_class_folder(tmp_path: Path) -> None:
    kept = Payloads(tmp_path, 1, 10**6)
    plain, pear = kept.keep(key(1), b"1"), kept.keep(key(2), b"2", truth="pear")
    ad = kept.keep(key(3), b"3", truth="ad")  # could be taken for a shard
    assert names(tmp_path) == {f"10/{key(1)}.png", f"pear/20/{key(2)}.png", f"ad/30/{key(3)}.png"}
    assert [kept.find(key(n)) for n in range(1, 5)] == [plain, pear, ad, None]
    for truth in ("../../x", "a/b", ".hidden"):
        with pytest.raises(StoreError, match="cannot name a folder"):
            kept.keep(key(4), b"4", truth=truth)
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize("wrong", ["../" * 5 + "etc/passwd", "", "ab", "A" * 64, "ab/" + "0" * 61, "0" * 63 + "\n"])
def test_a_key_is_a_key_and_no_path(tmp_path: Path, wrong: str) -> None:
    kept = Payloads(tmp_path / "served", 1, 10**6)
    assert kept.find(wrong) is None
    with pytest.raises(ValueError, match=re.escape(f"key={wrong!r}")):
        kept.keep(wrong, b"x")
    assert not (tmp_path / "served").exists() and kept.expire(NOON) == 0


def test_what_is_seen_again_is_kept_from_now_on(tmp_path: Path) -> None:
    kept = Payloads(tmp_path, 2, 10**6)
    first = aged(kept.keep(key(1), b"one"), NOON - timedelta(days=3))
    second = aged(kept.keep(key(2), b"two"), NOON - timedelta(days=3))
    assert kept.keep(key(1), b"one") == first
    assert kept.expire(NOON) == 1 and first.exists() and not second.exists() and kept.find(key(2)) is None
    assert kept.keep(key(2), b"two") == second and second.read_bytes() == b"two"


def test_a_time_is_kept_to_and_survives_a_copy(tmp_path: Path) -> None:
    kept = Payloads(tmp_path / "a", 1.5, 10**6)
    paths = [kept.keep(key(n), b"x") for n in range(4)]
    for hours, path in zip((0, 35.9, 36.1, 99), paths, strict=True):
        aged(path, NOON - timedelta(hours=hours))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    kept = Payloads(tmp_path / "b", 1.5, 10**6)
    assert kept.expire(NOON) == 2 and len(names(tmp_path / "b")) == 2 and kept.expire(NOON) == 0
    assert kept.expire(NOON + timedelta(days=2)) == 2 and kept.find(key(0)) is None


def test_where_they_are_too_many_the_oldest_go(tmp_path: Path) -> None:
    kept = Payloads(tmp_path, 99, 1000)
    for n in range(10):
        aged(kept.keep(key(n), bytes(100)), NOON + timedelta(seconds=25 * n))  # several in one slice of time
    assert len(names(tmp_path)) == 10
    new = kept.keep(key(10), bytes(50))
    # A tenth of all that is allowed goes with what had to.
    assert [kept.find(key(n)) is not None for n in range(11)] == [False] * 2 + [True] * 9
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.png")) == 850
    assert new.exists()
    # Another process' view of it: what lies there counts, though it wrote none of it.
    smaller = Payloads(tmp_path, 99, 420)
    assert smaller.expire(NOON) == 5 and smaller.find(key(10)) == new
    assert [kept.find(key(n)) is not None for n in range(2, 10)] == [False] * 5 + [True] * 3
    with pytest.raises(StoreError, match=r"500 bytes are more than may be kept.*raise serving\.keep_gb"):
        smaller.keep(key(77), bytes(500))


def test_a_full_disk_is_said_and_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Payloads(tmp_path, 1, 10**6)
    kept.keep(key(1), b"one")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        with pytest.raises(StoreError, match=r"could not be kept in .*: No space left on device\. The disk is full"):
            kept.keep(key(2), b"two")
    assert names(tmp_path) == {f"10/{key(1)}.png"} and kept.find(key(2)) is None
    assert kept.keep(key(2), b"two").read_bytes() == b"two", "it goes on once there is room"


def test_what_a_writer_left_that_died_goes_with_the_rest(tmp_path: Path) -> None:
    kept = Payloads(tmp_path, 1, 10**6)
    path = kept.keep(key(1), b"one")
    left = path.with_name(f".{key(2)}.png.0011.partial")
    left.write_bytes(b"tw")
    assert kept.find(key(2)) is None and image_files(tmp_path) == [path]
    aged(left, NOON - timedelta(days=2))
    assert kept.expire(NOON) == 0 and names(tmp_path) == {f"10/{key(1)}.png"}


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "served").write_text("")
    kept = Payloads(tmp_path / "served", 1, 10**6)
    for use in (lambda: kept.keep(KEY, b"x"), lambda: kept.find(KEY), lambda: kept.expire(NOON)):
        with pytest.raises(StoreError, match=r"served: Not a directory\. Check that it is a folder"):
            use()
