"""Hugging Face's `imagefolder`: a `metadata.jsonl` beside the images of a split, with a line for each image.

`{"file_name": "a.jpg", "objects": {"bbox": [[x, y, width, height], ...], "category": [...]}}`, in pixels, perhaps with
`segmentation` (polygons of each object). Categories are names, or numbers, which `data.classes` may name.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any

from vision_stack.data.checks.issues import BrokenField, Place, Problem, show, whole_number
from vision_stack.data.readers.class_table import read_class_table
from vision_stack.data.readers.coco import CocoSplit
from vision_stack.data.readers.files import Files, folders_of
from vision_stack.data.readers.formats import INSTANCES, Part, Reading, Recognised, by_part, register_format
from vision_stack.data.readers.raw import RawImage, RawObject, RawSplit, ids_by_name, named_classes, read_raw

_CATEGORIES = ("category", "categories", "label", "labels", "category_id")
_BOXES = ("bbox", "bboxes", "boxes")
_MASKS = ("segmentation", "segmentations", "polygons")
_REMEDY = "correct the line, or remove it"


@register_format("imagefolder")
def recognise(files: Files) -> Recognised | None:
    """metadata.jsonl with file names and objects."""
    tables = [
        n for n, head in files.heads(".jsonl") if posixpath.basename(n) == "metadata.jsonl" and '"file_name"' in head
    ]
    tables = [name for name in tables if '"objects"' in files.head(name)]
    if not tables:
        return None
    data = _Data(files, tables)
    masks = any(f'"{key}"' in files.head(name) for name in tables for key in _MASKS)
    return Recognised(
        format="imagefolder",
        what="Hugging Face imagefolder",
        how=f"objects with {'masks' if masks else 'boxes'} in {', '.join(tables)}",
        tasks=INSTANCES if masks else ("detection",),
        splits={part: folders_of(names) for part, names in data.parts.items()},
        read=partial(_read, data),
    )


class _Data:
    def __init__(self, files: Files, tables: list[str]) -> None:
        self.files = files
        self.parts = by_part(tables)

    @cached_property
    def lines(self) -> dict[str, list[tuple[int, dict[str, Any] | str]]]:
        """Of each table by number: what a line holds, or what is wrong with it."""
        return {name: list(_lines(self.files.read_text(name))) for names in self.parts.values() for name in names}

    @cached_property
    def categories(self) -> set[str | int]:
        found: set[str | int] = set()
        for lines in self.lines.values():
            for _, line in lines:
                objects = line.get("objects") if isinstance(line, dict) else None
                listed = _column(objects, _CATEGORIES) if isinstance(objects, dict) else None
                for value in listed if isinstance(listed, list) else ():
                    if (isinstance(value, str) and value.strip()) or type(value) is int:
                        found.add(value)
        return found


def _lines(text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            yield number, "not valid json"
            continue
        yield number, content if isinstance(content, dict) else f"expected a mapping, got {show(content)}"


def _column(objects: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((objects[name] for name in names if objects.get(name) is not None), None)


def _read(data: _Data, part: Part, reading: Reading) -> CocoSplit:
    raw = RawSplit(
        files=data.files, source="", classes=_classes(data, reading), images=[], objects=lambda: _objects(raw, found)
    )
    found: list[tuple[Place, dict[str, Any]]] = []
    images: list[RawImage] = []
    for name in data.parts[part]:
        for number, line in data.lines[name]:
            where = f"line {number}"
            if isinstance(line, str):
                raw.problem(name, where, line, _REMEDY)
                continue
            stated = line.get("file_name")
            image = data.files.image_at(stated, posixpath.dirname(name)) if isinstance(stated, str) else None
            if image is None:
                raw.problem(name, where, f"there is no image {show(stated)}", "add it, or remove the line")
                continue
            place = raw.place(name, where)
            size = [whole_number(line.get(side)) or 0 for side in ("height", "width")]
            images.append(RawImage(image, place, (size[0], size[1]) if all(size) else (0, 0)))
            found.append((place, line))
    raw.images = images
    raw.note_unlabelled("line")
    return read_raw(raw, reading)


def _classes(data: _Data, reading: Reading) -> list[dict[str, Any]]:
    if reading.classes:
        return read_class_table(reading.classes)
    names = sorted({" ".join(each.split()) for each in data.categories if isinstance(each, str)})
    numbers = sorted({each for each in data.categories if isinstance(each, int)})
    return named_classes(names) if names else [{"id": number, "name": str(number)} for number in numbers]


def _objects(raw: RawSplit, found: list[tuple[Place, dict[str, Any]]]) -> Iterator[RawObject]:
    ids = ids_by_name(raw.classes)
    numbers = {each["id"] for each in raw.classes}
    for row, (place, line) in enumerate(found):
        objects = line.get("objects") or {}
        try:
            if not isinstance(objects, dict):
                raise BrokenField("", f"expected objects with bbox and category, got {show(objects)}", _REMEDY)
            boxes, categories, masks = (_column(objects, names) or [] for names in (_BOXES, _CATEGORIES, _MASKS))
            count = max(len(column) if isinstance(column, list) else 0 for column in (boxes, masks))
            for column, name in ((boxes, "bbox"), (categories, "category"), (masks, "segmentation")):
                if not isinstance(column, list) or (column and len(column) != count):
                    raise BrokenField("", f"{name} does not list one value for each of {count} objects", _REMEDY)
            if len(categories) != count:
                raise BrokenField("", f"{count} objects, but {len(categories)} categories", _REMEDY)
        except BrokenField as error:
            raw.problems.append(Problem(*place, error.message, error.remedy))
            continue
        for index in range(count):
            where = Place(place.file, f"{place.field}, object {index + 1}")
            value = " ".join(categories[index].split()) if isinstance(categories[index], str) else categories[index]
            category = ids.get(value) if isinstance(value, str) else value if value in numbers else None
            box = boxes[index] if boxes else None
            if category is None:
                raw.problems.append(Problem(*where, f"there is no class {show(value)}", "name it in data.classes"))
            elif box is not None and not _is_box(box):
                raw.problems.append(Problem(*where, f"expected x, y, width, height, got {show(box)}", _REMEDY))
            else:
                yield _object(row, category, where, box, masks[index] if masks else None)


def _is_box(box: Any) -> bool:
    numbers = isinstance(box, list) and len(box) == 4
    return numbers and all(isinstance(value, int | float) and not isinstance(value, bool) for value in box)


def _object(row: int, category: int, place: Place, box: Any, mask: Any) -> RawObject:
    shape = tuple(map(float, box)) if box else None
    assert shape is None or len(shape) == 4
    return RawObject(row, category, place, polygons=mask if isinstance(mask, list) else None, box=shape)
