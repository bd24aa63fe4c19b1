"""YOLO: a text file of labels beside each image's folder, `class x y w h` or `class x0 y0 x1 y1 ...` in fractions.

`data.yaml` says where images are: its `path`, and below that `train`, `val` and `test`, each a folder, a text file of
image names, or a list of those; without these, folders of such names below `images`. The labels of `images/train/a.jpg`
are `labels/train/a.txt`, or `a.txt` beside it; where no image has any there, the only file of its name. An image
without such a file has no objects. Of poses (`kpt_shape`) boxes are read; oriented boxes are polygons of four points.
yaml is loaded safely, and no path leads out of the root.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import yaml

from vision_stack.data.checks.issues import DataError, Place, Problem, data_error, show
from vision_stack.data.readers.coco import CocoSplit
from vision_stack.data.readers.files import IMAGES, Files, folders_of, stem_of, suffix_of
from vision_stack.data.readers.formats import INSTANCES, Part, Reading, Recognised, folder_parts, register_format
from vision_stack.data.readers.raw import RawImage, RawObject, RawSplit, named_classes, read_raw

_LINE = re.compile(r"\d+(\.0+)?([ \t]+-?[\d.]+(e[-+]?\d+)?){4,}", re.IGNORECASE)
_TABLES = ("classes.txt", "obj.names", "labels.txt", "_darknet.labels", "predefined_classes.txt")
_KEYS: dict[Part, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
_SLACK = 0.01  # by which rounded fractions may be out of 0..1


class _Layout(NamedTuple):
    table: str  # file that names the classes; "" if there is none
    names: dict[int, str]
    images: dict[Part, list[str]]
    poses: bool = False
    missing: str = ""  # what the yaml says of a split that is not there


@register_format("yolo")
def recognise(files: Files) -> Recognised | None:
    """Text files whose lines are a class and fractions, or a yaml that names classes and images."""
    lines = [line for name, head in files.heads(".txt") for line in _lines(name, head)]
    tables = [(name, head) for name, head in files.heads(".yaml", ".yml") if _has(head, "names")]
    yamls = [name for name, head in tables if _has(head, "train")] or [name for name, _ in tables if lines]
    if not lines and not yamls:
        return None
    polygons = any(len(line.split()) > 5 for line in lines)
    layout = _layout(files, yamls)
    if polygons and layout.poses:
        polygons = False
    kind = "polygons" if polygons else "boxes"
    texts = sum(name not in yamls and not name.endswith(_TABLES) for name in files.of(".txt"))
    source = f"{yamls[0]} names {len(layout.names)} classes" if yamls else f"classes in {layout.table or 'no file'}"
    return Recognised(
        format="yolo",
        what=f"YOLO {kind}",
        how=f"{source}; {texts:,} .txt files of {kind} in fractions{layout.missing}",
        tasks=INSTANCES if polygons or not lines else ("detection",),
        splits={part: folders_of(images) for part, images in layout.images.items()},
        read=partial(_read, files, layout),
    )


def _has(head: str, key: str) -> bool:
    return bool(re.search(rf"^{key}\s*:", head, re.MULTILINE))


def _lines(name: str, head: str) -> list[str]:
    line = head.partition("\n")[0].strip()
    return [line] if not name.endswith(_TABLES) and _LINE.fullmatch(line) else []


def _layout(files: Files, yamls: list[str]) -> _Layout:
    if not yamls:
        table = next((name for name in files.of(".txt", ".names", ".labels") if name.endswith(_TABLES)), "")
        listed = files.read_text(table).splitlines() if table else []
        names = dict(enumerate(name.strip() for name in listed if name.strip()))
        return _Layout(table, names, _labelled(files))
    table, data = yamls[0], _load(files, yamls[0])
    images: dict[Part, list[str]] = {}
    missing = []
    for part, keys in _KEYS.items():
        value = next((data[key] for key in keys if data.get(key)), None)
        if value is None:
            continue
        try:
            images[part] = _images(files, table, data.get("path"), value, part)
        except DataError as error:  # exports name splits that they do not have
            if part == "train" or error.problem is None:
                raise
            missing.append(f"; {part}: {error.problem.message}")
    if not any(data.get(key) for keys in _KEYS.values() for key in keys):
        images = _labelled(files)
    return _Layout(table, _names(files, table, data.get("names")), images, "kpt_shape" in data, "".join(missing))


def _labelled(files: Files) -> dict[Part, list[str]]:
    """The images that have labels, by the names of their folders."""
    labels = _label_files(files, files.images)
    return folder_parts([image for image, label in zip(files.images, labels, strict=True) if label])


class _Loader(yaml.SafeLoader):
    """Without aliases, of which a few lines unfold to any size."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not supported")
        return super().compose_node(parent, index)


