"""Checks objects of any format, all of a data set at once: polygons, RLEs, boxes, and whether they fit together.

A reader adds objects one by one to `ObjectColumns`, in whatever words its format has; `checked_table` does the rest.

What is wrong beyond repair is a problem: a mask of the wrong size or shape, coordinates that are not finite, a polygon
without area, a box without area or wholly outside of the image; and, if most of them are so, polygons that cover no
pixel, or boxes that are fractions of the image. What looks odd is noted (`consistency.py`).

What has an obvious meaning is fixed: a missing box or area is taken from the mask, a box that sticks out is clipped
when used, a degenerate polygon among good ones is dropped (noted), missing or repeated ids are renumbered (noted; they
carry no meaning, but pycocotools needs them unique and not 0).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_stack.data.annotations import AnnotationTable
from vision_stack.data.checks.consistency import (
    Masks,
    Notes,
    find_empty,
    find_fractions,
    note_areas,
    note_boxes,
    note_crowds,
    note_holes,
    note_outside,
)
from vision_stack.data.checks.issues import BrokenField, Findings, Place, data_error, show
from vision_stack.data.checks.polygons import DEGENERATE, PolygonShapes, fault_of, measure
from vision_stack.ops import rle
from vision_stack.ops.masks import MAX_COORDINATE

_NONE = (math.nan,) * 4  # a box that there is not
NEEDS_MASKS = (
    "export with polygons or RLE masks, or train on boxes: task=detection, with head=faster_rcnn or another without "
    "masks"
)


class ImageFrame(NamedTuple):
    """What annotations need to know of their image. `row` is -1 for an image that is left out already."""

    row: int
    file_name: str
    height: int
    width: int


class ObjectColumns:
    """Objects as columns that grow one by one.

    Args:
        findings: where objects stand.
        masks: refuse objects that have only a box.
    """

    def __init__(self, findings: Findings, *, masks: bool = True) -> None:
        self.findings, self.masks = findings, masks
        self.index, self.image_row, self.label = array("q"), array("q"), array("q")
        self.ids, self.crowd = array("q"), array("b")
        self.box, self.area = array("d"), array("d")  # as stated; NaN where there is none
        self.bounds, self.pixels = array("d"), array("d")  # of RLEs; NaN for polygons, whose masks are measured later
        self.polygon_stop = array("q")  # per object, in polygons
        self.points = array("d")
        self.point_count, self.point_stop = array("q"), array("q")  # per polygon
        self.counts, self.counts_stop = bytearray(), array("q")
        self.without_mask = 0  # refused because they have only a box

    def add(
        self,
        index: int,
        frame: ImageFrame,
        label: int,
        segmentation: Any = None,
        box: Sequence[float] | None = None,
        *,
        area: float = math.nan,
        crowd: bool = False,
        object_id: int = 0,
    ) -> None:
        """Append an object, unless it can be seen here and now that it is broken.

        Args:
            index: of the object, by which `findings` knows where it stands.
            segmentation: polygons, a flat list of coordinates, an RLE, or nothing.
            box: x, y, width, height, or nothing.
            object_id: 0 for none.

        Raises:
            BrokenField: nothing has been appended.
        """
        bounds, pixels = _NONE, math.nan
        if not segmentation and self.masks:
            self.without_mask += bool(box)
            message = "there is no mask, only a box" if box else "there is no mask"
            raise BrokenField("segmentation", message, NEEDS_MASKS)
        if not segmentation:
            if not box:
                raise BrokenField("bbox", "there is neither a box nor a mask", "write one, or remove it")
        elif isinstance(segmentation, Mapping):
            bounds, pixels = self._add_rle(segmentation, frame)
        elif isinstance(segmentation, list):
            self._add_polygons(segmentation)
        else:
            message = f"expected polygons or an RLE, got {show(segmentation)}"
            raise BrokenField("segmentation", message, self.findings.redo)
        self.index.append(index)
        self.image_row.append(frame.row)
        self.label.append(label)
        self.ids.append(object_id)
        self.crowd.append(crowd)
        self.box.extend(box or _NONE)
        self.area.append(area)
        self.bounds.extend(bounds)
        self.pixels.append(pixels)
        self.polygon_stop.append(len(self.point_stop))
        self.counts_stop.append(len(self.counts))

    def refuse_boxes_alone(self) -> None:
        """DataError if masks are needed, and all there is are boxes."""
        if self.without_mask and not self.index:
            file, field = self.findings.objects("segmentation")
            message = f"none of {self.without_mask:,} annotations has a mask, all have only a box"
            raise data_error(file, field, message, NEEDS_MASKS)

    def _add_rle(
        self, segmentation: Mapping[str, Any], frame: ImageFrame
    ) -> tuple[tuple[float, float, float, float], float]:
        """Returns bounds and number of the object's pixels."""
        try:
            runs = rle.check_rle(segmentation, frame.height, frame.width)
        except ValueError as error:
            raise BrokenField("segmentation", str(error), self.findings.redo) from None
        pixels = float(runs[1::2].sum())
        if not pixels:
            raise BrokenField("segmentation", "the RLE has no object pixel", self.findings.redo)
        counts = segmentation["counts"]
        if isinstance(counts, list):
            counts = rle.to_compressed(segmentation, frame.height, frame.width)["counts"]
        self.counts.extend(counts.encode("ascii") if isinstance(counts, str) else counts)
        return rle.box_of_runs(runs, frame.height), pixels

    def _add_polygons(self, polygons: list[Any]) -> None:
        if not isinstance(polygons[0], list):  # one polygon that is not wrapped in a list means what it seems to mean
            polygons = [polygons]
        points, before = self.points, (len(self.points), len(self.point_stop))
        try:
            for polygon in polygons:
                start = len(points)
                points.extend(polygon)  # TypeError for anything but numbers
                self.point_count.append(len(points) - start)
                if (len(points) - start) % 2 or len(points) == start:  # keeps x at even places, and no polygon empty
                    points.extend((0.0,) if len(points) > start else (0.0, 0.0))
                self.point_stop.append(len(points))
        except (TypeError, OverflowError):
            del points[before[0] :], self.point_count[before[1] :], self.point_stop[before[1] :]
            message = f"expected lists of numbers x0, y0, x1, y1, ..., got {show(polygons)}"
            raise BrokenField("segmentation", message, self.findings.redo) from None


