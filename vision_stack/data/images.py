"""Reading image files: whatever they hold becomes RGB, 8 bits, upright; what cannot be read becomes one line.

How each kind of pixel is turned into RGB:

* grey, bilevel, palette, CMYK, YCbCr: as Pillow converts them.
* transparency (RGBA, grey with alpha, palettes and PNGs with a transparent colour): laid over white, which is what
  browsers, and so most labelling tools, show.
* 16-bit grey: the whole range 0..65535 becomes 0..255, never clipped and never stretched image by image.
* 32-bit integers and floats: floats up to 1 are fractions; otherwise values up to 255 stay, values up to 65535 are
  16-bit; anything beyond is refused.
* animations: the first frame.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from vision_stack.data.checks.issues import DataError, data_error
from vision_stack.data.jpeg_ends import refuse_early_end
from vision_stack.ops.rle import MAX_PIXELS

_FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "TIFF",
    "GIF",
    "PPM",
    "JPEG2000",
    "AVIF",
    "TGA",
)  # none that runs other programs
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif"}
)  # of files in a folder that are taken for images
_EXIF_ORIENTATION = 0x0112
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageSizes(NamedTuple):
    """(height, width) of the pixels as stored, and of the image as viewers show it, after its EXIF orientation."""

    stored: tuple[int, int]
    upright: tuple[int, int]


def read_image(path: str | os.PathLike[str], *, apply_exif: bool = True, reduction: int = 1) -> NDArray[np.uint8]:
    """The image in a file as RGB [H, W, 3] uint8.

    Args:
        path: a regular file in one of the usual formats.
        apply_exif: turn the image upright as its EXIF orientation says; False for pixels as stored (a TIFF is always
            upright: its decoder sees to that).
        reduction: 2, 4 or 8 decodes a JPEG at that fraction of its height and width, rounded up; other formats, and
            JPEGs that cannot be reduced, stay as large as they are.

    Raises:
        DataError: missing, empty, truncated, undecodable, or of more than `MAX_PIXELS` pixels.
    """
    with open_image(path) as image:
        if reduction > 1:
            image.draft(None, (-(-image.width // reduction), -(-image.height // reduction)))
        return rgb_array(image, apply_exif=apply_exif)


def rgb_array(image: Image.Image, *, apply_exif: bool = True) -> NDArray[np.uint8]:
    """An image of Pillow's, in any mode, as RGB [H, W, 3] uint8; upright with `apply_exif`.

    Raises:
        ValueError: 32-bit values outside of 0..65535, or a colour space that Pillow cannot convert.
    """
    image.load()  # a TIFF is turned by its decoder, which then drops the orientation
    wide = image.mode.startswith("I;16") or image.format == "PNG"
    orientation = _orientation(image) if apply_exif else 1
    if orientation in _TO_UPRIGHT:
        transparency = image.info.get("transparency")
        image = image.transpose(_TO_UPRIGHT[orientation])
        if transparency is not None:
            image.info["transparency"] = transparency
    if image.mode.startswith(("I", "F")):
        grey = _eight_bits(np.asarray(image), wide)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _over_white(np.asarray(image.convert("RGBA")))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def read_sizes(path: str | os.PathLike[str], *, decode: bool = False) -> ImageSizes:
    """The sizes of the image in a file, from its header.

    The end of the file is looked at, too, and the pixels are decoded where it is not what a complete file of that
    format ends with; so a truncated file is found at the price of a header, and a complete one never refused. A file
    that was cut off and given such an end again is found when it is decoded.

    Args:
        decode: decode the pixels in any case, which finds damage in the middle as well, as far as the format shows it
            (JPEGs at 1/8 of their size; of PNGs the checksums, too).

    Raises:
        DataError: as `read_image`.
    """
    with open_image(path) as image:
        stored = (image.height, image.width)
        decode = decode or not _ends_well(image)
        orientation = _orientation(image)  # of a PNG: reads to the end and closes the file
        if image.format == "TIFF":
            if decode or orientation in _TO_UPRIGHT:
                image.load()
            return ImageSizes((image.height, image.width), (image.height, image.width))
        if decode and image.format == "PNG":
            with open_image(path) as unread:
                unread.verify()  # checksums: decoding takes zeroed blocks for pixels
            with open_image(path) as unread:
                unread.load()  # and only decoding finds that blocks are missing
        elif decode:
            image.draft(None, (1, 1))
            image.load()
        return ImageSizes(stored, stored[::-1] if orientation >= 5 else stored)


@contextmanager
def open_image(path: str | os.PathLike[str], convert_to: str = "JPEG or PNG") -> Iterator[ImageFile.ImageFile]:
    """An image of a usual format and of at most `MAX_PIXELS` pixels; whatever fails in the block is a `DataError`.

    Args:
        convert_to: the formats that the error proposes.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise data_error(path, "pixels", "not a regular file", "give an image file")
        if not status.st_size:
            raise data_error(path, "pixels", "the file is empty", "export or download it again")
        with open(path, "rb") as file, Image.open(file, formats=_known_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height}")
            if image.format in ("JPEG", "MPO"):
                refuse_early_end(image)
            yield image
    except DataError:
        raise
    except FileNotFoundError:
        raise data_error(path, "pixels", "there is no such file", "check the name and the folder") from None
    except PermissionError:
        raise data_error(path, "pixels", "no permission to read the file", "change its permissions") from None
    except UnidentifiedImageError:
        message = "not an image of a format that can be read"
        raise data_error(path, "pixels", message, f"convert it to {convert_to}") from None
    except Image.DecompressionBombError:
        message = f"more than {MAX_PIXELS:,} pixels, which is refused as a decompression bomb"
        raise data_error(path, "pixels", message, "cut it into tiles or make it smaller") from None
    except (
        Exception
    ) as error:  # Pillow's decoders raise whatever a broken file leads them to: struct.error, KeyError, ...
        message = f"cannot be decoded ({type(error).__name__}: {str(error)[:120]})"
        remedy = f"export or download it again, or convert it to {convert_to}"
        raise data_error(path, "pixels", message, remedy) from None


def _known_formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]  # AVIF, for one, depends on the version of Pillow


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # broken EXIF is not a reason to refuse good pixels
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _ends_well(image: ImageFile.ImageFile) -> bool:
    file = image.fp
    assert file is not None  # open
    position = file.tell()
    length = file.seek(0, os.SEEK_END)
    file.seek(max(length - 12, 0))
    tail = file.read(12)
    file.seek(4)
    riff_length = int.from_bytes(file.read(4), "little")
    file.seek(position)
    match image.format:
        case "JPEG" | "MPO":
            return tail.endswith(b"\xff\xd9")
        case "PNG":
            return tail[4:8] == b"IEND"
        case "WEBP":
            return length >= riff_length + 8
        case _:
            return False


def _eight_bits(values: NDArray[np.generic], wide: bool) -> NDArray[np.uint8]:
    if wide:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):  # NaN, too
        raise ValueError(f"32-bit values from {low:g} to {high:g}, only 0 to 65535 have a meaning as brightness")
    if high <= 1 and values.dtype.kind == "f":
        scale = 255.0
    else:
        scale = 1.0 if high <= 255 else 1 / 257
    return np.rint(values.astype(np.float32) * scale).astype(np.uint8)


def _over_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    alpha = rgba[:, :, 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(rgba[:, :, :3])
    wide = alpha.astype(np.uint16)
    return ((rgba[:, :, :3] * wide + 255 * (255 - wide) + 127) // 255).astype(np.uint8)
