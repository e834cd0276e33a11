"""A drawn stand-in for a photo data set: small RGB pictures of described things, in class folders.

Contract: `draw` writes `root/{train,test}/<class>/<class>_00001.png` from a description of each class, byte for byte
the same for the same seed, description and library versions; picture i of a class depends on neither the counts nor the
other classes. What the classes are stands in the description (conf/data/source/rendered.yaml), never here. This module
knows nothing about splits, labels, teachers or students.

Every thing is a stack of parts, and every part a body of revolution: half widths along an axis give its outline and
also its surface normals, so one routine draws and lights a fruit, a stalk and a leaf. Lengths are in half pictures
(x right, y down, both -1 to 1 across the picture, z towards the eye), colours and shares in 0 to 1.
"""

import colorsys
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from src.console import progress
from src.errors import DataError

SIDE = 32  # pixels of a written picture
FINE = 2 * SIDE  # pixels it is drawn at; edges are antialiased besides, from their distance

Array: TypeAlias = NDArray[np.floating[Any]]
Range: TypeAlias = tuple[float, float]
Colour: TypeAlias = tuple[Range, Range, Range]  # hue (may pass 1: red lies at both ends), saturation, value

_SCENERY: Colour = ((0, 1), (0, 0.6), (0.15, 1))  # any hue, seldom strong
_AXIS = ((np.arange(FINE) + 0.5) / SIDE - 1).astype(np.float32)
_REACH, _STEPS = 1.25, 200  # a part's width table: how far along the axis, in half lengths, and its entries
_ALONG = np.linspace(-_REACH, _REACH, _STEPS + 1)
_ANGLE, _BEYOND = np.arccos(-_ALONG.clip(-1, 1)) / math.pi, np.maximum(np.abs(_ALONG) - 1, 0)


@dataclass(frozen=True)
class Part:
    """One body of revolution, in its thing's frame (the thing spans about -1 to 1, y down).

    profile: half widths, as a share of size[0], at equal angles from the top (0 degrees) to the bottom (180) of an
    ellipse, so that sin(angle) is a ball. size: half width and half length. turn: degrees (range). vary: relative
    spread of size and profile. chance: of being there. dents: depth of the hollows at the top and the bottom. lobes:
    bulges around the axis, and how deep. grain: bumps in the skin. gloss: the highlight's strength. spots: number
    (range) and radius. wheel: pieces (range) of a cut face. spot: the colour of spots, or of a cut face's rim and
    spokes. colour: left out, the thing's own.
    """

    profile: tuple[float, ...]
    at: tuple[float, float] = (0.0, 0.0)
    size: tuple[float, float] = (1.0, 1.0)
    turn: Range = (0.0, 0.0)
    vary: float = 0.08
    chance: float = 1.0
    colour: Colour | None = None
    dents: tuple[float, float] = (0.0, 0.0)
    lobes: tuple[int, float] = (0, 0.0)
    grain: float = 0.0
    gloss: float = 0.0
    spots: tuple[int, int, float] = (0, 0, 0.0)
    wheel: tuple[int, int] = (0, 0)
    spot: Colour = ((0.0, 0.0), (0.0, 0.0), (1.0, 1.0))


@dataclass(frozen=True)
class View:
    """One way in which a class may look: its own colours (one is drawn by lot) and its parts from back to front.

    share: among the class's views. tilt: degrees to either side within which most things lean. blush: the chance that
    a second of the colours runs into the first.
    """

    colours: tuple[Colour, ...]
    parts: tuple[Part, ...]
    share: float = 1.0
    tilt: float = 30.0
    blush: float = 0.0


