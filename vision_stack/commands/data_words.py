"""`data=`: a name of `configs/data/`, or a folder or a file of the user's. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection
from pathlib import Path

from vision_stack.commands.option_docs import choices
from vision_stack.config import suggest
from vision_stack.data.checks.issues import DataError
from vision_stack.data.readers.layout import find_splits


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
        return ["data=auto", f"data.root={path}"]
    root = [] if {"root", "data.root"} & set(typed) else [f"data.root={path.parent}"]
    if path.suffix == ".json":
        if not any(name.startswith("data.") or name == "root" for name in typed) and (folder := _data_set_of(path)):
            raise ValueError(f"data={value}: one of the files of a data set; did you mean data={folder}?")
        return ["data=auto", *root, f"data.train_annotations={path.absolute()}"]
    if path.suffix in (".yaml", ".yml"):
        return ["data=auto", *root, "data.format=yolo"]
    raise ValueError(
        f"data={value}: cannot read {path.suffix or 'such'} files as data; give the folder that holds images and labels"
    )


def _data_set_of(file: Path) -> Path | None:
    """The folder with a known layout in which this json is a split, if it has both splits."""
    for folder in list(file.parents)[:2]:
        with contextlib.suppress(DataError):
            layout = find_splits(folder, required=())
            if layout.train and layout.val and any(split.annotation_file.samefile(file) for split in layout if split):
                return folder
    return None
