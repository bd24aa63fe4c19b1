"""How much of each cell of a coarse grid polygons cover, exactly; and the box of what can be seen of them.

A cell is `stride` x `stride` pixels. The area to the right of every edge is added up cell by cell with the edge's sign,
as rasterisers of fonts do it; what is left is the polygon's. All polygons of an image are done together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]


class Patch(NamedTuple):
    """Part of a grid, whose other cells are empty."""

    top: int  # cells
    left: int
    cover: NDArray[np.float64]  # [h, w] in [0, 1]


class Edges(NamedTuple):
    """E edges of P closed polygons, those of one next to each other."""

    x0: Float  # [E]
    y0: Float
    x1: Float
    y1: Float
    start: Int  # [P] first edge of each
    owner: Int  # [E] 0 .. P - 1

    def take(self, some: NDArray[np.bool_]) -> Edges:
        """Those of the polygons in `some` [P]."""
        kept = some[self.owner]
        count = np.bincount(self.owner[kept], minlength=len(some))[some]
        start = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int64)
        x0, y0, x1, y1 = (axis[kept] for axis in self[:4])
        return Edges(x0, y0, x1, y1, start, np.repeat(np.arange(len(count)), count))


def edges_of(polygons: Sequence[Float], scale: float = 1.0) -> Edges:
    """Edges of flat (x0, y0, x1, y1, ...) polygons, coordinates times `scale`."""
    count = np.array([len(polygon) // 2 for polygon in polygons], dtype=np.int64)
    stop = np.cumsum(count)
    points = (np.concatenate(polygons) * scale).reshape(-1, 2)
    following = np.arange(1, len(points) + 1)
    following[stop - 1] = stop - count
    (x0, y0), (x1, y1) = points.T, points[following].T
    return Edges(x0, y0, x1, y1, stop - count, np.repeat(np.arange(len(count)), count))


def polygon_coverage(polygons: Sequence[Float], height: int, width: int, stride: int) -> list[Patch | None]:
    """Of each polygon the share of every cell that it covers; None where it covers nothing of the image.

    Where a polygon overlaps itself, an even number of layers is a hole, as it is for `pycocotools`.

    Args:
        polygons: flat (x0, y0, x1, y1, ...), in pixels; points may lie outside the image.
        height, width: of the image in pixels; nothing beyond is covered.
    """
    if not polygons:
        return []
    edges = edges_of(polygons, 1 / stride)
    limit_x, limit_y = width / stride, height / stride
    low_x, high_x = _extent(edges.x0, edges.start, limit_x)
    low_y, high_y = _extent(edges.y0, edges.start, limit_y)
    left, top = np.floor(low_x).astype(np.int64), np.floor(low_y).astype(np.int64)
    columns = np.where(high_x > low_x, np.ceil(high_x).astype(np.int64) - left, 0)
    rows = np.where((high_y > low_y) & (columns > 0), np.ceil(high_y).astype(np.int64) - top, 0)
    stop = np.cumsum(rows * (columns + 2))  # two more columns take what belongs to cells right of the last
    first = stop - rows * (columns + 2)
    owner, row, x, x_end, dy = _cut(*_by_rows(edges, limit_y), limit_x)
    column, middle, dy_of_cell, piece = _by_columns(x, x_end, dy)
    owner, row = owner[piece], row[piece]
    seen = rows[owner] > 0
    cell = (first[owner] + (row - top[owner]) * (columns[owner] + 2) + column - left[owner])[seen]
    middle, dy_of_cell = middle[seen], dy_of_cell[seen]
    total = int(stop[-1])
    within = dy_of_cell * middle
    signed = np.bincount(cell, dy_of_cell - within, minlength=total)
    signed += np.bincount(cell + 1, within, minlength=total)[:total]
    cover = np.abs(np.cumsum(signed))  # a row's edges add up to 0, so that each row starts anew
    cover = np.abs(cover - 2 * np.rint(cover / 2))
    return [
        Patch(y, x, cover[a:b].reshape(r, c + 2)[:, :c]) if r else None
        for a, b, r, c, y, x in zip(*(v.tolist() for v in (first, stop, rows, columns, top, left)), strict=True)
    ]


def _extent(values: Float, start: Int, limit: float) -> tuple[Float, Float]:
    """Least and largest of each polygon's values, within 0 .. `limit`."""
    return (
        np.clip(np.minimum.reduceat(values, start), 0, limit),
        np.clip(np.maximum.reduceat(values, start), 0, limit),
    )


def _by_rows(edges: Edges, limit: float) -> tuple[Int, Int, Float, Float, Float]:
    """Edges cut at whole y between 0 and `limit`: owner, row, x at either end, and signed height of each piece."""
    down = edges.y1 > edges.y0
    x, y = np.where(down, edges.x0, edges.x1), np.where(down, edges.y0, edges.y1)
    x_end, y_end = np.where(down, edges.x1, edges.x0), np.where(down, edges.y1, edges.y0)
    upper, lower = np.maximum(y, 0), np.minimum(y_end, limit)
    some = np.flatnonzero(lower > upper)
    x, y, upper, lower = x[some], y[some], upper[some], lower[some]
    slope = (x_end[some] - x) / (y_end[some] - y)
    first = np.floor(upper).astype(np.int64)
    count = np.ceil(lower).astype(np.int64) - first
    piece = np.repeat(np.arange(len(some)), count)
    row = first[piece] + np.arange(len(piece)) - np.repeat(np.cumsum(count) - count, count)
    start, end = np.maximum(row, upper[piece]), np.minimum(row + 1, lower[piece])
    x, y, slope = x[piece], y[piece], slope[piece]
    height = np.where(down[some][piece], end - start, start - end)
    return edges.owner[some][piece], row, x + (start - y) * slope, x + (end - y) * slope, height


