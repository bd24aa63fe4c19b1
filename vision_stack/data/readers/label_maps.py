"""Folders of images and of maps that say the class of every pixel: in values, in a palette's, or in colours.

The map of an image has its name, perhaps with `_mask`, `_L` or the like at its end, and is in a folder of masks, labels
or annotations. What values mean is in `classes.json` or `classes.txt` (`semantic.py`); what colours mean, in a text
file with a name and three numbers a line (CamVid's `label_colors.txt`, CVAT's `labelmap.txt`, `class_dict.csv`). Where
there is no such table, the values or colours that occur are the classes, and are named by them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vision_stack.data.checks.issues import DataError, Findings, data_error
from vision_stack.data.checks.segments import LabelMapSplit
from vision_stack.data.image_records import with_progress
from vision_stack.data.images import open_image
from vision_stack.data.readers.class_table import read_class_table
from vision_stack.data.readers.coco_panoptic import read_coco_panoptic
from vision_stack.data.readers.files import Files, folders_of, some
from vision_stack.data.readers.formats import Part, Reading, Recognised, folder_parts, register_format
from vision_stack.data.readers.id_masks import read_ids
from vision_stack.data.readers.layout import SplitName, SplitPaths, find_label_dir, find_semantic, find_splits
from vision_stack.data.readers.masks import pairs_of
from vision_stack.data.readers.semantic import Maps, SemanticFolders, read_maps, read_semantic

_TABLES = re.compile(r"(classes|class_names)\.(json|txt)$", re.I)
_COLOUR_TABLES = re.compile(r"(label_?colou?rs?|labelmap|class_dict|palette|colormap|color_map)\.(txt|csv)$", re.I)
_COLOUR = re.compile(r"(\d{1,3})\s*[, \t]\s*(\d{1,3})\s*[, \t]\s*(\d{1,3})")
_SAMPLE = 200  # maps in which colours or values are looked for, where no table lists them
_MOST = 256  # classes that are found so
IGNORED = 255  # value of pixels that say nothing


@register_format("semantic")
def recognise(files: Files) -> Recognised | None:
    """Folders of images and label maps, and a table of classes."""
    found: dict[Part, SemanticFolders] = {}
    splits: tuple[SplitName, ...] = ("train", "val")
    for split in splits:
        try:
            found[split] = SemanticFolders(**find_semantic(files.root, split)._asdict())
        except DataError:
            continue
    if not found:
        return None
    table = next(iter(found.values())).classes
    return Recognised(
        format="semantic",
        what="label maps",
        how=f"classes in {_below(files, table)}, maps in {some([_below(files, f.label_dir) for f in found.values()])}",
        tasks=("semantic",),
        splits={part: _below(files, folders.image_dir) for part, folders in found.items()},
        read=partial(_read_folders, found),
    )


def _read_folders(found: dict[Part, SemanticFolders], part: Part, reading: Reading) -> LabelMapSplit:
    folders = found[part]
    if reading.classes is not None:
        folders = replace(folders, classes=Path(reading.classes))
    if reading.ignore_labels is not None:
        folders = replace(folders, ignore_labels=reading.ignore_labels)
    return read_semantic(folders, on_error=reading.on_error, categories=reading.categories, training=reading.training)


@register_format("coco_panoptic")
def recognise_panoptic(files: Files) -> Recognised | None:
    """COCO's json of segments, and a folder of PNGs beside it."""
    if not any('"segments_info"' in head or "panoptic" in name for name, head in files.heads(".json")):
        return None
    layout = find_splits(files.root, required=(), kind="panoptic")
    parts: dict[Part, SplitPaths | None] = {"train": layout.train, "val": layout.val}
    found = {part: paths for part, paths in parts.items() if paths is not None}
    if not found:
        return None
    jsons = [_below(files, paths.annotation_file) for paths in found.values()]

    def read(part: Part, reading: Reading) -> LabelMapSplit:
        assert part != "test"
        file, image_dir = found[part]
        label_dir = find_label_dir(files.root, part, file)
        return read_coco_panoptic(file, image_dir, label_dir, on_error=reading.on_error, categories=reading.categories)

    return Recognised(
        format="coco_panoptic",
        what="COCO panoptic json",
        how=f"segments in {some(jsons)}",
        tasks=("panoptic",),
        splits={part: _below(files, paths.image_dir) for part, paths in found.items()},
        read=read,
    )


def _below(files: Files, path: Path) -> str:
    return path.relative_to(files.root).as_posix()


