"""Sine position encodings of feature maps (DETR's, RT-DETR's, Deformable DETR's), and a layer that adds one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def sine_position_encoding(
    height: int, width: int, channels: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Position encoding of every cell of a height x width map, row by row: [height * width, channels].

    The first half of the channels encodes y, the second half x; in each half sines and cosines of the normalised
    coordinate (1/n .. 1, times 2 pi) alternate, wavelengths from 2 pi to 2 pi * 10000. Computed in float32 or, where
    `dtype` is, in float64.

    Args:
        height, width: size of the map, in cells.
        channels: a multiple of 4.

    Raises:
        ValueError: `channels` is not a multiple of 4.
    """
    return _on_grid(_normalised, height, width, channels, device, dtype)


def cell_position_encoding(
    height: int, width: int, channels: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Encoding of every cell's row and column, as RT-DETR has it (and MoCo v3's ViT): [height * width, channels].

    Sines and then cosines of the row number, then those of the column number, not normalised: wavelengths from 2 pi to
    2 pi * 10000 cells. Arguments, dtype and errors as for `sine_position_encoding`.
    """
    return _on_grid(_by_cell, height, width, channels, device, dtype)


Axis = Callable[[int, int, torch.device, torch.dtype], Tensor]  # encodes the positions along one axis


def _on_grid(axis: Axis, height: int, width: int, channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    if channels % 4:
        raise ValueError(f"sine position encoding needs channels that are a multiple of 4, got {channels}")
    if torch.compiler.is_compiling():  # a traced tensor must not end up in the cache
        return _encode(axis, height, width, channels, device, dtype)
    return _encode_cached(axis, height, width, channels, device, dtype)


def _encode(axis: Axis, height: int, width: int, channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    wide = torch.promote_types(dtype, torch.float32)
    y = axis(height, channels // 2, device, wide)[:, None].expand(-1, width, -1)
    x = axis(width, channels // 2, device, wide)[None].expand(height, -1, -1)
    return torch.cat([y, x], dim=2).flatten(0, 1).to(dtype)


@functools.lru_cache(maxsize=32)
def _encode_cached(
    axis: Axis, height: int, width: int, channels: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():  # what validation caches, training must be able to use
        return _encode(axis, height, width, channels, device, dtype)


def _by_cell(length: int, channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Encoding of the numbers 0 .. length - 1: [length, channels]."""
    exponent = torch.arange(0, channels, 2, device=device, dtype=dtype) / channels
    angle = torch.arange(length, device=device, dtype=dtype)[:, None] / 10000.0**exponent
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def _normalised(length: int, channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Encoding of the positions 1 .. length along one axis: [length, channels]."""
    position = torch.arange(1, length + 1, device=device, dtype=dtype)
    return sine_encoding(position / (length + 1e-6), channels)


def sine_encoding(values: Tensor, channels: int) -> Tensor:
    """Sines and cosines of values in [0, 1], by turns, wavelengths from 1 to 10000: [...] -> [..., channels]."""
    exponent = torch.arange(0, channels, 2, device=values.device, dtype=values.dtype) / channels
    angle = (values * (2 * math.pi))[..., None] / 10000.0**exponent
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def centered_position_encoding(height: int, width: int, channels: int, valid: Tensor) -> Tensor:
    """As `sine_position_encoding`, but of the cells' centres, and in every image's own n (Deformable DETR).

    Args:
        valid: [B, 2] (x, y), the share of the map that each image fills, at least float32.

    Returns:
        [B, height * width, channels].
    """
    x, y = (
        sine_encoding(
            (torch.arange(n, device=valid.device, dtype=valid.dtype) + 0.5) / (n * part + 1e-6), channels // 2
        )
        for n, part in zip((width, height), valid.split(1, dim=1), strict=True)
    )  # [B, n, channels / 2]
    x, y = x[:, None].expand(-1, height, -1, -1), y[:, :, None].expand(-1, -1, width, -1)
    return torch.cat([y, x], dim=3).flatten(1, 2)


class AddedPositions(nn.Module):
    """Adds a linear map of the sine position encoding to feature maps: [B, C, H, W] -> the same.

    On mask features it lets a query tell apart objects that look the same by where they are, which the product of an
    embedding with appearance alone cannot; CondInst (Tian et al. 2020, Sec. 3.2) adds coordinates for this.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        encoding = self.linear(sine_position_encoding(height, width, channels, x.device, x.dtype))
        return x + encoding.T.unflatten(1, (height, width))