def _load(files: Files, name: str) -> dict[str, Any]:
    try:
        data = yaml.load(files.read_text(name), Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split())[:120]
        raise data_error(files.path(name), "file", f"cannot be read as yaml ({reason})", "correct it") from None
    if not isinstance(data, dict):
        raise data_error(files.path(name), "file", f"expected names, train and val, got {show(data)}", "correct it")
    return data


def _names(files: Files, table: str, listed: Any) -> dict[int, str]:
    entries = dict(enumerate(listed)) if isinstance(listed, list) else listed
    good = isinstance(entries, dict) and entries and all(type(key) is int and key >= 0 for key in entries)
    if not good:
        remedy = "write a list of names, or a mapping of 0, 1, ... to names"
        raise data_error(files.path(table), "names", f"expected the names of classes, got {show(listed)}", remedy)
    return {number: str(name) for number, name in sorted(entries.items())}


def _images(files: Files, table: str, path: Any, value: Any, part: Part) -> list[str]:
    """The images that `train`, `val` or `test` of a yaml stands for."""
    found: list[str] = []
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, str):
            remedy = "write a folder, or a text file of image names"
            raise data_error(files.path(table), part, f"expected a path, got {show(entry)}", remedy)
        places = list(_places(files, table, path, entry))
        for place in places:
            if place in files.known and suffix_of(place) == ".txt":
                found += _listed(files, place)
                break
            if below := [n for n in files.below(place) if suffix_of(n) in IMAGES and "labels" not in n.split("/")]:
                found += below
                break
        else:
            tried = ", ".join(dict.fromkeys(place or "." for place in places)) or "nothing inside of the data root"
            message = f"no images at {show(entry)} (looked for {tried})"
            remedy = "write the folder of images, relative to the yaml; nothing outside of the data root is read"
            raise data_error(files.path(table), part, message, remedy)
    return list(dict.fromkeys(found))


def _places(files: Files, table: str, path: Any, entry: str) -> Iterator[str]:
    """What a path of a yaml may mean, as names below the root: below `path`, beside the yaml, or below the root.

    Exports have paths of the machine that wrote them, and Roboflow's begin with a `../` too many.
    """
    beside = posixpath.dirname(table)
    below = path.strip("/").replace("\\", "/") if isinstance(path, str) else ""
    parts = [part for part in posixpath.normpath(entry.replace("\\", "/")).split("/") if part not in ("", ".", "..")]
    whole = "/".join(parts)
    names = [whole] if not entry.startswith("/") else ["/".join(parts[first:]) for first in range(len(parts))]
    bases = (posixpath.join(beside, below), posixpath.join(beside, posixpath.basename(below)), beside, "")
    for name in names:
        for base in dict.fromkeys(bases):
            place = posixpath.normpath(posixpath.join(base, name))
            if not place.startswith(("..", "/")):
                yield "" if place == "." else place


def _listed(files: Files, name: str) -> list[str]:
    """The images that a text file lists, by names relative to it, to the root, or with a folder of another machine."""
    found = []
    for number, line in enumerate(files.read_text(name).splitlines(), start=1):
        if line := line.strip():
            image = files.image_at(line, posixpath.dirname(name), "")
            if image is None:
                message = f"there is no image {show(line)} in the data set"
                raise data_error(files.path(name), f"line {number}", message, "add it, or remove the line")
            found.append(image)
    return found


