"""What an examination of a data set reports: kinds of findings, how serious each is, and one finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from vision_stack.data.annotations import AnnotationTable
from vision_stack.data.checks.issues import Problem
from vision_stack.structures import Category

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class Kind(NamedTuple):
    """Errors stop training or falsify scores; warnings cost accuracy or may be wrong; notes are for information."""

    severity: Severity
    title: str


KINDS: dict[str, Kind] = {  # as they are listed
    "unreadable_split": Kind("error", "splits that cannot be read"),
    "broken_image": Kind("error", "broken images"),
    "broken_annotation": Kind("error", "broken annotations"),
    "broken_class": Kind("error", "classes that do not fit"),
    "leak": Kind("error", "the same image in two splits"),
    "duplicate_annotation": Kind("error", "duplicate annotations"),
    "missing_split": Kind("warning", "missing splits"),
    "odd_annotation": Kind("warning", "annotations that do not fit together"),
    "missing_mask": Kind("warning", "objects without masks"),
    "similar_in_splits": Kind("warning", "nearly the same image in two splits"),
    "duplicate_image": Kind("warning", "the same image twice in a split"),
    "blank_image": Kind("warning", "blank images"),
    "near_duplicate": Kind("warning", "near-duplicate annotations"),
    "two_classes": Kind("warning", "one object annotated as two classes"),
    "overlap": Kind("warning", "overlapping masks of one class"),
    "small_object": Kind("warning", "objects too small for the training size"),
    "crowded_image": Kind("warning", "images with more objects than can be found"),
    "class_name": Kind("warning", "class names that differ in spelling"),
    "class_without_objects": Kind("warning", "classes without objects"),
    "rare_class": Kind("note", "rare classes"),
    "whole_image": Kind("note", "objects as large as their image"),
    "similar_image": Kind("note", "nearly the same image twice in a split"),
    "empty_image": Kind("note", "images without objects"),
    "reading": Kind("note", "fixed while reading"),
}


class Exhibit(NamedTuple):
    """Where a finding can be seen."""

    record: Any  # of the image
    rows: tuple[int, ...] = ()  # objects in question, of the split's table
    other: Any | None = None  # a second image, which the first is compared with
    caption: str = ""  # by default the finding's message


@dataclass(frozen=True, slots=True, eq=False)
class Diagnosis:
    """One finding."""

    kind: str  # of KINDS
    split: str  # "train"; "train, val" for what is between two
    problem: Problem
    exhibits: tuple[Exhibit, ...] = ()
    weight: float = 0.0  # of one kind, the worst have the largest

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind].severity


class Split(Protocol):
    """What is read of `CocoSplit` and `LabelMapSplit`."""

    @property
    def annotation_file(self) -> str: ...
    @property
    def records(self) -> list[Any]: ...
    @property
    def categories(self) -> tuple[Category, ...]: ...
    @property
    def problems(self) -> tuple[Problem, ...]: ...
    @property
    def notes(self) -> tuple[Problem, ...]: ...
    @property
    def num_crowds(self) -> int: ...
    @property
    def num_without_mask(self) -> int: ...
    @property
    def lists_objects(self) -> bool: ...
    def ground_truth(self) -> Any: ...


def table_of(split: Split) -> AnnotationTable | None:
    """The objects of a split that lists them with boxes; None where only label maps show them."""
    table = getattr(split, "table", None)
    return table if isinstance(table, AnnotationTable) else None


def name_object(split: Split, record: Any, row: int) -> str:
    """How its owner finds an annotation: by its id in a json, elsewhere by its place among those of the image."""
    table = table_of(split)
    assert table is not None
    if split.annotation_file.endswith(".json"):
        return f"id {table.ids[row]}"
    return f"object {row - record.rows.start + 1}"


def in_order(found: Sequence[Diagnosis]) -> list[Diagnosis]:
    """By kind, of each kind the worst first."""
    places = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(found, key=lambda each: (places[each.kind], -each.weight))
