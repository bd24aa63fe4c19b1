"""Examines a data set: all that its readers found, and what only the splits as a whole show."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import numpy as np

from vision_stack.data.checks.diagnosis import Diagnosis, Exhibit, Split, in_order, table_of
from vision_stack.data.checks.issues import DataError, Problem, show
from vision_stack.data.checks.look_alikes import find_look_alikes
from vision_stack.data.checks.object_columns import columns_of
from vision_stack.data.checks.overlaps import find_overlaps
from vision_stack.data.checks.small_objects import View, find_small_objects
from vision_stack.data.checks.split_classes import find_class_faults
from vision_stack.data.checks.statistics import SplitStatistics, statistics_of
from vision_stack.data.configs import AutoDataConfig, DataConfig
from vision_stack.data.readers.layout import SplitName
from vision_stack.structures import Task

_TASKS = ("detection", "instance", "panoptic", "semantic")  # the first that there are annotations for is examined
_NAMED = re.compile(r"\bid (\d+) in '")
_SHOWN = 6  # images of a finding
_PLAIN_NOTES = (".iscrowd", ".id", ".file_name")  # fields of notes that ask for nothing
_FIELDS_OF_IMAGES = ("images", "pixels", "label map", "file_name")
_FIELDS_OF_CLASSES = ("categories", "classes", "names", "id")


@dataclass(frozen=True, eq=False)
class Examination:
    """What was found in a data set."""

    task: Task
    format: str  # what the folder holds, and how that is known
    view: View
    splits: Mapping[str, Any]  # by name, those that could be read
    statistics: Mapping[str, SplitStatistics]
    diagnoses: list[Diagnosis]  # in order of `KINDS`, the worst of each first

    def count(self, severity: str) -> int:
        return sum(each.severity == severity for each in self.diagnoses)


def examine(config: DataConfig, task: Task | None = None, view: View | None = None) -> Examination:
    """Read all splits, leaving out broken records, and examine them.

    Args:
        config: of kind "data".
        task: by default what the annotations serve; of objects, those with and without masks are read.
        view: how a model sees the images; by default as `eval_transform` of the config.

    Raises:
        DataError: no split can be read.
        ConfigError: there are no annotations for this task.
    """
    chosen = task or _default_task(config)
    transform = config.eval_transform
    view = view or View(short_edge=transform.short_edge, long_edge=transform.long_edge)
    splits, found = _read(replace(config, on_error="skip"), chosen)
    columns = {name: columns_of(split) for name, split in splits.items()}
    statistics = {name: statistics_of(split, columns[name], view) for name, split in splits.items()}
    for name, split in splits.items():
        found += _of_reading(split, name)
        found += find_overlaps(split, name)
        found += _of_images(split, name, view)
        if (own := columns[name]) is not None:
            found += find_small_objects(split, own, name, view)
    found += find_class_faults(splits, {name: each.classes for name, each in statistics.items()})
    found += find_look_alikes(splits)
    return Examination(chosen, _format(config, chosen), view, splits, statistics, in_order(found))


def _default_task(config: DataConfig) -> Task:
    """What there are annotations for; of objects, boxes suffice."""
    tasks: list[Task] = sorted(config.readers, key=_TASKS.index)
    if not isinstance(config, AutoDataConfig):
        return tasks[0]
    errors = []
    for task in tasks:
        try:
            config.recognised(task)
            return task
        except DataError as error:
            errors.append(error)
    raise errors[0]


def _format(config: DataConfig, task: Task) -> str:
    if not isinstance(config, AutoDataConfig):
        return f"data={config.type}"
    found = config.recognised(task)
    return f"{found.what} ({found.how})"


def _read(config: DataConfig, task: Task) -> tuple[dict[str, Any], list[Diagnosis]]:
    """All splits as the folder has them: nothing is held out of the training images."""
    readers: dict[str, Callable[[], Any]] = {name: partial(config.read, name, task) for name in get_args(SplitName)}
    faults: list[Diagnosis] = []
    if isinstance(config, AutoDataConfig):
        config = replace(config, val_fraction=None, split="val")
        parts = config.recognised(task).splits
        readers = {name: partial(config.read, name, task) for name in ("train", "val")}
        if "val" not in parts:
            readers = {"train": partial(_whole, config, task)}
            message = "there is no validation split: training holds some of its images out"
            problem = Problem(str(config.root), "data.val_fraction", message, "name the images that validate")
            faults.append(Diagnosis("reading", "train", problem))
        if "test" in parts:
            readers["test"] = partial(replace(config, split="test").read, "val", task)
    splits: dict[str, Any] = {}
    errors: list[DataError] = []
    for name, read in readers.items():
        try:
            splits[name] = read()
        except DataError as error:
            problem = error.problem or Problem(str(config.root), name, str(error), "fix the files")
            missing = name != "train" and problem.field.startswith("data.")  # an option, not what is in a file
            faults.append(Diagnosis("missing_split" if missing else "unreadable_split", name, problem))
            errors.append(error)
    if not splits:
        raise errors[0]
    return splits, faults


def _whole(config: DataConfig, task: Task) -> Any:
    """The training images and those held out of them."""
    train, val = config.read("train", task), config.read("val", task)
    notes = tuple(note for note in train.notes if note.field != "validation")  # which images are held out
    return replace(train, records=[*train.records, *val.records], notes=notes)


def _of_reading(split: Split, name: str) -> Iterator[Diagnosis]:
    """What the reader left out, fixed or noted."""
    for problem in split.problems:
        field = problem.field.lower()
        kind = "broken_annotation"
        if problem.field.startswith(_FIELDS_OF_IMAGES) or field.endswith("pixels"):
            kind = "broken_image"
        elif field.startswith(_FIELDS_OF_CLASSES):
            kind = "broken_class"
        yield Diagnosis(kind, name, problem)
    for note in split.notes:
        plain = note.field.endswith(_PLAIN_NOTES) or note.field.startswith(_FIELDS_OF_CLASSES)
        yield Diagnosis("reading" if plain else "odd_annotation", name, note, tuple(_named(note, split)))
    table = table_of(split)
    if table is not None and 0 < (bare := split.num_without_mask) < np.count_nonzero(~table.crowd):
        message = f"{bare:,} of {np.count_nonzero(~table.crowd):,} objects have only a box"
        remedy = "add their masks for task=instance, or train on boxes with task=detection"
        problem = Problem(split.annotation_file, "annotations[].segmentation", message, remedy)
        yield Diagnosis("missing_mask", name, problem, weight=bare)


def _named(note: Problem, split: Split) -> Iterator[Exhibit]:
    """The annotations that a note names by their ids, as `consistency.Notes` writes them."""
    table = table_of(split)
    ids = [int(number) for number in _NAMED.findall(note.message)]
    if table is None or not ids:
        return
    records = sorted(split.records, key=lambda record: (record.rows.start, record.rows.stop))
    starts = [record.rows.start for record in records]
    for row in np.flatnonzero(np.isin(table.ids, ids)).tolist():
        place = bisect_right(starts, row) - 1
        if place >= 0 and row in records[place].rows:
            yield Exhibit(records[place], (row,))


def _of_images(split: Split, name: str, view: View) -> Iterator[Diagnosis]:
    """Images with too many objects, or with none."""
    if not split.lists_objects:
        return
    counts = [record.num_objects for record in split.records]
    for record, count in zip(split.records, counts, strict=True):
        if view.max_objects is not None and count > view.max_objects:
            message = (
                f"{show(record.file_name)} has {count:,} objects, more than the {view.max_objects:,} queries of a head"
            )
            problem = Problem(
                split.annotation_file,
                "annotations[].image_id",
                message,
                "raise head.num_queries, or cut the image into tiles",
            )
            rows = tuple(getattr(record, "rows", ()))
            yield Diagnosis("crowded_image", name, problem, (Exhibit(record, rows),), count)
    if empty := counts.count(0):
        empty_records = [record for record, count in zip(split.records, counts, strict=True) if not count]
        exhibits = tuple(Exhibit(record, caption=show(record.file_name)) for record in empty_records[:_SHOWN])
        first = show(empty_records[0].file_name)
        message = f"{empty:,} of {len(counts):,} images have no object ({first}, ...)"
        remedy = "left out of training unless data.filter_empty=false; check that none was forgotten"
        problem = Problem(split.annotation_file, "images", message, remedy)
        yield Diagnosis("empty_image", name, problem, exhibits, empty)