def _label_files(files: Files, images: Sequence[str]) -> list[str | None]:
    """The text file of each image; None of those without objects.

    Where no image has one in its place, the only file of its name will do.
    """
    found = [_label_file(files, image) for image in images]
    if any(found):
        return found
    texts: dict[str, list[str]] = defaultdict(list)
    for name in files.of(".txt"):
        texts[posixpath.basename(stem_of(name))].append(name)
    named = [texts[posixpath.basename(stem_of(image))] for image in images]
    return [one[0] if len(one) == 1 else None for one in named]


def _label_file(files: Files, image: str) -> str | None:
    stem = stem_of(image)
    before, found, after = f"/{stem}".rpartition("/images/")
    for name in ([f"{before}/labels/{after}.txt".lstrip("/")] if found else []) + [f"{stem}.txt"]:
        if name in files.known:
            return name
    parts = stem.split("/")
    swapped = "/".join(["labels" if part == "images" else part for part in parts])
    return f"{swapped}.txt" if f"{swapped}.txt" in files.known else None


def _read(files: Files, layout: _Layout, part: Part, reading: Reading) -> CocoSplit:
    images = layout.images[part]
    names = layout.names
    labels = _label_files(files, images)
    raw = RawSplit(
        files=files,
        source=layout.table,
        classes=[{"id": number, "name": name} for number, name in names.items()],
        images=[RawImage(image, Place(files.path(image), "file")) for image in images],
        objects=lambda: _objects(raw, labels, layout.poses),
    )
    if not names:
        raw.classes = named_classes(map(str, range(_highest(files, labels) + 1)), first=0)
        message = "nothing names the classes"
        raw.note("", "classes", message, "named 0, 1, ...; list their names in classes.txt, one a line")
    return read_raw(raw, reading)


def _highest(files: Files, labels: list[str | None]) -> int:
    """The highest class of all labels."""
    numbers = (re.match(r"\d{1,6}", line) for name in labels if name for line in files.read_text(name).splitlines())
    return max((int(found[0]) for found in numbers if found), default=0)


def _objects(raw: RawSplit, labels: list[str | None], poses: bool) -> Iterator[RawObject]:
    known = {each["id"] for each in raw.classes}
    for image, name in enumerate(labels):
        if name is None:
            continue
        try:
            text = raw.files.read_text(name)
        except DataError as error:
            raw.problems.append(error.problem or Problem(name, "file", str(error), "export it again"))
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            fault = ""
            words = line.split()
            try:
                category, values = float(words[0]), [float(word) for word in words[1:]]
            except ValueError:
                fault = f"expected numbers, got {show(line.strip())}"
            else:
                values = values[:4] if poses else values
                fault = _fault(category, values, known)
            if fault:
                remedy = "write `class x y w h` or `class x0 y0 x1 y1 x2 y2 ...` in fractions of the image"
                raw.problem(name, f"line {number}", fault, remedy)
                continue
            yield _object(image, int(category), values, raw.place(name, f"line {number}"))


def _fault(category: float, values: list[float], known: set[int]) -> str:
    if category not in known:
        return f"there is no class {category:g}; there are {min(known)} to {max(known)}"
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        return f"expected 4 numbers of a box or pairs for 3 points or more, got {len(values)} numbers"
    if wrong := [value for value in values if not -_SLACK <= value <= 1 + _SLACK or math.isnan(value)]:
        return f"{wrong[0]:g} is not a fraction of the image, 0 to 1"
    return ""


def _object(image: int, category: int, values: list[float], place: Any) -> RawObject:
    if len(values) > 4:
        return RawObject(image, category, place, polygons=[values], fractions=True)
    x, y, w, h = values
    return RawObject(image, category, place, box=(x - w / 2, y - h / 2, w, h), fractions=True)
