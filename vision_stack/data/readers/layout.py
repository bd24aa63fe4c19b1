"""Where a COCO data set keeps its annotation files and images.

Known layouts, for each split by its usual names (train; val, valid, validation):

* COCO: `annotations/instances_train2017.json` with `train2017/`, `images/train2017/` or `train2017/images/`, with any
  year or none, with or without `instances_`;
* Roboflow: `train/_annotations.coco.json` beside its images;
* `train.json` in the root;
* COCO panoptic: `annotations/panoptic_train2017.json`, its label maps in the folder of the same name beside it;
* semantic: `images/train/` or `images/training/` with `labels/` or `annotations/` of the same names, and
  `classes.json` or `classes.txt` in the root or in `labels/`.

Anything else is named explicitly. What is found automatically must be inside the root, with symbolic links resolved
(the root itself may be one); what is named explicitly may be anywhere.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

from vision_stack.data.checks.issues import DataError, data_error
from vision_stack.data.readers.files import list_files

SplitName = Literal["train", "val"]

AnnotationKind = Literal["instances", "panoptic"]

_NAMES: dict[SplitName, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid", "validation")}


class SplitPaths(NamedTuple):
    annotation_file: Path
    image_dir: Path


class Layout(NamedTuple):
    """The splits of a data set; None for one that is not to be had and not required."""

    train: SplitPaths | None
    val: SplitPaths | None


def find_splits(
    root: str | Path,
    train_annotations: str | Path | None = None,
    train_images: str | Path | None = None,
    val_annotations: str | Path | None = None,
    val_images: str | Path | None = None,
    *,
    required: tuple[SplitName, ...] = ("train", "val"),
    kind: AnnotationKind = "instances",
) -> Layout:
    """Find the annotation file and image folder of each split.

    Args:
        root: the data set's folder.
        train_annotations, ...: explicit paths, absolute, or relative to the root or else to the working directory.
        required: the splits that must be there.
        kind: of json.

    Raises:
        DataError: no such root; a required split is not found (with what was looked for); an explicit path does not
            exist; a file or folder found inside the root is a link that leads out of it.
    """
    root = _checked_root(root)
    given: dict[SplitName, tuple[str | Path | None, str | Path | None]] = {
        "train": (train_annotations, train_images),
        "val": (val_annotations, val_images),
    }
    found: dict[SplitName, SplitPaths | None] = {}
    for split, paths in given.items():
        try:
            found[split] = _find(root, split, kind, *paths)
        except DataError:
            if split in required:
                raise
            found[split] = None
    return Layout(found["train"], found["val"])


def find_label_dir(root: str | Path, split: SplitName, annotation_file: Path, labels: str | Path | None = None) -> Path:
    """The folder of a panoptic json's PNGs: named as the json and beside it, unless it is given explicitly.

    Raises:
        DataError: there is no such folder, or it is a link that leads out of the root.
    """
    option = f"data.{split}_labels"
    if labels is not None:
        return _explicit(_checked_root(root), labels, option, folder=True)
    beside = annotation_file.with_suffix("")
    if not beside.is_dir():
        message = "there is no such folder, which would hold the label maps"
        raise data_error(beside, option, message, f"unpack them there, or name their folder with {option}=DIR")
    root = _checked_root(root)
    return _inside(root, beside, option) if annotation_file.is_relative_to(root) else beside


def named_file(root: str | Path, path: str | Path, option: str) -> Path:
    """A file that the user names, as in `find_splits`. DataError if there is none."""
    return _explicit(_checked_root(root), path, option, folder=False)


class SemanticPaths(NamedTuple):
    image_dir: Path
    label_dir: Path
    classes: Path


def find_semantic(
    root: str | Path,
    split: SplitName,
    images: str | Path | None = None,
    labels: str | Path | None = None,
    classes: str | Path | None = None,
) -> SemanticPaths:
    """The folders of a semantic split and the table of classes; what is given explicitly is as in `find_splits`.

    Raises:
        DataError: as `find_splits`.
    """
    root = _checked_root(root)
    names = [name for plain in _NAMES[split] for name in (plain, f"{plain}ing")]
    folders = {
        f"data.{split}_images": (images, [root / place / name for place in ("images", ".") for name in names]),
        f"data.{split}_labels": (labels, [root / p / name for p in ("labels", "annotations") for name in names]),
    }
    image_dir, label_dir = (
        _explicit(root, given, option, folder=True) if given is not None else _first(root, option, choices, "folder")
        for option, (given, choices) in folders.items()
    )
    if classes is not None:
        return SemanticPaths(image_dir, label_dir, _explicit(root, classes, "data.classes", folder=False))
    tables = [root / place / f"classes{suffix}" for place in (".", "labels") for suffix in (".json", ".txt")]
    return SemanticPaths(image_dir, label_dir, _first(root, "data.classes", tables, "table of classes"))


def _first(root: Path, option: str, choices: list[Path], what: str) -> Path:
    for path in choices:
        if path.exists():
            return _inside(root, path, option)
    tried = ", ".join(_relative(root, path) for path in choices)
    raise data_error(root, option, f"there is no {what} (looked for {tried})", f"name it with {option}=PATH")


def _checked_root(root: str | Path) -> Path:
    root = Path(root).expanduser()
    if not root.is_dir():
        raise data_error(
            root, "data.root", "there is no such folder", "give the folder that holds annotations and images"
        )
    return root


def _find(
    root: Path, split: SplitName, kind: AnnotationKind, annotations: str | Path | None, images: str | Path | None
) -> SplitPaths:
    if annotations is not None:
        annotation_file = _explicit(root, annotations, f"data.{split}_annotations", folder=False)
    else:
        candidates = _annotation_candidates(root, split, kind)
        existing = [path for path in candidates if path.is_file()]
        if not existing:
            _not_found(root, split, kind, candidates)
        annotation_file = _inside(root, existing[0], f"data.{split}_annotations")
    if images is not None:
        return SplitPaths(annotation_file, _explicit(root, images, f"data.{split}_images", folder=True))
    folders = _image_candidates(root, split, annotation_file)
    existing = [folder for folder in folders if folder.is_dir()]
    if existing:
        folder = _holding(_first_image(annotation_file), existing) if len(existing) > 1 else existing[0]
        beside = annotations is not None and folder == annotation_file.parent  # chosen along with an explicit file
        return SplitPaths(annotation_file, folder if beside else _inside(root, folder, f"data.{split}_images"))
    tried = ", ".join(_relative(root, folder) + "/" for folder in folders)
    message = f"no folder of {split} images (looked for {tried})"
    raise data_error(root, f"data.{split}_images", message, f"name it with data.{split}_images=DIR")


def _annotation_candidates(root: Path, split: SplitName, kind: AnnotationKind) -> list[Path]:
    """In order of preference, COCO's 2017 first, other years from the latest on."""
    found: list[Path] = []
    for name in _NAMES[split]:
        year = re.compile(rf"{kind}_{name}\d{{4}}\.json")
        years = sorted(
            (p for p in root.glob(f"annotations/{kind}_{name}*.json") if year.fullmatch(p.name)), reverse=True
        )
        found += [root / f"annotations/{kind}_{name}2017.json", *years, root / f"annotations/{kind}_{name}.json"]
        if kind == "instances":
            found += [root / f"annotations/{name}.json", root / f"{name}/_annotations.coco.json", root / f"{name}.json"]
    return list(dict.fromkeys(found))


