"""Reads semantic segmentation data: a folder of images, one of label maps beside it, and a table of classes.

The label map of `city/a.jpg` is `city/a.png` in its own folder, or `city/a` with another suffix. The table is a json
list of `{"id": value in the maps, "name": ...}`, or of names, whose values are 0, 1, ...; or a text file with one
`id name` (or `name id`), or one name, a line. Hidden files and folders (`._a.jpg`, `.ipynb_checkpoints`) are not data,
and links that lead out of their folder are problems. Everything broken is found before training starts, as
far as `label_files.CHECKED_AT_START` goes; with "skip", images with anything broken are left out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_stack.data.checks.categories import read_categories
from vision_stack.data.checks.class_census import ClassCensus
from vision_stack.data.checks.issues import BrokenField, DataError, Findings, data_error
from vision_stack.data.checks.label_files import check_maps, oriented_as_map
from vision_stack.data.checks.segments import IGNORE, UNKNOWN, ColourRecord, LabelMapSplit, SemanticRecord
from vision_stack.data.image_records import ImageFolder, check_files, read_listed
from vision_stack.data.images import IMAGE_SUFFIXES
from vision_stack.data.readers.class_table import read_class_table
from vision_stack.data.readers.json_file import refusal
from vision_stack.structures import Category

_VALUES = 2**16  # of a map with 16 bits


@dataclass(frozen=True, kw_only=True)
class SemanticFolders:
    """Where a split is, and how its files belong together."""

    image_dir: Path
    label_dir: Path
    classes: Path
    ignore_labels: tuple[int, ...] = (255,)  # values of pixels that say nothing
    image_suffix: str | None = None  # what image names end in; None: any image
    label_suffix: str = ".png"  # what takes its place in the label maps' names


def read_semantic(
    folders: SemanticFolders,
    *,
    on_error: Literal["raise", "skip"] = "raise",
    categories: Sequence[Category] | None = None,
    training: bool = False,
) -> LabelMapSplit:
    """Read and check one split; images are numbered 1, 2, ... in the order of their names.

    Args:
        on_error: "raise" stops at broken files, all of them listed; "skip" leaves their images out.
        categories: the classes to use (of a checkpoint), matched by name; by default those of the table.
        training: look for classes without any pixel. Beyond the maps that are checked in any case, more are read only
            while a class seems to be missing because its pixels are ignored.

    Raises:
        DataError: no images, no table of classes or an ambiguous one; or, with "raise", any file is broken, or with
            `training` a class has no pixel while many pixels are ignored.
    """
    table = str(folders.classes)
    listed = read_class_table(table)
    files = Findings(str(folders.image_dir))
    labels = ImageFolder(str(folders.label_dir))
    names = _image_names(folders, files)

    def map_path(name: str) -> str:
        try:
            return labels.resolve(_map_name(folders, name))[1]
        except BrokenField as error:
            raise BrokenField(f"label map of {name}", error.message, error.remedy) from None

    maps = Maps(table, listed, folders.ignore_labels, folders.image_dir, names, map_path)
    return read_maps(maps, files, on_error=on_error, categories=categories, training=training)


class Maps(NamedTuple):
    """Images, their label maps and what the values in these mean."""

    table: str  # file that says so, or what messages name instead
    classes: list[dict[str, Any]]  # {"id": value, "name": ...}
    ignore_labels: tuple[int, ...]
    image_dir: Path
    names: list[str]  # of images below it
    map_path: Callable[[str], str]  # of an image's name; BrokenField where there is none
    colours: NDArray[np.int64] | None = None  # sorted R + 256 G + 65536 B: the value is the position among these


def read_maps(
    maps: Maps,
    files: Findings,
    *,
    on_error: Literal["raise", "skip"] = "raise",
    categories: Sequence[Category] | None = None,
    training: bool = False,
) -> LabelMapSplit:
    """`read_semantic` of images that are listed already; `files` has what was found in listing them."""
    table, source = maps.table, str(maps.image_dir)
    findings = Findings(table)
    classes, label_by_id = read_categories(maps.classes, Counter(), findings, categories)
    label_of = _label_by_value(table, label_by_id, maps.ignore_labels)

    entries = [{"id": n, "file_name": name} for n, name in enumerate(maps.names, start=1)]
    images, _ = read_listed(entries, source, files, size_needed=False)
    records: list[SemanticRecord] = []
    for i in check_files(images, source, files, decode=on_error == "skip"):
        try:
            path = maps.map_path(i.file_name)
        except BrokenField as error:
            files.problem(error.field, error.message, error.remedy)
        else:
            i = oriented_as_map(i, path)
            fields = (i.image_id, i.file_name, i.path, i.height, i.width, i.apply_exif, path, label_of)
            records.append(SemanticRecord(*fields) if maps.colours is None else ColourRecord(*fields, maps.colours))
    names_by_value = {value: classes[label].name for value, label in label_by_id.items()}
    census = ClassCensus(names_by_value, maps.ignore_labels)
    enough = (lambda: not census.is_suspicious()) if training else (lambda: True)
    every = on_error == "skip"
    records, faults = check_maps(records, maps.image_dir.name, census.add, every=every, enough=enough)
    problems = [*findings.problems, *files.problems, *faults]
    if problems and on_error == "raise":
        raise DataError(refusal(source, problems))
    if not records:
        raise data_error(
            source, "images", "no good image is left", f"fix the files; the first problem is {problems[0]}"
        )
    if training and census.missing and census.num_maps == len(records):
        message, remedy = census.finding()
        if census.is_suspicious() and on_error == "raise":
            raise data_error(table, "classes", message, f"{remedy} (data.on_error=skip trains without it)")
        findings.note("classes", message, remedy)
    notes = tuple([*findings.notes, *files.notes])
    return LabelMapSplit(table, records, classes, tuple(problems), notes, lists_objects=False)


def _label_by_value(table: str, label_by_id: dict[int, int], ignore_labels: Sequence[int]) -> NDArray[np.int16]:
    label_of = np.full(_VALUES, UNKNOWN, np.int16)
    for value, label in label_by_id.items():
        if not 0 <= value < _VALUES:
            raise data_error(table, "id", f"{value} is not a pixel's value", f"use ids from 0 to {_VALUES - 1}")
        label_of[value] = label
    for value in ignore_labels:
        if label_of[value] >= 0:
            message = f"{value} is a class and is to be ignored, too"
            raise data_error(table, "id", message, "correct data.ignore_labels, or take the class out of the table")
        label_of[value] = IGNORE
    return label_of


def _image_names(folders: SemanticFolders, findings: Findings) -> list[str]:
    """Below the image folder, sorted; links to folders inside of it are followed. Nothing hidden."""
    root = folders.image_dir
    names = []

    def closed(error: OSError) -> None:
        folder = Path(error.filename).relative_to(root).as_posix()
        findings.problem(folder, f"cannot be listed ({error.strerror})", "change its permissions, or move it away")

    for folder, subfolders, files in os.walk(root, onerror=closed, followlinks=True):
        subfolders[:] = [name for name in subfolders if name[0] != "." and _enters(Path(folder, name), root, findings)]
        for file in files:
            wanted = Path(file).suffix.lower() in IMAGE_SUFFIXES
            if file[0] != "." and (file.endswith(folders.image_suffix) if folders.image_suffix else wanted):
                names.append(Path(folder, file).relative_to(root).as_posix())
    if not names and findings.problems:
        raise DataError(findings.problems[0])
    if not names:
        ending = f" whose name ends in {folders.image_suffix}" if folders.image_suffix else ""
        raise data_error(root, "image folder", f"there is no image{ending}", "name the folder that holds the images")
    return sorted(names)


def _enters(folder: Path, root: Path, findings: Findings) -> bool:
    """Whether to list a folder: no link that leads out of the root, nor back to where it was reached from."""
    if not folder.is_symlink():
        return True
    target, name = folder.resolve(), folder.relative_to(root)
    if not target.is_relative_to(root.resolve()):
        message = "is a link to a folder that leads out of the image folder"
        findings.problem(name.as_posix(), message, "copy the folder into it, or remove the link")
        return False
    above = [root / parent for parent in name.parents]
    return all(target != parent.resolve() for parent in above)


def _map_name(folders: SemanticFolders, name: str) -> str:
    stem = name.removesuffix(folders.image_suffix) if folders.image_suffix else os.path.splitext(name)[0]
    return f"{stem}{folders.label_suffix}"
