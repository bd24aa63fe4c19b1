"""Draws one scene of the generated data set: where the shapes lie, and what the camera sees of them.

A scene is a function only of (seed, split, index, size). Shapes are placed one after another, each on top of those
before it; a placement that would hide too much of an earlier shape is drawn again. Colour says nothing about the class;
texture says something, as the materials of real things do. Shapes, clutter and background share one small palette, and
shapes are often placed against a twin of their own class and colour.

Coordinates are (x, y) in pixels; pixel (column c, row r) covers [c, c + 1) x [r, r + 1).
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from vision_stack.ops.masks import polygons_to_mask

Array = NDArray[Any]  # float32 in [0, 1], [H, W] or [H, W, 3]
Outline = NDArray[np.float64]  # [P, 2] vertices

CATEGORIES = ("ellipse", "rectangle", "triangle", "ring")
SPLITS = ("train", "val")

EMPTY_FRACTION = 0.03  # of the images, have background and clutter but no shape
TWIN_FRACTION = 0.18  # of the shapes after the first, are placed against one of the same class and colour
MIN_VISIBLE_FRACTION = 0.6  # of a shape's whole area, be it hidden by others or cut off by the image's border
MIN_VISIBLE_PIXELS = 20
CAMOUFLAGED_FRACTION = 0.15  # of the shapes, have a colour of the background and always a texture
TEXTURED_FRACTION = 1.0  # of the others
PLACEMENT_ATTEMPTS = 30
SUPERSAMPLING = 3  # samples per pixel and axis
SENSOR_NOISE = 0.018  # standard deviation, of a range of 1
PATTERNS = ("stripes", "checks", "dots", "blotches")  # the one that each of CATEGORIES has most of the time
OWN_PATTERN_FRACTION = 0.95  # of the textured shapes; the others have any pattern
BACKGROUNDS = ("plain ground", "striped ground", "checked ground")  # under the clutter: none or one of PATTERNS
NUM_COLORS = 5  # of a scene's palette; shapes and clutter take any of them
NUM_BACKGROUND_COLORS = 2  # the first ones


@dataclass(frozen=True)
class Shape:
    """One object of a scene: its class and colour, and its contour before anything hides it."""

    category: int  # index into CATEGORIES
    color: int  # index into the scene's palette
    loops: tuple[Outline, ...]  # the outer contour, then its hole if it has one
    center: tuple[float, float]
    size: float  # square root of the area, pixels


@dataclass(frozen=True)
class Scene:
    image: NDArray[np.uint8]  # [H, W, 3] RGB
    label_map: NDArray[np.int32]  # [H, W], 0 = background, i = shapes[i - 1]; the visible parts, hence disjoint
    shapes: tuple[Shape, ...]  # back to front
    background: int  # index into BACKGROUNDS


def draw_scene(
    *, seed: int, split: str, index: int, image_size: int = 128, min_objects: int = 1, max_objects: int = 6
) -> Scene:
    """The scene `index` of a split, square. It has none or at least `min_objects` shapes, unless no more fit."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    shapes, label_map = _place_shapes(rng, image_size, min_objects, max_objects)
    image, background = _render(rng, shapes, image_size)
    return Scene(image, label_map, shapes, background)


def rasterize(loops: tuple[Outline, ...], height: int, width: int) -> NDArray[np.bool_]:
    """Inside of the first loop without the others, bool [height, width], by COCO's own rule for polygons."""
    outer, *holes = (loop.ravel() for loop in loops)
    return polygons_to_mask([outer], height, width) & ~polygons_to_mask(holes, height, width)


def coverage(loops: tuple[Outline, ...], height: int, width: int) -> Image.Image:
    """How much of each pixel lies inside the first loop and outside the second, 0 to 255."""
    fine = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    pen = ImageDraw.Draw(fine)
    for fill, loop in zip((255, 0), loops, strict=False):
        _draw_polygon(pen, loop, fill)
    return fine.reduce(SUPERSAMPLING)