def bring(
    into: Path,
    *,
    root: Path | None,
    classes: Sequence[str],
    download: bool,
    train_per_class: int,
    test_per_class: int,
    seed: int,
    shapes: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Path:
    """As a data source: fill `into` with the task's classes. Raises DataError for a class without a description."""
    missing = [name for name in classes if name not in shapes]
    if missing:
        raise DataError(
            f"There are no drawings of {', '.join(missing)}, only of {', '.join(shapes)}: give real images with "
            "data=folder data.root=FOLDER, or describe the class in conf/data/source/rendered.yaml."
        )
    wanted = {name: shapes[name] for name in classes}
    total = len(wanted) * (train_per_class + test_per_class)
    with progress("drawing images", total) as update:
        draw(into, train_per_class=train_per_class, test_per_class=test_per_class, seed=seed, shapes=wanted,
             told=lambda share: update(round(share * total)))
    return into


def draw(
    root: Path,
    *,
    train_per_class: int,
    test_per_class: int,
    seed: int,
    shapes: Mapping[str, Sequence[Mapping[str, Any]]],
    told: Callable[[float], None] | None = None,
) -> Path:
    """Write the pictures of every class under `root`, over what is there, and return `root`.

    shapes: class name -> its views, as in `View` and `Part`. told: called with the share done, rising to 1.
    Raises TypeError for a description with an unknown or a missing key, OSError if `root` cannot be written.
    """
    classes = {name: _views(views) for name, views in shapes.items()}
    total, done = len(classes) * (train_per_class + test_per_class), 0
    for half, (folder, count) in enumerate((("train", train_per_class), ("test", test_per_class))):
        for name, views in classes.items():
            home = root / folder / name
            home.mkdir(parents=True, exist_ok=True)
            for number in range(1, count + 1):
                rng = np.random.default_rng([seed, zlib.crc32(name.encode()), half, number])
                picture(views, rng).save(home / f"{name}_{number:05d}.png")
                done += 1
                if told is not None:
                    told(done / total)
    return root


def picture(views: Sequence[View], rng: np.random.Generator) -> Image.Image:
    """One SIDE x SIDE RGB picture of a class: background, clutter, one to three things, and a camera's faults."""
    light = np.array([rng.normal(0, 0.6), rng.normal(-0.6, 0.4), rng.uniform(0.5, 1.2)])  # mostly from above, before
    light /= np.linalg.norm(light)
    shares = np.array([view.share for view in views])
    view = views[rng.choice(len(views), p=shares / shares.sum())]
    scale, centre = rng.uniform(0.55, 0.85), rng.uniform(-0.34, 0.34, 2)
    canvas = _background(rng)
    for _ in range(rng.integers(0, 3)):
        _clutter(canvas, rng.uniform(0.3, 1.1), light, rng)
    own = _own(view, rng)
    for _ in range(rng.choice(3, p=(0.6, 0.28, 0.12))):  # companions, behind and to one side
        away = centre + scale * rng.uniform(0.9, 1.5) * _towards(rng)
        skin = own if rng.random() < 0.7 else _own(view, rng)
        _thing(canvas, view, skin, away, scale * rng.uniform(0.6, 0.95), light, rng)
    _thing(canvas, view, own, centre, scale, light, rng)
    if rng.random() < 0.2:  # something in front, reaching in over the picture's edge
        _clutter(canvas, 1.15, light, rng)
    return _camera(canvas, rng)


def _thing(
    canvas: Array, view: View, own: Array, centre: Array, scale: float, light: Array, rng: np.random.Generator
) -> None:
    """Draw one thing in its `own` colour, `scale` half pictures in half length, and its shadow."""
    blush = _own(view, rng) if rng.random() < view.blush else None
    frame = scale * _rotation(rng.normal(0, view.tilt / 2)) * (rng.choice((-1.0, 1.0)), 1.0)  # mirrored or not
    x, y = _AXIS - float(centre[0] - 0.5 * scale * light[0]), _AXIS - float(centre[1] + 0.45 * scale)
    shadow = float(rng.uniform(0.1, 0.6)) * np.exp(-((2 * y / scale) ** 2))[:, None] * np.exp(-((x / scale) ** 2))
    canvas *= (1 - shadow)[..., None]
    for part in view.parts:
        if rng.random() < part.chance:
            if part.colour is None:
                _paint(canvas, part, frame, centre, own, blush, light, rng)
            else:
                _paint(canvas, part, frame, centre, _pick(part.colour, rng), None, light, rng)


def _paint(
    canvas: Array, part: Part, frame: Array, centre: Array, skin: Array, blush: Array | None, light: Array,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Draw one lit part in colour `skin`; `frame` (2 x 2) and `centre` take its thing's coordinates to the picture."""
    wide, long = (size * min(max(float(rng.normal(1, part.vary)), 0.7), 1.3) for size in part.size)
    axes, middle = frame @ _rotation(rng.uniform(*part.turn)), centre + frame @ part.at
    (a, b), (c, d) = axes.tolist()
    area = a * d - b * c  # below 0 in a mirrored thing
    scale = math.sqrt(abs(area))
    reach = 1.2 * scale * math.hypot(wide, long) + 2 / SIDE
    (left, top), (right, bottom) = np.searchsorted(_AXIS, (middle - reach, middle + reach)).tolist()
    if left >= right or top >= bottom:
        return
    window = canvas[top:bottom, left:right]
    dx, dy = _AXIS[left:right] - float(middle[0]), _AXIS[top:bottom, None] - float(middle[1])
    x, y = (d * dx - b * dy) / (area * wide), (a * dy - c * dx) / (area * long)  # in half widths and half lengths

    # Hollows and lobes bend the axis: an end is reached earlier near x = 0, or between two lobes.
    hollow = np.exp(-8 * x * x)
    above, below = part.dents[0] * hollow * (1 - y), part.dents[1] * hollow * (1 + y)
    y = y - 0.5 * (above - below)
    count, depth = part.lobes
    phase = float(rng.uniform(-0.5, 0.5)) + math.pi * (count % 2 == 0)
    if count:
        y += 0.12 * depth * (1 + y) * (1 - np.cos(2.2 * count * x + phase))
    widths, slopes = _tables(part, rng)
    index = ((y + _REACH) * (_STEPS / (2 * _REACH))).astype(np.int32).clip(0, _STEPS - 1)
    width, slope = widths[index], slopes[index] * (wide / long)
    distance = wide * (np.abs(x) - width) / np.sqrt(1 + slope**2)  # to first order
    cover = (0.5 - distance * (scale * SIDE)).clip(0, 1)

    around = (x / np.maximum(width, 0.02)).clip(-1, 1)  # sine of the angle around the axis
    nx, ny, nz = around, -slope, np.sqrt(1 - around**2)
    shade = 1 - 0.5 * (above + below).clip(0, 1)
    if count:
        turn = 2.2 * count * around + phase
        nx = nx - 2 * depth * np.sin(turn)
        shade *= 1 - 1.2 * depth * (0.5 - 0.5 * np.cos(turn)) ** 3
    if part.grain:
        bumps = rng.standard_normal((2, FINE, FINE), dtype=np.float32)[:, : x.shape[0], : x.shape[1]]
        nx, ny = nx + part.grain * bumps[0], ny + part.grain * bumps[1]
    length = np.sqrt(nx**2 + ny**2 + nz**2)
    u, v, lz = light.tolist()
    lx, ly = (a * u + c * v) / scale, (b * u + d * v) / scale
    shade *= 0.42 + 0.68 * ((nx * lx + ny * ly + nz * lz) / length).clip(0, 1)

    colour = skin[None, None]
    if blush is not None:
        way = rng.normal(0, 0.6, 2).tolist()
        colour = _mix(colour, blush, (0.3 + way[0] * x + way[1] * y).clip(0, 1))
    if part.spots[1]:
        gap = np.full_like(x, 2)
        for u, v in rng.uniform(-0.85, 0.85, (rng.integers(part.spots[0], part.spots[1] + 1), 2)).tolist():
            gap = np.minimum(gap, ((around - u) * wide) ** 2 + ((y - v) * long) ** 2)
        colour = _mix(colour, _pick(part.spot, rng), (0.5 + (part.spots[2] - np.sqrt(gap)) * scale * SIDE).clip(0, 1))
    if part.wheel[1]:
        pieces, out = int(rng.integers(part.wheel[0], part.wheel[1] + 1)), np.hypot(x, y)
        spoke = np.abs(np.sin(0.5 * pieces * np.arctan2(y, x) + rng.uniform(0, 6))) * out * (2 / pieces)
        pale = np.maximum(1 - spoke / 0.06, 1 - np.abs(out - 0.86) / 0.1).clip(0, 1)
        colour, shade = _mix(colour, _pick(part.spot, rng), pale), 0.8 + 0.25 * shade  # flat: hardly shaded
    lit = colour * shade[..., None]
    if part.gloss:  # brightest where the normal halves the angle between the light and the eye
        half = math.sqrt(lx**2 + ly**2 + (lz + 1) ** 2)
        shine = ((nx * lx + ny * ly + nz * (lz + 1)) / (half * length)).clip(0, 1) ** 24
        lit += (part.gloss * float(rng.uniform(0.5, 1.1)) * shine)[..., None]
    window += cover[..., None] * (lit - window)


def _tables(part: Part, rng: np.random.Generator) -> tuple[Array, Array]:
    """Half widths along a part's axis and their slopes: _STEPS entries each, from -_REACH to _REACH half lengths."""
    last = len(part.profile) - 1
    knots = np.array(part.profile) * rng.normal(1, part.vary / 2, last + 1)
    knots = np.concatenate(([-knots[1]], knots, [-knots[-2]]))  # widths pass smoothly through a round end
    first = np.minimum((_ANGLE * last).astype(int), last - 1)
    t = _ANGLE * last - first
    a, b, c, d = (knots[first + k] for k in range(4))  # Catmull-Rom
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    widths = (np.maximum(curve, 0) - 8 * _BEYOND).astype(np.float32)
    return widths[:-1], np.diff(widths) * (_STEPS / (2 * _REACH))


def _background(rng: np.random.Generator) -> Array:
    """FINE x FINE x 3: two colours run into each other, often a table's edge, and a cloudy or streaky texture."""
    way = rng.normal(0, 0.5, 2).tolist()
    slope = (0.5 + way[0] * _AXIS + way[1] * _AXIS[:, None]).clip(0, 1)
    canvas = _mix(_pick(_SCENERY, rng)[None, None], _pick(_SCENERY, rng), slope)
    if rng.random() < 0.4:
        edge = _AXIS[:, None] - float(rng.uniform(-0.4, 0.7)) + float(rng.normal(0, 0.15)) * _AXIS
        canvas = _mix(canvas, _pick(_SCENERY, rng), (0.5 + edge * SIDE).clip(0, 1))
    cells = rng.standard_normal(rng.integers(2, 24, 2), dtype=np.float32)
    clouds = np.asarray(Image.fromarray(cells).resize((FINE, FINE), Image.Resampling.BICUBIC))
    return canvas * (1 + float(rng.uniform(0, 0.18)) * clouds)[..., None]


def _clutter(canvas: Array, far: float, light: Array, rng: np.random.Generator) -> None:
    """Draw a body of no class, `far` from the middle: random widths, any of the scenery's colours."""
    part = Part(profile=(rng.choice((0.0, 0.8)), *rng.uniform(0.4, 1, 3), rng.choice((0.0, 0.8))), vary=0.2)
    frame = _rotation(rng.uniform(0, 180)) * rng.uniform(0.12, 0.4, 2)
    _paint(canvas, part, frame, far * _towards(rng), _pick(_SCENERY, rng), None, light, rng)


def _camera(canvas: Array, rng: np.random.Generator) -> Image.Image:
    """The canvas at SIDE x SIDE, with a camera's tint, contrast, exposure, blur and noise."""
    small = canvas.reshape(SIDE, 2, SIDE, 2, 3).mean(axis=(1, 3)) * rng.normal(1, 0.05, 3)
    small = (small - 0.45) * rng.uniform(0.7, 1.25) + 0.45 + rng.normal(0, 0.08)
    image = Image.fromarray((small.clip(0, 1) * 255).astype(np.uint8))
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.7)))
    noisy = np.asarray(image) + rng.normal(0, rng.uniform(0, 6), (SIDE, SIDE, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _own(view: View, rng: np.random.Generator) -> Array:
    return _pick(view.colours[rng.integers(len(view.colours))], rng)


def _pick(colour: Colour, rng: np.random.Generator) -> Array:
    """An RGB colour (3,) from ranges of hue, saturation and value."""
    hue, saturation, value = (rng.uniform(low, high) for low, high in colour)
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), dtype=np.float32)


def _towards(rng: np.random.Generator) -> Array:
    """A unit vector (2,) in any direction."""
    angle = rng.uniform(0, 2 * math.pi)
    return np.array([math.cos(angle), math.sin(angle)])


def _rotation(degrees: float) -> Array:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cos, -sin], [sin, cos]])


def _mix(base: Array, over: Array, share: Array) -> Array:
    """`over` in its share (height x width), `base` in the rest: height x width x 3."""
    return base + share[..., None] * (over - base)


def _views(raw: Sequence[Mapping[str, Any]]) -> tuple[View, ...]:
    """Read a class's description; TypeError for a key that `View` or `Part` does not have."""
    plain = [_plain(view) for view in raw]
    return tuple(View(**{**view, "parts": tuple(Part(**part) for part in view.get("parts", ()))}) for view in plain)


def _plain(node: Any) -> Any:
    """Mappings as dicts and sequences as tuples, whatever configuration library they came from."""
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items()}
    return tuple(map(_plain, node)) if isinstance(node, Sequence) and not isinstance(node, str) else node
