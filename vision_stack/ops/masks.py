"""Polygons to masks, masks to boxes, and masks of only the window in which an object lies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from vision_stack.structures import PlacedMask

NO_MASK = PlacedMask(0, 0, np.zeros((0, 0), dtype=bool))
MAX_COORDINATE = 1e5  # pixels; pycocotools walks along every edge in steps of 1/5 pixel and allocates as it walks


def polygons_to_mask(polygons: Sequence[Any], height: int, width: int) -> NDArray[np.bool_]:
    """The union of polygons as a mask [H, W] bool, pixel for pixel as `pycocotools` rasterises them.

    Args:
        polygons: each flat, (x0, y0, x1, y1, ...) in pixels, a list or an array with at least three points. Points may
            lie outside the image.

    Raises:
        ValueError: a polygon of fewer than three points, with half a point, or with a coordinate that is not finite or
            beyond `MAX_COORDINATE`.
    """
    mask = np.zeros((height, width), dtype=bool)
    for rows, columns, rles in _rasterised(polygons, height, width):
        mask[rows, columns] |= coco_mask.decode(rles)[:, :, 0].view(bool)
    return mask


def placed_polygons(polygons: Sequence[Any], height: int, width: int) -> PlacedMask:
    """`polygons_to_mask`, of only the window around the object."""
    parts = [
        (rows, columns, coco_mask.decode(rles)[:, :, 0].view(bool))
        for rows, columns, rles in _rasterised(polygons, height, width)
    ]
    if not parts:
        return NO_MASK
    top, left = min(rows.start for rows, *_ in parts), min(columns.start for _, columns, _ in parts)
    if len(parts) == 1:
        return placed(parts[0][2], top, left)
    bottom, right = max(rows.stop for rows, *_ in parts), max(columns.stop for _, columns, _ in parts)
    cells = np.zeros((bottom - top, right - left), dtype=bool)
    for rows, columns, part in parts:
        cells[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] |= part
    return placed(cells, top, left)


def placed(mask: NDArray[np.bool_], top: int = 0, left: int = 0) -> PlacedMask:
    """A mask [h, w] whose upper left cell is at (top, left), without the empty rows and columns around the object."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return NO_MASK
    first, last = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[first:last].any(axis=0))
    start, stop = int(columns[0]), int(columns[-1]) + 1
    return PlacedMask(top + first, left + start, mask[first:last, start:stop])


def placed_cover(cover: NDArray[Any], top: int, left: int) -> PlacedMask:
    """The cells that an object covers by half; where there are none, those that it covers most: small and thin objects
    keep a mask."""
    most = cover.max(initial=0)
    return placed(cover >= min(0.5, most - 1e-9), top, left) if most > 0 else NO_MASK


def coarser(mask: PlacedMask, stride: int) -> PlacedMask:
    """A mask of pixels as one of cells of `stride` x `stride` pixels, by `placed_cover`."""
    top, left = mask.top // stride, mask.left // stride
    above, before = mask.top - top * stride, mask.left - left * stride
    height, width = mask.cells.shape
    rows, columns = -(-(above + height) // stride), -(-(before + width) // stride)
    pixels = np.zeros((rows * stride, columns * stride), dtype=np.uint8)
    pixels[above : above + height, before : before + width] = mask.cells
    cover = pixels.reshape(rows, stride, columns, stride).sum(axis=(1, 3), dtype=np.uint32) / stride**2
    return placed_cover(cover, top, left)


def fill(masks: Sequence[PlacedMask], out: NDArray[np.bool_]) -> None:
    """Write N masks into `out` [N, H, W], which holds only False."""
    for each, (top, left, cells) in zip(out, masks, strict=True):
        each[top : top + cells.shape[0], left : left + cells.shape[1]] = cells


def placed_boxes(masks: Sequence[PlacedMask]) -> NDArray[np.float64]:
    """Tight boxes [N, 4] xyxy in cell edges; zeros of an empty mask."""
    corners = [(m.left, m.top, m.left + m.cells.shape[1], m.top + m.cells.shape[0]) for m in masks]
    return np.array(corners, dtype=np.float64).reshape(-1, 4)


def covers_a_pixel(polygons: Sequence[Any], height: int, width: int) -> bool:
    """Whether `polygons_to_mask` would give a mask with any pixel; makes no mask."""
    return any(coco_mask.area(rles)[0] for _, _, rles in _rasterised(polygons, height, width))


def _rasterised(polygons: Sequence[Any], height: int, width: int) -> Iterator[tuple[slice, slice, Any]]:
    """Rows and columns of the window in which each polygon lies, and a list of its RLE there."""
    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64)
        if points.ndim != 1 or len(points) < 6 or len(points) % 2:
            raise ValueError(
                f"a polygon needs three points or more as a flat list x0, y0, x1, y1, ..., got {points.shape}"
            )
        if not np.abs(points).max() <= MAX_COORDINATE:
            raise ValueError(f"a polygon has a coordinate that is not finite or beyond {MAX_COORDINATE:g} pixels")
        # Rasterise within the polygon's own window: most objects are much smaller than the image. pycocotools rounds to
        # fifths of a pixel, which is done here first, so that the shift by whole pixels does not change the rounding.
        left, top = max(math.floor(points[0::2].min()), 0), max(math.floor(points[1::2].min()), 0)
        right, bottom = min(math.ceil(points[0::2].max()) + 1, width), min(math.ceil(points[1::2].max()) + 1, height)
        if right <= left or bottom <= top:
            continue
        fifths = np.trunc(5 * points + 0.5) - np.tile([5.0 * left, 5.0 * top], len(points) // 2)
        shifted = np.where(fifths < 0, fifths - 0.75, fifths) / 5  # C truncates towards zero
        rles = coco_mask.frPyObjects([shifted], bottom - top, right - left)
        yield slice(top, bottom), slice(left, right), rles


def masks_to_boxes(masks: Tensor) -> Tensor:
    """Tight boxes around masks [N, H, W] (bool, any device) -> [N, 4] float32 (x0, y0, x1, y1) in pixel edges.

    The right and lower edges are exclusive: a mask of the one pixel (0, 0) has the box (0, 0, 1, 1). An empty mask has
    the box (0, 0, 0, 0).
    """
    height, width = masks.shape[-2:]
    if not masks.numel():
        return torch.zeros(len(masks), 4, device=masks.device, dtype=torch.float32)
    pixels = masks.to(torch.bool).view(torch.uint8)
    columns, rows = pixels.amax(dim=1), pixels.amax(dim=2)  # [N, W], [N, H]; on the CPU amax is 8 x faster than any
    x0, x1 = _first_and_stop(columns, width)
    y0, y1 = _first_and_stop(rows, height)
    return torch.stack([x0, y0, x1, y1], dim=1).float() * rows.amax(dim=1, keepdim=True)


def _first_and_stop(hits: Tensor, length: int) -> tuple[Tensor, Tensor]:
    return hits.argmax(dim=1), length - hits.flip(1).argmax(dim=1)
