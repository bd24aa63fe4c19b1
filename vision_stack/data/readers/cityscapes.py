"""Cityscapes as downloaded: `leftImg8bit/train/city/*_leftImg8bit.png` and `gtFine/train/city/*_gtFine_labelIds.png`.

The 19 classes that are evaluated, with the data set's own ids; all other ids are ignored. Instances are those of eight
of them, in `*_gtFine_instanceIds.png`: id x 1000 + number, and the id alone for a group, which is a crowd region.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vision_stack.data.checks.issues import BrokenField, DataError, Findings, Place, Problem
from vision_stack.data.checks.segments import LabelMapSplit
from vision_stack.data.image_records import with_progress
from vision_stack.data.readers.coco import CocoSplit
from vision_stack.data.readers.files import Files, folders_of
from vision_stack.data.readers.formats import Part, Reading, Recognised, folder_parts, register_format
from vision_stack.data.readers.id_masks import mask_of, read_ids
from vision_stack.data.readers.raw import RawImage, RawObject, RawSplit, read_raw
from vision_stack.data.readers.semantic import Maps, read_maps
from vision_stack.structures import WITH_OBJECTS

# cityscapesScripts, helpers/labels.py: id and name of the labels with a train id
CLASSES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
THINGS = (24, 25, 26, 27, 28, 31, 32, 33)
_IMAGE, _IDS, _INSTANCES = "_leftImg8bit.png", "_gtFine_labelIds.png", "_gtFine_instanceIds.png"
_THREADS = 8


@register_format("cityscapes")
def recognise(files: Files) -> Recognised | None:
    """Photos and label maps with the endings of Cityscapes."""
    photos = [name for name in files.of(".png") if name.endswith(_IMAGE)]
    maps = [name for name in files.of(".png") if name.endswith(_IDS)]
    if not photos or not maps:
        return None
    parts = {part: sorted(names) for part, names in folder_parts(photos).items()}
    parts.pop("test", None)  # its labels are not public
    instances = [name for name in files.of(".png") if name.endswith(_INSTANCES)]
    return Recognised(
        format="cityscapes",
        what="Cityscapes",
        how=f"{len(photos):,} *{_IMAGE} and {len(maps):,} *{_IDS}",
        tasks=("semantic", "instance", "detection") if instances else ("semantic",),
        splits={part: folders_of(names) for part, names in parts.items()},
        read=partial(_read, files, parts),
    )


def _read(files: Files, parts: dict[Part, list[str]], part: Part, reading: Reading) -> LabelMapSplit | CocoSplit:
    names = parts[part]
    maps = {name: _map_of(name, _INSTANCES if reading.task in WITH_OBJECTS else _IDS) for name in names}
    if reading.task in WITH_OBJECTS:
        return _read_instances(files, maps, reading)

    def map_path(name: str) -> str:
        if maps[name] not in files.known:
            raise BrokenField(
                f"label map of {name}", "there is none", f"unpack gtFine beside leftImg8bit: {maps[name]}"
            )
        return files.path(maps[name])

    listed = [{"id": value, "name": name} for value, name in CLASSES.items()]
    ignored = tuple(value for value in range(256) if value not in CLASSES)
    ignored = ignored if reading.ignore_labels is None else reading.ignore_labels
    source = Maps(str(files.root), listed, ignored, Path(files.root), names, map_path)
    findings = Findings(str(files.root))
    return read_maps(source, findings, on_error=reading.on_error, categories=reading.categories)


def _map_of(photo: str, ending: str) -> str:
    before, _, after = f"/{photo}".rpartition("/leftImg8bit/")
    return f"{before}/gtFine/{after.removesuffix(_IMAGE)}{ending}".lstrip("/")


def _read_instances(files: Files, maps: dict[str, str], reading: Reading) -> CocoSplit:
    raw = RawSplit(
        files=files,
        source="",
        classes=[{"id": value, "name": CLASSES[value]} for value in THINGS],
        images=[],
        objects=lambda: _objects(raw, list(with_map.values())),
    )
    with_map = {photo: name for photo, name in maps.items() if name in files.known}
    for name in maps.values():
        if name not in files.known:
            raw.problem(name, "file", "there is no such map of instances", "unpack gtFine beside leftImg8bit")
    raw.images = [RawImage(photo, Place(files.path(photo), "file")) for photo in with_map]
    return read_raw(raw, reading)


def _objects(raw: RawSplit, maps: list[str]) -> Iterator[RawObject]:
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda name: _masks(raw.files.path(name)), maps)
        for row, objects in enumerate(with_progress(found, len(maps), "reading instance masks")):
            if isinstance(objects, Problem):
                raw.problems.append(objects)
                continue
            for value, rle in objects:
                category, place = value // 1000 or value, raw.place(maps[row], f"value {value}")
                yield RawObject(row, category, place, rle=rle, crowd=value < 1000)


def _masks(path: str) -> list[tuple[int, dict[str, Any]]] | Problem:
    try:
        values = read_ids(path)
    except DataError as error:
        return error.problem or Problem(path, "pixels", str(error), "download it again")
    wanted = [value for value in np.unique(values).tolist() if (value // 1000 or value) in THINGS]
    return [(value, mask_of(values == value)) for value in wanted]
