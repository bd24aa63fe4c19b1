"""From the categories of a json file to the labels 0..K-1.

* Classes are what the file lists, in order of their ids; ids may be sparse, and a class without annotations stays.
* Roboflow's exports begin with a placeholder, named like the supercategory of the real classes and used by no
  annotation. It is left out (when some annotation does use it, it is a class like any other).
* When the classes are given already (by the training split or a checkpoint), the file's categories are matched by name.
  Ids may differ: labels, and so results, follow the given classes. A class that is used but not known is a problem.
* Line breaks and repeated spaces in names become one space.
* Duplicate ids or names are refused in any case, also where broken records are skipped: no good guess exists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from vision_stack.data.checks.issues import DataError, Findings, Place, listing, show, whole_number
from vision_stack.structures import Category


class _Listed(NamedTuple):
    position: int  # in the file's list
    id: int
    name: str
    supercategory: str
    is_thing: bool


def read_categories(
    listed: list[Any], used: Counter[int], findings: Findings, given: Sequence[Category] | None = None
) -> tuple[tuple[Category, ...], dict[int, int]]:
    """The classes, and the label of each category id of the file.

    Args:
        listed: the json's `categories`.
        used: how many annotations name which category id.
        given: the classes to match, if known already.

    Returns:
        classes by label, and {category id in this file: label} for all that have one.

    Raises:
        DataError: an entry without a whole-number id and a name, or a duplicate.
    """
    own = _checked(listed, findings)
    if given is None:
        placeholder = _placeholder(own, used)
        if placeholder is not None:
            findings.note(
                findings.category(placeholder.position, ""),
                f"{show(placeholder.name)} (id 0) has no annotation and is the supercategory of all others, as "
                "Roboflow writes it",
                "left out of the classes",
            )
        kept = sorted((c for c in own if c is not placeholder), key=lambda c: c.id)
        classes = tuple(Category(id=c.id, name=c.name, is_thing=c.is_thing) for c in kept)
        return classes, {c.id: label for label, c in enumerate(kept)}

    label_of_name = {category.name: label for label, category in enumerate(given)}
    folded = Counter(_folded(category.name) for category in given)
    for label, category in enumerate(given):  # "Person" is "person", unless both are classes
        if folded[_folded(category.name)] == 1:
            label_of_name.setdefault(_folded(category.name), label)
    labels: dict[int, int] = {}
    moved: list[_Listed] = []
    unknown: list[_Listed] = []
    for entry in own:
        match = label_of_name.get(entry.name, label_of_name.get(_folded(entry.name)))
        if match is not None:
            labels[entry.id] = match
            if given[match].id != entry.id:
                moved.append(entry)
        elif used[entry.id]:
            unknown.append(entry)
    if unknown:
        _report_unknown(unknown, used, given, findings)
    if moved:
        first = moved[0]
        findings.note(
            findings.category(first.position, "id"),
            f"{show(first.name)} has id {first.id} here and {given[labels[first.id]].id} in the training data"
            + (f" ({len(moved)} such categories)" if len(moved) > 1 else ""),
            "matched by name; results carry the training data's ids",
        )
    return tuple(given), labels


def _report_unknown(
    unknown: Sequence[_Listed], used: Counter[int], given: Sequence[Category], findings: Findings
) -> None:
    """One problem, whatever their number."""
    count = sum(used[entry.id] for entry in unknown)
    if len(unknown) == 1:
        (entry,) = unknown
        same_id = next((category.name for category in given if category.id == entry.id), None)
        instead = f", where id {entry.id} is {show(same_id)}" if same_id else ""
        where: str | Place = findings.category(entry.position, "name")
        what = f"{show(entry.name)} (id {entry.id}, {count} annotations) is"
        remedy = "give it the name it has there, or remove it and its annotations"
    else:
        instead = ""
        where, what = "categories", f"{_some([entry.name for entry in unknown])} ({count:,} annotations) are"
        remedy = "give them the names they have there, or data of those classes"
    classes = f"the {len(given)} classes of the training data, {_some([category.name for category in given])}"
    findings.problem(where, f"{what} not among {classes}{instead}", remedy)


def _some(names: Sequence[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return f"{', '.join(map(show, names[:limit]))}{more}"


def _checked(listed: list[Any], findings: Findings) -> list[_Listed]:
    before = len(findings.problems)
    own: list[_Listed] = []
    by_id: dict[int, _Listed] = {}
    by_name: dict[str, _Listed] = {}
    for index, raw in enumerate(listed):
        if not isinstance(raw, dict):
            findings.problem(
                findings.category(index, ""),
                f"expected a mapping with id and name, got {show(raw)}",
                "correct the file",
            )
            continue
        category_id, name = whole_number(raw.get("id")), raw.get("name")
        if isinstance(name, str):  # exports bring line breaks along, which no table or picture can show
            name = _one_line(name)
        is_thing = raw.get("isthing", 1)
        if category_id is None:
            message = f"expected a whole number, got {show(raw.get('id'))}"
            findings.problem(findings.category(index, "id"), message, "number the categories")
        elif not isinstance(name, str) or not name:
            findings.problem(
                findings.category(index, "name"), f"expected a name, got {show(name)}", "name the category"
            )
        elif any("\ud800" <= letter <= "\udfff" for letter in name):
            message = f"{show(name)} holds a lone surrogate, half of a character, which cannot be written as text"
            findings.problem(findings.category(index, "name"), message, "rename the category")
        elif is_thing not in (0, 1):
            message = f"expected 1 for things or 0 for stuff, got {show(is_thing)}"
            findings.problem(findings.category(index, "isthing"), message, "correct it")
        elif category_id in by_id:
            other = by_id[category_id]
            if other.name == name:
                continue  # the same entry twice does no harm
            message = f"id {category_id} is both {show(other.name)} and {show(name)}"
            findings.problem(findings.category(index, "id"), message, "give every category an id of its own")
        elif name in by_name:
            message = f"{show(name)} has two ids, {by_name[name].id} and {category_id}"
            findings.problem(findings.category(index, "name"), message, "rename one, or merge the two")
        else:
            supercategory = _one_line(str(raw.get("supercategory", "")))
            category = _Listed(index, category_id, name, supercategory, bool(is_thing))
            by_id[category_id] = by_name[name] = category
            own.append(category)
    if problems := findings.problems[before:]:
        raise DataError(listing(problems))
    return own


def _placeholder(own: list[_Listed], used: Counter[int]) -> _Listed | None:
    """Roboflow's first category: id 0, no supercategory, the supercategory of all others, and without annotations."""
    by_id = {category.id: category for category in own}
    first = by_id.get(0)
    if first is None or used[0] or first.supercategory != "none" or len(own) == 1:
        return None
    return first if all(c.supercategory == first.name for c in own if c is not first) else None


def _folded(name: str) -> str:
    return _one_line(name).casefold()


def _one_line(name: str) -> str:
    return " ".join(name.split())
