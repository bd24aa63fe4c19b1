"""The doctor in short, before each training: what of its findings needs attention, remembered until the data change.

Looks only at what has been read already, not into image files, and of large data sets at some images.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from vision_stack.config import to_dict
from vision_stack.data.checks.diagnosis import KINDS, Diagnosis, Split, in_order, table_of
from vision_stack.data.checks.object_columns import columns_of
from vision_stack.data.checks.overlaps import find_overlaps
from vision_stack.data.checks.small_objects import View, find_small_objects
from vision_stack.data.checks.split_classes import count_classes, find_class_faults
from vision_stack.data.configs import DataConfig, cache_folder
from vision_stack.ops.files import write_file

_VERSION = 1  # of the checks: a higher one forgets what was found before
_LOOKED_AT = 5000  # images of a split, at most, whose annotations are compared with each other
_SINGLE = ("small_object", "class_without_objects")  # kinds whose findings are lines of their own


def checkup(config: DataConfig, splits: Mapping[str, Split], view: View) -> list[str]:
    """At most three lines for printing, none where nothing needs attention.

    Args:
        config: that the splits were read with. Generated data are not looked at, nor label maps.
        view: how the model sees the images.
    """
    if config.type == "shapes" or any(table_of(split) is None for split in splits.values()):
        return []
    file = cache_folder() / "checkups" / f"{_key(config, splits, view)}.json"
    lines = _remembered(file)
    if lines is None:
        some = any(len(split.records) > _LOOKED_AT for split in splits.values())
        lines = list(
            _lines(in_order(list(_examine(splits, view))), f" (in {_LOOKED_AT:,} images of a split)" if some else "")
        )
        with contextlib.suppress(OSError):  # examined again next time
            write_file(file, json.dumps(lines).encode(), durable=False)
    return [*lines, f"            details: {_command(config, view)}"] if lines else []


def _examine(splits: Mapping[str, Split], view: View) -> Iterator[Diagnosis]:
    for name, split in splits.items():
        yield from find_overlaps(split, name, step=-(-len(split.records) // _LOOKED_AT) or 1)
        if (columns := columns_of(split)) is not None:
            yield from find_small_objects(split, columns, name, view)
    yield from find_class_faults(splits, {name: count_classes(split) for name, split in splits.items()})


def _lines(found: list[Diagnosis], where: str) -> Iterator[str]:
    found = [each for each in found if each.severity != "note"]
    counts = Counter(each.kind for each in found if each.kind not in _SINGLE)
    if counts:
        yield "data check  " + ", ".join(f"{KINDS[kind].title}: {count:,}" for kind, count in counts.items()) + where
    single = next((each for each in found if each.kind in _SINGLE and each.split == "train"), None)
    if single:
        yield f"{'' if counts else 'data check':<11} {single.problem.message}; {single.problem.remedy}"


def _key(config: DataConfig, splits: Mapping[str, Split], view: View) -> str:
    """A hash of the annotations as read, of the image files' names, sizes and times, and of the view."""
    digest = hashlib.blake2b(json.dumps([_VERSION, config.type, asdict(view)]).encode(), digest_size=16)
    for name, split in splits.items():
        table = table_of(split)
        assert table is not None
        digest.update(json.dumps([name, [category.name for category in split.categories]]).encode())
        for column in (table.labels, table.boxes, table.areas, table.crowd, table.ids, table.points, table.counts):
            digest.update(column.tobytes() if isinstance(column, np.ndarray) else column)
        for record in split.records:
            with contextlib.suppress(OSError):  # a file that is gone changes the key, too
                status = os.stat(record.path)
                digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
            digest.update(f"{record.rows} {record.height} {record.width} ".encode() + os.fsencode(record.path))
    return digest.hexdigest()


def _remembered(file: Path) -> list[str] | None:
    try:
        lines = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return lines if isinstance(lines, list) and all(isinstance(line, str) for line in lines) else None


def _command(config: DataConfig, view: View) -> str:
    """What examines the same data in full."""
    plain, default = to_dict(config), to_dict(type(config)())
    paths = {key: value for key, value in plain.items() if isinstance(value, str) and value != default[key]}
    paths.pop("on_error", None)
    words = [f"data={config.type}", *(f"data.{key}={value}" for key, value in paths.items())]
    if config.type in ("auto", "coco") and paths.keys() == {"root"}:
        words = [paths["root"]]
    seen = default["eval_transform"]
    if (view.short_edge, view.long_edge) != (seen["short_edge"], seen["long_edge"]):
        words += ["--image-size", str(view.long_edge)]
    return f"vision-stack doctor {shlex.join(words)}"
