"""Writes a repaired copy of a data set of objects as COCO json and images; the original is only read.

What is repaired: broken records are left out; of annotations that are there twice, or nearly so, the larger one stays;
boxes and areas that do not fit their mask are taken from it, and boxes are clipped to their image; objects whose mask
covers no pixel are left out; all splits have one list of classes, the training split's ids and spelling first; images
that another split has, too, leave the training split. Everything else is as in the original.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from pycocotools import mask as coco_mask

from vision_stack.data.checks.diagnosis import Diagnosis, Split, table_of
from vision_stack.data.checks.split_classes import plain_name
from vision_stack.ops import rle
from vision_stack.ops.files import scratch_folder
from vision_stack.structures import Category

REPORT = "repairs.txt"
_MISFIT = 0.5  # IoU of a box and its mask's bounds, below which the box is replaced
_AREA_RATIO, _AREA_SLACK = 2.0, 16.0  # of an area and the number of its mask's pixels


def check_target(out: Path, originals: Sequence[Path]) -> None:
    """Raise ValueError unless a copy may be written to `out`: a new or empty folder, outside of the original's."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ValueError(f"{out}: is not a folder; give the name of a new one")
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out}: is not empty; give the name of a new folder")
    real = out.resolve()
    for original in originals:
        folder = original.resolve()
        if real.is_relative_to(folder) or folder.is_relative_to(real):
            raise ValueError(f"{out}: is inside or around the original, {original}; give a folder elsewhere")


def write_repaired(
    splits: Mapping[str, Split], diagnoses: Sequence[Diagnosis], out: Path, *, originals: Sequence[Path] = ()
) -> list[str]:
    """Write the copy and `repairs.txt` in it; what was done, a line for each kind.

    Args:
        splits: by name, read with broken records left out.
        diagnoses: of an examination of these splits.
        out: as `check_target` wants it.
        originals: folders that hold the original, beside those of the images.

    Raises:
        ValueError: `out` will not do, or a split has label maps instead of objects; one line.
    """
    for name, split in splits.items():
        if table_of(split) is None:
            raise ValueError(
                f"--fix: the annotations of {name} are label maps; only objects can be written as COCO json"
            )
    folders = {Path(os.path.dirname(record.path)) for split in splits.values() for record in split.records}
    check_target(out, [*originals, *sorted(folders)])
    lines = [f"{each.split}: left out: {each.problem}" for each in diagnoses if each.kind.startswith("broken_")]
    lines += [f"{each.split}: not in the copy: {each.problem}" for each in diagnoses if each.kind == "unreadable_split"]
    counts = [f"{len(lines):,} broken records left out"] if lines else []
    doubled = _doubled(splits, diagnoses, lines)
    leaked = _leaked(splits, diagnoses, lines)
    classes, number_of = _classes(splits, lines)
    with scratch_folder(out) as scratch:
        for name, split in splits.items():
            content = split.ground_truth()
            content["categories"] = [{"id": category.id, "name": category.name} for category in classes]
            content["images"], names = _copy_images(split, name, leaked if name == "train" else set(), scratch)
            content["annotations"] = [
                entry
                for entry in content["annotations"]
                if entry["image_id"] in names
                and entry["id"] not in doubled[name]
                and _repair(entry, names, name, lines)
            ]
            for entry in content["annotations"]:
                entry["category_id"] = number_of[name][entry["category_id"]]
            file = scratch / "annotations" / f"instances_{name}.json"
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(content), encoding="utf-8")
        shown = ["".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in lines]
        (scratch / REPORT).write_text("\n".join([*shown, ""]), encoding="utf-8", errors="backslashreplace")
        os.replace(scratch, out)
    counts += [f"{sum(map(len, doubled.values())):,} annotations that were there twice left out"]
    counts += [f"{len(leaked):,} training images that another split has left out", f"{len(lines):,} changes in all"]
    return counts


def _doubled(splits: Mapping[str, Split], diagnoses: Sequence[Diagnosis], lines: list[str]) -> dict[str, set[int]]:
    """Ids of annotations to leave out, by split."""
    doubled: dict[str, set[int]] = {name: set() for name in splits}
    for each in diagnoses:
        if each.kind not in ("duplicate_annotation", "near_duplicate"):
            continue
        table, (exhibit,) = table_of(splits[each.split]), each.exhibits
        assert table is not None
        larger, smaller = sorted(exhibit.rows, key=lambda row: (-table.areas[row], row))
        ids = doubled[each.split]
        if not {int(table.ids[larger]), int(table.ids[smaller])} & ids:
            ids.add(int(table.ids[smaller]))
            lines.append(f"{each.split}: annotation {table.ids[smaller]} left out: {each.problem.message}")
    return doubled


