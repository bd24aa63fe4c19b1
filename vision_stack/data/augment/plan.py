"""What a training image is made of: which images go where on the canvas, drawn before any pixel is read.

A plan is a function of its generator, which the data set seeds with (seed, epoch, index). One placement is the plain
case. `compose.py` carries plans out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vision_stack.data.augment.geometry import GeometricTransform, Window
from vision_stack.data.augment.placing import MaskStride
from vision_stack.data.augment.targets import Objects
from vision_stack.ops.image import scaled_size

CROP_TRIALS = 40  # of a crop by IoU, as in SSD's code
IOU_THRESHOLDS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)  # one is drawn; SSD's, but for the whole image, which is no crop
CROP_SCALE, CROP_ASPECT = (0.3, 1.0), (0.5, 2.0)  # edges, as parts of the image's; width / height
MIDDLE = (0.3, 0.7)  # of the canvas, where the four images of a mosaic meet
MOSAIC_ZOOM = (1.0, 2.0)  # times the size at which an image just covers its part of a mosaic
MIX_SHARE = (0.45, 0.55)  # of the second image in a mixture
BLENDED_OBJECTS, BLENDED_AREA = 3, 100  # the most of an image, and the fewest pixels of each
BLENDED_MARGIN = (0.1, 0.25)  # around them, as parts of their sides


class Record(Protocol):
    """What is known of an image without reading its pixels."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def num_objects(self) -> int:
        """Of label maps of classes this has to be read."""

    def object_boxes(self) -> NDArray[np.float64] | None:
        """[N, 4] xyxy of the objects, in the order of `objects`; None where only a label map would tell."""

    def objects(
        self, transform: GeometricTransform, chosen: Sequence[int] | None = None, stride: MaskStride = 1
    ) -> Objects:
        """The objects, or those at the `chosen` positions, where the transform moves them."""


class Placement(NamedTuple):
    """One image on the canvas."""

    source: int  # index of the record
    transform: GeometricTransform
    corner: tuple[int, int] = (0, 0)  # (x, y) of its upper left pixel on the canvas
    # over: it hides what is below; mix: it is blended with it; objects: only the chosen objects are pasted
    how: Literal["over", "mix", "objects"] = "over"
    share: float = 1.0  # of the image in a mixture
    chosen: tuple[int, ...] | None = None  # positions of its objects; None: all


class Plan(NamedTuple):
    """Size (height, width) of the canvas, and what is put on it, in order."""

    size: tuple[int, int]
    placements: tuple[Placement, ...]

    @property
    def is_plain(self) -> bool:
        """Whether one image is all there is."""
        return len(self.placements) == 1 and self.placements[0].transform.size == self.size


@dataclass(frozen=True)
class Mirror:
    """How images are mirrored and turned, by probability and in degrees."""

    flip: float
    vertical_flip: float
    warp: float
    rotation: float
    shear: float

    def apply(self, transform: GeometricTransform, rng: np.random.Generator) -> GeometricTransform:
        """The transform with what is drawn here. Nothing is drawn for what is off, but for `flip`."""
        drawn: dict[str, Any] = {"flip": bool(rng.random() < self.flip)}
        if self.vertical_flip:
            drawn["vertical_flip"] = bool(rng.random() < self.vertical_flip)
        if self.warp and rng.random() < self.warp:
            drawn["rotation"] = float(rng.uniform(-self.rotation, self.rotation))
            drawn["shear"] = float(rng.uniform(-self.shear, self.shear))
        return replace(transform, **drawn)


def random_crop(
    source: Window, resized: tuple[int, int], limit: tuple[int, int], rng: np.random.Generator, keep: Any = None
) -> GeometricTransform:
    """A crop of at most `limit` (height, width) out of the source window when that is resized to `resized`.

    The box is rounded to whole source pixels, which changes the scale by less than one pixel of the box's edge, so that
    image, polygons and masks need no resampling at fractions of a pixel.

    Args:
        keep: boxes [N, 4] of objects, the centre of one of which the crop is to hold.
    """
    x0, y0, x1, y1 = source
    centre = _centre(keep, source, rng)
    starts, stops, size = [], [], []
    for axis, (length, target) in enumerate(zip((y1 - y0, x1 - x0), resized, strict=True)):
        out = min(target, limit[axis])
        extent = min(length, max(1, round(out * length / target)))
        low, high = 0, length - extent
        if centre is not None:
            low, high = max(low, centre[axis] + 1 - extent), min(high, centre[axis])
        start = int(rng.integers(low, high + 1)) + (y0, x0)[axis]
        starts.append(start)
        stops.append(start + extent)
        size.append(out)
    return GeometricTransform((starts[1], starts[0], stops[1], stops[0]), (size[0], size[1]))


