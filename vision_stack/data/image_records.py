"""Checks the images that a json file lists, and the files they stand for.

No file outside of the image folder is ever touched: absolute names, `..` and symbolic links that lead out of it are
problems (the folder itself may be a link). A file is opened only to read its header and its last bytes, unless
`decode` asks for more.

EXIF: where the json's size is that of the upright image, the image is turned upright. Where it is that of the pixels as
stored, and not that of the upright image, whoever annotated saw the pixels as stored, and they stay as they are. Label
maps decide in the same way (`label_files.oriented_as_map`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from vision_stack.data.augment.geometry import GeometricTransform
from vision_stack.data.augment.placing import MaskStride
from vision_stack.data.augment.targets import Objects
from vision_stack.data.checks.issues import BrokenField, DataError, Findings, Problem, data_error, show, whole_number
from vision_stack.data.images import ImageSizes, read_sizes
from vision_stack.ops.rle import MAX_PIXELS

T = TypeVar("T")
_THREADS = 8  # decoding and reading release the interpreter's lock
_BATCH = 2048


@dataclass(frozen=True, slots=True, eq=False)
class ImageFile:
    """A checked image; subclasses add its annotation, of whatever kind.

    Height and width are those of `read_image(path, apply_exif=apply_exif)`.
    """

    image_id: int
    file_name: str  # as in the json, or below the image folder
    path: str
    height: int
    width: int
    apply_exif: bool

    @property
    def num_objects(self) -> int:
        """Objects, segments or classes to be found."""
        raise NotImplementedError

    def object_edges(self) -> NDArray[np.float64]:
        """Square roots of the areas of the objects' boxes, in pixels; empty where only label maps would tell."""
        return np.empty(0)

    def object_boxes(self) -> NDArray[np.float64] | None:
        """[N, 4] xyxy of the objects, in the order of `objects`; None where only a label map would tell."""
        return None

    def object_labels(self) -> NDArray[np.int64] | None:
        """[N] labels of the objects, in the order of `objects`; None where only a label map would tell."""
        return None

    def objects(
        self, transform: GeometricTransform, chosen: Sequence[int] | None = None, stride: MaskStride = 1
    ) -> Objects:
        """The objects, or those at the `chosen` positions, where the transform has moved them.

        Args:
            stride: that masks may have; they may be finer. None: they may be left out.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An entry of the json's `images`. Its size is (0, 0) where the json says none and the file is to say it."""

    position: int  # in the json's list
    image_id: int
    file_name: str
    path: str
    height: int
    width: int
    apply_exif: bool = True
    stored: tuple[int, int] = (0, 0)  # (height, width) of the file's pixels before EXIF turns them, once it is checked


def read_listed(
    listed: list[Any], image_dir: str, findings: Findings, *, size_needed: bool
) -> tuple[list[ListedImage], set[int]]:
    """The good entries of `images`, and the ids of the others as far as they have one.

    An id that stands for two files is a bad one, since nobody can say which of them its annotations belong to.
    """
    folder = ImageFolder(image_dir)
    good: dict[int, ListedImage] = {}
    bad: set[int] = set()
    id_of_path: dict[str, int] = {}
    again: list[ListedImage] = []  # files that have been listed before, by another id
    for position, raw in enumerate(listed):
        where = f"images[{position}]"
        if not isinstance(raw, dict):
            findings.problem(where, f"expected a mapping, got {show(raw)}", "correct the file")
            continue
        image_id = whole_number(raw.get("id"))
        if image_id is None:
            message = f"expected a whole number, got {show(raw.get('id'))}"
            findings.problem(f"{where}.id", message, "number the images, here and in the annotations' image_id")
            continue
        if image_id in good or image_id in bad:
            message = f"id {image_id} is used before (image {show(raw.get('file_name'))})"
            if image_id in good and good[image_id].file_name != raw.get("file_name"):
                message += f", by {show(good.pop(image_id).file_name)}; neither can own the annotations of that id"
                bad.add(image_id)
            findings.problem(f"{where}.id", message, "give every image an id of its own, and use it in its annotations")
            continue
        try:
            name, path = folder.resolve(raw.get("file_name"))
            height, width = _size(raw, size_needed)
        except BrokenField as error:
            findings.problem(f"{where}.{error.field}", error.message, error.remedy)
            bad.add(image_id)
        else:
            good[image_id] = ListedImage(position, image_id, name, path, height, width)
            if id_of_path.setdefault(os.path.normpath(path), image_id) != image_id:
                again.append(good[image_id])
    if again:
        first = again[0]
        other = id_of_path[os.path.normpath(first.path)]
        more = f", and {len(again) - 1:,} more files have two ids" if len(again) > 1 else ""
        message = f"{show(first.file_name)} is image {other} and image {first.image_id}{more}"
        done = "each is an image with only its own annotations; give a file one id if they belong together"
        findings.note(findings.image(first.position, "file_name"), message, done)
    return list(good.values()), bad