@register_format("label_maps")
def recognise_pairs(files: Files) -> Recognised | None:
    """Images and maps of the same names, in values or in colours, without a layout of `semantic`."""
    pairs = {image: masks[0] for image, masks in pairs_of(files).items() if len(masks) == 1}
    if not pairs:
        return None
    colours = _are_colours(files, list(pairs.values()))
    table = next(
        (name for name in files.of(".txt", ".csv", ".json") if _COLOUR_TABLES.search(name) or _TABLES.search(name)), ""
    )
    kind = "colours" if colours else "values"
    meaning = f"{kind} in {table}" if table else f"no table of {kind}: those found are the classes"
    return Recognised(
        format="label_maps",
        what=f"label maps in {kind}",
        how=f"a map for each of {len(pairs):,} images; {meaning}",
        tasks=("semantic",),
        splits={part: folders_of(names) for part, names in folder_parts(list(pairs)).items()},
        generic=True,
        read=partial(_read_pairs, files, pairs, table, colours),
    )


def _are_colours(files: Files, maps: Sequence[str]) -> bool:
    """Whether the channels of some map differ."""
    for name in maps[:: max(1, len(maps) // 8)][:8]:
        try:
            with open_image(files.path(name)) as image:
                channels = np.asarray(image.convert("RGB")) if image.mode in ("RGB", "RGBA") else None
        except DataError:  # reported when it is read
            continue
        if channels is not None and (channels != channels[..., :1]).any():
            return True
    return False


class _Classes(NamedTuple):
    listed: list[dict[str, Any]]
    colours: list[int] | None  # of each, R + 256 G + 65536 B
    ignored: tuple[int, ...] = ()


def _read_pairs(
    files: Files, pairs: dict[str, str], table: str, colours: bool, part: Part, reading: Reading
) -> LabelMapSplit:
    classes = _classes(files, list(pairs.values()), reading.classes or (table and files.path(table)), colours)
    listed, colours_of = classes.listed, classes.colours or []
    if colours_of:  # in the order in which they are looked up
        order = sorted(range(len(listed)), key=colours_of.__getitem__)
        listed = [{"id": position, "name": listed[n]["name"]} for position, n in enumerate(order)]
    maps = Maps(
        table=files.path(table) if table else str(files.root),
        classes=listed,
        ignore_labels=classes.ignored if reading.ignore_labels is None else reading.ignore_labels,
        image_dir=files.root,
        names=folder_parts(list(pairs))[part],
        map_path=lambda name: files.path(pairs[name]),
        colours=np.array(sorted(colours_of), np.int64) if colours_of else None,
    )
    split = read_maps(maps, Findings(str(files.root)), on_error=reading.on_error, categories=reading.categories)
    return split


def _classes(files: Files, maps: Sequence[str], table: str | None, colours: bool) -> _Classes:
    """What a table says, or else the values or colours in some of the maps."""
    if table and colours:
        return read_colour_table(table)
    if table and not _COLOUR_TABLES.search(table):
        listed = read_class_table(table)
        return _Classes(listed, None, () if any(each.get("id") == IGNORED for each in listed) else (IGNORED,))
    found: set[int] = set()
    sample = maps[:: max(1, len(maps) // _SAMPLE)]
    for name in with_progress(sample, len(sample), "looking for classes in label maps"):
        found |= set(np.unique(read_ids(files.path(name))).tolist())
        if len(found) > _MOST:
            what = "colours" if colours else "values"
            message = f"more than {_MOST} {what}, too many for classes"
            remedy = "export maps without smoothing edges, or list the classes in a table"
            raise data_error(files.path(name), "pixels", message, remedy)
    values = sorted(found)
    if colours:
        names = [f"{value % 256},{value // 256 % 256},{value // 65536}" for value in values]
        return _Classes([{"id": n, "name": name} for n, name in enumerate(names)], values)
    kept = [value for value in values if value != IGNORED or values == [0, IGNORED]]
    return _Classes([{"id": value, "name": str(value)} for value in kept], None, () if IGNORED in kept else (IGNORED,))


def read_colour_table(file: str) -> _Classes:
    """A name and three numbers a line, in either order, with whatever separates them; a heading is passed over.

    Raises:
        DataError: unreadable, or there is no such line.
    """
    remedy = "write a name and its colour on each line, as in `road 128 64 128`"
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise data_error(file, "file", f"cannot be read ({type(error).__name__})", remedy) from None
    listed: list[dict[str, Any]] = []
    colours: list[int] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _COLOUR.search(line)
        rest = line[: match.start()] + line[match.end() :] if match else ""
        name = re.sub(r"::*.*$", "", rest.strip(" ,;\t").removesuffix("::")).strip(" ,;:\t")
        if not match or not name or any(int(value) > 255 for value in match.groups()):
            if number == 1:  # a heading
                continue
            raise data_error(
                file, f"line {number}", f"expected a name and three numbers to 255, got {line[:40]!r}", remedy
            )
        red, green, blue = map(int, match.groups())
        colours.append(red + 256 * green + 65536 * blue)
        listed.append({"id": len(listed), "name": name})
    if not listed:
        raise data_error(file, "file", "there are no colours", remedy)
    if len(set(colours)) < len(colours):
        first = next(n for n, colour in enumerate(colours) if colours.index(colour) < n)
        raise data_error(file, "file", f"{listed[first]['name']!r} has the colour of another class", remedy)
    return _Classes(listed, colours)
