"""Pictures of what is in an image: instances, things and stuff, or classes over its pixels."""

from __future__ import annotations

import functools
import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vision_stack.ops.text import shorten
from vision_stack.structures import Category, Instances, PanopticSegmentation, SemanticSegmentation
from vision_stack.visualization.colors import Color, instance_color, text_color

MASK_OPACITY = 0.5
MIN_SIDE = 512  # smaller images are enlarged by a whole number, so that names can be read
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Rectangle = tuple[float, float, float, float]


def draw_instances(
    image: np.ndarray, instances: Instances, categories: Sequence[Category], *, threshold: float = 0.0
) -> Image.Image:
    """Draw the instances that score at least `threshold`; images with sides under 512 pixels are enlarged.

    Args:
        image: [height, width, 3] uint8 RGB.
        instances: in pixels of the image, masks as pixels or none. Ground truth has scores of 1, not written out.
        categories: names by label.

    Raises:
        ValueError: the image is of another kind, or the masks are of another size.
    """
    assert not isinstance(instances.masks, list), "masks are decoded before they are drawn"
    _check(image, instances.masks.shape[1:] if instances.masks is not None and len(instances) else None)
    shown = instances[instances.scores >= threshold]
    texts = [_caption(categories[n].name, score) for n, score in zip(shown.labels, shown.scores.tolist(), strict=True)]
    masks = list(shown.masks.cpu().numpy()) if isinstance(shown.masks, Tensor) else []
    return _draw(image, masks, _colors(shown.labels.tolist()), texts, shown.boxes.tolist())


def draw_panoptic(
    image: np.ndarray, found: PanopticSegmentation, categories: Sequence[Category], *, threshold: float = 0.0
) -> Image.Image:
    """Draw the segments that score at least `threshold`, each with its name; otherwise as `draw_instances`."""
    _check(image, found.segment_map.shape)
    segment_map, scores = found.segment_map.cpu().numpy(), found.scores.tolist()
    chosen = [n for n, score in enumerate(scores) if score >= threshold and (segment_map == n + 1).any()]
    labels = [int(found.labels[n]) for n in chosen]
    texts = [_caption(categories[label].name, scores[n]) for n, label in zip(chosen, labels, strict=True)]
    return _draw(image, [segment_map == n + 1 for n in chosen], _colors(labels), texts)


def draw_semantic(image: np.ndarray, found: SemanticSegmentation, categories: Sequence[Category]) -> Image.Image:
    """Draw every class that is there, in a colour of its own; otherwise as `draw_instances`."""
    _check(image, found.label_map.shape)
    label_map = found.label_map.cpu().numpy()
    labels = [int(label) for label in np.unique(label_map) if label >= 0]
    texts = [_caption(categories[label].name) for label in labels]
    return _draw(image, [label_map == label for label in labels], _colors(labels), texts)


def draw_image(image: np.ndarray) -> Image.Image:
    """Nothing but the image, as large as the other pictures of it."""
    return _draw(image, [], [], [])