def _cut(owner: Int, row: Int, x: Float, x_end: Float, dy: Float, limit: float) -> tuple[Int, Int, Float, Float, Float]:
    """Pieces whose parts beyond 0 .. `limit` are upright, on the border; x runs to the right."""
    x, x_end = np.minimum(x, x_end), np.maximum(x, x_end)
    beyond = (x < 0) | (x_end > limit)
    if not beyond.any():
        return owner, row, x, x_end, dy
    length = np.maximum(x_end - x, 1e-12)
    left = np.clip(np.minimum(x_end, 0) - x, 0, None)
    right = np.clip(x_end - np.maximum(x, limit), 0, None)
    upright = x_end == x
    left_share = np.where(upright, (x < 0).astype(float), left / length)
    right_share = np.where(upright, (x > limit).astype(float), right / length)
    border = [(left_share, 0.0), (right_share, limit)]
    parts = [(owner, row, np.clip(x, 0, limit), np.clip(x_end, 0, limit), dy * (1 - left_share - right_share))]
    for share, at in border:
        some = share > 0
        parts.append((owner[some], row[some], np.full(some.sum(), at), np.full(some.sum(), at), (dy * share)[some]))
    return tuple(np.concatenate(each) for each in zip(*parts, strict=True))  # type: ignore[return-value]


def _by_columns(x: Float, x_end: Float, dy: Float) -> tuple[Int, Float, Float, Int]:
    """Pieces cut at whole x: column, mean x within it, signed height, and the piece that each is of."""
    first = np.floor(x).astype(np.int64)
    count = np.maximum(np.ceil(x_end).astype(np.int64) - first, 1)
    piece = np.repeat(np.arange(len(x)), count)
    column = first[piece] + np.arange(len(piece)) - np.repeat(np.cumsum(count) - count, count)
    start, end = np.maximum(column, x[piece]), np.minimum(column + 1, x_end[piece])
    length = x_end - x
    share = np.where(count > 1, 1 / np.where(count > 1, length, 1.0), 0.0)
    height = dy[piece] * np.where(count[piece] > 1, (end - start) * share[piece], 1.0)
    return column, (start + end) / 2 - column, height, piece


def visible_boxes(polygons: Sequence[Float], height: int, width: int) -> Float:
    """Boxes [P, 4] xyxy around what lies inside the image of each polygon; without area where nothing does."""
    if not polygons:
        return np.zeros((0, 4))
    edges = edges_of(polygons)
    low = [np.minimum.reduceat(axis, edges.start) for axis in edges[:2]]
    high = [np.maximum.reduceat(axis, edges.start) for axis in edges[:2]]
    boxes = np.stack([*low, *high], axis=1)
    beyond = (boxes[:, :2] < 0) | (boxes[:, 2:] > (width, height))
    cut = beyond[:, 0] | beyond[:, 1]
    if cut.any():
        boxes[cut] = _cut_boxes(edges.take(cut), height, width)
    return boxes


def _cut_boxes(edges: Edges, height: int, width: int) -> Float:
    """Around the parts of the edges inside the image, and its corners where they lie inside the polygon."""
    dx, dy = edges.x1 - edges.x0, edges.y1 - edges.y0
    enter, leave = np.zeros(len(dx)), np.ones(len(dx))
    with np.errstate(divide="ignore", invalid="ignore"):  # Liang and Barsky 1984
        for step, room in ((-dx, edges.x0), (dx, width - edges.x0), (-dy, edges.y0), (dy, height - edges.y0)):
            ratio = room / step
            enter = np.where(step < 0, np.maximum(enter, ratio), enter)
            leave = np.where(step > 0, np.minimum(leave, ratio), leave)
            leave = np.where((step == 0) & (room < 0), -1.0, leave)
    inside = enter <= leave
    found = []
    for origin, step in ((edges.x0, dx), (edges.y0, dy)):
        ends = np.stack([origin + enter * step, origin + leave * step])
        found.append(np.minimum.reduceat(np.where(inside, ends.min(0), np.inf), edges.start))
        found.append(np.maximum.reduceat(np.where(inside, ends.max(0), -np.inf), edges.start))
    boxes = np.stack([found[0], found[2], found[1], found[3]], axis=1)
    for x, y in ((0, 0), (width, 0), (0, height), (width, height)):
        crosses = (edges.y0 > y) != (edges.y1 > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            right = edges.x0 + (y - edges.y0) * dx / dy > x
        odd = np.add.reduceat((crosses & right).astype(np.int64), edges.start) % 2 == 1
        boxes[odd, :2] = np.minimum(boxes[odd, :2], (x, y))
        boxes[odd, 2:] = np.maximum(boxes[odd, 2:], (x, y))
    boxes[~np.isfinite(boxes).all(axis=1)] = 0.0
    return np.clip(boxes, 0, (width, height, width, height))
