"""Image files: what is refused and why, and the recipe's enlargement against Pillow's own pipeline."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from src.data.images import MAX_ASPECT, Unreadable, decode, load, pixel_hash, resized, shown, square
from src.data.spec import Shown
from src.errors import ConfigError

PIXELS = 1_000_000
RECIPE = Shown(size=224, sharpen=True, jpeg_quality=90)


def photo(width: int = 32, height: int = 32, seed: int = 0) -> Image.Image:
    """Smooth blobs of colour: nothing that JPEG or a filter would make unrecognisable."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixel: whoever decodes it fails."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


# Decoding


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_files_give_their_very_pixels(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode(encoded(photo(), kind, **options), PIXELS)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(photo()))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_truncated_file_is_damaged(kind: str) -> None:
    whole = encoded(photo(64, 64), kind)
    decode(whole, PIXELS)
    with pytest.raises(Unreadable, match=r"damaged or not an image: ."):
        decode(whole[: len(whole) * 2 // 3], PIXELS)


@pytest.mark.parametrize("payload", [b"", b"file,label\n", b"\x00" * 100], ids=["empty", "text", "zeros"])
def test_what_is_no_image_is_named_without_addresses_of_memory(payload: bytes) -> None:
    with pytest.raises(Unreadable, match=r"^not an image of a known kind$"):
        decode(payload, PIXELS)


def test_a_huge_image_is_refused_by_its_header_alone() -> None:
    with pytest.raises(Unreadable, match=r"^1001x1000 pixels, more than data.max_pixels=1000000$"):
        decode(png_header(1001, 1000), PIXELS)
    # The limit itself is allowed: this one gets as far as its missing pixels.
    with pytest.raises(Unreadable, match="damaged"):
        decode(png_header(1000, 1000), PIXELS)


@pytest.mark.parametrize("kind", ["EPS", "ICO", "ICNS", "PCX", "TGA"])
def test_kinds_of_files_that_are_not_promised_are_not_opened(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """EPS would start Ghostscript on what a client sent; ICO decodes before its size can be known."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("a program was started"))
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, kind)
    with pytest.raises(Unreadable, match="not an image of a known kind"):
        decode(file.getvalue(), 10**6)


def test_a_decompression_bomb_is_refused_also_where_the_limit_is_higher() -> None:
    with pytest.raises(Unreadable, match=r"too many pixels: .*400000000"):
        decode(png_header(20_000, 20_000), 10**12)


def test_between_the_libraries_warning_and_our_limit_nothing_is_said() -> None:
    # 100 million pixels: Pillow warns from 89 million on, and warnings are errors here.
    with pytest.raises(Unreadable, match="damaged"):
        decode(png_header(10_000, 10_000), 10**12)


def test_a_strip_is_refused_before_it_is_enlarged() -> None:
    strip = encoded(Image.new("RGB", (2, 2 * MAX_ASPECT + 1)))
    with pytest.raises(Unreadable, match=r"^2x31 pixels, a strip longer than 15 to 1$"):
        decode(strip, PIXELS)
    longest = Shown(size=4096, sharpen=False, jpeg_quality=90)
    assert longest.size * MAX_ASPECT < 65_500  # what JPEG can hold
    assert decode(encoded(Image.new("RGB", (2 * MAX_ASPECT, 2))), PIXELS).size == (30, 2)


def test_of_an_animation_the_first_picture_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        animated = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert decode(animated, PIXELS).getpixel((4, 4)) == (255, 0, 0), kind


def test_a_palette_becomes_its_colours() -> None:
    paletted = photo().quantize(16)
    assert np.array_equal(np.asarray(decode(encoded(paletted), PIXELS)), np.asarray(paletted.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(mode: str) -> None:
    black = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    black.putpixel((1, 0), (0, 0, 0, 0))
    if mode == "P":
        image = Image.new("P", (2, 1))
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.putpixel((1, 0), 1)
        payload = encoded(image, transparency=1)
    else:
        payload = encoded(black.convert(mode))
    decoded = decode(payload, PIXELS)
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]


def test_half_transparency_is_half_white() -> None:
    assert decode(encoded(Image.new("RGBA", (1, 1), (200, 100, 0, 128))), PIXELS).getpixel((0, 0)) == pytest.approx(
        [round(c * 128 / 255 + 255 * 127 / 255) for c in (200, 100, 0)], abs=1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_keep_their_shades(kind: str) -> None:
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    decoded = np.asarray(decode(encoded(Image.fromarray(ramp), kind), PIXELS))
    assert np.array_equal(decoded[..., 0], np.arange(256).reshape(16, 16))
    assert np.array_equal(decoded[..., 0], decoded[..., 2])


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_unknown_range_are_refused(dtype: type) -> None:
    with pytest.raises(Unreadable, match="32 bits per pixel"):
        decode(encoded(Image.fromarray(np.ones((4, 4), dtype)), "TIFF"), PIXELS)


def test_cmyk_keeps_its_colours() -> None:
    cmyk = Image.new("RGB", (16, 16), (200, 40, 60)).convert("CMYK")
    assert decode(encoded(cmyk, "JPEG", quality=95), PIXELS).getpixel((8, 8)) == pytest.approx((200, 40, 60), abs=6)


def test_grey_and_one_bit_become_rgb() -> None:
    assert decode(encoded(Image.new("L", (2, 2), 77)), PIXELS).getpixel((0, 0)) == (77, 77, 77)
    assert decode(encoded(Image.new("1", (2, 2), 1)), PIXELS).getpixel((0, 0)) == (255, 255, 255)


# EXIF orientation: what the flag says was done to the picture, by Pillow's name of the same turn.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("flag", TURNS)
def test_exif_orientation_is_undone(flag: int) -> None:
    upright = photo(24, 16)
    exif = Image.Exif()
    exif[0x0112] = flag
    decoded = decode(encoded(upright.transpose(TURNS[flag]), exif=exif), PIXELS)
    assert np.array_equal(np.asarray(decoded), np.asarray(upright))


def test_looks_are_compared_and_not_bytes(tmp_path: Path) -> None:
    plain = encoded(photo())
    other = encoded(photo(), compress_level=0, dpi=(300, 300))
    assert plain != other
    assert pixel_hash(decode(plain, PIXELS)) == pixel_hash(decode(other, PIXELS))
    assert pixel_hash(photo(8, 4)) != pixel_hash(Image.fromarray(np.asarray(photo(8, 4)).reshape(8, 4, 3)))
    (tmp_path / "a.png").write_bytes(plain)
    assert pixel_hash(load(tmp_path / "a.png", PIXELS)) == pixel_hash(photo())


# What is shown, and what a student gets


def test_the_teacher_sees_what_the_published_recipe_makes() -> None:
    """resize((224, 224), BICUBIC), UnsharpMask(radius=1, percent=150, threshold=3), JPEG of quality 90."""
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    enlarged = image.resize((224, 224), Image.Resampling.BICUBIC)
    sharpened = enlarged.filter(ImageFilter.UnsharpMask(radius=1, percent=150, threshold=3))
    expected = encoded(sharpened, "JPEG", quality=90)
    assert shown(image, RECIPE) == expected
    assert Image.open(io.BytesIO(expected)).size == (224, 224)
    assert expected != encoded(enlarged, "JPEG", quality=90)


def test_the_jpegs_quality_is_a_setting() -> None:
    sizes = [len(shown(photo(), Shown(size=224, sharpen=True, jpeg_quality=q))) for q in (10, 50, 90)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(("size", "expected"), [
    ((32, 48), (224, 336)), ((48, 32), (336, 224)), ((640, 480), (299, 224)), ((224, 500), (224, 500)),
    ((1, 1), (224, 224)), ((33, 32), (231, 224)),
])
def test_the_shorter_side_gets_the_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized(photo(*size), 224, sharpen=True).size == expected


@pytest.mark.parametrize("size", [(32, 32), (300, 300), (224, 224)])
def test_only_what_was_enlarged_is_sharpened(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8))
    plain, sharp = (np.asarray(resized(image, 224, sharpen=sharpen)) for sharpen in (False, True))
    assert np.array_equal(plain, sharp) == (size != (32, 32))
    assert np.array_equal(plain, np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC)))


def test_a_student_gets_the_middle_square() -> None:
    stripes = Image.new("RGB", (96, 32), "white")
    stripes.paste((0, 0, 0), (32, 0, 64, 32))
    for image in (stripes, stripes.transpose(Image.Transpose.ROTATE_90)):
        middle = square(image, 32, sharpen=True)
        assert middle.shape == (32, 32, 3)
        assert middle.dtype == np.uint8
        assert not middle.any()


def test_a_students_square_is_cut_from_the_teachers_view() -> None:
    image = photo(48, 32)
    whole = np.asarray(resized(image, 96, sharpen=True))
    assert whole.shape == (96, 144, 3)
    assert np.array_equal(square(image, 96, sharpen=True), whole[:, 24:120])


@pytest.mark.parametrize(("key", "value"), [("size", 15), ("size", 4097), ("jpeg_quality", 0), ("jpeg_quality", 101)])
def test_settings_out_of_range_are_named(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"data.shown.{key}={value} is not allowed"):
        Shown(**{"size": 224, "sharpen": True, "jpeg_quality": 90, key: value})
