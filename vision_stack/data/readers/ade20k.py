"""ADE20K as downloaded (ADEChallengeData2016): `images/training`, `annotations/training`, `objectInfo150.txt`.

The values 1 to 150 are classes, named by the table; 0 is anything else, and is ignored.
"""

from __future__ import annotations

import posixpath
from functools import partial
from pathlib import Path
from typing import Any

from vision_stack.data.checks.issues import BrokenField, Findings, data_error, show
from vision_stack.data.checks.segments import LabelMapSplit
from vision_stack.data.readers.files import Files, folders_of, stem_of
from vision_stack.data.readers.formats import Part, Reading, Recognised, folder_parts, register_format
from vision_stack.data.readers.semantic import Maps, read_maps

_TABLE = "objectInfo150.txt"
_HEAD = "Name"  # the last column: idx, ratio, train, val, name


@register_format("ade20k")
def recognise(files: Files) -> Recognised | None:
    """The table of its 150 classes beside images and annotations."""
    table = next((name for name in files.of(".txt") if posixpath.basename(name) == _TABLE), None)
    beside = posixpath.dirname(table or "")
    if table is None or {posixpath.join(beside, f"classes.{suffix}") for suffix in ("txt", "json")} & files.known:
        return None  # with a table of the user's, it is a folder of label maps like any other
    photos = [name for name in files.below(posixpath.join(beside, "images")) if name in set(files.images)]
    parts = {part: sorted(names) for part, names in folder_parts(photos).items()}
    return Recognised(
        format="ade20k",
        what="ADE20K",
        how=f"{table} beside images and annotations",
        tasks=("semantic",),
        splits={part: folders_of(names) for part, names in parts.items()},
        read=partial(_read, files, table, parts),
    )


def _read(files: Files, table: str, parts: dict[Part, list[str]], part: Part, reading: Reading) -> LabelMapSplit:
    images = posixpath.join(posixpath.dirname(table), "images", "").lstrip("/")
    annotations = posixpath.join(posixpath.dirname(table), "annotations", "").lstrip("/")

    def map_path(name: str) -> str:
        expected = f"{annotations}{stem_of(name.removeprefix(images))}.png"
        if expected not in files.known:
            raise BrokenField(f"label map of {name}", f"there is no {expected}", "unpack annotations beside images")
        return files.path(expected)

    ignored = (0,) if reading.ignore_labels is None else reading.ignore_labels
    maps = Maps(files.path(table), _classes(files, table), ignored, Path(files.root), parts[part], map_path)
    findings = Findings(str(files.root))
    return read_maps(maps, findings, on_error=reading.on_error, categories=reading.categories)


def _classes(files: Files, table: str) -> list[dict[str, Any]]:
    """Lines of `1<tab>0.1576<tab>11664<tab>1172<tab>wall`; of several names, the first."""
    found = []
    for number, line in enumerate(files.read_text(table).splitlines(), start=1):
        columns = [column.strip() for column in line.split("\t") if column.strip()]
        if not columns or columns[-1] == _HEAD:
            continue
        if len(columns) < 2 or not columns[0].isdecimal():
            message = f"expected an index and a name between tabs, got {show(line)}"
            raise data_error(files.path(table), f"line {number}", message, "download it again")
        found.append({"id": int(columns[0]), "name": columns[-1].split(",")[0].strip()})
    return _distinct(found)


def _distinct(classes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Two of the 150 have the same first name (screen, crt screen; ...): the later ones get their number."""
    seen: set[str] = set()
    for each in classes:
        if each["name"] in seen:
            each["name"] = f"{each['name']} ({each['id']})"
        seen.add(each["name"])
    return classes
