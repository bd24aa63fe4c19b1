"""From what a label file says to checked records, whatever its format.

A reader yields raw images and raw objects, and where each stands in the words of its format ("labels/7.txt: line 3").
What it cannot make sense of it adds to the problems. All else is checked here, as for COCO json: image files, sizes,
polygons, masks, boxes, classes.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from vision_stack.data.checks.categories import read_categories
from vision_stack.data.checks.issues import BrokenField, DataError, Findings, Place, Problem, data_error, show
from vision_stack.data.checks.objects import ImageFrame, ObjectColumns, checked_table
from vision_stack.data.image_records import ListedImage, check_files
from vision_stack.data.readers.coco import CocoSplit, make_records
from vision_stack.data.readers.files import Files, some
from vision_stack.data.readers.formats import Reading
from vision_stack.data.readers.json_file import refusal


class RawImage(NamedTuple):
    name: str  # of the file, below the data root
    place: Place  # what to point at when the file does not fit
    size: tuple[int, int] = (0, 0)  # (height, width) as annotated; zeros where the file is to say it


class RawObject(NamedTuple):
    image: int  # position among the images
    category: int  # id of its class
    place: Place
    polygons: list[list[float]] | None = None  # each x0, y0, x1, y1, ..., in pixels
    rle: Mapping[str, Any] | None = None  # {"size": [height, width], "counts": ...}, in place of polygons
    box: tuple[float, float, float, float] | None = None  # x, y, width, height in pixels
    crowd: bool = False
    fractions: bool = False  # polygons and box are fractions of the image's width and height


@dataclass(kw_only=True)
class RawSplit:
    """A split of a data set as a reader finds it."""

    files: Files
    source: str  # file or folder below the root that messages about all of it name; "" for the root
    classes: Sequence[Mapping[str, Any]]  # {"id": ..., "name": ...}
    images: Sequence[RawImage]
    objects: Callable[[], Iterable[RawObject]]  # called once, with all images known to be good or bad
    problems: list[Problem] = field(default_factory=list)  # what the reader could not make sense of; it may go on
    notes: list[Problem] = field(default_factory=list)

    def problem(self, name: str, where: str, message: str, remedy: str) -> None:
        """About a file of the data set."""
        self.problems.append(Problem(self.files.path(name), where, message, remedy))

    def note(self, name: str, where: str, message: str, remedy: str) -> None:
        self.notes.append(Problem(self.files.path(name), where, message, remedy))

    def note_unlabelled(self, what: str) -> None:
        """Images in the folders of those listed, which have no labels: not annotated, as far as anybody can say."""
        listed = {image.name for image in self.images}
        folders = {posixpath.dirname(name) for name in listed}
        left = [name for name in self.files.images if posixpath.dirname(name) in folders and name not in listed]
        if left:
            message = f"{len(left):,} images have no {what} ({some(left, 2)})"
            self.note("", "images", message, "left out; if they show nothing, say so in their labels")

    def place(self, name: str, where: str) -> Place:
        return Place(self.files.path(name), where)


class _RawFindings(Findings):
    """Where records stand, in the words of their format."""

    says = "its annotation says"
    redo = "annotate it again, or remove it"
    instead_of_box = "remove it"
    _FIELDS = {"segmentation": "masks", "bbox": "boxes", "iscrowd": "crowd regions"}  # noqa: RUF012  never changed

    def __init__(self, raw: RawSplit) -> None:
        super().__init__(raw.files.path(raw.source) if raw.source else str(raw.files.root))
        self.problems, self.notes = raw.problems, raw.notes
        self.images = [image.place for image in raw.images]
        self.places: list[Place] = []

    def image(self, index: int, field: str) -> Place:
        return self.images[index]

    def object(self, index: int, field: str) -> Place:
        return self.places[index]

    def objects(self, field: str) -> Place:
        return Place(self.file, self._FIELDS.get(field, field))

    def name(self, index: int, object_id: int, image: str) -> str:
        file, where = self.places[index]
        return f"{os.path.basename(file)} {where}"

    def category(self, index: int, field: str) -> Place:
        return Place(self.file, f"class {index + 1}")


def read_raw(raw: RawSplit, reading: Reading) -> CocoSplit:
    """Check a split and keep what is good of it. Images are numbered 1, 2, ... in the order given.

    Raises:
        DataError: no good image or object is left; there are only boxes where masks are needed; classes are
            ambiguous; or, with `on_error` "raise", any record is broken.
    """
    findings = _RawFindings(raw)
    if not raw.images and not raw.problems:
        raise data_error(findings.file, "images", "there are none", "check that the export is complete")
    if not raw.classes:
        raise data_error(findings.file, "classes", "there are none", "name them in a file, data.classes=FILE")
    root = str(raw.files.root)
    listed = [
        ListedImage(row, row + 1, image.name, raw.files.path(image.name), *image.size)
        for row, image in enumerate(raw.images)
    ]
    images = list(check_files(listed, root, findings, decode=reading.on_error == "skip"))
    nothing = ImageFrame(-1, "", 0, 0)
    frames = [nothing] * len(listed)
    for row, image in enumerate(images):
        frames[image.position] = ImageFrame(row, image.file_name, image.height, image.width)

    quiet = _RawFindings(replace(raw, problems=[], notes=[]))
    _, label_of = read_categories(list(raw.classes), Counter(), quiet, reading.categories)
    columns = ObjectColumns(findings, masks=reading.masks)
    used = _add_objects(raw.objects(), frames, label_of, columns)
    classes, _ = read_categories(list(raw.classes), used, findings, reading.categories)
    columns.refuse_boxes_alone()
    table, image_rows = checked_table(columns, [frame for frame in frames if frame.row >= 0])

    if findings.problems and reading.on_error == "raise":
        raise DataError(refusal(findings.file, findings.problems))
    if not images or not len(image_rows):
        what = "image" if not images else "object"
        first = f"; the first problem is {findings.problems[0]}" if findings.problems else ""
        raise data_error(findings.file, f"{what}s", f"no good {what} is left", f"fix the labels{first}")
    return CocoSplit(
        findings.file,
        make_records(images, table, image_rows),
        classes,
        table,
        tuple(findings.problems),
        tuple(findings.notes),
    )


def _add_objects(
    objects: Iterable[RawObject], frames: Sequence[ImageFrame], label_of: Mapping[int, int], columns: ObjectColumns
) -> Counter[int]:
    """Returns how many objects name which class."""
    findings = columns.findings
    assert isinstance(findings, _RawFindings)
    used: Counter[int] = Counter()
    for index, found in enumerate(objects):
        findings.places.append(found.place)
        used[found.category] += 1
        frame = frames[found.image]
        if frame.row < 0 or found.category not in label_of:  # reported with the image, or by `read_categories`
            continue
        polygons, box = found.polygons, found.box
        if found.fractions:
            box = box and _scaled(box, frame)
            polygons = polygons and [_scaled(polygon, frame) for polygon in polygons]
        try:
            columns.add(
                index, frame, label_of[found.category], found.rle or polygons, box, crowd=found.crowd, object_id=0
            )
        except BrokenField as error:
            message = f"{error.message} (image {show(frame.file_name)})"
            findings.problem(found.place, message, error.remedy)
    return used


def _scaled(coordinates: Sequence[float], frame: ImageFrame) -> Any:
    size = (frame.width, frame.height)
    return [value * size[i % 2] for i, value in enumerate(coordinates)]


def named_classes(names: Iterable[str], first: int = 1) -> list[dict[str, Any]]:
    """Classes with the ids first, first + 1, ... in this order."""
    return [{"id": number, "name": name} for number, name in enumerate(names, start=first)]


def ids_by_name(classes: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    return {each["name"]: each["id"] for each in classes}
