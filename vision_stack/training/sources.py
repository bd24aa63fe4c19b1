"""The images that predict goes through, and the folders that it cannot look into."""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vision_stack.data.images import IMAGE_SUFFIXES
from vision_stack.training.results import PREDICTIONS_DIR, is_run_dir


class Source(NamedTuple):
    """What a file, a folder or a pattern stands for."""

    paths: list[Path]  # of images, sorted; whether they can be read is not known yet
    base: Path  # the folder that they have in common
    closed: list[str]  # folders that cannot be listed, with the reason


class SourceImage(NamedTuple):
    """One of them."""

    number: int  # from 1
    path: Path
    name: str  # below the common folder
    stem: str  # of the names of its results: without suffix, and no other image's


def find_images(source: str) -> Source:
    """The images of a file, a folder (with its subfolders) or a glob.

    In a folder, what is hidden and what a run wrote below it is left out.

    Raises:
        ValueError: there are none.
    """
    path = Path(source)
    closed: list[str] = []
    if path.is_dir():
        found = [p for p in _files_below(path, closed) if p.suffix.lower() in IMAGE_SUFFIXES]
        hint = f"no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in this folder (pictures written by runs are ignored)"
    elif path.is_file():
        found, hint = [path], ""
    else:
        found = [p for p in map(Path, glob.glob(source, recursive=True)) if not p.is_dir()]
        closed += _closed_folders(source)
        hint = "no such file or folder, and no file that matches it as a pattern"
    if not found:
        raise ValueError("; ".join([f"source: {source}: {hint}", *closed[:1]]))
    base = path if path.is_dir() else Path(os.path.commonpath([p.parent for p in found]))
    return Source(sorted(found), base, closed)


def named(source: Source) -> list[SourceImage]:
    """The images with names for their results."""
    used: set[str] = set()
    images = []
    for number, path in enumerate(source.paths, start=1):
        name = os.path.relpath(path, source.base)
        stem = os.path.splitext(name)[0]
        stem = f"{stem}_{number}" if stem in used else stem  # a.jpg beside a.png
        used.add(stem)
        images.append(SourceImage(number, path, name, stem))
    return images


def _files_below(folder: Path, closed: list[str]) -> Iterator[Path]:
    def note(error: OSError) -> None:
        closed.append(_cannot(error.filename, error.strerror or type(error).__name__))

    for parent, folders, names in os.walk(folder, onerror=note):
        written = {"pictures", PREDICTIONS_DIR} if is_run_dir(Path(parent)) else set()
        folders[:] = [name for name in folders if not name.startswith(".") and name not in written]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _closed_folders(pattern: str) -> list[str]:
    """Folders that a pattern leads into, and that cannot be listed: `glob` passes them over."""
    closed: set[str] = set()
    while glob.has_magic(pattern):
        pattern = os.path.dirname(pattern)
        folders = glob.glob(os.path.join(pattern, ""), recursive=True)
        closed.update(folder for folder in folders if not os.access(folder, os.R_OK | os.X_OK))
    return [_cannot(folder, os.strerror(errno.EACCES)) for folder in sorted(closed)]


def _cannot(folder: str, reason: str) -> str:
    return f"{folder}: cannot be listed ({reason}); change its permissions"
