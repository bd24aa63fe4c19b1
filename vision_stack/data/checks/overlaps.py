"""Pairs of annotations of one image that cover the same pixels: annotated twice, or sloppily.

Two objects whose boxes overlap enough are compared by their masks, as RLEs, or by their boxes where one has no mask.
Crowd regions are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from vision_stack.data.annotations import AnnotationTable
from vision_stack.data.checks.diagnosis import Diagnosis, Exhibit, Split, name_object, table_of
from vision_stack.data.checks.issues import Problem, show

_SAME, _NEARLY = 0.97, 0.8  # IoU of two annotations of one class
_OTHER_CLASS = 0.9  # IoU of two annotations of different classes
_OVERLAP = 0.5  # share of the smaller of two masks of one class that the other covers
_BOXES = 0.5  # IoU of boxes, or share of the smaller one, from which masks are compared
_REMEDIES = {
    "duplicate_annotation": "remove one of them; vision-stack doctor --fix OUT writes a copy without it",
    "near_duplicate": "remove one of them if they are one object; --fix OUT writes a copy without the smaller one",
    "two_classes": "remove the one whose class is wrong, unless the object is both",
    "overlap": "draw the border between them, or remove one if they are one object",
}


class Pair(NamedTuple):
    """Two rows of a table."""

    kind: str
    first: int
    second: int
    share: float  # IoU, or for overlaps the share of the smaller mask


def find_overlaps(split: Split, name: str, step: int = 1) -> Iterator[Diagnosis]:
    """Pairs of annotations.

    Args:
        name: of the split.
        step: looks at every so many-th image.
    """
    table = table_of(split)
    if table is None:
        return
    for record in split.records[::step]:
        for pair in pairs_of(table, record):
            yield _diagnosis(pair, table, split, name, record)


def pairs_of(table: AnnotationTable, record: Any) -> list[Pair]:
    """Pairs of objects of one image, each of the worst kind that it is."""
    rows = np.arange(record.rows.start, record.rows.stop)
    rows = rows[~table.crowd[rows]]
    if len(rows) < 2:
        return []
    boxes = table.boxes[rows].copy()
    boxes[:, 2:] += boxes[:, :2]
    iou, inside = _compare_boxes(np.clip(boxes, 0, (record.width, record.height) * 2))
    same = table.labels[rows][:, None] == table.labels[rows]
    candidates = np.argwhere(np.triu((iou >= _BOXES) | (same & (inside >= _BOXES)), 1))
    rles: dict[int, Any] = {}
    found = []
    for a, b in candidates.tolist():
        first, second = (_rle(table, int(rows[i]), record, rles) for i in (a, b))
        with_masks = bool(first and second)
        if with_masks:
            masks = float(coco_mask.iou([first], [second], [0])[0, 0])
            covered = max(float(coco_mask.iou([x], [y], [1])[0, 0]) for x, y in ((first, second), (second, first)))
        else:
            masks, covered = float(iou[a, b]), 0.0
        kind, share = _kind(bool(same[a, b]), masks, covered)
        if kind:
            found.append(Pair(kind, int(rows[a]), int(rows[b]), share))
    return found


def _kind(same_class: bool, iou: float, covered: float) -> tuple[str, float]:
    if not same_class:
        return ("two_classes", iou) if iou >= _OTHER_CLASS else ("", 0.0)
    if iou >= _SAME:
        return "duplicate_annotation", iou
    if iou >= _NEARLY:
        return "near_duplicate", iou
    return ("overlap", covered) if covered >= _OVERLAP else ("", 0.0)


def _compare_boxes(boxes: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """IoU of boxes [N, 4] with each other, and the share of the smaller box that is common, both [N, N]."""
    sides = np.minimum(boxes[:, None, 2:], boxes[:, 2:]) - np.maximum(boxes[:, None, :2], boxes[:, :2])
    common = np.clip(sides, 0, None).prod(axis=2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    union = area[:, None] + area - common
    return common / np.maximum(union, 1e-9), common / np.maximum(np.minimum(area[:, None], area), 1e-9)


def _rle(table: AnnotationTable, row: int, record: Any, cache: dict[int, Any]) -> Any:
    """The mask of a row; None of an object that has only a box."""
    if row not in cache:
        segmentation: Any = table.segmentation(row, record.height, record.width)
        if isinstance(segmentation, list) and segmentation:
            polygons = [polygon.tolist() for polygon in segmentation]
            segmentation = coco_mask.merge(coco_mask.frPyObjects(polygons, record.height, record.width))
        cache[row] = segmentation or None
    return cache[row]


def _diagnosis(pair: Pair, table: AnnotationTable, split: Split, name: str, record: Any) -> Diagnosis:
    first, second = (name_object(split, record, row) for row in (pair.first, pair.second))
    classes = [split.categories[table.labels[row]].name for row in (pair.first, pair.second)]
    of = f"in {show(record.file_name)}"
    if pair.kind == "two_classes":
        message = f"{first} and {second} {of} are {show(classes[0])} and {show(classes[1])}, IoU {pair.share:.2f}"
    elif pair.kind == "overlap":
        message = f"{show(classes[0])} {first} and {second} {of} share {pair.share:.0%} of the smaller mask"
    else:
        message = f"{show(classes[0])} {first} and {second} {of} have an IoU of {pair.share:.2f}"
    problem = Problem(split.annotation_file, "annotations[]", message, _REMEDIES[pair.kind])
    return Diagnosis(pair.kind, name, problem, (Exhibit(record, (pair.first, pair.second)),), pair.share)