def adjacent_labels(label_map: NDArray[np.int32]) -> set[tuple[int, int]]:
    """Pairs (lower, higher) of non-zero labels that have pixels next to each other, diagonals included."""
    pairs: set[tuple[int, int]] = set()
    neighbors = (
        (label_map[:, :-1], label_map[:, 1:]),
        (label_map[:-1], label_map[1:]),
        (label_map[:-1, :-1], label_map[1:, 1:]),
        (label_map[:-1, 1:], label_map[1:, :-1]),
    )
    for a, b in neighbors:
        differ = (a != b) & (a > 0) & (b > 0)
        pairs |= {(min(p), max(p)) for p in zip(a[differ].tolist(), b[differ].tolist(), strict=True)}
    return pairs


# ---------------------------------------------------------------------------------------------------- layout


def _place_shapes(
    rng: np.random.Generator, image_size: int, min_objects: int, max_objects: int
) -> tuple[tuple[Shape, ...], NDArray[np.int32]]:
    shapes: list[Shape] = []
    label_map = np.zeros((image_size, image_size), np.int32)
    if rng.random() < EMPTY_FRACTION:
        return (), label_map
    for _ in range(rng.integers(min_objects, max_objects + 1)):
        partner = int(rng.integers(len(shapes))) if shapes and rng.random() < TWIN_FRACTION else None
        size = image_size / 128 * rng.triangular(18, 38, 60)
        for _ in range(PLACEMENT_ATTEMPTS):
            shape = _draw_shape(rng, size, image_size, None if partner is None else shapes[partner])
            candidate = label_map.copy()
            candidate[rasterize(shape.loops, image_size, image_size)] = len(shapes) + 1
            touches = partner is None or (partner + 1, len(shapes) + 1) in adjacent_labels(candidate)
            if touches and _all_visible(candidate, [*shapes, shape]):
                shapes.append(shape)
                label_map = candidate
                break
            size = max(0.95 * size, 6.0)  # a crowded scene still has room for a small one
    return tuple(shapes), label_map


def _all_visible(label_map: NDArray[np.int32], shapes: list[Shape]) -> bool:
    visible = np.bincount(label_map.ravel(), minlength=len(shapes) + 1)[1:]
    needed = [max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_FRACTION * shape.size**2) for shape in shapes]
    return bool((visible >= needed).all())


def _draw_shape(rng: np.random.Generator, size: float, image_size: int, twin: Shape | None) -> Shape:
    """A shape anywhere, or one of `twin`'s class and colour at about the distance where the two touch."""
    angle = rng.uniform(0, 2 * np.pi)
    if twin is None:
        category, color = int(rng.integers(len(CATEGORIES))), _draw_color(rng)
        x, y = rng.uniform(0.06, 0.94, 2) * image_size
    else:
        category, color = twin.category, twin.color
        size = twin.size * rng.uniform(0.7, 1.3)
        distance = rng.uniform(0.4, 0.62) * (size + twin.size) * (1.25 if CATEGORIES[category] == "ring" else 1.0)
        x, y = twin.center[0] + distance * np.cos(angle), twin.center[1] + distance * np.sin(angle)
    loops = _unit_loops(rng, CATEGORIES[category])
    area = _area(loops[0]) - sum(_area(hole) for hole in loops[1:])
    loops = tuple(np.round(_move(loop, size / np.sqrt(area), rng.uniform(0, 2 * np.pi), x, y), 2) for loop in loops)
    return Shape(category, color, loops, (x, y), size)


def _draw_color(rng: np.random.Generator) -> int:
    if rng.random() < CAMOUFLAGED_FRACTION:
        return int(rng.integers(NUM_BACKGROUND_COLORS))
    return int(rng.integers(NUM_BACKGROUND_COLORS, NUM_COLORS))


def _unit_loops(rng: np.random.Generator, category: str) -> tuple[Outline, ...]:
    """Contours around the origin, of a size near 1, not yet rotated."""
    if category == "rectangle":
        return (np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [rng.uniform(1.8, 3), 1],)
    if category == "triangle":
        corners = np.pi * (1 / 2 + np.array([0, 2 / 3, 4 / 3])) + rng.uniform(-0.2, 0.2, 3)
        return (np.stack([np.cos(corners), np.sin(corners)], 1),)
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], 1)
    if category == "ellipse":
        return (circle * [rng.uniform(1, 1.3), 1],)
    assert category == "ring", category
    outer = circle * [rng.uniform(1, 1.25), 1]
    return outer, outer * rng.uniform(0.5, 0.62)


