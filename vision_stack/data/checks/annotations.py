"""Reads the annotations of a COCO json, one by one; `objects.py` checks them all at once.

What is wrong beyond repair is a problem: no segmentation (unless boxes are enough), one of the wrong type, an unknown
image or category. A flat list of coordinates is one polygon. A crowd may be a polygon.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision_stack.data.annotations import AnnotationTable
from vision_stack.data.checks.issues import BrokenField, Findings, show, whole_number
from vision_stack.data.checks.objects import ImageFrame, ObjectColumns, checked_table


def read_annotations(
    listed: Iterable[Any],
    frames: Mapping[int, ImageFrame],
    label_of: Mapping[int, int],
    known_ids: set[int],
    findings: Findings,
    *,
    masks: bool = True,
) -> tuple[AnnotationTable, NDArray[np.int64]]:
    """Check the json's `annotations` and keep the good ones.

    Args:
        listed: the json's list; emptied entry by entry if it is one, so that its memory is free for what replaces it.
        frames: by image id.
        label_of: category id -> label.
        known_ids: the category ids that the file lists; those of them without a label have been reported already.
        masks: refuse annotations that have only a box.

    Returns:
        the table, sorted by image row, and the image row of each of its annotations.

    Raises:
        DataError: masks are needed, and all there is are boxes.
    """
    columns = ObjectColumns(findings, masks=masks)
    unknown: Counter[Any] = Counter()
    first_unknown: dict[Any, int] = {}
    for index, raw in enumerate(listed):
        if isinstance(listed, list):
            listed[index] = None
        of = ""
        try:
            if not isinstance(raw, dict):
                raise BrokenField("", f"expected a mapping, got {show(raw)}", "correct the file")
            frame = frames.get(_id(raw, "image_id"))
            if frame is None:
                message = f"no image has the id {raw['image_id']}"
                raise BrokenField("image_id", message, "add the image, or remove the annotation")
            if frame.row < 0:
                continue
            of = frame.file_name
            category_id = _id(raw, "category_id")
            if category_id in label_of:
                _add(columns, raw, index, frame, label_of[category_id])
            elif category_id not in known_ids:
                first_unknown.setdefault(category_id, index)
                unknown[category_id] += 1
        except BrokenField as error:
            message = f"{error.message} (image {show(of)})" if of else error.message
            findings.problem(findings.object(index, error.field), message, error.remedy)
    for category_id, count in unknown.items():
        more = f" ({count} annotations)" if count > 1 else ""
        message = f"no category has the id {category_id}{more}"
        remedy = "add it to the json's categories, or remove what uses it"
        findings.problem(findings.object(first_unknown[category_id], "category_id"), message, remedy)
    columns.refuse_boxes_alone()
    return checked_table(columns, sorted(frame for frame in frames.values() if frame.row >= 0))


def _id(raw: dict[str, Any], field: str) -> int:
    value = whole_number(raw.get(field))
    if value is None:
        message = f"expected a whole number, got {show(raw.get(field))}"
        raise BrokenField(field, message, "use the id of a listed image or category")
    return value


def _add(to: ObjectColumns, raw: dict[str, Any], index: int, frame: ImageFrame, label: int) -> None:
    """Append an annotation, unless it can be seen here and now that it is broken."""
    crowd = raw.get("iscrowd", 0)
    if crowd not in (0, 1, None):
        raise BrokenField("iscrowd", f"expected 0 or 1, got {show(crowd)}", "correct it")
    box = raw.get("bbox")
    if box and not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        message = f"expected four numbers x, y, width, height, got {show(box)}"
        raise BrokenField("bbox", message, "correct it, or leave bbox out to have it computed")
    area = float(raw["area"]) if _is_number(raw.get("area")) and math.isfinite(raw["area"]) else math.nan
    number = whole_number(raw.get("id"))
    object_id = number if number and number > 0 else 0
    to.add(index, frame, label, raw.get("segmentation"), box, area=area, crowd=bool(crowd), object_id=object_id)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)
