"""The classes of each split: how many objects they have, and whether their names agree."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vision_stack.data.checks.diagnosis import Diagnosis, Split, table_of
from vision_stack.data.checks.issues import DataError, Problem, show

_RARE = 10  # objects of a class in the training split, from which on it is not called rare
_SHOWN = 6
_SPELLING = re.compile(r"[\W_]+")


class ClassCount(NamedTuple):
    """Of a class in one split."""

    objects: int  # or segments; of label maps of classes, pixels
    images: int  # that have one


def count_classes(split: Split) -> dict[str, ClassCount]:
    """By name, for every class of the split; crowds are left out. Reads label maps of classes."""
    objects = np.zeros(len(split.categories), np.int64)
    images = np.zeros(len(split.categories), np.int64)
    listed = getattr(split, "table", None) or (getattr(split.records[0], "table", None) if split.records else None)
    for record in split.records:
        if listed is not None:
            rows = slice(record.rows.start, record.rows.stop)
            counts = np.bincount(listed.labels[rows][~listed.crowd[rows]], minlength=len(objects))
        else:
            try:
                values = record.count_values()
            except DataError:  # reported where the split is read, or when it is trained on
                continue
            held = np.flatnonzero(values)
            held = held[record.label_of[held] >= 0]
            counts = np.bincount(record.label_of[held], values[held], len(objects)).astype(np.int64)
        objects += counts
        images += counts > 0
    return {
        category.name: ClassCount(int(objects[label]), int(images[label]))
        for label, category in enumerate(split.categories)
    }


def find_class_faults(
    splits: Mapping[str, Split], counts: Mapping[str, Mapping[str, ClassCount]]
) -> Iterator[Diagnosis]:
    """Names that differ in spelling, classes that other splits do not know, and classes without objects.

    Args:
        splits: each read with its own classes.
        counts: of `count_classes`, by split.
    """
    for name, split in splits.items():
        yield from _spelling(name, split)
    if "train" in splits:
        for name in splits.keys() - {"train"}:
            yield from _unknown(name, splits[name], splits["train"], counts[name])
        yield from _without_objects(splits, counts)


def _spelling(name: str, split: Split) -> Iterator[Diagnosis]:
    """Names of one split that are one word, but for case, spaces and punctuation."""
    alike: dict[str, list[str]] = defaultdict(list)
    for category in split.categories:
        alike[plain_name(category.name)].append(category.name)
    for names in alike.values():
        if len(names) > 1:
            message = f"{', '.join(map(show, names))} are classes of their own, but look like one"
            problem = Problem(split.annotation_file, "categories[].name", message, "give one class one name and one id")
            yield Diagnosis("class_name", name, problem)


def _unknown(name: str, split: Split, train: Split, counts: Mapping[str, ClassCount]) -> Iterator[Diagnosis]:
    """Classes that training does not know, or knows by another spelling."""
    known = {category.name for category in train.categories}
    by_case = Counter(category.name.casefold() for category in train.categories)
    alike = {plain_name(category.name): category.name for category in train.categories}
    for category in split.categories:
        if category.name in known:
            continue
        count = counts[category.name]
        other = alike.get(plain_name(category.name))
        matched = by_case[category.name.casefold()] == 1  # as the readers match names
        if other is not None:
            message = f"{show(category.name)} is {show(other)} in the training split"
            remedy = "write the name alike in all splits" + ("" if matched else "; otherwise the class is refused")
        else:
            message = f"{show(category.name)} is not a class of the training split, {count.objects:,} objects have it"
            remedy = "add it to the training split, or remove it and its annotations"
        if other is None and not count.objects:
            continue
        kind = "class_name" if matched or not count.objects else "broken_class"
        yield Diagnosis(
            kind, f"train, {name}", Problem(split.annotation_file, "categories[].name", message, remedy),
            weight=count.objects,
        )  # fmt: skip


def _without_objects(
    splits: Mapping[str, Split], counts: Mapping[str, Mapping[str, ClassCount]]
) -> Iterator[Diagnosis]:
    train, file = counts["train"], splits["train"].annotation_file
    elsewhere = Counter(
        {known.casefold(): count.objects for name in counts.keys() - {"train"} for known, count in counts[name].items()}
    )
    empty = [name for name, count in train.items() if not count.objects]
    if empty:
        used = [name for name in empty if elsewhere[name.casefold()]]
        message = f"{len(empty):,} of {len(train):,} classes have no training object: {_some(empty)}"
        message += f"; {len(used):,} of them have objects in other splits" if used else ""
        remedy = "annotate some, or remove the classes; they cannot be learnt"
        problem = Problem(file, "categories", message, remedy)
        yield Diagnosis("class_without_objects", "train", problem, weight=len(empty))
    for name in counts.keys() - {"train"}:
        missed = [known for known, count in counts[name].items() if not count.objects and _trained(known, train)]
        if missed:
            message = f"{len(missed):,} trained classes have no object in {name}: {_some(missed)}"
            problem = Problem(splits[name].annotation_file, "categories", message, "their scores are not measured")
            yield Diagnosis("rare_class", name, problem, weight=len(missed))
    rare = sorted((count.objects, name) for name, count in train.items() if 0 < count.objects < _RARE)
    if rare and table_of(splits["train"]) is not None:
        shown = ", ".join(f"{show(name)} ({count})" for count, name in rare[:_SHOWN])
        more = f" and {len(rare) - _SHOWN:,} more" if len(rare) > _SHOWN else ""
        message = f"{len(rare):,} of {len(train):,} classes have fewer than {_RARE} training objects: {shown}{more}"
        problem = Problem(file, "categories", message, "annotate more of them")
        yield Diagnosis("rare_class", "train", problem, weight=len(rare))


def _trained(name: str, train: Mapping[str, ClassCount]) -> bool:
    return name in train and train[name].objects > 0


def plain_name(name: str) -> str:
    """What is left of a name without case, spaces and punctuation; all of it where nothing is left."""
    return _SPELLING.sub("", name.casefold()) or name


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"{', '.join(map(show, names[:_SHOWN]))}{more}"
