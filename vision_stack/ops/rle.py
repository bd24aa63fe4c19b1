"""COCO run-length encoding: masks in and out, and the checks that untrusted RLEs need before anybody decodes them.

An RLE is `{"size": [height, width], "counts": ...}`: lengths of alternating runs of background and object, read down
the columns, background first. Compressed counts (bytes or str) hold each run as the difference to the run two before,
in base-32 digits with a continuation bit, one printable character per digit.

`pycocotools` trusts what it is given: a few characters can ask for gigabytes. `check_rle` therefore reads the runs in
NumPy and compares their sum with the size; memory grows with the length of the counts, never with the size they claim.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from vision_stack.ops.masks import polygons_to_mask

MAX_PIXELS = 178_956_970  # of one image or mask: where Pillow, too, refuses an image as a decompression bomb
_MAX_DIGITS = 7  # 35 bits, more than any run within MAX_PIXELS


class RLE(TypedDict):
    """A compressed COCO RLE, as `pycocotools` takes it."""

    size: list[int]  # [height, width]
    counts: bytes


def encode(masks: Tensor | NDArray[Any]) -> Any:
    """Mask [H, W] -> `RLE`, masks [N, H, W] -> list of N. Bool or zero and one, a tensor on any device or an array."""
    tensor = torch.as_tensor(masks)
    if tensor.ndim not in (2, 3):
        raise ValueError(f"encode needs masks [H, W] or [N, H, W], got shape {tuple(tensor.shape)}")
    columns = tensor.reshape(-1, *tensor.shape[-2:]).to(torch.bool).transpose(1, 2).contiguous()  # [N, W, H]
    # pycocotools wants [H, W, N] in Fortran order, which is the memory of [N, W, H] in C order.
    rles = coco_mask.encode(columns.view(torch.uint8).cpu().numpy().transpose(2, 1, 0))
    return rles[0] if tensor.ndim == 2 else rles


def decode(rle: Mapping[str, Any]) -> NDArray[np.bool_]:
    """RLE, compressed or not -> mask [H, W] bool. Raises ValueError where `check_rle` does."""
    runs = check_rle(rle)
    height, width = rle["size"]
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def area(rle: Mapping[str, Any]) -> int:
    """Number of object pixels. Raises ValueError where `check_rle` does."""
    return int(check_rle(rle)[1::2].sum())


def box(rle: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Tight box (x0, y0, x1, y1) in pixel edges, zeros for an empty mask. Raises ValueError where `check_rle` does."""
    return box_of_runs(check_rle(rle), rle["size"][0])


def box_of_runs(runs: NDArray[np.int64], height: int) -> tuple[float, float, float, float]:
    """`box` of the runs that `check_rle` gives, in columns of that height."""
    stops = np.cumsum(runs)[1::2]
    starts = stops - runs[1::2]
    starts, stops = starts[stops > starts], stops[stops > starts] - 1  # first and last pixel of each run
    if not len(starts):
        return (0.0, 0.0, 0.0, 0.0)
    columns, last_columns = starts // height, stops // height
    if np.any(columns != last_columns):  # a run that enters the next column touches the bottom edge and the top edge
        top, bottom = 0, height
    else:
        top, bottom = int((starts % height).min()), int((stops % height).max()) + 1
    return (float(columns.min()), float(top), float(last_columns.max()) + 1, float(bottom))


def to_compressed(segmentation: Any, height: int, width: int) -> RLE:
    """Any COCO segmentation (list of polygons, RLE with counts as list, bytes or str) -> compressed RLE of that size.

    Raises:
        ValueError: an RLE that `check_rle` refuses, or polygons that `polygons_to_mask` refuses.
    """
    if not isinstance(segmentation, Mapping):
        return encode(polygons_to_mask(segmentation, height, width))
    runs = check_rle(segmentation, height, width)
    counts = segmentation["counts"]
    if isinstance(counts, str | bytes):
        return {"size": [height, width], "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
    return coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)


def to_json(rle: Mapping[str, Any]) -> dict[str, Any]:
    """A compressed RLE with its counts as str, which json can hold."""
    counts = rle["counts"]
    return {
        "size": [int(n) for n in rle["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }


def check_rle(rle: Any, height: int | None = None, width: int | None = None) -> NDArray[np.int64]:
    """The lengths of an RLE's runs [R], background first, after everything that could go wrong in decoding was checked.

    Args:
        rle: anything; usually out of a json file.
        height, width: the image's size, where the RLE must have it.

    Raises:
        ValueError: one line that says what is wrong with `size` or `counts`.
    """
    if not isinstance(rle, Mapping) or "size" not in rle or "counts" not in rle:
        raise ValueError("an RLE needs 'size' and 'counts'")
    size = rle["size"]
    whole = isinstance(size, list | tuple) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
    if not whole:
        raise ValueError(f"RLE size must be [height, width] in whole pixels, got {repr(size)[:60]}")
    if height is not None and width is not None and tuple(size) != (height, width):
        swapped = ", width and height are swapped" if tuple(size) == (width, height) else ""
        raise ValueError(f"RLE size is {size[0]} x {size[1]}, the image is {height} x {width}{swapped}")
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"RLE size {size[0]} x {size[1]} is more than {MAX_PIXELS:,} pixels")
    counts = rle["counts"]
    if isinstance(counts, str | bytes):
        runs = _runs_of_text(counts)
    elif isinstance(counts, list | tuple):
        runs = _runs_of_list(counts)
    else:
        raise ValueError(f"RLE counts must be text or a list, got {type(counts).__name__}")
    if len(runs) and runs.min() < 0:
        raise ValueError("RLE counts hold a negative run")
    # Every run is below 2^35 or below 2^63 and checked; float64 cannot overflow and is exact where it matters.
    total = float(runs.sum(dtype=np.float64))
    if total != size[0] * size[1]:
        raise ValueError(
            f"RLE counts sum to {total:.0f} pixels, its size {size[0]} x {size[1]} has {size[0] * size[1]}"
        )
    return runs


def _runs_of_list(counts: list[Any] | tuple[Any, ...]) -> NDArray[np.int64]:
    try:
        return np.frombuffer(array("q", counts), dtype=np.int64)
    except (TypeError, OverflowError):
        raise ValueError("RLE counts must be whole numbers of pixels") from None


def _runs_of_text(counts: str | bytes) -> NDArray[np.int64]:
    try:
        text = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError:
        raise ValueError("RLE counts hold characters that no RLE has") from None
    digits = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    if not len(digits):
        return digits
    if digits.min() < 0 or digits.max() > 63:
        raise ValueError("RLE counts hold characters that no RLE has")
    last = np.flatnonzero(digits < 32)  # 32 is the continuation bit
    if not len(last) or last[-1] != len(digits) - 1:
        raise ValueError("RLE counts are cut off in the middle of a number")
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > _MAX_DIGITS:
        raise ValueError("RLE counts hold a run too long for any image")
    place = np.arange(len(digits)) - np.repeat(first, lengths)
    values = np.add.reduceat((digits & 31) << (5 * place), first)
    values -= np.where(digits[last] & 16, 1 << (5 * lengths), 0)  # the last digit's highest bit is the sign
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])  # the very first run stands alone
    return values