def _centre(boxes: Any, source: Window, rng: np.random.Generator) -> tuple[int, int] | None:
    """Row and column, in the window, of the pixel in the middle of one of the boxes in it."""
    if boxes is None or not len(boxes):
        return None
    columns, rows = (boxes[:, :2] + boxes[:, 2:]).T / 2 - np.array(source[:2])[:, None]
    inside = np.flatnonzero(
        (columns >= 0) & (rows >= 0) & (columns < source[2] - source[0]) & (rows < source[3] - source[1])
    )
    if not len(inside):
        return None
    one = int(rng.choice(inside))
    return int(rows[one]), int(columns[one])


def iou_crop(height: int, width: int, boxes: NDArray[np.float64] | None, rng: np.random.Generator) -> Window:
    """A window of the image that overlaps an object by a drawn IoU at least (Liu et al. 2016, Sec. 2.2).

    It holds the centre of an object. Where no boxes are known, any window will do; where none fits, it is the whole
    image. Differs from SSD: objects whose centres are outside stay, cut off at the border.
    """
    threshold = rng.choice(IOU_THRESHOLDS)
    for _ in range(CROP_TRIALS):
        h, w = (max(1, int(edge * rng.uniform(*CROP_SCALE))) for edge in (height, width))
        if not CROP_ASPECT[0] <= w / h <= CROP_ASPECT[1]:
            continue
        y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        window = (x, y, x + w, y + h)
        if boxes is None or not len(boxes):
            return window
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        holds = ((middles >= (x, y)) & (middles < (x + w, y + h))).all(1)
        if holds.any() and _iou(boxes[holds], window).max() >= threshold:
            return window
    return (0, 0, width, height)


def _iou(boxes: NDArray[np.float64], window: Window) -> NDArray[np.float64]:
    sides = np.minimum(boxes[:, 2:], window[2:]) - np.maximum(boxes[:, :2], window[:2])
    shared = sides.clip(min=0).prod(1)
    x0, y0, x1, y1 = window
    union: NDArray[np.float64] = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (x1 - x0) * (y1 - y0) - shared
    return shared / union.clip(min=1e-9)


def zoomed_out(index: int, transform: GeometricTransform, most: float, rng: np.random.Generator) -> Placement:
    """The image up to `most` times smaller, anywhere on a canvas of its former size."""
    height, width = transform.size
    inner = scaled_size(height, width, 1 / rng.uniform(1.0, most))
    return Placement(index, replace(transform, size=inner), _anywhere((height, width), inner, rng))


