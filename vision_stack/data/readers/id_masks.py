"""PNGs whose values are numbers of objects: reading them, and masks of single objects."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision_stack.data.checks.issues import data_error
from vision_stack.data.images import open_image
from vision_stack.ops import rle

_KINDS = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L", "RGB", "RGBA", "LA")


def read_ids(path: str) -> NDArray[np.int32]:
    """Numbers [H, W] of a file with one channel, not negative; colours are R + 256 G + 65536 B, and grey is a number.

    Raises:
        DataError: not a lossless image of such pixels.
    """
    with open_image(path, convert_to="PNG") as image:
        if image.format not in ("PNG", "BMP", "TIFF"):
            message = f"is a {image.format}, which changes pixels in storing them"
            raise data_error(path, "pixels", message, "export masks as PNG")
        if image.mode not in _KINDS:
            message = f"has pixels of kind {image.mode}; numbers of objects take one channel"
            raise data_error(path, "pixels", message, "export masks as PNG of 8 or 16 bits")
        values = np.asarray(image).astype(np.int32)
    if values.ndim == 2:
        return values
    if values.shape[2] == 2 or (values[..., :3] == values[..., :1]).all():
        return np.ascontiguousarray(values[..., 0])
    return values[..., 0] + 256 * values[..., 1] + 65536 * values[..., 2]


def mask_of(pixels: NDArray[np.bool_]) -> dict[str, Any]:
    """The RLE of a mask [H, W]."""
    encoded: dict[str, Any] = rle.encode(pixels)
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"]}
