"""Per-pixel values at an image's own resolution, a band of rows at a time, so that memory does not grow with the image.

Maps are [rows, columns, channels]: interpolation, products and argmax then run along channels, which lie together in
memory (and features in channels_last format need no copy). Both resizes are bilinear, `align_corners=False`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_stack.structures import MaskOutputs

STRIDE = 4  # of mask logits
CPU_BYTES, GPU_BYTES = 64 * 2**20, 512 * 2**20  # of what exists at once for a band


def mask_logits(outputs: MaskOutputs, image: int, queries: Tensor | slice = slice(None)) -> Tensor:
    """Float32 logits of one image's queries, [h, w, Q]."""
    features = outputs.mask_features[image].permute(1, 2, 0).float()  # [h, w, C]
    return features @ outputs.mask_embed[image, queries].float().T


def bands(height: int, bytes_per_row: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Half-open intervals of rows, each of which takes a bounded memory. Smaller ones would stay in a CPU's cache, but
    that gains nothing, and every further operation waits for all threads once more."""
    budget = CPU_BYTES if device.type == "cpu" else GPU_BYTES
    step = max(1, budget // bytes_per_row)
    for start in range(0, height, step):
        yield start, min(start + step, height)


def input_rows(logits: Tensor, start: int, stop: int, input_size: tuple[int, int]) -> Tensor:
    """Rows of the logits [h, w, Q] enlarged by 4 and cropped to `input_size`: [stop - start, input width, Q]."""
    height, width = STRIDE * logits.shape[0], STRIDE * logits.shape[1]
    first, last = source_rows(start, stop, logits.shape[0], height)
    rows = resize_rows(logits[first:last], first, start, stop, logits.shape[0], height)
    return resize_columns(rows, width)[:, : input_size[1]]


def source_rows(start: int, stop: int, length: int, size: int) -> tuple[int, int]:
    """What the rows start..stop - 1 of `size` are interpolated from, as a half-open interval of `length` rows."""
    low, _, _ = _neighbours(start, start + 1, length, size, torch.device("cpu"))
    _, high, _ = _neighbours(stop - 1, stop, length, size, torch.device("cpu"))
    return int(low), int(high) + 1


def resize_rows(values: Tensor, first: int, start: int, stop: int, length: int, size: int) -> Tensor:
    """Rows start..stop - 1 of a map of `length` rows resized to `size`: values [n, w, C], its rows from `first` on."""
    if length == size:
        return values[start - first : stop - first]
    low, high, weight = _neighbours(start, stop, length, size, values.device)
    return torch.lerp(values[low - first], values[high - first], weight[:, None, None])


def resize_columns(values: Tensor, width: int) -> Tensor:
    """[n, w, C] -> [n, width, C]."""
    if values.shape[1] == width:
        return values
    image = values[None].permute(0, 3, 1, 2)  # [1, C, n, w] in channels_last format
    return F.interpolate(image, size=(len(values), width), mode="bilinear").permute(0, 2, 3, 1)[0]


def _neighbours(start: int, stop: int, length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The two source rows of each row, and the second one's weight."""
    position = (torch.arange(start, stop, device=device, dtype=torch.float32) + 0.5) * (length / size) - 0.5
    position.clamp_(min=0)
    low = position.long().clamp_(max=length - 1)
    return low, (low + 1).clamp_(max=length - 1), position - low
