"""Masks of single objects in PNGs: one of numbers for each image, or one for each object.

The numbers of an image's objects are in a PNG of its name, perhaps with `_mask`, `_instances` or the like at its end:
0 is background, every other value an object (colours, too). One PNG for each object: `masks/a/*.png` of `images/a.jpg`,
`a/masks/*.png` of `a/images/a.png`, or `masks/a_0.png`, `masks/a_1.png`, ...; all that is not 0 is the object. They are
all of one class, which `data.classes` may name.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from scipy import ndimage

from vision_stack.data.checks.issues import DataError, Place, Problem
from vision_stack.data.image_records import with_progress
from vision_stack.data.images import read_sizes
from vision_stack.data.readers.class_table import read_class_table
from vision_stack.data.readers.coco import CocoSplit
from vision_stack.data.readers.files import Files, folders_of, stem_of
from vision_stack.data.readers.formats import INSTANCES, Part, Reading, Recognised, folder_parts, register_format
from vision_stack.data.readers.id_masks import mask_of, read_ids
from vision_stack.data.readers.raw import RawImage, RawObject, RawSplit, named_classes, read_raw

_FOLDER = re.compile(r"mask|instance|label|annotation|segm", re.IGNORECASE)
_ENDING = re.compile(r"[_-](mask|masks|instance|instances|instanceids?|ids?|inst|seg|segmentation|labels?|gt)$", re.I)
_SIDE = re.compile(r"_L$")  # CamVid's
_NUMBER = re.compile(r"[_-](mask[_-]?|obj(ect)?[_-]?|inst(ance)?[_-]?)?\d+$", re.I)
_LOSSLESS = (".png", ".bmp", ".tif", ".tiff")
_SAMPLE = 8  # PNGs that are looked at to tell numbers of objects from classes
_PIECES = 1.5  # in which an object is on average; a class is in more
_MOST = 65535  # objects of an image
_THREADS = 8


@register_format("instance_masks")
def recognise(files: Files) -> Recognised | None:
    """PNGs of numbers whose values differ from image to image, or several PNGs for an image."""
    pairs = pairs_of(files)
    if not pairs:
        return None
    several = sum(len(masks) > 1 for masks in pairs.values())
    if several:
        how = f"{sum(map(len, pairs.values())):,} masks of {len(pairs):,} images: one for each object"
    else:
        counts = _objects_in(files, [masks[0] for masks in pairs.values()])
        if counts is None and files.asked is None:
            return None
        largest = f", up to {max(counts)} in an image" if counts else ""
        how = f"a mask for each of {len(pairs):,} images; its values are numbers of objects{largest}"
    return Recognised(
        format="instance_masks",
        what="instance masks",
        how=how,
        tasks=INSTANCES,
        splits={part: folders_of(names) for part, names in folder_parts(list(pairs)).items()},
        generic=True,
        read=partial(_read, files, pairs, bool(several)),
    )


def pairs_of(files: Files) -> dict[str, list[str]]:
    """Images and their masks."""
    masks = [
        name
        for name in files.of(*_LOSSLESS)
        if _FOLDER.search(posixpath.dirname(name)) or _ENDING.search(stem_of(name))
    ]
    of_masks = set(masks)
    images: dict[str, list[str]] = defaultdict(list)
    for image in files.images:
        if image not in of_masks:
            images[posixpath.basename(stem_of(image))].append(image)
    found: dict[str, list[str]] = defaultdict(list)
    for mask in sorted(masks):
        stem, folders = posixpath.basename(stem_of(mask)), posixpath.dirname(mask).split("/")
        for name in (
            stem,
            _ENDING.sub("", stem),
            _SIDE.sub("", stem),
            _NUMBER.sub("", stem),
            folders[-1],
            folders[-2] if folders[1:] else "",
        ):
            if nearest := _nearest(images.get(name, ()), mask):
                found[nearest].append(mask)
                break
    return dict(sorted(found.items()))


def _nearest(images: Sequence[str], mask: str) -> str | None:
    """Of images of one name, that with the most folders in common."""
    folders = set(posixpath.dirname(mask).split("/"))
    return max(images, key=lambda image: len(folders & set(image.split("/"))), default=None)


def _objects_in(files: Files, masks: list[str]) -> list[int] | None:
    """How many objects some masks hold; None if their values look like classes: the same in all, or one alone."""
    found, pieces = [], []
    for name in masks[:: max(1, len(masks) // _SAMPLE)][:_SAMPLE]:
        try:
            values = read_ids(files.path(name))
        except DataError:
            continue
        found.append(frozenset(np.unique(values).tolist()) - {0})
        pieces += [ndimage.label(values == value)[1] for value in sorted(found[-1])[:_SAMPLE]]
    numbered = [values for values in found if values == frozenset(range(1, len(values) + 1))]
    if not found or max(map(len, found)) < 2 or (len(found) > 1 and len(set(found)) == 1):
        return None
    if sum(pieces) > _PIECES * sum(map(len, found)):
        return None
    return [len(values) for values in found] if 2 * len(numbered) > len(found) else None


def _read(files: Files, pairs: dict[str, list[str]], several: bool, part: Part, reading: Reading) -> CocoSplit:
    names = folder_parts(list(pairs))[part]
    classes: list[dict[str, Any]] = read_class_table(reading.classes) if reading.classes else named_classes(["object"])
    raw = RawSplit(
        files=files,
        source="",
        classes=classes,
        images=[
            RawImage(name, Place(files.path(pairs[name][0]), "pixels"), _size(files, pairs[name][0])) for name in names
        ],
        objects=lambda: _objects(raw, [pairs[name] for name in names], several, classes[0]["id"]),
    )
    raw.note_unlabelled("mask")
    return read_raw(raw, reading)


def _size(files: Files, mask: str) -> tuple[int, int]:
    try:
        return read_sizes(files.path(mask)).stored
    except DataError:  # reported when it is read
        return (0, 0)


def _objects(raw: RawSplit, masks: Sequence[Sequence[str]], several: bool, category: int) -> Iterator[RawObject]:
    rows = [(row, name) for row, names in enumerate(masks) for name in names]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda item: _masks(raw.files.path(item[1]), several), rows)
        for (row, name), objects in zip(rows, with_progress(found, len(rows), "reading masks"), strict=True):
            if isinstance(objects, Problem):
                raw.problems.append(objects)
                continue
            for value, rle in objects:
                yield RawObject(row, category, raw.place(name, f"value {value}" if value else "pixels"), rle=rle)


def _masks(path: str, whole: bool) -> list[tuple[int, dict[str, Any]]] | Problem:
    """The objects of a file by their values, all of it one object of value 0 if `whole`."""
    try:
        values = read_ids(path)
    except DataError as error:
        return error.problem or Problem(path, "pixels", str(error), "export it again")
    if whole:
        if not values.any():
            return Problem(path, "pixels", "holds no object: all of it is 0", "remove the file")
        return [(0, mask_of(values != 0))]
    numbers = [number for number in np.unique(values).tolist() if number]
    if len(numbers) > _MOST:
        return Problem(path, "pixels", f"holds {len(numbers):,} values", "export masks of object numbers as PNG")
    return [(number, mask_of(values == number)) for number in numbers]
