"""What does not fit together in a json's good annotations: one line for each kind, with a count.

All of it is cheap beside reading the json: arrays are compared, and only thin polygons are rasterised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vision_stack.data.checks.issues import Findings
from vision_stack.ops.masks import covers_a_pixel

Float: TypeAlias = NDArray[np.float64]
Int: TypeAlias = NDArray[np.int64]
Bool: TypeAlias = NDArray[np.bool_]

_SHOWN = 3  # annotations that a line names
_THIN = 2.0  # pixels: anything thicker covers the middle of some pixel
_FRACTION = (-0.01, 1.01)  # coordinates that are fractions of the image, rounded
_FITS, _MISFIT = 0.8, 0.5  # IoU of boxes that say the same, and below which they do not
_SLACK = 2.0  # pixels by which boxes and masks may differ in any case
_AREA_RATIO, _AREA_SLACK = 2.0, 16.0  # of the area in the file and the mask's, and their difference in pixels
_AT_MOST_COMPARED = 64  # points of a ring


class Masks(NamedTuple):
    """Of A annotations the masks, measured; P polygons that will do."""

    size: Int  # [A, 2] height and width of the image
    bounds: Float  # [A, 4] (x0, y0, x1, y1)
    area: Float  # [A] pixels
    owner: Int  # [P] the annotation; those of one annotation next to each other
    points: Float  # [M] (x0, y0, x1, y1, ...), polygon after polygon
    points_of: Int  # [P, 2] first and stop in `points`
    polygon_bounds: Float  # [P, 4]
    polygon_area: Float  # [P]

    def polygon(self, index: int) -> Float:
        first, stop = self.points_of[index].tolist()
        return self.points[first:stop]


class Notes:
    """Adds findings that name the first few annotations by their ids."""

    def __init__(self, findings: Findings, name: Callable[[int], str]) -> None:
        self.findings, self._name = findings, name

    def __call__(self, rows: Int, field: str, message: str, done: str, *, problem: bool = False) -> None:
        """`rows` of the annotations in question, `message` with a place for them: "{count} of ..."."""
        if not len(rows):
            return
        first = ", ".join(self._name(row) for row in rows[:_SHOWN].tolist())
        first += ", ..." if len(rows) > _SHOWN else ""
        say = self.findings.problem if problem else self.findings.note
        say(self.findings.objects(field), f"{message.format(count=f'{len(rows):,}')} ({first})", done)


def note_crowds(findings: Findings, crowd: Bool, what: str = "annotations") -> None:
    """How many of the annotations, or segments, are crowd regions."""
    if count := int(np.count_nonzero(crowd)):
        field = "iscrowd" if what == "annotations" else "segments_info[].iscrowd"
        message = f"{count:,} of {len(crowd):,} {what} are crowd regions (iscrowd=1)"
        done = "not trained on, and detections in them are not counted as errors; for single objects write iscrowd=0"
        findings.note(findings.objects(field), message, done)


def find_empty(masks: Masks, good: Bool, note: Notes) -> Bool:
    """[A] True where the polygons of a good annotation are of no use, which is a problem of most of them.

    They cover no pixel of their image, or their coordinates are fractions of it and so cover one at most. Where that is
    true of few, it is noted and nothing else.
    """
    of_polygons = good & (np.bincount(masks.owner, minlength=len(good)) > 0)
    low, high = _FRACTION
    fractions = of_polygons & (masks.bounds >= low).all(axis=1) & (masks.bounds <= high).all(axis=1)
    fractions &= masks.size.min(axis=1, initial=2**31) > high
    empty = np.zeros(len(good), bool)
    for row in _thin_rows(masks, of_polygons):
        first, stop = np.searchsorted(masks.owner, (row, row + 1))
        height, width = masks.size[row].tolist()
        empty[row] = not covers_a_pixel([masks.polygon(i) for i in range(first, stop)], height, width)
    objects = np.count_nonzero(of_polygons)
    useless = np.zeros(len(good), bool)
    of_fractions = "cover at most one pixel: their coordinates are all in 0..1, fractions of the image, not pixels"
    kinds = (
        (fractions, of_fractions, "multiply x by the image's width and y by its height"),
        (empty & ~fractions, "cover no pixel of their image", "annotate them again; nothing is learnt from them"),
    )
    for found, what, remedy in kinds:
        most = bool(2 * np.count_nonzero(found) > objects)
        rows = np.flatnonzero(found if most else found & empty)
        note(rows, "segmentation", f"{{count}} of {objects:,} polygon objects {what}", remedy, problem=most)
        useless |= found & most
    return useless


def find_fractions(size: Int, boxes: Float, bare: Bool, note: Notes) -> Bool:
    """[A] True where boxes [A, 4] (x, y, width, height) without masks are fractions of the image, if most are."""
    low, high = _FRACTION
    with np.errstate(invalid="ignore"):
        found = bare & (boxes >= low).all(axis=1) & (boxes <= high).all(axis=1) & (size.min(axis=1) > high)
    most = bool(2 * np.count_nonzero(found) > np.count_nonzero(bare))
    message = f"{{count}} of {np.count_nonzero(bare):,} boxes are all in 0..1, fractions of the image, not pixels"
    remedy = "multiply x and width by the image's width, y and height by its height"
    note(np.flatnonzero(found), "bbox", message, remedy, problem=most)
    return found & most


def note_outside(size: Int, boxes: Float, bare: Bool, note: Notes) -> None:
    """Boxes without masks that reach beyond their image."""
    height, width = size.T
    x, y, w, h = boxes.T
    with np.errstate(invalid="ignore"):
        beyond = bare & ((np.minimum(x, y) < -_SLACK) | (x + w > width + _SLACK) | (y + h > height + _SLACK))
        as_corners = (
            (x >= -_SLACK) & (y >= -_SLACK) & (w > x) & (h > y) & (w <= width + _SLACK) & (h <= height + _SLACK)
        )
        corners = beyond & as_corners
    count = np.count_nonzero(corners)
    hint = f"; {count:,} of them may be x0, y0, x1, y1" if 2 * count > np.count_nonzero(beyond) else ""
    message = f"{{count}} boxes reach beyond their image, as x, y, width, height{hint}"
    note(np.flatnonzero(beyond), "bbox", message, "clipped")


def note_boxes(masks: Masks, boxes: Float, good: Bool, note: Notes) -> None:
    """Boxes [A, 4] of the file (x, y, width, height), NaN where it has none, that do not surround their masks."""
    off: Bool = np.zeros(len(boxes), dtype=bool)
    with np.errstate(invalid="ignore"):
        for side in range(4):  # one after the other: there may be a million boxes
            edge = boxes[:, side] if side < 2 else boxes[:, side - 2] + boxes[:, side]
            off |= np.abs(edge - masks.bounds[:, side]) > _SLACK
    rows = np.flatnonzero(good & off & np.isfinite(boxes).all(axis=1))
    height, width = masks.size[rows].T
    x, y, w, h = boxes[rows].T
    limit = np.stack([width, height, width, height], axis=1)
    bounds = np.clip(masks.bounds[rows], 0, limit)

    def fit(*corners: Float) -> Float:
        return _iou(np.clip(np.stack(corners, axis=1), 0, limit), bounds)

    with np.errstate(invalid="ignore"):
        wrong = fit(x, y, x + w, y + h) < _MISFIT
        readings = {
            "x0, y0, x1, y1": fit(x, y, w, h),
            "the centre, width and height": fit(x - w / 2, y - h / 2, x + w / 2, y + h / 2),
            "fractions of the image": fit(x * width, y * height, (x + w) * width, (y + h) * height),
        }
    counts = {name: np.count_nonzero(wrong & (fitting > _FITS)) for name, fitting in readings.items()}
    name = max(counts, key=lambda name: counts[name])
    hint = f"; {counts[name]:,} of them seem to be {name}" if counts[name] else ""
    message = f"{{count}} boxes do not surround their masks, as x, y, width, height{hint}"
    done = "training takes boxes from the masks, but box AP is measured with these"
    note(rows[wrong], "bbox", message, done)


def note_areas(masks: Masks, areas: Float, boxes: Float, good: Bool, note: Notes) -> None:
    """Areas [A] of the file, NaN where it has none, that are far from the masks'."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.maximum(areas / masks.area, masks.area / areas)
        wrong = good & (areas > 0) & (ratio > _AREA_RATIO) & (np.abs(areas - masks.area) > _AREA_SLACK)
        as_box = np.count_nonzero(wrong & (np.abs(areas - boxes[:, 2] * boxes[:, 3]) <= 0.01 * areas))
    hint = f"; {as_box:,} of them are those of the boxes" if as_box else ""
    message = f"{{count}} areas are less than half or more than twice the mask's{hint}"
    note(np.flatnonzero(wrong), "area", message, "AP of small, medium and large objects goes by these")