def _image_candidates(root: Path, split: SplitName, annotation_file: Path) -> list[Path]:
    if annotation_file.name == "_annotations.coco.json":
        return [annotation_file.parent]
    stem = annotation_file.stem.removeprefix("instances_").removeprefix("panoptic_")
    names = dict.fromkeys((stem, *_NAMES[split]))
    folders = [folder for name in names for folder in (root / name, root / "images" / name, root / name / "images")]
    beside = annotation_file.parent
    return [*folders, root / "images", *([beside] if beside.name != "annotations" else [])]


def _first_image(annotation_file: Path) -> str:
    """The name of an image in a json, by its first bytes; empty if they have none."""
    with annotation_file.open("rb") as file:
        head = file.read(100_000).decode("utf-8", errors="replace")
    match = re.search(r'"file_name"\s*:\s*"([^"\\]+)"', head)
    return match[1] if match and not Path(match[1]).is_absolute() and ".." not in Path(match[1]).parts else ""


def _holding(name: str, folders: list[Path]) -> Path:
    """The folder that has this file, else the first one."""
    return next((folder for folder in folders if name and (folder / name).is_file()), folders[0])


def _explicit(root: Path, path: str | Path, option: str, folder: bool) -> Path:
    path = Path(path).expanduser()
    places = [path] if path.is_absolute() else [root / path, path]
    for place in places:
        if place.is_dir() if folder else place.is_file():
            return place
    tried = " or ".join(str(place) for place in places)
    raise data_error(tried, option, f"there is no such {'folder' if folder else 'file'}", "check the path")


def _inside(root: Path, path: Path, option: str) -> Path:
    target = path.resolve()
    if not target.is_relative_to(root.resolve()):
        message = "is a link that leads out of the data root"
        raise data_error(path, option, message, f"if that is meant, say {option}={target}")
    return path


def _not_found(root: Path, split: SplitName, kind: AnnotationKind, candidates: list[Path]) -> NoReturn:
    tried = ", ".join(_relative(root, path) for path in candidates)
    missing = f"no annotation file of the {split} split (looked for {tried})"
    files = list_files(root)
    message = f"{missing}; there are {files.shown('.json') or files.counts()}"
    if split == "val" and kind == "instances":
        remedy = (
            "name them relative to this folder: data.val_annotations=FILE data.val_images=DIR; without a validation "
            "set, data=auto holds out some of the training images"
        )
    else:
        remedy = (
            "name them relative to this folder: data.train_annotations=FILE data.train_images=DIR "
            "data.val_annotations=FILE data.val_images=DIR"
        )
    raise data_error(root, f"data.{split}_annotations", message, remedy)


def _relative(root: Path, path: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
