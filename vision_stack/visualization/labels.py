"""Names of objects, written where they hide neither each other nor other objects."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vision_stack.visualization.colors import Color, text_color

MOST_HIDDEN = 0.5  # of an object's box, under one name
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Rectangle = tuple[float, float, float, float]


def write_names(
    canvas: Image.Image,
    boxes: NDArray[np.float64],
    texts: Sequence[str],
    colors: Sequence[Color],
    points: Sequence[Sequence[tuple[float, float]]] | None = None,
) -> list[int]:
    """Write names over everything else, the first ones choose their place first.

    A name that would hide another name, or more than half of an object, wherever it is put, is left out: of a crowd of
    small objects the outlines can be seen, and some names.

    Args:
        boxes: [N, 4] on the canvas, around the objects.
        points: of each object, where its name's middle may be, best first; at its box where not given.

    Returns:
        which names were written.
    """
    draw = ImageDraw.Draw(canvas)
    font = load_font(max(11, round(min(canvas.size) / 36)))
    placed: list[Rectangle] = []
    written = []
    for n, (text, color) in enumerate(zip(texts, colors, strict=True)):
        text = _fitting(text, font, canvas.width)
        width, height = font.getbbox(text)[2] + 6, line_height(font) + 4
        choices = _around(boxes[n], width, height) if points is None else _centred(points[n], width, height)
        rectangle = place(choices, canvas.size, placed, boxes)
        if rectangle is None:
            continue
        placed.append(rectangle)
        written.append(n)
        draw.rectangle(rectangle, fill=color)
        middle = (rectangle[1] + rectangle[3]) / 2
        draw.text((rectangle[0] + 3, middle), text, fill=text_color(color), font=font, anchor="lm")
    return written


def place(
    choices: Iterator[Rectangle], canvas: tuple[int, int], placed: Sequence[Rectangle], boxes: NDArray[np.float64]
) -> Rectangle | None:
    """The first choice, moved onto the canvas, that hides nothing of `placed` and at most half of each of `boxes`."""
    for x0, y0, x1, y1 in choices:
        left, up = (
            min(max(x0, 0), max(canvas[0] - 1 - (x1 - x0), 0)),
            min(max(y0, 0), max(canvas[1] - 1 - (y1 - y0), 0)),
        )
        choice = (left, up, left + x1 - x0, up + y1 - y0)
        if all(overlap(choice, other) == 0 for other in placed) and _most_hidden(choice, boxes) <= MOST_HIDDEN:
            return choice
    return None


def overlap(a: Rectangle, b: Rectangle) -> float:
    """Area that two rectangles share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _most_hidden(rectangle: Rectangle, boxes: NDArray[np.float64]) -> float:
    """The largest share of a box that a rectangle covers."""
    if not len(boxes):
        return 0.0
    sides = np.minimum(boxes[:, 2:], rectangle[2:]) - np.maximum(boxes[:, :2], rectangle[:2])
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(min=1.0).prod(1)
    return float((sides.clip(min=0.0).prod(1) / areas).max())


def _around(box: NDArray[np.float64], width: float, height: float) -> Iterator[Rectangle]:
    """Above, in and below a box, from its left to its right edge; then down its edges, in the box."""
    x0, y0, x1, y1 = box.tolist()
    columns = np.linspace(x0, max(x1 - width, x0), 5)
    for y in (y0 - height, y0, y1, y1 - height):
        for x in columns:
            yield (x, y, x + width - 1, y + height - 1)
    for y in np.arange(y0 + height, y1 - 2 * height, height):
        for x in columns:
            yield (x, y, x + width - 1, y + height - 1)


def _centred(points: Sequence[tuple[float, float]], width: float, height: float) -> Iterator[Rectangle]:
    for x, y in points:
        left, up = x - width / 2, y - height / 2
        yield (left, up, left + width - 1, up + height - 1)


def _fitting(text: str, font: Font, width: int) -> str:
    """The text, its end cut off where it is wider than the image."""
    if font.getbbox(text)[2] + 6 <= width:
        return text
    while len(text) > 1 and font.getbbox(text + "…")[2] + 6 > width:
        text = text[:-1]
    return text + "…"


def fitting_font(texts: Sequence[str], size: int, width: float) -> Font:
    """The font of `size`, or the largest one of at least 9 in which each text is at most `width` wide."""
    while size > 9 and max(load_font(size).getbbox(text)[2] for text in texts) > width:
        size -= 1
    return load_font(size)


def line_height(font: Font) -> float:
    """Pixels from the top of an accent to the bottom of a letter."""
    top, bottom = font.getbbox("Ágj")[1::2]
    return bottom - top


@functools.cache
def load_font(size: int) -> Font:
    """DejaVu Sans Bold, which matplotlib brings along and which has accents, Greek and Cyrillic."""
    package = importlib.util.find_spec("matplotlib")
    if package is not None and package.origin:
        path = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)
