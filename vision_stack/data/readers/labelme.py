"""LabelMe: a json beside each image, with shapes drawn by hand.

Polygons, rectangles, circles and masks are objects; shapes of the same `group_id` and label are one. Lines and points
cover no pixel, and are left out with their number. An image without a json has not been annotated, and is left out.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import posixpath
from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any

import numpy as np
from PIL import Image

from vision_stack.data.checks.issues import BrokenField, DataError, Place, Problem, show, whole_number
from vision_stack.data.readers.coco import CocoSplit
from vision_stack.data.readers.files import Files, folders_of, stem_of
from vision_stack.data.readers.formats import INSTANCES, Part, Reading, Recognised, by_part, register_format
from vision_stack.data.readers.id_masks import mask_of
from vision_stack.data.readers.json_file import parse_json
from vision_stack.data.readers.raw import RawImage, RawObject, RawSplit, ids_by_name, named_classes, read_raw
from vision_stack.ops.rle import MAX_PIXELS

_CORNERS = 72  # of the polygon that a circle becomes
_WITHOUT_AREA = ("line", "linestrip", "point", "points")
_REMEDY = "correct it in LabelMe, or remove the shape"


@register_format("labelme")
def recognise(files: Files) -> Recognised | None:
    """json files with shapes, and flags or the path of an image."""
    if not any(_is_labelme(head) for _, head in files.heads(".json")):
        return None
    data = _Data(files)
    return Recognised(
        format="labelme",
        what="LabelMe json",
        how=f"shapes in {len(data.jsons):,} .json files",
        tasks=INSTANCES,
        splits={part: folders_of(names) for part, names in data.parts.items()},
        read=partial(_read, data),
    )


def _is_labelme(head: str) -> bool:
    return '"shapes"' in head and ('"flags"' in head or '"imagePath"' in head)


class _Data:
    def __init__(self, files: Files) -> None:
        self.files = files
        self.jsons = [name for name in files.of(".json") if _is_labelme(files.head(name))]
        self.parts = by_part(sorted(self.jsons))

    @cached_property
    def contents(self) -> dict[str, dict[str, Any] | Problem]:
        return {name: _parsed(self.files.path(name)) for name in self.jsons}

    @cached_property
    def names(self) -> list[str]:
        """Classes of all splits."""
        good = [each for each in self.contents.values() if isinstance(each, dict)]
        labels = {shape.get("label") for each in good for shape in each["shapes"] if isinstance(shape, dict)}
        return sorted({" ".join(label.split()) for label in labels if isinstance(label, str)} - {""})


def _parsed(path: str) -> dict[str, Any] | Problem:
    try:
        content = parse_json(path, "save it again in LabelMe")
    except DataError as error:
        return error.problem or Problem(path, "file", str(error), "save it again in LabelMe")
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        found = content.get("shapes") if isinstance(content, dict) else content
        return Problem(path, "shapes", f"expected a list, got {show(found)}", "save it again in LabelMe")
    return {
        **{key: content.get(key) for key in ("imagePath", "imageHeight", "imageWidth")},
        "shapes": content["shapes"],
    }


def _read(data: _Data, part: Part, reading: Reading) -> CocoSplit:
    files = data.files
    raw = RawSplit(files=files, source="", classes=named_classes(data.names), images=[], objects=lambda: objects)
    images: list[RawImage] = []
    of_image: list[tuple[str, dict[str, Any]]] = []
    for name in data.parts[part]:
        content = data.contents[name]
        if isinstance(content, Problem):
            raw.problems.append(content)
            continue
        stated, folder = content["imagePath"], posixpath.dirname(name)
        image = files.image_at(stated, folder) if isinstance(stated, str) else None
        if image is None:
            image = files.image_beside(stem_of(name))
        if image is None:
            raw.problem(name, "imagePath", f"there is no image {show(stated)}", "add it, or remove the json")
            continue
        size = [whole_number(content[key]) or 0 for key in ("imageHeight", "imageWidth")]
        images.append(
            RawImage(image, Place(files.path(name), "imageWidth"), (size[0], size[1]) if all(size) else (0, 0))
        )
        of_image.append((name, content))
    raw.images = images
    raw.note_unlabelled("json")
    objects = _objects(raw, of_image)
    return read_raw(raw, reading)


def _objects(raw: RawSplit, of_image: list[tuple[str, dict[str, Any]]]) -> Iterator[RawObject]:
    ids = ids_by_name(raw.classes)
    skipped: list[Place] = []
    for row, (name, content) in enumerate(of_image):
        groups: dict[Any, RawObject] = {}
        for index, shape in enumerate(content["shapes"]):
            place = raw.place(name, f"shapes[{index}]")
            try:
                if isinstance(shape, dict) and shape.get("shape_type") in _WITHOUT_AREA:
                    skipped.append(place)
                    continue
                found = _object(shape, row, place, ids, content)
            except BrokenField as error:
                raw.problem(name, f"shapes[{index}]{error.field}", error.message, error.remedy)
                continue
            group = shape.get("group_id")
            key = index if group is None or found.rle else ("group", str(group), found.category)
            if key in groups:
                found = groups[key]._replace(polygons=[*(groups[key].polygons or ()), *(found.polygons or ())])
            groups[key] = found
        yield from groups.values()
    if skipped:
        message = f"{len(skipped):,} lines and points cover no pixel (the first is {skipped[0].field})"
        raw.notes.append(Problem(skipped[0].file, "shapes", message, "left out; draw polygons around objects"))


def _object(shape: Any, row: int, place: Place, ids: dict[str, int], content: dict[str, Any]) -> RawObject:
    if not isinstance(shape, dict):
        raise BrokenField("", f"expected a mapping, got {show(shape)}", _REMEDY)
    label = shape.get("label")
    if not isinstance(label, str) or not label.strip():
        raise BrokenField(".label", f"expected a name, got {show(label)}", "name its class")
    category = ids[" ".join(label.split())]
    kind, points = shape.get("shape_type") or "polygon", _points(shape)
    if kind == "mask":
        return RawObject(row, category, place, rle=_mask(shape, points, content))
    if kind == "polygon":
        return RawObject(row, category, place, polygons=[[value for point in points for value in point]])
    if kind in ("rectangle", "circle") and len(points) != 2:
        raise BrokenField(".points", f"a {kind} takes two points, got {len(points)}", _REMEDY)
    (x0, y0), (x1, y1) = points[0], points[-1]
    if kind == "rectangle":
        return RawObject(row, category, place, polygons=[[x0, y0, x1, y0, x1, y1, x0, y1]])
    if kind == "circle":
        radius = math.hypot(x1 - x0, y1 - y0)
        angles = [2 * math.pi * step / _CORNERS for step in range(_CORNERS)]
        ring = [value for a in angles for value in (x0 + radius * math.cos(a), y0 + radius * math.sin(a))]
        return RawObject(row, category, place, polygons=[ring])
    raise BrokenField(".shape_type", f"{show(kind)} is not read", "draw a polygon")


def _points(shape: dict[str, Any]) -> list[tuple[float, float]]:
    points = shape.get("points")
    good = (
        isinstance(points, list)
        and points
        and all(
            isinstance(p, list)
            and len(p) == 2
            and all(isinstance(v, int | float) and not isinstance(v, bool) for v in p)
            for p in points
        )
    )
    if not good:
        raise BrokenField(".points", f"expected a list of x, y, got {show(points)}", _REMEDY)
    assert isinstance(points, list)
    return [(float(x), float(y)) for x, y in points]


def _mask(shape: dict[str, Any], points: list[tuple[float, float]], content: dict[str, Any]) -> dict[str, Any]:
    """A PNG in base64, whose first corner is at the first point."""
    height, width = (whole_number(content[key]) or 0 for key in ("imageHeight", "imageWidth"))
    try:
        data = base64.b64decode(shape.get("mask") or "", validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError("too large")
            part = np.asarray(image.convert("L")) > 0
    except (binascii.Error, OSError, ValueError, TypeError, SyntaxError) as error:
        raise BrokenField(".mask", f"not a PNG in base64 ({str(error)[:60]})", _REMEDY) from None
    x, y = (round(value) for value in points[0])
    if not (
        x >= 0 and y >= 0 and x + part.shape[1] <= width and y + part.shape[0] <= height <= MAX_PIXELS // max(width, 1)
    ):
        raise BrokenField(".mask", "reaches beyond the image", _REMEDY)
    pixels = np.zeros((height, width), bool)
    pixels[y : y + part.shape[0], x : x + part.shape[1]] = part
    return mask_of(pixels)
