"""A csv with one object a row, its mask in run lengths, as Kaggle's competitions have it.

`ImageId, EncodedPixels` and perhaps `ClassId`; or `ImageId_ClassId`. Run lengths are pairs of start and length; pixels
count from 1, down the columns. An image whose rows are all without run lengths shows nothing; one without rows has no
labels. Files are found by name, with or without a suffix.
"""

from __future__ import annotations

import csv
import io
import posixpath
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from vision_stack.data.checks.issues import DataError, Place, Problem, data_error, show
from vision_stack.data.images import read_sizes
from vision_stack.data.readers.class_table import read_class_table
from vision_stack.data.readers.coco import CocoSplit
from vision_stack.data.readers.files import Files, folders_of
from vision_stack.data.readers.formats import INSTANCES, Part, Reading, Recognised, folder_parts, register_format
from vision_stack.data.readers.raw import RawImage, RawObject, RawSplit, ids_by_name, named_classes, read_raw

_RUNS = ("encodedpixels", "encodedpixel", "rle_mask", "rle")
_IMAGE = re.compile(r"(image_?id|image|img|img_id|id|file_?name|imageid_classid)$")
_CLASS = re.compile(r"(class_?id|class|category_?id|category|label)$")
_SAMPLES = re.compile(r"sample|submission|test", re.I)  # tables that hold no labels
_NOTHING = ("", "-1", "nan", "none")
csv.field_size_limit(1 << 27)


class _Row(NamedTuple):
    line: int
    image: str
    category: str
    runs: str


@register_format("run_lengths")
def recognise(files: Files) -> Recognised | None:
    """csv files with a column of run lengths."""
    heads = {name: _columns(head) for name, head in files.heads(".csv")}
    tables = [n for n, columns in heads.items() if columns and not _SAMPLES.search(posixpath.basename(n))]
    if not tables:
        return None
    table, columns = tables[0], heads[tables[0]]
    assert columns is not None
    rows = _rows(files, table, columns)
    by_image: dict[str, list[_Row]] = {}
    for row in rows:
        by_image.setdefault(row.image, []).append(row)
    photos = {image: _photo(files, image) for image in by_image}
    parts = folder_parts([photo for photo in photos.values() if photo])
    return Recognised(
        format="run_lengths",
        what="run lengths in csv",
        how=f"{len(rows):,} rows of {len(by_image):,} images in {table}, column {columns['runs']}",
        tasks=INSTANCES,
        splits={part: folders_of(names) for part, names in parts.items()} or {"train": table},
        read=partial(_read, files, table, by_image, photos, parts),
    )


def _columns(head: str) -> dict[str, str] | None:
    """Names of the columns of image, class and run lengths; None if there are no run lengths."""
    names = [name.strip().strip('"') for name in head.partition("\n")[0].split(",")]
    runs = next((name for name in names if name.lower() in _RUNS), None)
    image = next((name for name in names if _IMAGE.match(name.lower())), None)
    if runs is None or image is None:
        return None
    category = next((name for name in names if _CLASS.match(name.lower()) and name != image), "")
    return {"image": image, "runs": runs, "class": category}


def _rows(files: Files, table: str, columns: Mapping[str, str]) -> list[_Row]:
    reader = csv.DictReader(io.StringIO(files.read_text(table)))
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    joined = columns["image"].lower() == "imageid_classid"
    rows = []
    try:
        for row in reader:
            image, category = (row.get(columns["image"]) or "").strip(), (row.get(columns["class"]) or "").strip()
            if joined:
                image, _, category = image.rpartition("_")
            rows.append(_Row(reader.line_num, image, category.split("_")[0], (row.get(columns["runs"]) or "").strip()))
    except csv.Error as error:
        raise data_error(
            files.path(table), f"line {reader.line_num}", f"not csv ({error})", "export it again"
        ) from None
    return rows


def _photo(files: Files, image: str) -> str | None:
    return files.image_at(image) if image else None


