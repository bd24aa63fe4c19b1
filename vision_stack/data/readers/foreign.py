"""Data sets in formats that are not read here: which one a folder holds, and how it becomes COCO json."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

IMAGES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"))
MAX_FILES = 20_000  # that are looked at
MAX_HEADS = 40  # of a suffix, that are looked into
HEAD = 4096  # bytes
DOCUMENTED = "docs/label_formats.md"
_NUMBERS = re.compile(r"\d+( -?[\d.]+(e-?\d+)?){4,}")
_EXPORT = "export it as COCO json from the tool that made it"
_LABELFORMAT = "convert it with `pip install labelformat` and"


class Files(NamedTuple):
    """Of a folder, by suffix in lower case, those at the top first."""

    root: Path
    by_suffix: dict[str, list[Path]]

    def heads(self, suffix: str) -> Iterator[tuple[Path, str]]:
        """The beginnings of some files, as text."""
        for path in self.by_suffix.get(suffix, [])[:MAX_HEADS]:
            try:
                with path.open("rb") as file:
                    yield path, file.read(HEAD).decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")
            except OSError:
                continue

    def shown(self, suffix: str, limit: int = 6) -> str:
        """Names relative to the folder."""
        paths = [str(path.relative_to(self.root)) for path in self.by_suffix.get(suffix, [])]
        more = f" and {len(paths) - limit:,} more" if len(paths) > limit else ""
        return f"{', '.join(paths[:limit])}{more}"

    def counts(self) -> str:
        """How many of each suffix: `120 .txt, 120 .jpg and 2 .yaml files`."""
        most = sorted(self.by_suffix.items(), key=lambda item: (-len(item[1]), item[0]))[:4]
        kinds = [f"{len(paths):,} {suffix or 'unnamed'}" for suffix, paths in most]
        kinds = [", ".join(kinds[:-1]), kinds[-1]] if len(kinds) > 1 else kinds
        return f"{' and '.join(kinds)} files" if kinds else "no files"


def list_files(root: Path) -> Files:
    """What is in a folder and below it, hidden files and links to other folders left out."""

    def walk() -> Iterator[Path]:
        for parent, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))

    by_suffix: dict[str, list[Path]] = {}
    for path in itertools.islice(walk(), MAX_FILES):
        if path.is_file() and not path.is_symlink():
            by_suffix.setdefault(path.suffix.lower(), []).append(path)
    return Files(root, by_suffix)


def describe(files: Files) -> tuple[str, str] | None:
    """What a folder holds, and what to do with it; None if it is not a format that is known here."""
    for recognise in (_yolo, _pascal_voc, _json_of_a_tool, _cvat, _run_length_table, _label_maps):
        if found := recognise(files):
            return found
    return None


def _yolo(files: Files) -> tuple[str, str] | None:
    yamls = [path for suffix in (".yaml", ".yml") for path, head in files.heads(suffix) if _is_yolo_yaml(head)]
    lines = [line for _, head in files.heads(".txt") if _NUMBERS.fullmatch(line := head.partition("\n")[0].strip())]
    if not lines:
        return None
    polygons = any(len(line.split()) > 5 for line in lines)
    task = "instance-segmentation" if polygons else "object-detection"
    what = f"a YOLO data set ({'polygons' if polygons else 'boxes'} in {len(files.by_suffix['.txt']):,} .txt files)"
    if not yamls:
        return what, f"convert it to COCO json, with a data.yaml, as {DOCUMENTED} shows"
    command = (
        f"labelformat convert --task {task} --input-format yolov8 --input-file {shlex.quote(str(yamls[0]))} "
        f"--input-split train --output-format coco --output-file "
        f"{shlex.quote(str(files.root / 'annotations' / 'instances_train.json'))}"
    )
    boxes = "" if polygons else "; then give task=detection"
    return what, f"{_LABELFORMAT} `{command}`, and the same for val{boxes}"


def _is_yolo_yaml(head: str) -> bool:
    return all(re.search(rf"^{key}\s*:", head, re.MULTILINE) for key in ("names", "train"))


def _pascal_voc(files: Files) -> tuple[str, str] | None:
    folders = [path.parent for path, head in files.heads(".xml") if "<annotation>" in head and "<bndbox>" in head]
    if not folders:
        return None
    command = (
        f"labelformat convert --task object-detection --input-format pascalvoc --input-folder "
        f"{shlex.quote(str(folders[0]))} --category-names NAME,NAME --output-format coco --output-file "
        f"{shlex.quote(str(folders[0].parent / 'annotations' / 'instances_train.json'))}"
    )
    what = "Pascal VOC (boxes in .xml files)"
    return what, f"{_LABELFORMAT} `{command}`, and the same for val; then give task=detection"


def _json_of_a_tool(files: Files) -> tuple[str, str] | None:
    for _, head in files.heads(".json"):
        if '"shapes"' in head and ('"flags"' in head or '"imagePath"' in head):
            return "LabelMe json files", _EXPORT
        if '"_via_' in head or '"shape_attributes"' in head:
            return "json of the VGG Image Annotator", _EXPORT
        if head.startswith("[") and '"annotations"' in head and '"result"' in head:
            return "json of Label Studio", _EXPORT
        if '"segments_info"' in head:
            return (
                "COCO panoptic json",
                f"give task=panoptic data=coco_panoptic data.root={shlex.quote(str(files.root))}",
            )
    return None


def _cvat(files: Files) -> tuple[str, str] | None:
    found = any("<annotations>" in head and "<image " in head for _, head in files.heads(".xml"))
    return ("CVAT's xml", _EXPORT) if found else None


def _run_length_table(files: Files) -> tuple[str, str] | None:
    found = any("encodedpixels" in head.partition("\n")[0].lower() for _, head in files.heads(".csv"))
    return ("a table of run lengths (EncodedPixels)", f"convert it to COCO json; see {DOCUMENTED}") if found else None


def _label_maps(files: Files) -> tuple[str, str] | None:
    """Images, and masks of the same names, without any json."""
    if files.by_suffix.get(".json"):
        return None
    masks = {path.stem for path in files.by_suffix.get(".png", []) if _of_masks(path.relative_to(files.root))}
    images = {p.stem for s in IMAGES for p in files.by_suffix.get(s, []) if not _of_masks(p.relative_to(files.root))}
    if not masks & images:
        return None
    root = shlex.quote(str(files.root))
    return (
        "images and label maps",
        f"if each pixel of those is a class, give task=semantic data=semantic data.root={root} (folders: {DOCUMENTED})",
    )


def _of_masks(path: Path) -> bool:
    return any(part.lower() in ("masks", "mask", "labels", "annotations", "segmentation") for part in path.parts[:-1])
