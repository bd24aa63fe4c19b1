"""Objects where a transform has moved them: masks of pixels, masks of coarse cells, or only boxes.

Polygons become coarse masks by the exact area that they cover (`ops/coverage.py`), without a mask of pixels in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from vision_stack.ops.coverage import Patch, polygon_coverage, visible_boxes
from vision_stack.ops.masks import NO_MASK, coarser, placed, placed_boxes, placed_cover, placed_polygons
from vision_stack.structures import PlacedMask

MaskStride = Literal[1, 4] | None  # pixels of a mask's cell; None: no masks


class Transform(Protocol):
    """What moves an image and its annotations."""

    @property
    def size(self) -> tuple[int, int]: ...
    def polygons(self, polygons: Sequence[Any]) -> list[NDArray[np.float64]]: ...
    def boxes(self, boxes: Any) -> NDArray[np.float64]: ...
    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]: ...


class Placed(NamedTuple):
    """N objects of an image."""

    masks: list[PlacedMask | None]  # None of an object that has only a box, and where there are to be no masks
    boxes: NDArray[np.float64]  # [N, 4] around what can be seen; of masks of pixels around all of the object
    pixels: NDArray[np.float64] | None  # [N] area that can be seen; None where the masks themselves tell


def place(transform: Transform, segmentations: Sequence[Any], boxes: Any, stride: MaskStride = 1) -> Placed:
    """Move objects.

    Args:
        segmentations: checked polygons, or a checked RLE of the source image's size; empty of an object that has only a
            box.
        boxes: [N, 4] xyxy.
        stride: of the masks. With 1 they are the pixels that `pycocotools` gives for the moved polygons.
    """
    moved = transform.boxes(boxes)
    if stride == 1:
        return Placed([_pixels(transform, each) if len(each) else None for each in segmentations], moved, None)
    masks: list[PlacedMask | None] = [None] * len(segmentations)
    pixels = np.zeros(len(segmentations))
    owners, polygons = [], []
    for row, each in enumerate(segmentations):
        if isinstance(each, Mapping):
            fine = _pixels(transform, each)
            masks[row], moved[row] = fine if stride is None else coarser(fine, stride), placed_boxes([fine])[0]
            pixels[row] = np.count_nonzero(fine.cells)
        else:
            owners += [row] * len(each)
            polygons += list(each)
    if polygons:
        _place_polygons(_moved(transform, polygons), np.array(owners), transform.size, stride, masks, moved, pixels)
    if stride is None:
        return Placed([None] * len(masks), moved, None)
    return Placed(masks, moved, pixels)


def _place_polygons(
    polygons: list[NDArray[np.float64]],
    owners: NDArray[np.int64],
    size: tuple[int, int],
    stride: MaskStride,
    masks: list[PlacedMask | None],
    boxes: NDArray[np.float64],
    pixels: NDArray[np.float64],
) -> None:
    """Set masks, boxes and areas of the objects that have polygons."""
    found = visible_boxes(polygons, *size)
    first = np.flatnonzero(np.diff(owners, prepend=-1))
    seen: NDArray[np.bool_] = np.all(found[:, 2:] > found[:, :2], axis=1, keepdims=True)
    low = np.minimum.reduceat(np.where(seen, found[:, :2], np.inf), first)
    high = np.maximum.reduceat(np.where(seen, found[:, 2:], -np.inf), first)
    around = np.concatenate([low, high], axis=1)
    around[~np.isfinite(around).all(axis=1)] = 0.0
    boxes[owners[first]] = around
    if stride is None:
        return
    patches: dict[int, list[Patch]] = {row: [] for row in owners[first].tolist()}
    for row, patch in zip(owners.tolist(), polygon_coverage(polygons, *size, stride), strict=True):
        if patch is not None:
            patches[row].append(patch)
    for row, parts in patches.items():
        masks[row] = NO_MASK
        if parts:
            whole = parts[0] if len(parts) == 1 else _united(parts)
            masks[row] = placed_cover(whole.cover, whole.top, whole.left)
            pixels[row] = whole.cover.sum() * stride**2


def _united(parts: list[Patch]) -> Patch:
    """Shares of a cell add up, which is exact of polygons that do not overlap."""
    top, left = min(part.top for part in parts), min(part.left for part in parts)
    bottom = max(part.top + part.cover.shape[0] for part in parts)
    right = max(part.left + part.cover.shape[1] for part in parts)
    cover = np.zeros((bottom - top, right - left))
    for y, x, part in parts:
        cover[y - top : y - top + part.shape[0], x - left : x - left + part.shape[1]] += part
    return Patch(top, left, np.minimum(cover, 1.0))


def _moved(transform: Transform, polygons: list[Any]) -> list[NDArray[np.float64]]:
    """All in one go."""
    (points,) = transform.polygons([np.concatenate(polygons)])
    stops = list(accumulate(map(len, polygons)))
    return [points[a:b] for a, b in zip([0, *stops[:-1]], stops, strict=True)]


def _pixels(transform: Transform, segmentation: Any) -> PlacedMask:
    if isinstance(segmentation, Mapping):
        return placed(transform.mask(coco_mask.decode(segmentation).view(bool)))
    return placed_polygons(_moved(transform, list(segmentation)), *transform.size)
