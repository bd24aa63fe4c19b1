"""Reads a COCO json of objects with masks or boxes, and its images, into checked records.

What each check refuses, fixes or ignores is documented with the check: `checks/`, `image_records.py`. Everything broken
is found before training starts. Masks stay polygons and RLEs here; they are rasterised last, after the transforms.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_stack.data.annotations import Annotation, AnnotationTable
from vision_stack.data.augment.geometry import GeometricTransform
from vision_stack.data.augment.placing import MaskStride, place
from vision_stack.data.augment.targets import Objects
from vision_stack.data.checks.annotations import read_annotations
from vision_stack.data.checks.categories import read_categories
from vision_stack.data.checks.issues import DataError, Findings, Problem, data_error, report, whole_number
from vision_stack.data.checks.objects import ImageFrame
from vision_stack.data.image_records import ImageFile, ListedImage, check_files, read_listed
from vision_stack.data.readers.json_file import load_coco_json, refusal
from vision_stack.data.readers.json_stream import Annotations
from vision_stack.structures import Category

__all__ = ["Annotation", "CocoSplit", "ImageRecord", "read_coco"]


@dataclass(frozen=True, slots=True, eq=False)
class ImageRecord(ImageFile):
    """One image and its objects."""

    table: AnnotationTable
    rows: range  # of the table

    @property
    def annotations(self) -> tuple[Annotation, ...]:
        """Made from the table on each access."""
        return tuple(self.table.annotation(row, self.height, self.width) for row in self.rows)

    @property
    def num_objects(self) -> int:
        """Objects to be found, that is without crowds."""
        return int(np.count_nonzero(~self.table.crowd[self.rows.start : self.rows.stop]))

    def object_edges(self) -> NDArray[np.float64]:
        """Square roots of the areas of the objects' boxes, in pixels; no crowds."""
        boxes = self.table.boxes[self._object_rows()]
        return np.sqrt(boxes[:, 2] * boxes[:, 3])

    def object_boxes(self) -> NDArray[np.float64]:
        """[N, 4] xyxy, clipped to the image; no crowds."""
        return self._corners(self._object_rows())

    def object_labels(self) -> NDArray[np.int64]:
        """[N]; no crowds."""
        return self.table.labels[self._object_rows()]

    def _object_rows(self) -> NDArray[np.int64]:
        """Rows of the table, without crowds."""
        return self.rows.start + np.flatnonzero(~self.table.crowd[self.rows.start : self.rows.stop])

    def objects(
        self, transform: GeometricTransform, chosen: Sequence[int] | None = None, stride: MaskStride = 1
    ) -> Objects:
        """Masks are made where the transform has moved the objects; crowds are ignored regions, by their boxes."""
        rows = self._object_rows()
        rows = rows if chosen is None else rows[np.asarray(chosen, dtype=np.int64)]
        segmentations = [self.table.segmentation(row, self.height, self.width) for row in rows.tolist()]
        found = place(transform, segmentations, self._corners(rows), stride)
        crowds = self.rows.start + np.flatnonzero(self.table.crowd[self.rows.start : self.rows.stop])
        ignored = transform.boxes(self._corners(crowds))
        return Objects(self.table.labels[rows].tolist(), found.masks, found.boxes, ignored, found.pixels)

    def _corners(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Boxes of rows of the table, [N, 4] xyxy, clipped to the image."""
        boxes = self.table.boxes[rows]
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        return np.clip(corners, 0, (self.width, self.height, self.width, self.height))


class Federated(NamedTuple):
    """What LVIS says of an image beside its objects: ids of classes."""

    absent: frozenset[int]  # that were looked for and are not there
    incomplete: frozenset[int]  # of which not every object is annotated


@dataclass(frozen=True, eq=False)
class CocoSplit:
    """A split of a data set: all that is good of it, and what was found to be wrong."""

    annotation_file: str
    records: list[ImageRecord]  # images without objects included, in the json's order
    categories: tuple[Category, ...]  # by label
    table: AnnotationTable
    problems: tuple[Problem, ...]  # records that were skipped, if `on_error` is "skip"
    notes: tuple[Problem, ...]  # what was fixed, and what looks odd
    federated: Mapping[int, Federated] | None = None  # by image id, where not every class was looked for in every image
    frequencies: Mapping[int, str] = field(default_factory=dict)  # LVIS' groups r, c and f, by category id
    lists_objects: ClassVar[bool] = True  # as opposed to label maps, which would have to be read

    @property
    def num_crowds(self) -> int:
        return int(np.count_nonzero(self.table.crowd))

    @property
    def num_without_mask(self) -> int:
        """Objects that have only a box; no crowds."""
        return self.table.num_without_mask

    def ground_truth(self) -> dict[str, Any]:
        """The split in COCO's format for `pycocotools`: images and annotations of the records, crowds included.

        Category ids are those of `categories`, boxes and areas those of the json. Objects that have only a box have no
        `segmentation`.
        """
        annotations = []
        for record in self.records:
            for row in record.rows:
                annotation: dict[str, Any] = {
                    "id": int(self.table.ids[row]),
                    "image_id": record.image_id,
                    "category_id": self.categories[self.table.labels[row]].id,
                    "bbox": self.table.boxes[row].tolist(),
                    "area": float(self.table.areas[row]),
                    "iscrowd": int(self.table.crowd[row]),
                }
                if segmentation := self.table.segmentation(row, record.height, record.width):
                    if isinstance(segmentation, list):
                        annotation["segmentation"] = [polygon.tolist() for polygon in segmentation]
                    else:
                        annotation["segmentation"] = segmentation
                annotations.append(annotation)
        images: list[dict[str, Any]] = [
            {"id": r.image_id, "file_name": r.file_name, "height": r.height, "width": r.width} for r in self.records
        ]
        for image in images if self.federated is not None else ():
            said = (self.federated or {}).get(image["id"], Federated(frozenset(), frozenset()))
            image["neg_category_ids"] = sorted(said.absent)
            image["not_exhaustive_category_ids"] = sorted(said.incomplete)
        return {
            "images": images,
            "annotations": annotations,
            "categories": [self._category(category) for category in self.categories],
        }

    def _category(self, category: Category) -> dict[str, Any]:
        frequency = self.frequencies.get(category.id)
        return {"id": category.id, "name": category.name} | ({"frequency": frequency} if frequency else {})

    def report(self, shown: int = 20) -> str:
        """What was skipped and noted, a line each, for printing; empty if nothing was."""
        return report(self.annotation_file, "broken records", self.problems, self.notes, shown)


def read_coco(
    annotation_file: str | Path,
    image_dir: str | Path,
    *,
    on_error: Literal["raise", "skip"] = "raise",
    categories: Sequence[Category] | None = None,
    check_images: bool = True,
    masks: bool = True,
) -> CocoSplit:
    """Read and check one split.

    Args:
        annotation_file: COCO instance json; polygons, RLEs compressed or not, crowds; sparse category ids.
        image_dir: what the json's `file_name`s are relative to. No file outside of it is touched.
        on_error: "raise" stops at broken records, all of them listed. "skip" leaves them out and lists them in
            `problems`; every image file is then decoded once, so that none fails during training.
        categories: the classes to use (of the training split, or a checkpoint); by default those of the file.
        check_images: whether to open the image files: their presence, headers and ends.
        masks: every annotation must have one; otherwise a box is enough.

    Raises:
        DataError: the file is not such a json at all; it has no good images, annotations or categories, or only boxes
            where there must be masks; its categories are ambiguous; or, with "raise", any record is broken.
    """
    file = str(annotation_file)
    data = load_coco_json(file, streamed=True)
    if not os.path.isdir(image_dir):
        raise data_error(image_dir, "image folder", "there is no such folder", "name the folder that holds the images")
    findings = Findings(file)
    used = _category_ids(data["annotations"])
    classes, label_of = read_categories(data["categories"], used, findings, categories)
    listed_ids = {category["id"] for category in data["categories"]}
    if not classes:
        raise data_error(file, "categories", "there is no category", "list the classes")

    id_of = {number: classes[label].id for number, label in label_of.items()}
    federated = _federated(data["images"], id_of)
    frequencies = {
        id_of[each["id"]]: str(each["frequency"])
        for each in data["categories"]
        if each.get("frequency") and each["id"] in id_of
    }
    images, bad_ids = read_listed(data.pop("images"), str(image_dir), findings, size_needed=not check_images)
    if check_images:
        checked = list(check_files(images, str(image_dir), findings, decode=on_error == "skip"))
        bad_ids |= {image.image_id for image in images} - {image.image_id for image in checked}
        images = checked
    frames = {i.image_id: ImageFrame(row, i.file_name, i.height, i.width) for row, i in enumerate(images)}
    frames |= {image_id: ImageFrame(-1, "", 0, 0) for image_id in bad_ids}
    table, image_rows = read_annotations(data["annotations"], frames, label_of, listed_ids, findings, masks=masks)

    if findings.problems and on_error == "raise":
        raise DataError(refusal(file, findings.problems))
    if not images or not len(image_rows):
        what = "image" if not images else "annotation"
        first = f"; the first problem is {findings.problems[0]}" if findings.problems else ""
        raise data_error(file, f"{what}s", f"no good {what} is left", f"fix the file{first}")
    problems, notes = tuple(findings.problems), tuple(findings.notes)
    return CocoSplit(
        file, make_records(images, table, image_rows), classes, table, problems, notes, federated, frequencies
    )


def _federated(listed: list[Any], id_of: Mapping[int, int]) -> dict[int, Federated] | None:
    """Of LVIS' images by id; None for other jsons. LVIS names files by their addresses, too.

    Args:
        id_of: the id of the class that a category id of the file stands for.
    """
    found: dict[int, Federated] = {}
    for image in listed:
        if not isinstance(image, dict):
            continue
        address = image.get("coco_url")
        if image.get("file_name") is None and isinstance(address, str):
            image["file_name"] = "/".join(address.split("/")[-2:])
        image_id = whole_number(image.get("id"))
        lists = [image.get(key) for key in ("neg_category_ids", "not_exhaustive_category_ids")]
        if image_id is not None and any(isinstance(each, list) for each in lists):
            ids = [frozenset(id_of[n] for n in each or () if type(n) is int and n in id_of) for each in lists]
            found[image_id] = Federated(*ids)
    return found or None


def make_records(images: Sequence[ListedImage], table: AnnotationTable, image_rows: Any) -> list[ImageRecord]:
    """One of each image, with its rows of the table; `image_rows` says the image of each row."""
    bounds = np.searchsorted(image_rows, np.arange(len(images) + 1)).tolist()
    return [
        ImageRecord(
            i.image_id, i.file_name, i.path, i.height, i.width, i.apply_exif, table, range(bounds[n], bounds[n + 1])
        )
        for n, i in enumerate(images)
    ]


def _category_ids(annotations: Iterable[Any]) -> Counter[int]:
    """How many annotations have which."""
    if isinstance(annotations, Annotations):
        return annotations.category_ids
    written = (raw.get("category_id") for raw in annotations if isinstance(raw, dict))
    return Counter(number for each in written if (number := whole_number(each)) is not None)