def check_files(
    images: Sequence[ListedImage], image_dir: str, findings: Findings, *, decode: bool
) -> Iterator[ListedImage]:
    """The images whose files are there, readable and of the size that the json says, with `apply_exif` settled.

    Args:
        decode: decode every file (JPEGs at 1/8 of their size) instead of looking at header and end alone.

    Raises:
        DataError: not one of the files is there.
    """
    missing = [image for image in images if not os.path.isfile(image.path)]
    if images and len(missing) == len(images):
        message = f"none of the {len(images):,} images is in {image_dir} (the first is {show(missing[0].file_name)})"
        raise data_error(findings.file, "images[].file_name", message, "name the folder that holds them")
    for image in missing:
        message = f"{show(image.file_name)} is not in {image_dir}"
        findings.problem(findings.image(image.position, "file_name"), message, "add the file, or remove the entry")
    absent = {image.image_id for image in missing}
    present = [image for image in images if image.image_id not in absent]

    def sizes(image: ListedImage) -> ImageSizes | Problem:
        try:
            return read_sizes(image.path, decode=decode)
        except DataError as error:
            return error.problem or Problem(image.path, "pixels", str(error), "export it again")

    with ThreadPoolExecutor(_THREADS) as pool:
        batches = (present[i : i + _BATCH] for i in range(0, len(present), _BATCH))
        found = ((image, size) for batch in batches for image, size in zip(batch, pool.map(sizes, batch), strict=True))
        for image, size in with_progress(found, len(present), f"checking images of {os.path.basename(findings.file)}"):
            if isinstance(size, Problem):
                findings.problems.append(size)
                continue
            checked = _settle_size(image, size, findings)
            if checked is not None:
                yield checked


def _settle_size(image: ListedImage, size: ImageSizes, findings: Findings) -> ListedImage | None:
    wanted = (image.height, image.width)
    if wanted in (size.upright, (0, 0)):
        return replace(image, height=size.upright[0], width=size.upright[1], stored=size.stored)
    if wanted == size.stored:
        return replace(image, apply_exif=False, stored=size.stored)
    height, width = size.upright
    message = f"{show(image.file_name)} is {width} x {height}, {findings.says} width {wanted[1]} and height {wanted[0]}"
    if wanted == (width, height):
        message += " (swapped)"
    remedy = "correct width and height if the annotations fit the file, else use the file that was annotated"
    findings.problem(findings.image(image.position, "width"), message, remedy)
    return None


def _size(raw: dict[str, Any], needed: bool) -> tuple[int, int]:
    if raw.get("height") is None and raw.get("width") is None and not needed:
        return 0, 0
    height, width = (whole_number(raw.get(field)) or 0 for field in ("height", "width"))
    for field, value in (("height", height), ("width", width)):
        if value <= 0:
            raise BrokenField(field, f"expected pixels, got {show(raw.get(field))}", "write the image's size")
    if height * width > MAX_PIXELS:
        message = f"{width} x {height} is more than {MAX_PIXELS:,} pixels"
        raise BrokenField("width", message, "cut the image into tiles, or correct its size")
    return height, width


class ImageFolder:
    """Turns file names into paths inside a folder."""

    def __init__(self, image_dir: str) -> None:
        self.path = image_dir
        self.parts = PurePath(os.path.abspath(image_dir)).parts
        self.real = os.path.realpath(image_dir)
        self.real_parents: dict[str, str] = {}

    def resolve(self, name: Any) -> tuple[str, str]:
        """The checked name, and the path it stands for."""
        if not isinstance(name, str) or not name.strip() or "\0" in name or not _encodable(name):
            raise BrokenField("file_name", f"expected a file name, got {show(name)}", "name the image's file")
        windows = PureWindowsPath(name)
        if PurePosixPath(name).is_absolute() or windows.drive or windows.root:
            remedy = "write it relative to the image folder"
            raise BrokenField("file_name", f"{show(name)} is an absolute path", remedy)
        if ".." in windows.parts:  # Windows' rules split at both kinds of slash
            message = f"{show(name)} leads out of its folder with '..'"
            raise BrokenField("file_name", message, "write it relative to the image folder")
        path = os.path.join(self.path, name)
        if not os.path.lexists(path):
            path = next((other for other in self._readings(windows.parts) if os.path.lexists(other)), path)
        if not self._contains(path):
            message = f"{show(name)} is a link that leads out of {self.path}"
            raise BrokenField("file_name", message, "copy the file into the folder")
        return name, path

    def _readings(self, parts: tuple[str, ...]) -> Iterator[str]:
        """What else a name may mean: `sub\\1.jpg` of Windows, `images/train/1.jpg` as seen from the data root."""
        yield os.path.join(self.path, *parts)
        for count in range(1, min(len(parts), len(self.parts) + 1)):
            if parts[:count] == self.parts[-count:]:
                yield os.path.join(self.path, *parts[count:])

    def _contains(self, path: str) -> bool:
        parent, name = os.path.split(path)
        real = self.real_parents.get(parent)
        if real is None:
            real = self.real_parents[parent] = os.path.realpath(parent)
        real = os.path.join(real, name)
        if os.path.islink(real):
            real = os.path.realpath(real)
        return real.startswith(self.real.rstrip(os.sep) + os.sep)


def _encodable(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def with_progress(items: Iterable[T], total: int, description: str, delay: float = 2.0) -> Iterator[T]:
    """Passes items on, with a progress bar in a terminal once it has taken longer than `delay` seconds."""
    start = time.monotonic()
    progress: Progress | None = None
    try:
        for done, item in enumerate(items, 1):
            yield item
            if progress is None and time.monotonic() - start > delay:
                console = Console(stderr=True)
                progress = Progress(console=console, transient=True, disable=not console.is_terminal)
                progress.start()
                task = progress.add_task(description, total=total)
            if progress is not None:
                progress.update(task, completed=done)
    finally:
        if progress is not None:
            progress.stop()
