"""Label maps in PNG files: segment ids as COCO's panoptic format has them (RGB), class ids in one channel."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_SEGMENT_ID = 256**3 - 1


def ids_to_rgb(ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Segment ids [H, W] -> [H, W, 3]: id = R + 256 G + 256^2 B."""
    flat = ids.astype(np.uint32)
    return np.stack([flat & 255, flat >> 8 & 255, flat >> 16], axis=-1).astype(np.uint8)


def rgb_to_ids(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    """[H, W, 3] -> segment ids [H, W]."""
    red, green, blue = (rgb[..., channel].astype(np.int32) for channel in range(3))
    return red | green << 8 | blue << 16


def segment_png(ids: NDArray[np.integer]) -> bytes:
    """A PNG of segment ids [H, W]."""
    return _png(Image.fromarray(ids_to_rgb(ids)))


def class_png(ids: NDArray[np.integer]) -> bytes:
    """A PNG of class ids [H, W] of 0..65535: one channel of 8 bits, or of 16 where a value needs them."""
    wide = bool(ids.size) and int(ids.max()) > 255
    return _png(Image.fromarray(ids.astype(np.uint16 if wide else np.uint8)))


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
