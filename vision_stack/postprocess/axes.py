"""Bilinear resizing (`align_corners=False`) along one axis as a banded matrix.

From stride-4 mask logits to an image's own pixels there are two resizes (up by 4, crop, then to the image's size). They
are separable and linear, so along one axis both are one matrix; as products with its dense blocks they are several
times as fast on CPUs as an interpolation that gathers neighbours.
"""

from __future__ import annotations

import functools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Axis(NamedTuple):
    """Both resizes along one axis. Output i is `weights[i] @ inputs`, and needs only inputs first[i]..last[i] - 1."""

    weights: Tensor  # [out, in] float32, rows sum to 1, at most four neighbours in a row are not zero
    first: list[int]  # per output, never decreasing
    last: list[int]  # exclusive

    def inputs_of(self, start: int, stop: int) -> slice:
        """What the outputs start..stop - 1 are made of."""
        return slice(self.first[start], self.last[stop - 1])

    def outputs_of(self, start: int, stop: int) -> tuple[int, int]:
        """The outputs, as a half-open interval, that the inputs start..stop - 1 take part in; may be empty."""
        return bisect_right(self.last, start), bisect_left(self.first, stop)


@functools.lru_cache(maxsize=8)  # a batch's images, and those of one data set, mostly share their sizes
def logits_axis(length: int, input_size: int, size: int, device: torch.device) -> Axis:
    """The map from `length` logits to 4 * length pixels, cropped to `input_size`, resized to `size` pixels."""
    identity = torch.eye(length, dtype=torch.float32)[None]
    weights = F.interpolate(identity, size=4 * length, mode="linear")[..., :input_size]
    weights = F.interpolate(weights, size=size, mode="linear")[0].T.contiguous()
    used = (weights != 0).to(torch.uint8)
    first, last = used.argmax(1), length - used.flip(1).argmax(1)
    return Axis(weights.to(device), first.tolist(), last.tolist())


def blocks(start: int, stop: int, device: torch.device, on_cpu: int = 128) -> Iterator[tuple[int, int]]:
    """Pieces with nearly dense matrices, whose results stay in a CPU's cache; a GPU wants few, large products."""
    step = on_cpu if device.type == "cpu" else 4096
    for low in range(start, stop, step):
        yield low, min(low + step, stop)