def _area(outline: Outline) -> float:
    x, y = outline.T
    return 0.5 * abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1)))


def _move(outline: Outline, scale: float, angle: float, x: float, y: float) -> Outline:
    cos, sin = np.cos(angle), np.sin(angle)
    return scale * outline @ np.array([[cos, sin], [-sin, cos]]) + [x, y]


# ---------------------------------------------------------------------------------------------------- appearance


def _render(rng: np.random.Generator, shapes: tuple[Shape, ...], image_size: int) -> tuple[NDArray[np.uint8], int]:
    """The image, and its background as index into BACKGROUNDS."""
    palette = _draw_palette(rng)
    background, kind = _background(rng, palette, image_size)
    canvas = _add_clutter(rng, background, palette)
    for shape in shapes:
        _paint(rng, canvas, shape, palette)

    u, _ = _axes(image_size, image_size, rng.uniform(0, 2 * np.pi))
    canvas *= (1 + rng.uniform(0, 0.25) * u / np.abs(u).max())[..., None]  # one-sided light
    image = Image.fromarray(_to_bytes(canvas)).filter(ImageFilter.BoxBlur(rng.uniform(0, 0.4) * image_size / 128))
    canvas = np.asarray(image) / np.float32(255)
    canvas += SENSOR_NOISE * rng.standard_normal(canvas.shape, np.float32)
    return _to_bytes(canvas), kind


def _draw_palette(rng: np.random.Generator) -> Array:
    """Colours of clearly different hue or lightness, [NUM_COLORS, 3]."""
    hues = (rng.random() + 0.382 * np.arange(NUM_COLORS) + rng.uniform(-0.04, 0.04, NUM_COLORS)) % 1
    saturations, values = rng.uniform(0.25, 0.85, NUM_COLORS), rng.uniform(0.35, 0.95, NUM_COLORS)
    return np.array([colorsys.hsv_to_rgb(*hsv) for hsv in zip(hues, saturations, values, strict=True)], np.float32)


def _background(rng: np.random.Generator, palette: Array, image_size: int) -> tuple[Array, int]:
    coarse, fine = _smooth_noise(rng, image_size, int(rng.integers(3, 7))), _smooth_noise(rng, image_size, 20)
    mix: Array = 0.75 * coarse + 0.25 * fine
    kind = 0
    if rng.random() < 0.5:
        kind = 1 + int(rng.integers(2))  # no dots, which are too much like small ellipses
        pattern = _pattern(rng, PATTERNS[kind - 1], image_size, image_size, image_size / 128 * rng.uniform(10, 30))
        mix = 0.65 * mix + 0.35 * pattern
    mix = np.clip(1.4 * mix - 0.2, 0, 1).astype(np.float32)[..., None]
    return palette[0] + 0.6 * mix * (palette[1] - palette[0]), kind


