"""Deformable DETR's encoder layer (Zhu et al. 2021, Sec. 4.1), as Mask2Former's pixel decoder has it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_stack.layers.mlp import FeedForward
from vision_stack.ops.deformable_attention import deformable_attention
from vision_stack.ops.point_sampling import pixel_centers

Shapes = Sequence[tuple[int, int]]


class DeformableAttention(nn.Module):
    """Every cell of several maps reads a few points of each map, at learnt offsets from its own place.

    Args:
        dim: channels.
        num_heads: divides `dim`.
        num_levels: how many maps.
        num_points: points that a head reads of each map.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(dim, samples * 2)  # in cells of the map that is read; (x, y) innermost
        self.attention_weights = nn.Linear(dim, samples)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(_rings(num_heads, num_levels, num_points))

    def forward(self, query: Tensor, value: Tensor, shapes: Shapes) -> Tensor:
        """query (with positions) and value [B, S, C], the cells of all maps of `shapes`, map after map -> [B, S, C]."""
        split = (self.num_heads, self.num_levels, self.num_points)
        weights = self.attention_weights(query).unflatten(2, (split[0], -1)).softmax(-1).unflatten(3, split[1:])
        with torch.autocast(query.device.type, enabled=False):  # bfloat16 cannot tell neighbouring cells apart
            wide = torch.promote_types(query.dtype, torch.float32)
            locations = self._locations(query.to(wide), shapes).unflatten(2, (*split, 2))
        values = self.value_proj(value).unflatten(2, (self.num_heads, -1))
        return self.output_proj(deformable_attention(values, shapes, locations, weights))

    def _locations(self, query: Tensor, shapes: Shapes) -> Tensor:
        """Where to read, (x, y) in [0, 1]: [B, S, heads * levels * points * 2]."""
        centers, cell_sizes = _cells(tuple(shapes), query.device, query.dtype)
        per_cell = cell_sizes[:, None].expand(-1, self.num_points, -1).flatten().repeat(self.num_heads)
        linear = self.sampling_offsets  # scaled in the weights, which are few
        offsets = F.linear(query, linear.weight * per_cell[:, None], linear.bias * per_cell)
        return offsets + centers.repeat(1, len(per_cell) // 2)


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward, each followed by dropout, the residual and a LayerNorm."""

    def __init__(
        self, dim: int, num_heads: int, num_levels: int, num_points: int, ffn_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.attn = DeformableAttention(dim, num_heads, num_levels, num_points)
        self.attn_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout)
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, shapes: Shapes) -> Tensor:
        """x [B, S, C], the cells of all maps of `shapes`; position broadcast to it -> [B, S, C]."""
        x = self.attn_norm(x + self.dropout(self.attn(x + position, x, shapes)))
        return self.ffn_norm(x + self.dropout(self.ffn(x)))


def _rings(num_heads: int, num_levels: int, num_points: int) -> Tensor:
    """Initial offsets: each head looks in a direction of its own, its points one cell further out each."""
    angle = torch.arange(num_heads) * (2 * math.pi / num_heads)
    direction = torch.stack([angle.cos(), angle.sin()], dim=1)
    direction = direction / direction.abs().amax(dim=1, keepdim=True)
    steps = torch.arange(1, num_points + 1)[:, None]
    return (direction[:, None, None] * steps).expand(-1, num_levels, -1, -1).flatten()


def _cells(shapes: tuple[tuple[int, int], ...], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if torch.compiler.is_compiling():  # a traced tensor must not end up in the cache
        return _make_cells(shapes, device, dtype)
    return _cached_cells(shapes, device, dtype)


def _make_cells(shapes: tuple[tuple[int, int], ...], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The centre of every cell, map after map, and the size of a cell of each map, (x, y) in [0, 1]: [S, 2], [L, 2]."""
    centers = [pixel_centers(height, width, device, dtype) for height, width in shapes]
    # Filled on the device: a tensor made of a list is copied to it, for which the host waits.
    counts = torch.stack([torch.full((), count, device=device, dtype=dtype) for h, w in shapes for count in (w, h)])
    return torch.cat(centers), counts.reciprocal().view(-1, 2)


@functools.lru_cache(maxsize=32)
def _cached_cells(
    shapes: tuple[tuple[int, int], ...], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False), torch.no_grad():  # what validation caches, training must be able to use
        return _make_cells(shapes, device, dtype)