def _read(
    files: Files,
    table: str,
    by_image: Mapping[str, list[_Row]],
    photos: Mapping[str, str | None],
    parts: Mapping[Part, list[str]],
    part: Part,
    reading: Reading,
) -> CocoSplit:
    chosen = {photo: by_image[image] for image, photo in photos.items() if photo and photo in set(parts.get(part, ()))}
    raw = RawSplit(
        files=files,
        source=table,
        classes=_classes(by_image, reading),
        images=[RawImage(photo, Place(files.path(table), f"line {rows[0].line}")) for photo, rows in chosen.items()],
        objects=lambda: _objects(raw, table, chosen),
    )
    if part == "train":
        for image in (image for image, photo in photos.items() if photo is None):
            message = f"there is no image {show(image)}, or several of that name"
            raw.problem(table, f"line {by_image[image][0].line}", message, "add it, or remove the row")
    raw.note_unlabelled("row")
    return read_raw(raw, reading)


def _classes(by_image: Mapping[str, list[_Row]], reading: Reading) -> list[dict[str, Any]]:
    if reading.classes:
        return read_class_table(reading.classes)
    names = {row.category for rows in by_image.values() for row in rows} - {""}
    if not names:
        return named_classes(["object"])
    if all(name.isdecimal() and len(name) < 7 for name in names):
        return [{"id": int(name), "name": name} for name in sorted(names, key=int)]
    return named_classes(sorted(names))


def _objects(raw: RawSplit, table: str, chosen: Mapping[str, list[_Row]]) -> Iterator[RawObject]:
    ids = ids_by_name(raw.classes)
    by_number = {each["id"] for each in raw.classes}
    for row, (photo, rows) in enumerate(chosen.items()):
        size: tuple[int, int] | None = None
        for each in rows:
            if each.runs.lower() in _NOTHING:
                continue
            number = int(each.category) if each.category.isdecimal() and len(each.category) < 7 else None
            category = ids.get(each.category, number if number in by_number else None)
            category = raw.classes[0]["id"] if not each.category else category
            try:
                if category is None:
                    raise ValueError(f"there is no class {show(each.category)}")
                size = size or read_sizes(raw.files.path(photo)).upright
                rle = decode_runs(each.runs, *size)
            except DataError as error:
                raw.problems.append(error.problem or Problem(photo, "pixels", str(error), "export it again"))
                break
            except ValueError as error:
                message = f"{error} (image {show(photo)})"
                raw.problem(table, f"line {each.line}", message, "write pairs of start and length, from 1 on")
                continue
            yield RawObject(row, category, raw.place(table, f"line {each.line}"), rle=rle)


def decode_runs(text: str, height: int, width: int) -> dict[str, Any]:
    """Pairs of start (from 1, down the columns) and length as an uncompressed COCO RLE.

    Raises:
        ValueError: no such pairs, pairs that overlap, or beyond the image.
    """
    try:
        numbers = np.array(text.split(), np.int64)
    except (ValueError, OverflowError):
        raise ValueError(f"expected whole numbers, got {show(text)}") from None
    if len(numbers) % 2:
        raise ValueError(f"expected pairs of start and length, got {len(numbers)} numbers")
    starts, lengths = numbers[0::2] - 1, numbers[1::2]
    order = np.argsort(starts, kind="stable")
    starts, lengths = starts[order], lengths[order]
    stops = starts + lengths
    if (starts < 0).any() or (lengths <= 0).any() or (stops > height * width).any():
        raise ValueError(f"a run is not within the {height * width:,} pixels of a {width} x {height} image")
    if (starts[1:] < stops[:-1]).any():
        raise ValueError("runs overlap")
    gaps = starts - np.concatenate([[0], stops[:-1]])
    counts = np.stack([gaps, lengths], axis=1).ravel()
    last = height * width - int(stops[-1])
    return {"size": [height, width], "counts": [*counts.tolist(), *([last] if last else [])]}
