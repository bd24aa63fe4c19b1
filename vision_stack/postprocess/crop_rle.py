"""COCO run-length encoding of a mask that is known only inside a box, without building the whole frame."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def encode_crop(mask: np.ndarray, top: int, left: int, size: tuple[int, int]) -> dict[str, Any]:
    """RLE of a frame that is False but for `mask` at (top, left): what `pycocotools.mask.encode` gives for the frame.

    Args:
        mask: [h, w] bool.
        size: (height, width) of the frame; the crop must lie inside it.

    Returns:
        {"size": [height, width], "counts": bytes}
    """
    height, width = size
    h, w = mask.shape
    assert 0 <= top <= height - h, "the crop leaves the frame"
    assert 0 <= left <= width - w, "the crop leaves the frame"
    columns = np.zeros((w, h + 1), dtype=bool)  # one False above each column, so that no run crosses into the next
    columns[:, 1:] = mask.T
    flat = columns.reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts, inside_last = edges[0::2], edges[1::2] - 1
    if len(inside_last) < len(starts):  # the last run ends with the crop
        inside_last = np.append(inside_last, flat.size - 1)
    starts = _frame_position(starts, h, top, left, height)
    stops = _frame_position(inside_last, h, top, left, height) + 1
    bounds = np.stack([starts, stops], axis=1).reshape(-1)
    apart = bounds[1:] != bounds[:-1]  # where the crop is as high as the frame, a run continues in the next column
    bounds = bounds[np.append(True, apart) & np.append(apart, True)] if len(bounds) else bounds
    counts = np.diff(bounds, prepend=0, append=height * width)
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)


def _frame_position(index: np.ndarray, h: int, top: int, left: int, height: int) -> np.ndarray:
    """Column-major position in the frame of positions in the padded columns of the crop."""
    column, row = np.divmod(index, h + 1)
    return (left + column) * height + top + row - 1