def _anywhere(size: tuple[int, int], inner: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """(x, y) of the upper left pixel of what is put on a canvas; sizes are (height, width)."""
    return int(rng.integers(size[1] - inner[1] + 1)), int(rng.integers(size[0] - inner[0] + 1))


def mosaic(
    records: Sequence[Record], index: int, size: tuple[int, int], mirror: Mirror, rng: np.random.Generator, keep: bool
) -> list[Placement]:
    """Four images that share the canvas (Bochkovskiy et al. 2020, Sec. 3.3), each cropped to cover its part.

    Args:
        index: of the one that is always among them.
        keep: whether each crop is to hold the centre of an object.
    """
    height, width = size
    y, x = (min(max(1, round(edge * rng.uniform(*MIDDLE))), max(edge - 1, 1)) for edge in size)
    parts = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
    indices = [index, *rng.integers(len(records), size=3).tolist()]
    rng.shuffle(indices)
    placements = []
    for each, (left, top, right, bottom) in zip(indices, parts, strict=True):
        if right > left and bottom > top:
            record = records[each]
            part = (bottom - top, right - left)
            cover = max(part[0] / record.height, part[1] / record.width)
            resized = scaled_size(record.height, record.width, cover * rng.uniform(*MOSAIC_ZOOM))
            resized = (max(resized[0], part[0]), max(resized[1], part[1]))
            whole = (0, 0, record.width, record.height)
            crop = random_crop(whole, resized, part, rng, record.object_boxes() if keep else None)
            placements.append(Placement(each, mirror.apply(crop, rng), (left, top)))
    return placements


def _elsewhere(
    records: Sequence[Record],
    size: tuple[int, int],
    scale: tuple[float, float],
    mirror: Mirror,
    rng: np.random.Generator,
) -> Placement:
    """Another image, at a drawn factor of the size that just fits the canvas, anywhere on it."""
    index = int(rng.integers(len(records)))
    record = records[index]
    fit = min(size[0] / record.height, size[1] / record.width)
    resized = scaled_size(record.height, record.width, fit * rng.uniform(*scale))
    crop = mirror.apply(random_crop((0, 0, record.width, record.height), resized, size, rng), rng)
    return Placement(index, crop, _anywhere(size, crop.size, rng))


def mixed_in(records: Sequence[Record], size: tuple[int, int], mirror: Mirror, rng: np.random.Generator) -> Placement:
    """Another image to blend with the canvas, all of it (Zhang et al. 2018, with the objects of both)."""
    placement = _elsewhere(records, size, (1.0, 1.0), mirror, rng)
    return placement._replace(how="mix", share=float(rng.uniform(*MIX_SHARE)))


def blended_in(
    records: Sequence[Record], size: tuple[int, int], mirror: Mirror, rng: np.random.Generator
) -> list[Placement]:
    """Up to three objects of another image with what is around them, anywhere (DEIMv2's CopyBlend, Huang et al. 2025).

    Differs from DEIMv2's code: all are of one image, not of all of the batch.
    """
    index = int(rng.integers(len(records)))
    record = records[index]
    boxes = record.object_boxes()
    if boxes is None:
        return []
    fit = min(size[0] / record.height, size[1] / record.width)
    sides = boxes[:, 2:] - boxes[:, :2]
    large = np.flatnonzero(fit**2 * sides.prod(1) >= BLENDED_AREA)
    placements = []
    for position in rng.choice(large, min(BLENDED_OBJECTS, len(large)), replace=False).tolist():
        margin = rng.uniform(*BLENDED_MARGIN) * sides[position]
        x0, y0 = np.floor(np.maximum(boxes[position, :2] - margin, 0)).astype(int).tolist()
        x1, y1 = np.ceil(np.minimum(boxes[position, 2:] + margin, (record.width, record.height))).astype(int).tolist()
        height, width = scaled_size(y1 - y0, x1 - x0, fit)
        inner = (min(height, size[0]), min(width, size[1]))
        crop = mirror.apply(GeometricTransform((x0, y0, x1, y1), inner), rng)
        corner = _anywhere(size, inner, rng)
        share = float(rng.uniform(*MIX_SHARE))
        placements.append(Placement(index, crop, corner, "mix", share, (position,)))
    return placements


def pasted(
    records: Sequence[Record],
    size: tuple[int, int],
    scale: tuple[float, float],
    mirror: Mirror,
    rng: np.random.Generator,
) -> Placement:
    """Each object of another image with probability 1/2, to paste (Ghiasi et al. 2021, Sec. 3)."""
    placement = _elsewhere(records, size, scale, mirror, rng)
    count = records[placement.source].num_objects
    chosen = np.flatnonzero(rng.random(count) < 0.5).tolist()
    return placement._replace(how="objects", chosen=tuple(chosen))


def limited(plan: Plan, records: Sequence[Record], most: int, rng: np.random.Generator) -> Plan:
    """A plan with at most `most` objects, drawn among those that can be seen; nothing is drawn where they are few."""
    candidates: list[tuple[int, int]] = []  # number of the placement, position of the object
    for n, placement in enumerate(plan.placements):
        record = records[placement.source]
        positions = list(range(record.num_objects) if placement.chosen is None else placement.chosen)
        boxes = record.object_boxes()
        if boxes is not None:
            moved = placement.transform.boxes(boxes)
            seen = np.flatnonzero((moved[:, 2:] > moved[:, :2]).all(1))
            positions = sorted(set(positions) & set(seen.tolist()))
        candidates += [(n, position) for position in positions]
    if len(candidates) <= most:
        return plan
    kept = [candidates[i] for i in np.sort(rng.choice(len(candidates), most, replace=False)).tolist()]
    placements = [
        placement._replace(chosen=tuple(position for number, position in kept if number == n))
        for n, placement in enumerate(plan.placements)
    ]
    return plan._replace(placements=tuple(placements))