def _leaked(splits: Mapping[str, Split], diagnoses: Sequence[Diagnosis], lines: list[str]) -> set[int]:
    """Ids of training images that another split has, too; none where no object would be left to train on."""
    found = {
        exhibit.other.image_id: each
        for each in diagnoses
        if each.kind == "leak" and each.split.startswith("train, ")
        for exhibit in each.exhibits
        if exhibit.other is not None
    }
    if found and not any(r.num_objects for r in splits["train"].records if r.image_id not in found):
        lines.append("train: images that are in other splits are kept, since no object would be left")
        return set()
    lines += [f"train: image {number} left out: {each.problem.message}" for number, each in found.items()]
    return set(found)


def _classes(splits: Mapping[str, Split], lines: list[str]) -> tuple[list[Category], dict[str, dict[int, int]]]:
    """One list of classes, and for each split {its category id: id in the copy}."""
    classes: list[Category] = []
    number_of: dict[str, dict[int, int]] = {}
    for name, split in splits.items():
        known = {category.name: category for category in classes}
        alike = {plain_name(category.name): category for category in classes}
        numbers = number_of[name] = {}
        for category in split.categories:
            match = known.get(category.name) or alike.get(plain_name(category.name))
            if match is None:
                taken = {each.id for each in classes}
                number = category.id if category.id not in taken else max(taken) + 1
                match = Category(id=number, name=category.name, is_thing=category.is_thing)
                classes.append(match)
                if name != next(iter(splits)):
                    lines.append(f"{name}: class {category.name!r} added to all splits with the id {number}")
            elif (match.name, match.id) != (category.name, category.id):
                lines.append(f"{name}: class {category.name!r} (id {category.id}) is {match.name!r} (id {match.id})")
            numbers[category.id] = match.id
    return classes, number_of


def _copy_images(
    split: Split, name: str, left_out: set[int], out: Path
) -> tuple[list[dict[str, Any]], dict[int, tuple[int, int]]]:
    """Entries of the json's `images`, and height and width by id."""
    (out / name).mkdir()
    entries, sizes = [], {}
    for record in split.records:
        if record.image_id in left_out:
            continue
        parts = [part for part in PureWindowsPath(record.file_name).parts if part not in ("..", "/", "\\")]
        file_name = str(PurePosixPath(*parts))
        target = out / name / file_name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():  # two entries may share one file
            shutil.copyfile(record.path, target)
        entries.append({"id": record.image_id, "file_name": file_name, "height": record.height, "width": record.width})
        sizes[record.image_id] = (record.height, record.width)
    return entries, sizes


def _repair(entry: dict[str, Any], sizes: Mapping[int, tuple[int, int]], name: str, lines: list[str]) -> bool:
    """Make box, area and mask of an annotation fit each other in place; False where nothing is left of it."""
    height, width = sizes[entry["image_id"]]
    x, y, w, h = entry["bbox"]
    x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    clipped = [x0, y0, x1 - x0, y1 - y0]
    if any(abs(a - b) > 1 for a, b in zip(clipped, entry["bbox"], strict=True)):
        lines.append(f"{name}: annotation {entry['id']}: box {entry['bbox']} clipped to its image")
        entry["bbox"] = clipped
    segmentation = entry.get("segmentation")
    if segmentation is None:
        return True
    if isinstance(segmentation, list):
        mask = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    else:
        mask, entry["segmentation"] = segmentation, rle.to_json(segmentation)
    pixels, bounds = int(coco_mask.area(mask)), coco_mask.toBbox(mask).tolist()
    if not pixels:
        lines.append(f"{name}: annotation {entry['id']} left out: its mask covers no pixel")
        return False
    if coco_mask.iou([entry["bbox"]], [bounds], [0])[0, 0] < _MISFIT:
        lines.append(f"{name}: annotation {entry['id']}: box {entry['bbox']} replaced by its mask's, {bounds}")
        entry["bbox"] = bounds
    area = entry["area"]
    if max(area, pixels) > _AREA_RATIO * min(area, pixels) and abs(area - pixels) > _AREA_SLACK:
        lines.append(f"{name}: annotation {entry['id']}: area {area:g} replaced by its mask's, {pixels}")
        entry["area"] = pixels
    return True