def checked_table(to: ObjectColumns, frames: Sequence[ImageFrame]) -> tuple[AnnotationTable, NDArray[np.int64]]:
    """The good objects, sorted by image row, and the image row of each of them.

    Args:
        to: all objects.
        frames: of the images, in order of their rows.
    """
    findings = to.findings
    sizes = np.array([(frame.height, frame.width) for frame in frames], dtype=np.int64).reshape(-1, 2)
    image_row = _view(to.image_row)
    rows = len(image_row)
    height, width = sizes[image_row].T if rows else np.zeros((2, 0), dtype=np.int64)

    polygon_stop = _view(to.polygon_stop)
    polygon_count = np.diff(polygon_stop, prepend=0)
    owner = np.repeat(np.arange(rows), polygon_count)
    point_stop, points = _view(to.point_stop), _view(to.points)
    shapes = measure(points, _view(to.point_count), point_stop, height[owner], width[owner])

    def where(row: int, field: str) -> Place:
        return findings.object(to.index[row], field)

    def of(row: int) -> str:
        return f" (image {show(frames[image_row[row]].file_name)})"

    def name(row: int) -> str:
        return findings.name(to.index[row], to.ids[row], frames[image_row[row]].file_name)

    good = _judge_polygons(shapes, owner, polygon_count, where, of, findings)
    kept = shapes.fault == 0
    points_of = np.stack([np.concatenate([[0], point_stop])[:-1], point_stop], axis=1)
    masks = _masks(to, shapes, np.stack([height, width], axis=1), owner, kept, points, points_of)
    boxes, areas = _filled(to, masks)
    bare: NDArray[np.bool_] = np.isnan(masks.bounds[:, 0])  # only a box
    _judge_boxes(boxes, good, bare, height, width, where, of, findings)
    ids = _unique_ids(_view(to.ids), where, findings)
    crowd = _view(to.crowd).astype(bool)
    _compare(to, masks, good, crowd, bare, Notes(findings, name))

    order = np.flatnonzero(good)
    order = order[np.argsort(image_row[order], kind="stable")]
    kept_before = np.concatenate([[0], np.cumsum(kept)])
    counts_stop = _view(to.counts_stop)
    table = AnnotationTable(
        labels=_view(to.label)[order],
        boxes=boxes[order],
        areas=areas[order],
        crowd=crowd[order],
        ids=ids[order],
        polygons=np.stack([kept_before[polygon_stop - polygon_count], kept_before[polygon_stop]], axis=1)[order],
        points_of=masks.points_of,
        points=points,
        counts_of=np.stack([np.concatenate([[0], counts_stop])[:-1], counts_stop], axis=1)[order],
        counts=bytes(to.counts),
    )
    return table, image_row[order]


def _view(column: array[Any]) -> NDArray[Any]:
    """A column as it lies in memory: those of COCO take hundreds of MB."""
    return np.frombuffer(column, dtype=column.typecode) if column else np.zeros(0, dtype=column.typecode)


