"""Images that are there twice, in one split or in two: the same file, or nearly the same picture; and blank ones.

The same file is found by its content, nearly the same picture as `likeness` has it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from vision_stack.data.checks.diagnosis import Diagnosis, Exhibit, Split
from vision_stack.data.checks.issues import Problem, show
from vision_stack.data.checks.likeness import SIDE, looks_of, similar_pairs
from vision_stack.data.checks.split_overlap import same_files

_SEPARATE = "validation would measure memorisation; keep the image in one split"
_FIELD = "images[].file_name"
_Owned = tuple[str, Any]  # name of the split, record


def find_look_alikes(splits: Mapping[str, Split]) -> Iterator[Diagnosis]:
    """The same image twice, nearly the same image twice, and blank images; reads every image file."""
    owned: list[_Owned] = [(name, record) for name, split in splits.items() for record in split.records]
    files = {name: split.annotation_file for name, split in splits.items()}
    paths = [record.path for _, record in owned]
    same: dict[int, int] = {}  # image -> the first with the same content
    for group in same_files(paths):
        same.update(dict.fromkeys(group, group[0]))
        yield from _copies([owned[index] for index in group], files)
    looks = looks_of(paths)
    for (name, record), look in zip(owned, looks, strict=True):
        if look is not None and look.is_blank:
            message = f"{show(record.file_name)} is of one colour"
            problem = Problem(files[name], _FIELD, message, "export it again, or remove it")
            yield Diagnosis("blank_image", name, problem, (Exhibit(record),))
    for a, b, difference in similar_pairs(looks):
        if same.get(a, a) != same.get(b, b):
            yield _pair(owned[a], owned[b], files, difference)


def _copies(group: Sequence[_Owned], files: Mapping[str, str]) -> Iterator[Diagnosis]:
    by_split: dict[str, list[Any]] = defaultdict(list)
    for name, record in group:
        by_split[name].append(record)
    for name, (first, *others) in by_split.items():
        for other in others:
            message = f"{show(other.file_name)} is the same file as {show(first.file_name)}"
            remedy = "remove one of them, or list it once with all of its annotations"
            problem = Problem(files[name], _FIELD, message, remedy)
            yield Diagnosis("duplicate_image", name, problem, (Exhibit(other, other=first),))
    for (one, (first, *_)), (name, others) in combinations(by_split.items(), 2):
        for other in others:
            message = f"{show(other.file_name)} of {name} is {show(first.file_name)} of {one}"
            problem = Problem(files[name], _FIELD, message, _SEPARATE)
            yield Diagnosis("leak", f"{one}, {name}", problem, (Exhibit(other, other=first),))


def _pair(first: _Owned, second: _Owned, files: Mapping[str, str], difference: float) -> Diagnosis:
    (one, a), (other, b) = first, second
    what = f"(they differ by {difference:.1f} of 255 at {SIDE} x {SIDE} pixels)"
    if one != other:
        message = f"{show(b.file_name)} of {other} looks like {show(a.file_name)} of {one} {what}"
        problem = Problem(files[other], _FIELD, message, "keep images of one scene in one split")
        return Diagnosis("similar_in_splits", f"{one}, {other}", problem, (Exhibit(b, other=a),), -difference)
    message = f"{show(b.file_name)} looks like {show(a.file_name)} {what}"
    problem = Problem(files[one], _FIELD, message, "one of them may do")
    return Diagnosis("similar_image", one, problem, (Exhibit(b, other=a),), -difference)