def _add_clutter(rng: np.random.Generator, background: Array, palette: Array) -> Array:
    """Print flat lines, crosses and squiggles, which no shape is, onto the background."""
    size = background.shape[0]
    fine = Image.fromarray(_to_bytes(background)).resize((size * SUPERSAMPLING,) * 2, Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(fine)
    for _ in range(rng.integers(3, 9)):
        color = _to_bytes(rng.uniform(0.7, 1.1) * palette[rng.integers(NUM_COLORS)])
        _draw_polygon(pen, _distractor(rng, size), tuple(color.tolist()))
    return np.asarray(fine.reduce(SUPERSAMPLING), np.float32) / 255


def _draw_polygon(pen: ImageDraw.ImageDraw, outline: Outline, fill: int | tuple[int, ...]) -> None:
    """Onto a supersampled image."""
    pen.polygon((outline * SUPERSAMPLING).ravel().tolist(), fill=fill)


def _distractor(rng: np.random.Generator, image_size: int) -> Outline:
    """Contour of a line, a cross or a squiggle."""
    kind, scale = rng.integers(3), image_size / 128
    x, y = rng.uniform(0, image_size, 2)
    angle = rng.uniform(0, 2 * np.pi)
    if kind == 0:
        line = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [rng.uniform(15, 50), rng.uniform(0.6, 1.4)]
        return _move(line, scale, angle, x, y)
    if kind == 1:
        t = rng.uniform(0.15, 0.28)  # half the thickness of an arm, of half its length
        arm = np.array([[t, -1], [t, -t], [1, -t], [1, t]])
        cross = np.concatenate([_move(arm, 1.0, quarter * np.pi / 2, 0, 0) for quarter in range(4)])
        return _move(cross, scale * rng.uniform(6, 15), angle, x, y)
    along = np.linspace(-1, 1, 24) * rng.uniform(10, 25)
    wave = rng.uniform(2, 5) * np.sin(along * rng.uniform(0.2, 0.5) + rng.uniform(0, 6))
    half = rng.uniform(0.8, 1.6)
    upper, lower = np.stack([along, wave + half], 1), np.stack([along, wave - half], 1)
    return _move(np.concatenate([upper, lower[::-1]]), scale, angle, x, y)


def _paint(rng: np.random.Generator, canvas: Array, shape: Shape, palette: Array) -> None:
    """Paint a shape and its soft shadow onto `canvas`, in place."""
    image_size = canvas.shape[0]
    scale = image_size / 128
    outer, margin = shape.loops[0], 3  # pixels around the shape, for its shadow
    left, top = np.maximum(np.floor(outer.min(0)) - margin, 0).astype(int)
    right, bottom = np.minimum(np.ceil(outer.max(0)) + margin, image_size).astype(int)
    height, width = bottom - top, right - left
    cover = coverage(tuple(loop - [left, top] for loop in shape.loops), height, width)
    shadow = np.asarray(cover.filter(ImageFilter.BoxBlur(1.5 * scale)), np.float32)[..., None]
    alpha = np.asarray(cover, np.float32)[..., None] / 255

    u, _ = _axes(height, width, rng.uniform(0, 2 * np.pi))
    shading = 1 + rng.uniform(0.05, 0.3) * u / np.abs(u).max()
    color = palette[shape.color]
    surface = color * shading[..., None]
    if shape.color < NUM_BACKGROUND_COLORS or rng.random() < TEXTURED_FRACTION:
        other = palette[(shape.color + rng.integers(1, NUM_COLORS)) % NUM_COLORS]
        tint = rng.uniform(0.4, 0.6)
        darker, lighter = tint * color, 1 - tint * (1 - color)
        second = (darker, lighter, other)[rng.integers(3)]
        own = rng.random() < OWN_PATTERN_FRACTION
        kind = PATTERNS[shape.category if own else rng.integers(len(PATTERNS))]
        pattern = _pattern(rng, kind, height, width, scale * rng.uniform(6, 11))
        surface += pattern[..., None] * (second - color)
    view = canvas[top:bottom, left:right]
    view *= 1 - rng.uniform(0.35, 0.6) / 255 * shadow
    view += alpha * (surface - view)


def _pattern(rng: np.random.Generator, kind: str, height: int, width: int, period: float) -> Array:
    """One of PATTERNS in [0, 1], [height, width], `period` in pixels."""
    u, v = _axes(height, width, rng.uniform(0, 2 * np.pi))
    if kind == "stripes":
        return (u + rng.uniform(0, period)) % period < period * rng.uniform(0.35, 0.65)
    if kind == "checks":
        return (np.floor(u / period) + np.floor(v / period)) % 2
    if kind == "dots":
        return (u % period - period / 2) ** 2 + (v % period - period / 2) ** 2 < (0.32 * period) ** 2
    assert kind == "blotches", kind
    size = max(height, width)
    noise = _smooth_noise(rng, size, max(2, round(size / (0.6 * period))))[:height, :width]
    return np.clip(2.5 * noise - 0.75, 0, 1)


def _axes(height: int, width: int, angle: float) -> tuple[Array, Array]:
    """Rotated pixel coordinates about the centre, each [height, width]."""
    y = np.arange(height, dtype=np.float32)[:, None] - (height - 1) / 2
    x = np.arange(width, dtype=np.float32)[None] - (width - 1) / 2
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _smooth_noise(rng: np.random.Generator, size: int, cells: int) -> Array:
    """Noise in about [0, 1] with `cells` bumps along each side, [size, size]."""
    grid = Image.fromarray(rng.random((cells, cells), np.float32))
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC), np.float32)


def _to_bytes(image: Array) -> NDArray[np.uint8]:
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
