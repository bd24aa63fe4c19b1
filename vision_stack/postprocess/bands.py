"""Per-pixel values at an image's own resolution, a band of rows at a time, so that memory does not grow with the image.

Maps are [rows, columns, channels]: products and argmax then run along channels, which lie together in memory (and
features in channels_last format need no copy).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vision_stack.outputs import AnyMaskOutputs
from vision_stack.postprocess.axes import Axis, blocks

CPU_BYTES, GPU_BYTES = 64 * 2**20, 512 * 2**20  # of what exists at once for a band
BLOCK = 16  # outputs of a product on a CPU


def mask_logits(outputs: AnyMaskOutputs, image: int, queries: Tensor | slice = slice(None)) -> Tensor:
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


def resized_rows(logits: Tensor, rows: Axis, columns: Axis, start: int, stop: int) -> Tensor:
    """Rows start..stop - 1 of logits [h, w, Q] resized along both axes: [stop - start, width, Q]."""
    needed = rows.inputs_of(start, stop)
    parts = []
    for left, right in blocks(0, len(columns.first), logits.device, BLOCK):
        band = columns.inputs_of(left, right)
        parts.append(columns.weights[left:right, band] @ logits[needed, band])
    wide = torch.cat(parts, 1).flatten(1)
    resized = wide.new_empty(stop - start, wide.shape[1])
    for top, bottom in blocks(start, stop, logits.device, BLOCK):
        band = rows.inputs_of(top, bottom)
        inputs = wide[band.start - needed.start : band.stop - needed.start]
        torch.mm(rows.weights[top:bottom, band], inputs, out=resized[top - start : bottom - start])
    return resized.unflatten(1, (-1, logits.shape[2]))