def side_by_side(panels: Mapping[str, Image.Image]) -> Image.Image:
    """Pictures of one size with their captions, next to each other (below each other if they are wide)."""
    width, height = next(iter(panels.values())).size
    font, gap = _font(max(14, min(width, height) // 28)), 8
    title = round(1.6 * _height(font))
    across = width < 2 * height
    columns, rows = (len(panels), 1) if across else (1, len(panels))
    size = (columns * (width + gap) - gap, rows * (height + title + gap) - gap)
    grid = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(grid)
    for n, (name, panel) in enumerate(panels.items()):
        x, y = (n * (width + gap), 0) if across else (0, n * (height + title + gap))
        draw.text((x + 4, y + title / 2), name, fill=(0, 0, 0), font=font, anchor="lm")
        grid.paste(panel, (x, y + title))
    return grid


def _check(image: np.ndarray, size: Sequence[int] | None) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected an image [height, width, 3] of uint8, got {list(image.shape)} of {image.dtype}")
    if size is not None and tuple(size) != image.shape[:2]:
        raise ValueError(f"masks are {list(size)}, the image is {list(image.shape[:2])}")


def _draw(
    image: np.ndarray,
    masks: list[np.ndarray],
    colors: list[Color],
    texts: list[str],
    boxes: list[list[float]] | None = None,
) -> Image.Image:
    """Masks [h, w] over the image, small ones over large ones; names at the boxes, or else inside of the masks."""
    scale = max(1, round(MIN_SIDE / max(image.shape[:2])))
    canvas = Image.fromarray(image)
    if scale > 1:
        canvas = canvas.resize((canvas.width * scale, canvas.height * scale), Image.Resampling.BICUBIC)
    pixels = np.array(canvas)
    line = max(1, round(min(canvas.size) / 280))
    for n in np.argsort([-int(np.count_nonzero(mask)) for mask in masks], kind="stable"):
        _paint(pixels, masks[n], scale, colors[n], line)
    canvas = Image.fromarray(pixels)
    if boxes is not None:
        _draw_boxes(canvas, [[scale * edge for edge in box] for box in boxes], colors, line)
    anchors = boxes if boxes is not None else [_middle(mask) for mask in masks]
    _write_names(canvas, [[scale * edge for edge in box] for box in anchors], texts, colors)
    return canvas


def _middle(mask: np.ndarray) -> list[float]:
    """A box without area in the middle of the longest run of a mask's fullest row."""
    row = int(mask.sum(1).argmax())
    edges = np.flatnonzero(np.diff(mask[row].astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    start, stop = edges[(edges[:, 1] - edges[:, 0]).argmax()] if len(edges) else (0, 0)
    return [float(start + stop) / 2, row + 0.5] * 2


def _caption(name: str, score: float = 1.0) -> str:
    name = shorten(name)  # measuring text takes time with its length
    return name if score >= 1.0 else f"{name} {score:.2f}"


def _colors(labels: list[int]) -> list[Color]:
    seen: Counter[int] = Counter()
    colors = []
    for label in labels:
        colors.append(instance_color(label, seen[label]))
        seen[label] += 1
    return colors


def _paint(pixels: np.ndarray, mask: np.ndarray, scale: int, color: Color, line: int) -> None:
    """Blend a mask [h, w] into pixels [h * scale, w * scale, 3] in place, with a solid outline `line` pixels wide."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    inside = mask[top:bottom, left:right].repeat(scale, 0).repeat(scale, 1)
    inner = np.pad(inside, line)
    for _ in range(line):  # one pixel off each side at a time
        inner = inner[1:-1, 1:-1] & inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    region = pixels[top * scale : bottom * scale, left * scale : right * scale]
    solid = np.array(color, dtype=np.float32)
    region[inside] = (region[inside] * (1 - MASK_OPACITY) + solid * MASK_OPACITY).astype(np.uint8)
    region[inside & ~inner] = color


def _draw_boxes(canvas: Image.Image, boxes: list[list[float]], colors: list[Color], line: int) -> None:
    draw = ImageDraw.Draw(canvas)
    for (x0, y0, x1, y1), color in reversed(list(zip(boxes, colors, strict=True))):
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=color, width=line)


def _write_names(canvas: Image.Image, boxes: list[list[float]], texts: list[str], colors: list[Color]) -> None:
    """Over everything else; the best detections choose their name's place first."""
    draw = ImageDraw.Draw(canvas)
    font = _font(max(11, round(min(canvas.size) / 36)))
    placed: list[Rectangle] = []
    for box, text, color in zip(boxes, texts, colors, strict=True):
        text = _fitting(text, font, canvas.width)
        rectangle = _place(box, font.getbbox(text)[2] + 6, _height(font) + 4, canvas.size, placed)
        placed.append(rectangle)
        draw.rectangle(rectangle, fill=color)
        middle = (rectangle[1] + rectangle[3]) / 2
        draw.text((rectangle[0] + 3, middle), text, fill=text_color(color), font=font, anchor="lm")


def _place(
    box: Sequence[float], width: float, height: float, canvas: tuple[int, int], placed: list[Rectangle]
) -> Rectangle:
    """The nearest place on the canvas, above, below or in the box, that hides least of the labels already placed."""
    x0, y0, x1, y1 = box
    choices = []
    for away in range(4):  # so many labels away from the box
        for x in (x0, x1 - width):
            for y in (y0 - (1 + away) * height, y1 + away * height, y0 + away * height):
                x, y = min(max(x, 0), max(canvas[0] - width, 0)), min(max(y, 0), max(canvas[1] - height, 0))
                choices.append((x, y, x + width - 1, y + height - 1))
    return min(choices, key=lambda choice: sum(_overlap(choice, other) for other in placed))


def _overlap(a: Rectangle, b: Rectangle) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _fitting(text: str, font: Font, width: int) -> str:
    """The text, its end cut off where it is wider than the image."""
    if font.getbbox(text)[2] + 6 <= width:
        return text
    while len(text) > 1 and font.getbbox(text + "…")[2] + 6 > width:
        text = text[:-1]
    return text + "…"


def _height(font: Font) -> float:
    top, bottom = font.getbbox("Ágj")[1::2]
    return bottom - top


@functools.cache
def _font(size: int) -> Font:
    """DejaVu Sans Bold, which matplotlib brings along and which has accents, Greek and Cyrillic."""
    package = importlib.util.find_spec("matplotlib")
    if package is not None and package.origin:
        path = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)
