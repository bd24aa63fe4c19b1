"""`data=`: a name of `configs/data/`, or a folder or a file of the user's. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from vision_stack.commands.option_docs import choices
from vision_stack.config import suggest

SUPPORTED = (
    "Supported: data=coco (COCO json), data=coco_panoptic (json and PNGs), data=semantic (images and label maps), "
    "each with data.root=DIR"
)


def data_options(value: str, typed: Collection[str], *, own_yaml: bool = False) -> list[str]:
    """What `data=value` stands for.

    Args:
        typed: names of all options.
        own_yaml: the user's own yaml files may have more names.

    Raises:
        ValueError: a folder or file that cannot be read as data, or none; one line with what is there.
    """
    names = choices("data")
    path = Path(value.strip("'\"")).expanduser()
    if value in names or (not path.exists() and (own_yaml or re.fullmatch(r"\w*(,\w+)+", value))):
        return [f"data={value}"]  # of other names Hydra shows the choices
    if not path.exists():
        raise ValueError(
            f"data={value}: there is no such folder or file, and no data of that name; {suggest(value, names)}"
        )
    if path.is_dir():
        if _looks_like_coco(path):
            return ["data=coco", f"data.root={path}"]
        raise ValueError(f"data={value}: no COCO json found; the folder holds {_contents(path)}. {SUPPORTED}")
    if path.suffix == ".json":
        root = [] if {"root", "data.root"} & set(typed) else [f"data.root={path.parent}"]
        return ["data=coco", *root, f"data.train_annotations={path.absolute()}"]
    raise ValueError(f"data={value}: cannot read {path.suffix or 'such'} files as data. {SUPPORTED}")


def _looks_like_coco(folder: Path) -> bool:
    patterns = ("*.json", "annotations/*.json", "*/_annotations.coco.json")
    names = {"classes.json", "dataset.json", "metadata.json"}
    return any(file.name not in names for pattern in patterns for file in folder.glob(pattern))


def _contents(folder: Path, limit: int = 20_000) -> str:
    """What is in a folder, by suffix: `120 .txt, 120 .jpg and 2 .yaml files`."""
    counts: dict[str, int] = {}
    for number, path in enumerate(folder.rglob("*")):
        if number == limit:
            break
        if path.is_file() and not path.name.startswith("."):
            counts[path.suffix.lower() or "unnamed"] = counts.get(path.suffix.lower() or "unnamed", 0) + 1
    if not counts:
        return "no files"
    kinds = [
        f"{count:,} {suffix}" for suffix, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:4]
    ]
    return " and ".join([", ".join(kinds[:-1]), kinds[-1]] if len(kinds) > 1 else kinds) + " files"
