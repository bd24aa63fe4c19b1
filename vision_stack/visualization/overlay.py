"""Pictures of what is in an image: instances, things and stuff, or classes over its pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from vision_stack.ops.text import shorten
from vision_stack.structures import Category, Instances, PanopticSegmentation, SemanticSegmentation
from vision_stack.visualization.colors import Color, instance_color
from vision_stack.visualization.labels import fitting_font, line_height, write_names

MASK_OPACITY = 0.5
_PARTS = (0.5, 0.25, 0.75, 0.1, 0.9, 0.35, 0.65)  # of a mask that are above the rows in which its name may be
MIN_SIDE = 512  # smaller images are enlarged by a whole number, so that names can be read


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
    return _draw(image, masks, _colors(shown.labels.tolist()), texts, shown.boxes.cpu().numpy(), shown.scores.tolist())


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
    """Pictures of one size with their captions, next to each other (below each other if they are wide).

    Captions may have several lines; where one is too long, all have smaller letters.
    """
    width, height = next(iter(panels.values())).size
    captions, gap = [caption.split("\n") for caption in panels], 8
    font = fitting_font([line for lines in captions for line in lines], max(14, min(width, height) // 28), width - 8)
    line_step = 1.2 * line_height(font)
    title = round(line_step * max(map(len, captions)) + 0.4 * line_height(font))
    across = width < 2 * height
    columns, rows = (len(panels), 1) if across else (1, len(panels))
    size = (columns * (width + gap) - gap, rows * (height + title + gap) - gap)
    grid = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(grid)
    for n, (lines, panel) in enumerate(zip(captions, panels.values(), strict=True)):
        x, y = (n * (width + gap), 0) if across else (0, n * (height + title + gap))
        for above, line in enumerate(reversed(lines)):
            bottom = y + title - 0.2 * line_height(font) - above * line_step
            draw.text((x + 4, bottom - line_step / 2), line, fill=(0, 0, 0), font=font, anchor="lm")
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
    boxes: np.ndarray | None = None,
    scores: Sequence[float] = (),
) -> Image.Image:
    """Masks [h, w] over the image, small ones over large ones; names at the boxes, or else inside of the masks.

    Where there is not room for every name, the best objects have theirs, of equal ones the largest.
    """
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
        _draw_boxes(canvas, (scale * boxes).tolist(), colors, line)
    around = np.array([_box(mask) for mask in masks]).reshape(-1, 4) if boxes is None else boxes.astype(float)
    areas = (around[:, 2:] - around[:, :2]).prod(1)
    order = np.lexsort((-areas, -np.array(scores or [1.0] * len(areas))))
    points = None if boxes is not None else [[(scale * x, scale * y) for x, y in _middles(masks[n])] for n in order]
    write_names(canvas, scale * around[order], [texts[n] for n in order], [colors[n] for n in order], points)
    return canvas


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else (0, 0, 0, 0)


def _middles(mask: np.ndarray) -> list[tuple[float, float]]:
    """The middles of the longest runs of a mask's rows: of the fullest row, then of rows from the top to the bottom."""
    pixels = mask.sum(1)
    cumulative = pixels.cumsum()
    rows = [int(pixels.argmax()), *(int(np.searchsorted(cumulative, part * cumulative[-1])) for part in _PARTS)]
    middles = []
    for row in rows:
        edges = np.flatnonzero(np.diff(mask[row].astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
        for start, stop in edges[np.argsort(edges[:, 0] - edges[:, 1], kind="stable")][:2]:
            middles.append((float(start + stop) / 2, row + 0.5))
    return middles


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
