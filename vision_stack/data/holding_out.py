"""A validation split out of the training images, where a data set has none.

Images that belong together stay together: files of the same content, images that look the same (`likeness`), and those
whose names have the same part by a pattern (a video, a patient). Every class gets its share, the rarest first. Which
groups are held out depends on the seed and on the images, not on their order.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_stack.config import ConfigError
from vision_stack.data.checks.issues import DataError, data_error, show
from vision_stack.data.checks.likeness import looks_of, similar_pairs
from vision_stack.data.checks.split_overlap import same_files
from vision_stack.data.image_records import ImageFile
from vision_stack.data.readers.json_file import parse_json
from vision_stack.ops.files import write_file

_MOST = 0.5  # share of the images that may look like one another; more is a scene that never changes


class HeldOut(NamedTuple):
    val: NDArray[np.bool_]  # [N] which images are held out
    text: str  # how, for printing


def hold_out(records: Sequence[ImageFile], fraction: float, *, seed: int = 0, group_by: str | None = None) -> HeldOut:
    """Choose validation images.

    Args:
        fraction: of the images, and of those of each class.
        group_by: pattern searched for in each file name; images with the same match (its first group, if it has one)
            stay together.

    Raises:
        ConfigError: `group_by` is not a pattern, or matches no name.
        DataError: there are not two groups.
    """
    groups, text = _groups(records, group_by)
    members: dict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    if len(members) < 2:
        what = "one image" if len(records) == 1 else f"{len(records):,} images that belong together"
        raise DataError(f"data.val_fraction: there is only {what}, so nothing can be held out; add more images")
    order = sorted(members, key=lambda group: _draw(seed, min(records[row].file_name for row in members[group])))
    classes = [_classes(record) for record in records]
    val = _choose([members[group] for group in order], classes, fraction)
    share = f"{np.count_nonzero(val):,} of {len(records):,} images"
    drawn = f"data.val_fraction={fraction:g}, data.split_seed={seed}"
    return HeldOut(val, f"drawn from the training data: {share} ({drawn}){text}")


def listed_images(file: str, names: Sequence[str]) -> HeldOut:
    """The images, by their names below the data root, that an earlier run held out.

    Raises:
        DataError: no such list, or none of its images is there.
    """
    remedy = "leave data.val_list out to draw them anew"
    content = parse_json(file, remedy)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not all(isinstance(name, str) for name in images):
        raise data_error(file, "images", f"expected a list of names, got {show(images)}", remedy)
    listed = set(images)
    val = np.array([name in listed for name in names], bool)
    if not val.any():
        raise data_error(file, "images", f"none of the {len(listed):,} images is in the data set", remedy)
    absent = f"; {len(listed) - np.count_nonzero(val):,} more are not there" if len(listed) > val.sum() else ""
    return HeldOut(
        val, f"drawn by an earlier run: {np.count_nonzero(val):,} of {len(names):,} images, in {file}{absent}"
    )


def write_list(file: Path, names: Sequence[str]) -> None:
    """What `listed_images` reads."""
    write_file(file, json.dumps({"images": sorted(names)}, indent=1).encode())


def _choose(groups: list[list[int]], classes: list[frozenset[int]], fraction: float) -> NDArray[np.bool_]:
    """Groups in the order given, until every class has its share of images, the rarest class first."""
    total = Counter(label for labels in classes for label in labels)
    held: Counter[int] = Counter()
    wanted = max(1, round(fraction * len(classes)))
    chosen: set[int] = set()
    size = 0

    def take(number: int) -> None:
        nonlocal size
        chosen.add(number)
        size += len(groups[number])
        held.update(label for row in groups[number] for label in classes[row])

    of_class: dict[int, list[int]] = defaultdict(list)
    for number, rows in enumerate(groups):
        for label in frozenset().union(*(classes[row] for row in rows)):
            of_class[label].append(number)
    for label in sorted(total, key=lambda label: (total[label], label)):
        for number in of_class[label]:
            missing = round(fraction * total[label]) - held[label]
            if missing <= 0:
                break
            if number not in chosen and len(groups[number]) <= 2 * max(missing, wanted - size):
                take(number)
    with_objects = sorted(range(len(groups)), key=lambda number: not any(classes[row] - {-1} for row in groups[number]))
    for number in with_objects:
        if size < wanted and number not in chosen and (len(groups[number]) <= wanted - size or not chosen):
            take(number)
    if len(chosen) == len(groups):
        chosen.remove(max(chosen, key=lambda number: len(groups[number])))
    val = np.zeros(len(classes), bool)
    val[[row for number in chosen for row in groups[number]]] = True
    return val


def _draw(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode(errors="surrogatepass")).digest()


def _classes(record: Any) -> frozenset[int]:
    """Labels of the objects; -1 for an image without any. What is only in label maps is not looked at."""
    table, rows = getattr(record, "table", None), getattr(record, "rows", None)
    if table is None or rows is None:
        return frozenset()
    return frozenset(table.labels[rows.start : rows.stop].tolist()) or frozenset((-1,))


def _groups(records: Sequence[ImageFile], pattern: str | None) -> tuple[list[int], str]:
    """The group of each image, and what to say of them."""
    equal, alike = _alike(tuple((record.path, _changed(record.path)) for record in records))
    same = _Sets(len(records))
    for group in equal:
        same.join(*group)
    duplicates = len(records) - same.count()
    near = _Sets(len(records), same)
    for pair in alike:
        near.join(*pair)
    text = f"; {duplicates:,} copies stay with their originals" if duplicates else ""
    if near.largest() <= max(2, _MOST * len(records)):
        joined = same.count() - near.count()
        text += f"; {joined:,} near-duplicates stay together" if joined else ""
        same = near
    elif near.largest() > same.largest():
        text += f"; {near.largest():,} images look alike and are not kept together: give data.group_by=PATTERN"
    if pattern is not None:
        keys = [_key(pattern, record.file_name) for record in records]
        if not any(key is not None for key in keys):
            name = records[0].file_name
            raise ConfigError(f"data.group_by: {pattern!r} matches no file name, such as {name!r}; correct the pattern")
        same.join_equal(keys)
        text += f"; {len(set(keys)):,} groups by {pattern!r}"
    return [same.find(row) for row in range(len(records))], text


def _key(pattern: str, name: str) -> str | None:
    try:
        match = re.search(pattern, name)
    except re.error as error:
        raise ConfigError(f"data.group_by: {pattern!r} is not a pattern ({error}); correct it") from None
    return match and (match[1] if match.groups() else match[0])


@functools.lru_cache(maxsize=2)  # both splits ask
def _alike(files: tuple[tuple[str, tuple[int, int]], ...]) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Indices of images with the same content, in groups, and pairs of those that look the same."""
    paths = [path for path, _ in files]
    return same_files(paths), [(one, other) for one, other, _ in similar_pairs(looks_of(paths))]


def _changed(path: str) -> tuple[int, int]:
    """What tells one state of a file from another; zeros where that is reported when it is read."""
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0)
    return status.st_size, status.st_mtime_ns


class _Sets:
    """Disjoint sets of 0, 1, ..., n - 1."""

    def __init__(self, n: int, start: _Sets | None = None) -> None:
        self._parent: list[int] = list(start._parent) if start else list(range(n))

    def find(self, row: int) -> int:
        while self._parent[row] != row:
            self._parent[row] = self._parent[self._parent[row]]
            row = self._parent[row]
        return row

    def join(self, *rows: int) -> None:
        roots = [self.find(row) for row in rows]
        for root in roots:
            self._parent[root] = min(roots)

    def join_equal(self, keys: Iterable[object]) -> None:
        """Those with equal keys; None equals nothing."""
        first: dict[object, int] = {}
        for row, key in enumerate(keys):
            if key is not None:
                self.join(first.setdefault(key, row), row)

    def count(self) -> int:
        return sum(row == parent for row, parent in enumerate(self._parent))

    def largest(self) -> int:
        return max(Counter(map(self.find, range(len(self._parent)))).values(), default=0)
