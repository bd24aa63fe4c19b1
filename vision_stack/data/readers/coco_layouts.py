"""COCO json in any layout: which json is which split, where its images are, and several of one split as one.

The layouts of `layout.py` (COCO 2017, Roboflow, `train.json`) are looked for first. Otherwise every json that looks
like COCO counts, with its split by the names of its folders and its own; its images are where the first names it
lists are found: exports of CVAT, FiftyOne, Label Studio and Supervisely, one folder down, or a single json.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from vision_stack.data.annotations import AnnotationTable
from vision_stack.data.checks.issues import DataError, data_error
from vision_stack.data.readers.coco import CocoSplit, read_coco
from vision_stack.data.readers.files import Files, some, suffix_of
from vision_stack.data.readers.formats import INSTANCES, Part, Reading, Recognised, by_part, register_format
from vision_stack.data.readers.json_file import parse_json
from vision_stack.data.readers.layout import SplitName, SplitPaths, find_splits
from vision_stack.structures import Category

_OTHER_KINDS = re.compile(r"(captions|keypoints|stuff|panoptic|image_info)", re.IGNORECASE)  # jsons of COCO beside ours
_FIRST_KEY = re.compile(r'\{\s*"(info|licenses|images|annotations|categories|type|year|dataset)"')
_ENOUGH = re.compile(r'"(category_id|image_id|segmentation|bbox|supercategory|coco_url|file_name)"')
_NAME = re.compile(r'"(?:file_name|coco_url)"\s*:\s*("(?:[^"\\]|\\.)+")')
_START = 200_000  # bytes in which a json names some of its images
_COMPARED = 20  # images


@register_format("coco")
def recognise(files: Files) -> Recognised | None:
    """json files with images, annotations and categories."""
    found = [name for name in files.of(".json") if _is_coco(name, files.head(name))]
    jsons = [name for name in found if not _OTHER_KINDS.search(posixpath.basename(name))] or found
    if not jsons:
        return None
    splits: dict[Part, Sequence[SplitPaths]] = {part: [paths] for part, paths in _usual(files.root).items()}
    missing: list[DataError] = []
    for part, names in by_part(jsons).items():
        try:
            if part not in splits:
                splits[part] = [_paths(files, name) for name in names]
        except DataError as error:  # annotations of images that were not downloaded
            missing.append(error)
    if not splits:
        raise missing[0]
    left_out = "".join(f"; {each.problem.file}: {each.problem.message}" for each in missing if each.problem)
    return _recognised(str(files.root), splits, left_out)


def named_json(root: str, given: Mapping[str, str | None]) -> Recognised:
    """json files and image folders that the user names; what is not named is looked for.

    Args:
        given: as `find_splits` takes them.
    """
    both: tuple[SplitName, ...] = ("train", "val")
    required = tuple(split for split in both if given[f"{split}_annotations"])
    return _recognised(root, {part: [paths] for part, paths in _usual(Path(root), required, given).items()})


def _recognised(root: str, splits: Mapping[Part, Sequence[SplitPaths]], left_out: str = "") -> Recognised:
    first = next(iter(splits.values()))[0]
    lvis = '"neg_category_ids"' in _start(first.annotation_file)
    return Recognised(
        format="coco",
        what="LVIS json" if lvis else "COCO json",
        how=f"images, annotations and categories in "
        f"{some([_relative(root, paths.annotation_file) for each in splits.values() for paths in each], 4)}{left_out}",
        tasks=INSTANCES,
        splits={part: some([_relative(root, paths.image_dir) for paths in each], 2) for part, each in splits.items()},
        read=partial(_read, splits),
    )


def _is_coco(name: str, head: str) -> bool:
    return bool(_FIRST_KEY.match(head)) and bool(_ENOUGH.search(head)) and '"segments_info"' not in head


def _usual(
    root: Path, required: tuple[SplitName, ...] = (), given: Mapping[str, str | None] | None = None
) -> dict[Part, SplitPaths]:
    """The splits in the layouts that have a name."""
    names = ("train_annotations", "train_images", "val_annotations", "val_images")
    layout = find_splits(root, *((given or {}).get(name) for name in names), required=required)
    parts: dict[Part, SplitPaths | None] = {"train": layout.train, "val": layout.val}
    return {part: paths for part, paths in parts.items() if paths is not None}


def _paths(files: Files, name: str) -> SplitPaths:
    """A json and the folder that its file names are relative to: where most of the first ones are."""
    listed = list(_first_images(files, name))
    folders: Counter[str] = Counter()
    beside = posixpath.dirname(name)
    above = posixpath.dirname(beside)
    usual = (beside, posixpath.join(beside, "images"), above, posixpath.join(above, "images"))
    for image in listed:
        for folder in dict.fromkeys((*usual, *files.folders)):
            place = posixpath.normpath(posixpath.join(folder, image))
            if place in files.known:
                folders[folder] += 1
    if not folders:  # names with folders of another machine
        for image in listed:
            if found := files.image_at(image):
                folders[posixpath.dirname(found)] += 1
    order = {folder: position for position, folder in enumerate(usual)}
    best = max(folders, key=lambda folder: (folders[folder], -order.get(folder, len(order))), default=None)
    if best is None:
        first = f", such as {listed[0]}" if listed else ""
        remedy = "put them there, or name their folder with data.train_annotations=FILE data.train_images=DIR"
        message = f"none of its images is in the data set{first}"
        raise data_error(files.path(name), "images[].file_name", message, remedy)
    return SplitPaths(Path(files.path(name)), Path(files.path(best)))


def _first_images(files: Files, name: str) -> Iterator[str]:
    """Names of some images that a json lists."""
    for quoted in _NAME.findall(_start(Path(files.path(name))))[:_COMPARED]:
        try:
            image = str(json.loads(quoted)).replace("\\", "/")
        except ValueError:
            continue
        if "://" in image:
            image = "/".join(image.split("/")[-2:])
        if suffix_of(image):
            yield image.removeprefix("./")


def _start(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_START).decode("utf-8", errors="replace")
    except OSError:
        return ""


def _relative(root: str, path: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _read(splits: Mapping[Part, Sequence[SplitPaths]], part: Part, reading: Reading) -> CocoSplit:
    categories = reading.categories or _all_classes(splits)
    parts = [
        read_coco(*paths, on_error=reading.on_error, categories=categories, masks=reading.masks)
        for paths in splits[part]
    ]
    return parts[0] if len(parts) == 1 else joined(parts)


def _all_classes(splits: Mapping[Part, Sequence[SplitPaths]]) -> tuple[Category, ...] | None:
    """Those of several training files together, by name; None where one file says them all."""
    files = splits["train"] if "train" in splits else next(iter(splits.values()))
    if len(files) == 1:
        return None
    ids: dict[str, int] = {}
    for paths in files:
        data = parse_json(str(paths.annotation_file), "give a COCO json")
        for each in data.get("categories", ()) if isinstance(data, dict) else ():
            name, number = each.get("name"), each.get("id")
            if isinstance(name, str) and type(number) is int and name not in ids:
                ids[name] = number if number not in ids.values() else max(ids.values()) + 1
    by_id = sorted(ids.items(), key=lambda item: item[1])
    return tuple(Category(id=number, name=name) for name, number in by_id) or None


def joined(parts: Sequence[CocoSplit]) -> CocoSplit:
    """Splits of the same classes as one; images and annotations are numbered anew where their ids repeat."""
    tables = [part.table for part in parts]
    shift = np.cumsum([0, *(len(table.labels) for table in tables)]).tolist()
    polygons = np.cumsum([0, *(len(table.points_of) for table in tables)]).tolist()
    points = np.cumsum([0, *(len(table.points) for table in tables)]).tolist()
    counts = np.cumsum([0, *(len(table.counts) for table in tables)]).tolist()
    ids = np.concatenate([table.ids for table in tables])
    table = AnnotationTable(
        labels=np.concatenate([table.labels for table in tables]),
        boxes=np.concatenate([table.boxes for table in tables]),
        areas=np.concatenate([table.areas for table in tables]),
        crowd=np.concatenate([table.crowd for table in tables]),
        ids=ids if len(np.unique(ids)) == len(ids) else np.arange(1, len(ids) + 1),
        polygons=np.concatenate([table.polygons + first for table, first in zip(tables, polygons, strict=False)]),
        points_of=np.concatenate([table.points_of + first for table, first in zip(tables, points, strict=False)]),
        points=np.concatenate([table.points for table in tables]),
        counts_of=np.concatenate([table.counts_of + first for table, first in zip(tables, counts, strict=False)]),
        counts=b"".join(table.counts for table in tables),
    )
    records = [
        replace(record, table=table, rows=range(record.rows.start + first, record.rows.stop + first))
        for part, first in zip(parts, shift, strict=False)
        for record in part.records
    ]
    said = [(part.federated or {}).get(record.image_id) for part in parts for record in part.records]
    if len({record.image_id for record in records}) < len(records):
        records = [replace(record, image_id=number) for number, record in enumerate(records, start=1)]
    federated = {record.image_id: each for record, each in zip(records, said, strict=True) if each is not None}
    return CocoSplit(
        ", ".join(part.annotation_file for part in parts),
        records,
        parts[0].categories,
        table,
        tuple(problem for part in parts for problem in part.problems),
        tuple(note for part in parts for note in part.notes),
        federated or None,
        {number: each for part in parts for number, each in part.frequencies.items()},
    )
