"""Which classes of a new data set a model knows already, by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

# Names on one line mean the same. The first that the model knows, in this order, is taken.
SYNONYMS: tuple[tuple[str, ...], ...] = (
    ("person", "pedestrian", "people", "human", "man", "woman", "child"),
    ("car", "automobile"),
    ("motorcycle", "motorbike"),
    ("airplane", "aeroplane", "plane", "aircraft"),
    ("bicycle", "bike", "cycle"),
    ("truck", "lorry"),
    ("couch", "sofa"),
    ("tv", "television", "tvmonitor", "tv monitor"),
    ("dining table", "diningtable"),
    ("potted plant", "pottedplant", "houseplant"),
    ("cell phone", "cellphone", "mobile phone", "phone", "smartphone"),
    ("traffic light", "traffic signal"),
    ("hair drier", "hair dryer", "hairdryer"),
    ("donut", "doughnut"),
    ("mouse", "computer mouse"),
    ("remote", "remote control"),
    ("backpack", "rucksack"),
    ("cow", "cattle"),
    ("sports ball", "ball"),
    ("bottle", "water bottle"),
    ("skis", "ski"),
)
_IRREGULAR = {
    "people": "person",
    "men": "man",
    "women": "woman",
    "children": "child",
    "mice": "mouse",
    "knives": "knife",
    "leaves": "leaf",
    "wolves": "wolf",
    "shelves": "shelf",
    "loaves": "loaf",
    "scarves": "scarf",
    "geese": "goose",
    "teeth": "tooth",
    "cookies": "cookie",
    "brownies": "brownie",
    "movies": "movie",
    "buses": "bus",
    "tomatoes": "tomato",
    "potatoes": "potato",
}
_UNCHANGED = frozenset({"sheep", "skis", "scissors", "bus", "glass", "tennis"})
_SUFFIXES = re.compile(r"( (other|merged|stuff))+$")  # of COCO's panoptic classes: "tree-merged", "wall-other-merged"

How = Literal["same name", "spelling", "synonym", "new"]


class ClassMatch(NamedTuple):
    """What a class of the data set takes over from the model."""

    name: str  # in the data set
    source: int | None  # label in the model; None: the class is new to it
    how: How


def match_classes(wanted: Sequence[str], known: Sequence[str]) -> list[ClassMatch]:
    """For each class of the data set the class of the model with the same name.

    The same name first; then the same but for case, separators and plural; then by `SYNONYMS`.
    """
    exact = _first(known, str)
    folded = _first(known, fold)
    groups = {fold(name): group for group in SYNONYMS for name in group}
    found = []
    for name in wanted:
        key = fold(name)
        synonyms = [fold(other) for other in groups.get(key, ()) if fold(other) in folded]
        if name in exact:
            found.append(ClassMatch(name, exact[name], "same name"))
        elif key in folded:
            found.append(ClassMatch(name, folded[key], "spelling"))
        elif synonyms:
            found.append(ClassMatch(name, folded[synonyms[0]], "synonym"))
        else:
            found.append(ClassMatch(name, None, "new"))
    return found


def fold(name: str) -> str:
    """A name without case, separators, the plural of its last word, and the suffixes of COCO's panoptic classes."""
    words = re.sub(r"[\s_\-./]+", " ", name.casefold()).strip()
    words = _SUFFIXES.sub("", words) or words
    first, space, last = words.rpartition(" ")
    return f"{first}{space}{_singular(last)}"


def _singular(word: str) -> str:
    if word in _IRREGULAR or word in _UNCHANGED:
        return _IRREGULAR.get(word, word)
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if re.search(r"(ss|x|ch|sh)es$", word):
        return word[:-2]
    if re.search(r"[^siu]s$", word):
        return word[:-1]
    return word


def _first(names: Sequence[str], key: Callable[[str], str]) -> dict[str, int]:
    """Key of each name -> the first label that has it."""
    labels: dict[str, int] = {}
    for label, name in enumerate(names):
        labels.setdefault(key(name), label)
    return labels
