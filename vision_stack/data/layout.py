"""Where a COCO data set keeps its annotation files and images.

Known layouts, for each split by its usual names (train; val, valid, validation):

* COCO: `annotations/instances_train2017.json` with `train2017/` or `images/train2017/`, with any year or none, with or
  without `instances_`;
* Roboflow: `train/_annotations.coco.json` beside its images;
* `train.json` in the root.

Anything else is named explicitly. What is found by itself must lie inside the root, symbolic links resolved (the root
itself may be one); what is named explicitly may lie anywhere, since its user says so.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

from vision_stack.data.validation import DataError, data_error

SplitName = Literal["train", "val"]

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
) -> Layout:
    """Find the annotation file and image folder of each split.

    Args:
        root: the data set's folder.
        train_annotations, ...: explicit paths, absolute, or relative to the root or else to the working directory.
        required: the splits that must be there.

    Raises:
        DataError: no such root; a required split is not found (with what was looked for); an explicit path does not
            exist; a file or folder found inside the root is a link that leads out of it.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise data_error(
            root, "data.root", "there is no such folder", "give the folder that holds annotations and images"
        )
    given: dict[SplitName, tuple[str | Path | None, str | Path | None]] = {
        "train": (train_annotations, train_images),
        "val": (val_annotations, val_images),
    }
    found: dict[SplitName, SplitPaths | None] = {}
    for split, paths in given.items():
        try:
            found[split] = _find(root, split, *paths)
        except DataError:
            if split in required:
                raise
            found[split] = None
    return Layout(found["train"], found["val"])


def _find(root: Path, split: SplitName, annotations: str | Path | None, images: str | Path | None) -> SplitPaths:
    if annotations is not None:
        annotation_file = _explicit(root, annotations, f"data.{split}_annotations", folder=False)
    else:
        candidates = _annotation_candidates(root, split)
        existing = [path for path in candidates if path.is_file()]
        if not existing:
            _not_found(root, split, candidates)
        annotation_file = _inside(root, existing[0], f"data.{split}_annotations")
    if images is not None:
        return SplitPaths(annotation_file, _explicit(root, images, f"data.{split}_images", folder=True))
    folders = _image_candidates(root, split, annotation_file)
    for folder in folders:
        if folder.is_dir():
            beside = annotations is not None and folder == annotation_file.parent  # chosen along with an explicit file
            return SplitPaths(annotation_file, folder if beside else _inside(root, folder, f"data.{split}_images"))
    tried = ", ".join(_relative(root, folder) + "/" for folder in folders)
    message = f"no folder of {split} images (looked for {tried})"
    raise data_error(root, f"data.{split}_images", message, f"name it with data.{split}_images=DIR")


def _annotation_candidates(root: Path, split: SplitName) -> list[Path]:
    """In order of preference, COCO's 2017 first, other years from the latest on."""
    plain: list[Path] = []
    for name in _NAMES[split]:
        year = re.compile(rf"instances_{name}\d{{4}}\.json")
        years = sorted(
            (p for p in root.glob(f"annotations/instances_{name}*.json") if year.fullmatch(p.name)), reverse=True
        )
        plain += [root / f"annotations/instances_{name}2017.json", *years]
        plain += [root / f"annotations/instances_{name}.json", root / f"annotations/{name}.json"]
        plain += [root / f"{name}/_annotations.coco.json", root / f"{name}.json"]
    return list(dict.fromkeys(plain))


def _image_candidates(root: Path, split: SplitName, annotation_file: Path) -> list[Path]:
    if annotation_file.name == "_annotations.coco.json":
        return [annotation_file.parent]
    stem = annotation_file.stem.removeprefix("instances_")
    names = dict.fromkeys((stem, *_NAMES[split]))
    folders = [folder for name in names for folder in (root / name, root / "images" / name)]
    beside = annotation_file.parent
    return [*folders, root / "images", *([beside] if beside.name != "annotations" else [])]


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


def _not_found(root: Path, split: SplitName, candidates: list[Path]) -> NoReturn:
    tried = ", ".join(_relative(root, path) for path in candidates)
    message = f"no annotation file of the {split} split (looked for {tried})"
    remedy = f"name it with data.{split}_annotations=FILE and data.{split}_images=DIR"
    raise data_error(root, f"data.{split}_annotations", message, remedy)


def _relative(root: Path, path: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
