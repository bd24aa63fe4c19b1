"""Boxes by how far each edge is moved: the mean of a distribution over bins (D-FINE, Peng et al. 2024, Sec. 4.1).

Moves are outwards, as shares of the box's width (left and right edge) or height (top and bottom).
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_BINS = 33
_HALF = NUM_BINS // 2
LARGEST_MOVE = 0.5  # "a", of all bins but the first and the last, which are twice as far
SMALLEST_SIDE = 1e-9


def bin_values(scale: float, like: Tensor) -> Tensor:
    """The move that each bin stands for, W(n), ascending from -1 to 1: [33], of the type of `like`.

    Args:
        scale: 1 / c of the paper, `reg_scale` of its code: the larger, the finer the bins around 0.
    """
    number = torch.arange(-_HALF, _HALF + 1, device=like.device, dtype=like.dtype)
    inner = ((LARGEST_MOVE * scale + 1) ** (number.abs() / (_HALF - 1)) - 1) / scale
    return number.sign() * torch.where(number.abs() == _HALF, 2 * LARGEST_MOVE, inner)


def move_edges(boxes: Tensor, moves: Tensor) -> Tensor:
    """Boxes (cx, cy, w, h) [..., 4] with edges (left, top, right, bottom) moved by [..., 4]."""
    centers, sides = boxes.split(2, dim=-1)
    first, second = moves.split(2, dim=-1)
    return torch.cat([centers + sides * (second - first) * 0.5, sides * (1 + first + second)], dim=-1)


def moves_between(boxes: Tensor, wanted: Tensor) -> Tensor:
    """What makes `boxes` the `wanted` ones, both (cx, cy, w, h): the inverse of `move_edges`."""
    centers, sides = boxes.split(2, dim=-1)
    wanted_centers, wanted_sides = wanted.split(2, dim=-1)
    shift, growth = wanted_centers - centers, 0.5 * (wanted_sides - sides)
    return torch.cat([growth - shift, growth + shift], dim=-1) / sides.clamp(min=SMALLEST_SIDE).tile(2)


def nearest_bins(moves: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The bins on both sides of each move: the number of the lower one, and the share of the upper one, in [0, 1]."""
    lower = (torch.searchsorted(values, moves, right=True) - 1).clamp(0, len(values) - 2)
    below, above = values[lower], values[lower + 1]
    return lower, ((moves - below) / (above - below)).clamp(0, 1)
