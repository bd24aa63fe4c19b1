"""What is wrong with a data set, so that its owner can fix it: file, field, what is wrong, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

_SHOWN = 20
_MAX_ID = 2**53  # pycocotools keeps ids in float64


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken record. Prints as one line, whatever its parts hold."""

    file: str
    field: str  # "annotations[17].bbox"; "pixels" for what is inside an image file
    message: str
    remedy: str

    def __str__(self) -> str:
        text = f"{self.file}: {self.field}: {self.message}; {self.remedy}"
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class DataError(ValueError):
    """A data set or an image that cannot be used. The text is complete for a user: one line per problem."""

    def __init__(self, text: str | Problem) -> None:
        super().__init__(str(text))
        self.problem = text if isinstance(text, Problem) else None

    def __reduce__(self) -> tuple[Any, ...]:  # out of a worker process in one piece
        return (DataError, (self.problem or str(self),))


class BrokenField(Exception):
    """Raised and caught inside of the checks: a record is broken in this field."""

    def __init__(self, field: str, message: str, remedy: str) -> None:
        self.field, self.message, self.remedy = field, message, remedy


class Place(NamedTuple):
    """Where a record stands, in the words of its format."""

    file: str
    field: str  # "annotations[17].bbox", "line 3"


class Findings:
    """Collects what a check finds in one data set, and knows where its records stand: here, in one COCO json."""

    says = "the json says"  # the annotation, of an image's size
    redo = "annotate it again, or remove the annotation"
    instead_of_box = "leave bbox out to have it computed"  # of an object that has a mask, too

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []  # broken: stops training, or is skipped
        self.notes: list[Problem] = []  # one for each kind: fixed, dropped or merely odd

    def problem(self, where: str | Place, message: str, remedy: str) -> None:
        self.problems.append(self._problem(where, message, remedy))

    def note(self, where: str | Place, message: str, remedy: str) -> None:
        self.notes.append(self._problem(where, message, remedy))

    def image(self, index: int, field: str) -> Place:
        """A field of an image; `index` is its position."""
        return Place(self.file, f"images[{index}].{field}")

    def object(self, index: int, field: str) -> Place:
        """A field of an object: "bbox", "segmentation", "id", or "" for all of it."""
        return Place(self.file, f"annotations[{index}].{field}".rstrip("."))

    def objects(self, field: str) -> Place:
        """That field of many objects."""
        return Place(self.file, f"annotations[].{field}")

    def name(self, index: int, object_id: int, image: str) -> str:
        """An object among several that a line names."""
        return f"id {object_id or '?'} in {show(image)}"

    def category(self, index: int, field: str) -> Place:
        return Place(self.file, f"categories[{index}].{field}".rstrip("."))

    def _problem(self, where: str | Place, message: str, remedy: str) -> Problem:
        file, field = where if isinstance(where, Place) else (self.file, where)
        return Problem(file, field, message, remedy)


def data_error(file: Any, field: str, message: str, remedy: str) -> DataError:
    """The `DataError` of a single problem."""
    return DataError(Problem(str(file), field, message, remedy))


def listing(problems: Sequence[Problem], shown: int = _SHOWN) -> str:
    """One line per problem for the first ones, then how many more there are."""
    lines = [str(problem) for problem in problems[:shown]]
    if len(problems) > shown:
        lines.append(f"... and {len(problems) - shown:,} more")
    return "\n".join(lines)


def report(file: str, skipped: str, problems: Sequence[Problem], notes: Sequence[Problem], shown: int = _SHOWN) -> str:
    """What of a split was skipped and noted, for printing; empty if nothing was. `skipped`: "broken images"."""
    head = [f"{file}: {skipped} skipped: {len(problems):,}", listing(problems, shown)] if problems else []
    return "\n".join([*head, *(f"note: {note}" for note in notes)])


def show(value: Any) -> str:
    """A value out of a json file, short enough for a line. Never walks through a big one."""
    if isinstance(value, dict):
        return f"a mapping of {len(value)} keys"
    if isinstance(value, list) and (len(value) > 4 or any(isinstance(item, list | dict) for item in value)):
        return f"a list of {len(value)} values"
    text = repr(value[:61] if isinstance(value, str) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def whole_number(value: Any) -> int | None:
    """An id out of a json file: 7 or 7.0, but no bool, text or fraction."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and abs(value) < _MAX_ID else None
