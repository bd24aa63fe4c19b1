"""Which format a folder has, and how that is known; all readers are imported here."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from vision_stack.data.checks.issues import DataError, data_error
from vision_stack.data.readers import (  # noqa: F401  they register themselves
    ade20k,
    cityscapes,
    coco_layouts,
    imagefolder,
    label_maps,
    labelme,
    masks,
    run_lengths,
    voc,
    yolo,
)
from vision_stack.data.readers.files import Files, list_files
from vision_stack.data.readers.foreign import describe
from vision_stack.data.readers.formats import FORMATS, Recognised
from vision_stack.structures import WITH_MASKS, Task

__all__ = ["recognise", "tasks_of"]


def recognise(root: str | Path, task: Task | None = None, name: str | None = None) -> Recognised:
    """The format of a folder.

    Args:
        task: that there must be annotations for; None for any.
        name: of the format, if the user says it.

    Raises:
        DataError: none, or several; one line with what is there and what to write.
    """
    files, found = _found(root, name)
    fitting = [each for each in found if task is None or task in each.tasks]
    if len(fitting) == 1:
        return fitting[0]
    if not found:
        raise _unknown(files, name)
    if not fitting:
        raise _other_task(files, found, task)
    seen = "; ".join(f"{each.what} ({each.how})" for each in fitting)
    choices = " or ".join(f"data.format={each.format}" for each in fitting)
    raise data_error(root, "data.root", f"may be read in {len(fitting)} ways: {seen}", f"choose one with {choices}")


def tasks_of(root: str | Path, name: str | None = None) -> tuple[Task, ...]:
    """The tasks that a folder has annotations for, in whatever format. DataError where there is no such folder."""
    _, found = _found(root, name)
    return tuple(dict.fromkeys(task for each in found for task in each.tasks))


def _found(root: str | Path, name: str | None) -> tuple[Files, list[Recognised]]:
    """The files of a folder, and what they may be."""
    path = Path(root).expanduser()
    if not path.is_dir():
        raise data_error(root, "data.root", "there is no such folder", "give the folder that holds images and labels")
    files = list_files(path)
    files.asked = name
    if name is not None and name not in FORMATS:
        raise data_error(root, "data.format", f"there is no format {name!r}", f"choose one of: {', '.join(FORMATS)}")
    found = [each for key, look in FORMATS.items() if name in (None, key) and (each := look(files))]
    if specific := [each for each in found if not each.generic]:
        found = specific
    return files, found


def _unknown(files: Files, name: str | None) -> DataError:
    links = (
        f", and links that lead out of it ({files.outside[0]}, ...), which are not followed" if files.outside else ""
    )
    if name is None and (known := describe(files)):
        what, remedy = known
        return data_error(files.root, "data.root", f"found {what}, which is not read{links}", remedy)
    what = "is in none of the formats that are read" if name is None else f"is not in the format {name}"
    message = f"{what}; there are {files.counts()}{links}"
    remedy = "name json and images with data.train_annotations=FILE data.train_images=DIR, or see docs/label_formats.md"
    return data_error(files.root, "data.root", message, remedy)


def _other_task(files: Files, found: Sequence[Recognised], task: Task | None) -> DataError:
    first = found[0]
    seen = "; ".join(f"{each.what} ({each.how})" for each in found)
    head = "" if first.tasks[0] in WITH_MASKS else ", with head=faster_rcnn or another without masks"
    remedy = f"train a model on it with data={shlex.quote(str(files.root))} task={first.tasks[0]}{head}"
    return data_error(files.root, "data.root", f"has nothing for task={task}: found {seen}", remedy)
