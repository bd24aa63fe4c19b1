"""Measures all polygons of a data set at once, and names what is wrong with each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_stack.ops.masks import MAX_COORDINATE

_FAULTS = (
    "",
    "a polygon of {points} points; it takes three",
    "a polygon with an odd number of coordinates ({count})",
    "a polygon with a coordinate that is not finite",
    f"a polygon with a coordinate beyond {MAX_COORDINATE:g} pixels",
    "a polygon without area: all points on one line",
    "a polygon wholly outside of the image",
)
_FEW, _ODD, _NOT_FINITE, _HUGE, _FLAT, _OUTSIDE = range(1, len(_FAULTS))
DEGENERATE = (_FEW, _FLAT, _OUTSIDE)  # covers no pixel: harmless among polygons that do
_AT_ONCE = 10_000  # polygons measured together; bounds the memory for intermediate arrays
_FLAT_AREA = 1e-6  # pixels


class PolygonShapes(NamedTuple):
    """Of P polygons."""

    fault: NDArray[np.int8]  # [P] 0 = good
    coordinates: NDArray[np.int64]  # [P] how many
    bounds: NDArray[np.float64]  # [P, 4] (x0, y0, x1, y1)
    area: NDArray[np.float64]  # [P] pixels


def fault_of(shapes: PolygonShapes, polygon: int) -> str:
    """What is wrong with it, in words."""
    count = int(shapes.coordinates[polygon])
    return _FAULTS[shapes.fault[polygon]].format(count=count, points=count // 2)


def measure(
    points: NDArray[np.float64],
    count: NDArray[np.int64],
    stop: NDArray[np.int64],
    height: NDArray[np.int64],
    width: NDArray[np.int64],
) -> PolygonShapes:
    """Bounds, areas and faults.

    Args:
        points: [M] x and y in turn, polygon after polygon, each padded to an even number of at least two.
        count: [P] coordinates of each polygon without padding.
        stop: [P] where each polygon ends in `points`.
        height, width: [P] of its image.
    """
    total = len(count)
    fault = np.zeros(total, dtype=np.int8)
    bounds, area = np.zeros((total, 4)), np.zeros(total)
    start = np.concatenate([[0], stop])[:-1]
    for low in range(0, total, _AT_ONCE):
        part = slice(low, min(low + _AT_ONCE, total))
        first, last = int(start[part][0]), int(stop[part][-1])
        bounds[part], area[part], spread = _measure(points[first:last], (start[part] - first) // 2)
        fault[part] = _faults(bounds[part], area[part], spread, count[part], height[part], width[part])
    return PolygonShapes(fault, count, bounds, area)


def _measure(
    points: NDArray[np.float64], start: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """bounds [P, 4], area [P], spread [P]: the sum of |areas| of a fan of triangles, zero only for points on a line."""
    x, y = points[0::2], points[1::2]
    length = np.diff(start, append=len(x))
    with np.errstate(invalid="ignore", over="ignore"):
        low = [np.minimum.reduceat(axis, start) for axis in (x, y)]
        high = [np.maximum.reduceat(axis, start) for axis in (x, y)]
        dx, dy = x - np.repeat(x[start], length), y - np.repeat(y[start], length)
        cross = np.zeros(len(x))
        cross[:-1] = (dx[:-1] * dy[1:] - dx[1:] * dy[:-1]) / 2
        cross[start + length - 1] = 0  # the last point of one polygon with the first of the next
        area, spread = np.abs(np.add.reduceat(cross, start)), np.add.reduceat(np.abs(cross), start)
    return np.stack([*low, *high], axis=1), area, spread


def _faults(
    bounds: NDArray[np.float64],
    area: NDArray[np.float64],
    spread: NDArray[np.float64],
    count: NDArray[np.int64],
    height: NDArray[np.int64],
    width: NDArray[np.int64],
) -> NDArray[np.int8]:
    x0, y0, x1, y1 = bounds.T
    fault = np.zeros(len(count), dtype=np.int8)
    with np.errstate(invalid="ignore"):
        # From the mildest to the worst, which overwrites.
        fault[(x0 >= width) | (y0 >= height) | (x1 <= 0) | (y1 <= 0)] = _OUTSIDE
        fault[spread <= _FLAT_AREA] = _FLAT
        fault[count < 6] = _FEW
        fault[count % 2 == 1] = _ODD
        fault[(np.abs(bounds) > MAX_COORDINATE).any(axis=1)] = _HUGE
        fault[~np.isfinite(bounds).all(axis=1)] = _NOT_FINITE
    return fault
