"""Label maps in image files: reading them, and checking many before training.

A file must be of a lossless format and of the image's size. Segment ids take three channels (COCO's panoptic format),
class ids one; a palette's indices are the ids, and grey of 1, 2, 4, 8 or 16 bits holds them as they are. Grey that is
stored as colour, all three channels alike, counts as one channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from vision_stack.data.checks.issues import DataError, Problem, data_error
from vision_stack.data.image_records import ListedImage, with_progress
from vision_stack.data.images import open_image, read_sizes
from vision_stack.ops.label_maps import rgb_to_ids

CHECKED_AT_START = 2000  # maps of a split; what is wrong with the export is wrong with the first ones
_THREADS = 8
_LOSSLESS = ("PNG", "BMP", "TIFF")
_ONE_CHANNEL = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L")


def read_segment_map(path: str, height: int, width: int) -> NDArray[np.int32]:
    """Segment ids [height, width] of a COCO panoptic PNG.

    Raises:
        DataError: unreadable, of another size or kind of pixel; one line that names the file.
    """
    with open_image(path, convert_to="PNG") as image:
        _check_kind(image, path, height, width)
        if image.mode not in ("RGB", "RGBA"):
            message = f"has pixels of kind {image.mode}; segment ids take three channels, R + 256 G + 65536 B"
            raise data_error(path, "pixels", message, "give panoptic PNGs, or use data=semantic for maps of class ids")
        return rgb_to_ids(np.asarray(image)[..., :3])


def read_colour_map(path: str, height: int, width: int) -> NDArray[np.int32]:
    """Colours [height, width] as R + 256 G + 65536 B; a palette's entries are its colours.

    Raises:
        DataError: as `read_segment_map`.
    """
    with open_image(path, convert_to="PNG") as image:
        _check_kind(image, path, height, width)
        if image.mode not in ("RGB", "RGBA", "P", "L", "1"):
            message = f"has pixels of kind {image.mode}; colours take three channels"
            raise data_error(path, "pixels", message, "export maps of colours, or of class ids")
        return rgb_to_ids(np.asarray(image.convert("RGB")))


def read_class_map(path: str, height: int, width: int) -> NDArray[np.integer]:
    """Class ids [height, width] of a file with one channel, not negative.

    Raises:
        DataError: as `read_segment_map`.
    """
    with open_image(path, convert_to="PNG") as image:
        _check_kind(image, path, height, width)
        if (grey := _grey_in_colour(image)) is not None:
            return grey
        if image.mode not in _ONE_CHANNEL:
            message = f"has pixels of kind {image.mode}; class ids take one channel"
            raise data_error(path, "pixels", message, "export maps of class ids, not of colours")
        step = _grey_step(image)
        values = np.asarray(image) // step if step > 1 else np.asarray(image)
        if image.mode == "I" and not 0 <= values.min() <= values.max() < 2**16:
            message = f"holds values from {values.min()} to {values.max()}; class ids are 0 to 65535"
            raise data_error(path, "pixels", message, "export maps of class ids, with 255 or 65535 where there is none")
        return values.astype(np.uint16 if image.mode.startswith("I") else np.uint8, copy=False)


def oriented_as_map(image: ListedImage, map_path: str) -> ListedImage:
    """The image with its pixels as stored where its label map fits these, and not the image as EXIF turns it."""
    if image.stored == (image.height, image.width):
        return image
    try:
        size = read_sizes(map_path).stored
    except DataError:  # reported when the map is checked
        return image
    if size != image.stored:
        return image
    return replace(image, height=size[0], width=size[1], apply_exif=False)


def _grey_in_colour(image: ImageFile.ImageFile) -> NDArray[np.uint8] | None:
    """The one channel of grey that is stored with alpha, or as colour; None for all other images."""
    if image.mode not in ("LA", "RGB", "RGBA") or ";16" in str(image.tile):  # of 16 bits, Pillow drops half
        return None
    channels = np.asarray(image)[..., : 1 if image.mode == "LA" else 3]
    return np.ascontiguousarray(channels[..., 0]) if (channels == channels[..., :1]).all() else None


def _grey_step(image: ImageFile.ImageFile) -> int:
    """What Pillow multiplies grey values of 2 or 4 bits with, to make them 0..255; 1 for all others."""
    bits = 8
    if image.mode == "L" and image.format == "PNG":
        file = image.fp
        assert file is not None  # open
        position = file.tell()
        file.seek(24)  # signature, length, "IHDR", width, height: this chunk is always the first
        bits = file.read(1)[0]
        file.seek(position)
    elif image.mode == "L" and isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (8,))[0]
    return 255 // (2**bits - 1) if bits in (2, 4) else 1


def _check_kind(image: Image.Image, path: str, height: int, width: int) -> None:
    if image.format not in _LOSSLESS:
        message = f"is a {image.format}, which changes pixels in storing them"
        raise data_error(path, "pixels", message, "export the label maps as PNG")
    if (image.height, image.width) != (height, width):
        message = f"is {image.width} x {image.height}, its image is {width} x {height}"
        raise data_error(path, "pixels", message, "export the label map at the image's size")


class LabelledRecord(Protocol):
    """An image with a label map."""

    @property
    def map_path(self) -> str: ...


R = TypeVar("R", bound=LabelledRecord)


def check_maps(
    records: list[R],
    source: str,
    check: Callable[[R], object],
    *,
    every: bool,
    enough: Callable[[], bool] = lambda: True,
) -> tuple[list[R], list[Problem]]:
    """The records without those whose label map is missing or broken, and what is wrong with these.

    Args:
        source: what to call the split in a terminal.
        check: decodes the map of a record; DataError where it cannot be used. Called by several threads.
        every: decode all maps; otherwise the first `CHECKED_AT_START`, and the others must only be there.
        enough: whether what has been decoded will do. Until it does, the others are decoded, too.
    """

    def fault(record: R) -> Problem | None:
        try:
            check(record)
        except DataError as error:
            return error.problem or Problem(record.map_path, "pixels", str(error), "export it again")
        return None

    def absence(record: R) -> Problem | None:
        if Path(record.map_path).is_file():
            return None
        return Problem(record.map_path, "file", "there is no such label map", "add it, or remove its image")

    def faults(pool: ThreadPoolExecutor) -> Iterator[Problem | None]:
        for first in range(0, len(records), CHECKED_AT_START):
            part = records[first : first + CHECKED_AT_START]
            yield from pool.map(fault, part) if every or first == 0 or not enough() else map(absence, part)

    with ThreadPoolExecutor(_THREADS) as pool:
        problems = list(with_progress(faults(pool), len(records), f"checking label maps of {source}"))
    good = [record for record, problem in zip(records, problems, strict=True) if problem is None]
    return good, [problem for problem in problems if problem is not None]


def masks_of(values: NDArray[np.integer], wanted: Iterable[int]) -> list[NDArray[np.bool_]]:
    """One mask [H, W] for each wanted value."""
    return [values == value for value in wanted]
