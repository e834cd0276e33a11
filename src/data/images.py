"""Image files: are they whole, how are they shown to a teacher, and what does a student get.

Knows nothing about folders, labels or torch.
"""

import hashlib
import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError

from src.data.spec import Shown

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
# Whatever the file is called. Of the dozens that Pillow knows, EPS runs Ghostscript on what was sent, and ICO decodes
# the picture inside before its size can be checked.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# The published recipe's sharpening of enlarged images: radius in pixels, strength in percent, threshold in levels.
UNSHARP = ImageFilter.UnsharpMask(radius=1, percent=150, threshold=3)
# A strip of 1×5000 pixels is small, but with its shorter side at 224 it fills gigabytes, and no JPEG can be that long.
MAX_ASPECT = 15


class Unreadable(Exception):
    """An image that cannot be used; its text says why. Never leaves the data room."""


def decode(payload: bytes, max_pixels: int) -> Image.Image:
    """An RGB image, upright by its EXIF flag, of an animation the first picture; transparency lies on white.

    Raises Unreadable. The size is checked before decoding.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit stands below; Pillow's other warnings are about metadata
            with Image.open(io.BytesIO(payload), formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise Unreadable(f"{image.width}x{image.height} pixels, more than data.max_pixels={max_pixels}")
                if max(image.size) > MAX_ASPECT * min(image.size):
                    raise Unreadable(f"{image.width}x{image.height} pixels, a strip longer than {MAX_ASPECT} to 1")
                if image.mode in ("I", "F"):
                    raise Unreadable("32 bits per pixel, and nothing says which value is white: save it with 8 or 16")
                image.load()
                upright = ImageOps.exif_transpose(image)
                if upright.mode.startswith("I;16"):  # Pillow would cut off at 255, and nearly everything were white
                    upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
                if "A" in upright.getbands() or "transparency" in upright.info:
                    upright = upright.convert("RGBA")
                    upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
                return upright.convert("RGB")
    except Unreadable:
        raise
    except Image.DecompressionBombError as error:
        raise Unreadable(f"too many pixels: {error}") from error
    except UnidentifiedImageError as error:  # its own text is the address of our buffer
        raise Unreadable("not an image of a known kind") from error
    except Exception as error:  # Pillow raises a dozen types on damaged files, SyntaxError among them
        raise Unreadable(f"damaged or not an image: {error}") from error


def pixel_hash(image: Image.Image) -> str:
    """Equal for images that look identical, whatever their files hold."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def resized(image: Image.Image, size: int, *, sharpen: bool) -> Image.Image:
    """The image with its shorter side at `size` pixels, bicubic; sharpened only where it was enlarged."""
    scale = size / min(image.size)
    if scale == 1:
        return image
    target = (max(size, round(image.width * scale)), max(size, round(image.height * scale)))
    larger = image.resize(target, Image.Resampling.BICUBIC)
    return larger.filter(UNSHARP) if sharpen and scale > 1 else larger


def shown(image: Image.Image, how: Shown) -> bytes:
    """The JPEG bytes that a teacher sees: the shorter side at `how.size` pixels."""
    encoded = io.BytesIO()
    resized(image, how.size, sharpen=how.sharpen).save(encoded, format="JPEG", quality=how.jpeg_quality)
    return encoded.getvalue()


def square(image: Image.Image, size: int, *, sharpen: bool) -> NDArray[np.uint8]:
    """The image's centre as a student gets it: size × size × 3."""
    whole = resized(image, size, sharpen=sharpen)
    left, top = (whole.width - size) // 2, (whole.height - size) // 2
    return np.asarray(whole.crop((left, top, left + size, top + size)))


def load(path: Path, max_pixels: int) -> Image.Image:
    return decode(path.read_bytes(), max_pixels)