def _judge_polygons(
    shapes: PolygonShapes, owner: Any, polygon_count: Any, where: Any, of: Any, findings: Findings
) -> NDArray[np.bool_]:
    """[rows] True where an annotation's polygons will do. Degenerate ones among good ones are noted only."""
    rows = len(polygon_count)
    usable = np.bincount(owner[shapes.fault == 0], minlength=rows)
    broken = np.bincount(owner[(shapes.fault > 0) & ~np.isin(shapes.fault, DEGENERATE)], minlength=rows)
    good = (polygon_count == 0) | ((usable > 0) & (broken == 0))
    reported: set[int] = set()
    left_out: list[int] = []
    # What is beyond repair comes first, so that each annotation is reported for the worst of its polygons.
    faulty = np.flatnonzero(shapes.fault)
    for polygon in faulty[np.argsort(np.isin(shapes.fault[faulty], DEGENERATE), kind="stable")].tolist():
        row = int(owner[polygon])
        if good[row]:
            left_out.append(polygon)
        elif row not in reported:
            findings.problem(where(row, "segmentation"), fault_of(shapes, polygon) + of(row), findings.redo)
        reported.add(row)
    if left_out:
        first = int(owner[left_out[0]])
        more = f", and {len(left_out) - 1:,} more such" if len(left_out) > 1 else ""
        message = f"{fault_of(shapes, left_out[0])}{of(first)}{more}"
        findings.note(where(first, "segmentation"), message, "left out; the object has other polygons")
    return good


def _masks(
    to: ObjectColumns, shapes: PolygonShapes, size: Any, owner: Any, kept: Any, points: Any, points_of: Any
) -> Masks:
    bounds, area = _view(to.bounds).reshape(-1, 4), _view(to.pixels)
    of_polygons = np.full((len(bounds), 4), np.inf) * (1, 1, -1, -1)
    np.minimum.at(of_polygons[:, :2], owner[kept], shapes.bounds[kept, :2])
    np.maximum.at(of_polygons[:, 2:], owner[kept], shapes.bounds[kept, 2:])
    has_polygon = np.isfinite(of_polygons).all(axis=1)
    bounds[has_polygon] = of_polygons[has_polygon]
    area[has_polygon] = np.bincount(owner[kept], weights=shapes.area[kept], minlength=len(bounds))[has_polygon]
    return Masks(size, bounds, area, owner[kept], points, points_of[kept], shapes.bounds[kept], shapes.area[kept])


def _filled(to: ObjectColumns, masks: Masks) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Boxes [A, 4] (x, y, width, height) and areas [A] of the file, or else of the masks, or else of the boxes."""
    boxes = _view(to.box).reshape(-1, 4).copy()
    missing = np.isnan(boxes).all(axis=1) & np.isfinite(masks.bounds).all(axis=1)
    boxes[missing] = np.concatenate([masks.bounds[:, :2], masks.bounds[:, 2:] - masks.bounds[:, :2]], axis=1)[missing]
    areas = _view(to.area)
    areas = np.where(areas > 0, areas, masks.area)
    return boxes, np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas)


def _compare(
    to: ObjectColumns,
    masks: Masks,
    good: NDArray[np.bool_],
    crowd: NDArray[np.bool_],
    bare: NDArray[np.bool_],
    note: Notes,
) -> None:
    """Notes what does not fit together; clears `good` where masks or boxes are of no use and that is a problem."""
    stated_boxes = _view(to.box).reshape(-1, 4)
    good &= ~find_empty(masks, good, note)
    good &= ~find_fractions(masks.size, stated_boxes, good & bare, note)
    note_outside(masks.size, stated_boxes, good & bare, note)
    note_crowds(note.findings, crowd[good])
    note_boxes(masks, stated_boxes, good, note)
    note_areas(masks, _view(to.area), stated_boxes, good, note)
    note_holes(masks, good, note)


def _judge_boxes(
    boxes: Any, good: Any, bare: Any, height: Any, width: Any, where: Any, of: Any, findings: Findings
) -> None:
    """Clears `good` where a box will not do."""
    x, y, w, h = boxes.T
    with np.errstate(invalid="ignore"):
        faults = {
            "is not finite": ~np.isfinite(boxes).all(axis=1),
            f"lies beyond {MAX_COORDINATE:g} pixels": (np.abs(boxes) > MAX_COORDINATE).any(axis=1),
            "has no area": (w <= 0) | (h <= 0),
            "is wholly outside of the image": (x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0),
        }
    for text, faulty in faults.items():
        for row in np.flatnonzero(faulty & good).tolist():
            message = f"box {show(boxes[row].tolist())} {text}{of(row)}"
            instead = "remove it" if bare[row] else findings.instead_of_box
            remedy = f"correct x, y, width, height, or {instead}"
            findings.problem(where(row, "bbox"), message, remedy)
        good &= ~faulty


def _unique_ids(ids: NDArray[np.int64], where: Any, findings: Findings) -> NDArray[np.int64]:
    _, first = np.unique(ids, return_index=True)
    repeated = np.ones(len(ids), dtype=bool)
    repeated[first] = False
    again = np.flatnonzero(repeated & (ids > 0))
    if len(again):
        more = f", and {len(again) - 1} more are repeated" if len(again) > 1 else ""
        message = f"id {ids[again[0]]} is used before{more}"
        findings.note(where(int(again[0]), "id"), message, "renumbered; results are not affected")
    renumbered = repeated | (ids == 0)
    unique = ids.copy()
    unique[renumbered] = ids.max(initial=0) + 1 + np.arange(np.count_nonzero(renumbered))
    return unique
