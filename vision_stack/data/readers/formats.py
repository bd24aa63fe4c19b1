"""The formats that a folder may have: each reader registers how it recognises one, and what reads it then.

    @register_format("yolo")
    def recognise(files: Files) -> Recognised | None: ...

A new format is one file with such a function, imported by `auto.py`. Nothing is opened but the files listed, and of
those only beginnings, until a split is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from vision_stack.data.readers.files import Files
from vision_stack.structures import WITH_MASKS, Category, Task

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")
INSTANCES: tuple[Task, ...] = ("instance", "detection")

_WORDS: dict[str, Part] = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "validate"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class Reading(NamedTuple):
    """What a split is read for."""

    task: Task
    on_error: Literal["raise", "skip"] = "raise"
    categories: Sequence[Category] | None = None  # the classes to use, if known already
    training: bool = False
    classes: str | None = None  # a class table of the user's
    ignore_labels: tuple[int, ...] | None = None  # None: those of the format

    @property
    def masks(self) -> bool:
        return self.task in WITH_MASKS


@dataclass(frozen=True, eq=False, kw_only=True)
class Recognised:
    """A folder in a format."""

    format: str  # name that it is registered by
    what: str  # "YOLO polygons"
    how: str  # how that is known: "data.yaml names 3 classes; 12 .txt files of polygons"
    tasks: tuple[Task, ...]
    splits: Mapping[Part, str]  # which there are, and where
    generic: bool = False  # whether any other format that is recognised comes before it
    read: Callable[[Part, Reading], Any]  # gives a `CocoSplit` or a `LabelMapSplit`


Recogniser = Callable[[Files], Recognised | None]
FORMATS: dict[str, Recogniser] = {}


def register_format(name: str) -> Callable[[Recogniser], Recogniser]:
    """Decorator of the function that says whether a folder has the format of that name."""

    def decorate(recognise: Recogniser) -> Recogniser:
        assert name not in FORMATS, name
        FORMATS[name] = recognise
        return recognise

    return decorate


def part_of(name: str) -> Part | None:
    """The split that a file belongs to by the names of its folders and its own, the last first."""
    for place in reversed(name.split("/")):
        for word in re.split(r"[^a-z]+", place.lower()):
            if word in _WORDS:
                return _WORDS[word]
    return None


def by_part(names: Sequence[str], of: Callable[[str], Part | None] = part_of) -> dict[Part, list[str]]:
    """Names by split; those of no split are training data where nothing else is."""
    found: dict[Part | None, list[str]] = {}
    for name in names:
        found.setdefault(of(name), []).append(name)
    if None in found:
        found.setdefault("train", found[None])
    return {part: found[part] for part in PARTS if part in found}


def folder_parts(names: Sequence[str]) -> dict[Part, list[str]]:
    """`by_part` of the folders that files are in, whatever the files are called."""
    return by_part(names, lambda name: part_of(name.rpartition("/")[0]) if "/" in name else None)