def note_holes(masks: Masks, good: Bool, note: Notes) -> None:
    """Annotations in which one polygon lies inside the largest."""
    if not len(masks.owner):
        return
    order = np.lexsort((-masks.polygon_area, masks.owner))
    starts = np.concatenate([[True], np.diff(masks.owner) > 0])  # sorting keeps owners in their places
    largest = order[np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]
    inner, outer = masks.polygon_bounds[order], masks.polygon_bounds[largest]
    within = (inner[:, :2] > outer[:, :2]).all(axis=1) & (inner[:, 2:] < outer[:, 2:]).all(axis=1)
    rows = {
        int(masks.owner[ring])
        for ring, around in zip(order[within].tolist(), largest[within].tolist(), strict=True)
        if _lies_inside(masks.polygon(ring), masks.polygon(around))
    }
    found = np.array(sorted(row for row in rows if good[row]), np.int64)
    message = "{count} objects have a polygon inside of another, which looks like a hole"
    note(found, "segmentation", message, "filled, since polygons are united; give RLEs for masks with holes")


def _thin_rows(masks: Masks, of_polygons: Bool) -> list[int]:
    """Annotations whose polygons may all fall between the middles of pixels, or lie outside the image."""
    height, width = masks.size[masks.owner].T
    x0, y0, x1, y1 = masks.polygon_bounds.T
    w, h = np.minimum(x1, width) - np.maximum(x0, 0), np.minimum(y1, height) - np.maximum(y0, 0)
    longest = np.maximum(x1 - x0, y1 - y0)
    thin = (masks.polygon_area < _THIN * longest) | (np.minimum(w, h) < _THIN)
    thin |= w * h < (x1 - x0) * (y1 - y0) / 2
    thick = np.bincount(masks.owner[~thin], minlength=len(of_polygons)) > 0
    rows: list[int] = np.flatnonzero(of_polygons & ~thick).tolist()
    return rows


def _iou(one: Float, other: Float) -> Float:
    """Of boxes [A, 4] (x0, y0, x1, y1), pair by pair."""
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    common = np.clip(sides, 0, None).prod(axis=1)
    area_one, area_other = (np.clip(b[:, 2:] - b[:, :2], 0, None).prod(axis=1) for b in (one, other))
    return common / np.maximum(area_one + area_other - common, 1e-9)


def _lies_inside(ring: Float, around: Float) -> bool:
    """Whether the points of a polygon lie inside of another: an odd number of its edges are to the right of each."""
    x, y = ring.reshape(-1, 2)[:: -(-len(ring) // (2 * _AT_MOST_COMPARED))].T[:, :, None]  # [n, 1]
    x0, y0 = around.reshape(-1, 2).T
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    crosses = (y0 > y) != (y1 > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        right = x < x0 + (y - y0) * (x1 - x0) / (y1 - y0)
    return bool((np.count_nonzero(crosses & right, axis=1) % 2 == 1).all())
