"""Reads COCO panoptic annotations: a json of segments, and a PNG of segment ids for each image.

Everything broken is found before training starts, as far as `label_files.CHECKED_AT_START` goes: an image without
annotation, a PNG that is missing, unreadable, of the wrong size or with other segments than the json lists, unknown
categories, repeated ids, names that lead out of their folder. With "skip", an image with anything broken is left out.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vision_stack.data.checks.categories import read_categories
from vision_stack.data.checks.consistency import note_crowds
from vision_stack.data.checks.issues import BrokenField, DataError, Findings, data_error, show, whole_number
from vision_stack.data.checks.label_files import check_maps, oriented_as_map
from vision_stack.data.checks.segments import LabelMapSplit, PanopticRecord, SegmentTable
from vision_stack.data.image_records import ImageFolder, ListedImage, check_files, read_listed
from vision_stack.data.readers.json_file import load_coco_json, refusal
from vision_stack.ops.label_maps import MAX_SEGMENT_ID
from vision_stack.structures import Category


def read_coco_panoptic(
    annotation_file: str | Path,
    image_dir: str | Path,
    label_dir: str | Path,
    *,
    on_error: Literal["raise", "skip"] = "raise",
    categories: Sequence[Category] | None = None,
) -> LabelMapSplit:
    """Read and check one split.

    Args:
        annotation_file: COCO panoptic json.
        image_dir: what the images' `file_name`s are relative to. No file outside of it is touched.
        label_dir: the same of the annotations' `file_name`s, the PNGs of segment ids.
        on_error: "raise" stops at broken records, all of them listed; "skip" leaves their images out.
        categories: the classes to use (of the training split, or a checkpoint); by default those of the file.

    Raises:
        DataError: the file is not such a json at all; nothing good is left; its categories are ambiguous; or, with
            "raise", any record is broken.
    """
    file = str(annotation_file)
    data = load_coco_json(file, "panoptic")
    for folder, what in ((image_dir, "image"), (label_dir, "label")):
        if not os.path.isdir(folder):
            raise data_error(folder, f"{what} folder", "there is no such folder", f"name the folder of {what}s")
    first = data["annotations"][0]
    if isinstance(first, dict) and "segments_info" not in first:
        message = "has no segments_info"
        raise data_error(file, "annotations[0]", message, "give a COCO panoptic json, or use data=coco for instances")

    findings = Findings(file)
    classes, label_of = read_categories(data["categories"], _used(data["annotations"]), findings, categories)
    if not classes:
        raise data_error(file, "categories", "there is no category", "list the classes")
    if categories is None:
        _note_missing_isthing(data["categories"], findings)
    listed, _ = read_listed(data["images"], str(image_dir), findings, size_needed=False)
    listed_ids = {category["id"] for category in data["categories"]}
    segments = _Segments(data["annotations"], str(label_dir), label_of, listed_ids, findings)
    table = segments.table()
    note_crowds(findings, table.crowd, "segments")
    records = _records(list(check_files(listed, str(image_dir), findings, decode=on_error == "skip")), segments, table)
    records, faults = check_maps(records, Path(file).name, PanopticRecord.check_map, every=on_error == "skip")
    findings.problems += faults
    if findings.problems and on_error == "raise":
        raise DataError(refusal(file, findings.problems))
    if not records:
        reason = f"; the first problem is {findings.problems[0]}" if findings.problems else ""
        raise data_error(file, "images", "no good image is left", f"fix the file{reason}")
    num_crowds = int(np.count_nonzero(table.crowd))
    return LabelMapSplit(file, records, classes, tuple(findings.problems), tuple(findings.notes), num_crowds)


class _Segments:
    """The good annotations: by image id, the PNG and the rows of the table."""

    def __init__(
        self,
        annotations: list[Any],
        label_dir: str,
        label_of: Mapping[int, int],
        listed_ids: set[int],
        findings: Findings,
    ) -> None:
        self._ids, self._labels, self._crowd = array("i"), array("q"), array("b")
        self._label_of, self._listed_ids = label_of, listed_ids
        self.findings = findings
        self.of_image: dict[int, tuple[str, range]] = {}
        self.broken: set[int] = set()  # images whose annotation is a problem already
        folder = ImageFolder(label_dir)
        for index, raw in enumerate(annotations):
            length = len(self._ids)
            try:
                self._read(raw, folder)
            except BrokenField as error:
                findings.problem(f"annotations[{index}]{error.field}", error.message, error.remedy)
                for column in (self._ids, self._labels, self._crowd):
                    del column[length:]
                if isinstance(raw, dict) and (image_id := whole_number(raw.get("image_id"))) is not None:
                    self.broken.add(image_id)

    def table(self) -> SegmentTable:
        return SegmentTable(
            ids=np.array(self._ids, np.int32),
            labels=np.array(self._labels, np.int64),
            crowd=np.array(self._crowd, bool),
        )

    def _read(self, raw: Any, folder: ImageFolder) -> None:
        if not isinstance(raw, dict):
            raise BrokenField("", f"expected a mapping, got {show(raw)}", "correct the file")
        image_id = whole_number(raw.get("image_id"))
        if image_id is None:
            message = f"expected a whole number, got {show(raw.get('image_id'))}"
            raise BrokenField(".image_id", message, "use the id of a listed image")
        if image_id in self.of_image:
            raise BrokenField(".image_id", f"image {image_id} has an annotation already", "keep one of the two")
        try:
            _, path = folder.resolve(raw.get("file_name"))
        except BrokenField as error:
            raise BrokenField(".file_name", error.message, error.remedy) from None
        segments = raw.get("segments_info")
        if not isinstance(segments, list):
            raise BrokenField(".segments_info", f"expected a list, got {show(segments)}", "export it again")
        start, seen = len(self._ids), set[int]()
        for position, segment in enumerate(segments):
            try:
                self._add(segment, seen)
            except BrokenField as error:
                raise BrokenField(
                    f".segments_info[{position}]{error.field}",
                    f"{error.message} (image id {image_id})",
                    error.remedy,
                ) from None
        self.of_image[image_id] = (path, range(start, len(self._ids)))

    def _add(self, raw: Any, seen: set[int]) -> None:
        if not isinstance(raw, dict):
            raise BrokenField("", f"expected a mapping, got {show(raw)}", "correct the file")
        segment, category = whole_number(raw.get("id")), whole_number(raw.get("category_id"))
        if segment is None or not 0 < segment <= MAX_SEGMENT_ID:
            message = f"expected a whole number from 1 to {MAX_SEGMENT_ID}, got {show(raw.get('id'))}"
            raise BrokenField(".id", message, "use the value that the segment has in the PNG")
        if segment in seen:
            raise BrokenField(".id", f"segment {segment} is listed before", "list every segment once")
        if category is None or category not in self._label_of:
            known = category in self._listed_ids  # but not by the training data
            message = f"{'the training data has' if known else 'there is'} no category {show(raw.get('category_id'))}"
            raise BrokenField(".category_id", message, "add it to the categories, or remove the segment")
        if raw.get("iscrowd") not in (0, 1, None):
            raise BrokenField(".iscrowd", f"expected 0 or 1, got {show(raw['iscrowd'])}", "correct it")
        seen.add(segment)
        self._ids.append(segment)
        self._labels.append(self._label_of[category])
        self._crowd.append(bool(raw.get("iscrowd")))


def _records(images: list[ListedImage], segments: _Segments, table: SegmentTable) -> list[PanopticRecord]:
    records = []
    for image in images:
        found = segments.of_image.get(image.image_id)
        if found is not None:
            path, rows = found
            image = oriented_as_map(image, path)
            names = (image.image_id, image.file_name, image.path, image.height, image.width, image.apply_exif)
            records.append(PanopticRecord(*names, path, table, rows))
        elif image.image_id not in segments.broken:
            message = f"image {show(image.file_name)} has no annotation"
            segments.findings.problem(f"images[{image.position}].id", message, "annotate it, or remove the image")
    return records


def _note_missing_isthing(categories: list[dict[str, Any]], findings: Findings) -> None:
    """Which categories count as things for want of `isthing`."""
    missing = [position for position, category in enumerate(categories) if "isthing" not in category]
    if missing:
        more = f", nor have {len(missing) - 1:,} others" if len(missing) > 1 else ""
        message = f"{show(categories[missing[0]]['name'])} has none{more}"
        done = "taken for things, that is countable objects; write isthing 0 for stuff"
        findings.note(f"categories[{missing[0]}].isthing", message, done)


def _used(annotations: list[Any]) -> Counter[int]:
    """How many segments name which category id, as far as they are well formed."""
    used: Counter[int] = Counter()
    for raw in annotations:
        segments = raw.get("segments_info") if isinstance(raw, dict) else None
        for segment in segments if isinstance(segments, list) else ():
            category = whole_number(segment.get("category_id")) if isinstance(segment, dict) else None
            if category is not None:
                used[category] += 1
    return used
