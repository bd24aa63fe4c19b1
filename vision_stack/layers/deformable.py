"""Deformable DETR's layers (Zhu et al. 2021, Sec. 4): attention to a few points of several maps, padded or not."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_stack.layers.attention import MultiHeadAttention
from vision_stack.layers.mlp import FeedForward
from vision_stack.ops.deformable_attention import deformable_attention
from vision_stack.ops.point_sampling import pixel_centers
from vision_stack.structures import Features

Shapes = Sequence[tuple[int, int]]


class Padding(NamedTuple):
    """Which part of the maps of a batch is image; without padding there is no such object."""

    cells: Tensor  # [B, S] bool, True = beyond the image
    valid: Tensor  # [B, L, 2] (x, y), the share of each map that the image fills


def padding_of(features: Features | Sequence[Tensor], shapes: Shapes) -> Padding | None:
    """The padding of maps of `shapes`; None where no image is padded, or of plain maps, of which nothing is known."""
    if not isinstance(features, Features) or features.unpadded_sizes is None:
        return None
    sizes = features.unpadded_sizes
    if all(size == features.size for size in sizes):
        return None
    rows, columns = features.size
    device, dtype = features[0].device, torch.promote_types(features[0].dtype, torch.float32)
    # A cell is image if its upper left corner is: what nearest interpolation makes of a mask of pixels.
    counts = torch.tensor([[(-(-w * x // columns), -(-h * y // rows)) for y, x in shapes] for h, w in sizes])
    counts = counts.to(device, non_blocking=True)
    cells = []
    for level, (height, width) in enumerate(shapes):
        beyond_x = torch.arange(width, device=device) >= counts[:, level, :1]
        beyond_y = torch.arange(height, device=device) >= counts[:, level, 1:]
        cells.append((beyond_y[:, :, None] | beyond_x[:, None]).flatten(1))
    _, cell_sizes = _cells(tuple(shapes), device, dtype)
    return Padding(torch.cat(cells, dim=1), counts.to(dtype) * cell_sizes)


def cell_centers(shapes: Shapes, padding: Padding | None, like: Tensor) -> Tensor:
    """The centre (x, y) of every cell as a share of its image: [S, 2], or [B, S, 2] with padding; beyond 1 in it."""
    centers, _ = _cells(tuple(shapes), like.device, torch.promote_types(like.dtype, torch.float32))
    if padding is None:
        return centers
    counts = [height * width for height, width in shapes]
    return centers / torch.cat([v.expand(-1, n, -1) for v, n in zip(padding.valid.split(1, 1), counts, strict=True)], 1)


def on_each_map(reference: Tensor, padding: Padding | None, num_levels: int) -> Tensor:
    """Points or boxes as shares of the image, [B, Q, 2 or 4] -> as shares of each map, [B, Q, L, 2 or 4]."""
    if padding is None:
        return reference[:, :, None].expand(-1, -1, num_levels, -1)
    return reference[:, :, None] * padding.valid.repeat(1, 1, reference.shape[2] // 2)[:, None]


def to_tokens(maps: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
    """Maps [B, C, h, w] -> all their cells, map after map, [B, S, C], and their shapes."""
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1), [(x.shape[2], x.shape[3]) for x in maps]


def to_maps(tokens: Tensor, shapes: Shapes) -> list[Tensor]:
    """The inverse of `to_tokens`; cells row by row are channels-last maps."""
    cells = tokens.split([height * width for height, width in shapes], dim=1)
    return [
        x.unflatten(1, shape).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        for x, shape in zip(cells, shapes, strict=True)
    ]


class DeformableSampling(nn.Module):
    """Every query reads a few points of each of several maps, at learnt offsets from its reference, as they are.

    Args:
        dim: channels.
        num_heads: divides `dim`; each reads its own channels.
        num_points: points that a head reads, of each map.
    """

    def __init__(self, dim: int, num_heads: int, num_points: Sequence[int]) -> None:
        super().__init__()
        self.num_heads, self.num_points = num_heads, tuple(num_points)
        samples = num_heads * sum(num_points)
        self.sampling_offsets = nn.Linear(dim, samples * 2)  # in cells of the map that is read; (x, y) innermost
        self.attention_weights = nn.Linear(dim, samples)
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(_rings(num_heads, num_points))

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        shapes: Shapes,
        reference: Tensor | None = None,
        padding: Padding | None = None,
    ) -> Tensor:
        """Queries [B, Q, C], positions included -> [B, Q, C].

        Args:
            value: [B, S, C], the cells of all maps of `shapes`, map after map; those of the padding count as zero.
            reference: of each query on each map: points (x, y) [B, Q, L, 2], from which offsets are counted in cells,
                or boxes (cx, cy, w, h) [B, Q, L, 4], in which offset `num_points` is the border (Sec. A.4). None: the
                queries are the cells, each at its own place.
        """
        weights = self.attention_weights(query).unflatten(2, (self.num_heads, -1)).softmax(-1)
        with torch.autocast(query.device.type, enabled=False):  # bfloat16 cannot tell neighbouring cells apart
            wide = torch.promote_types(query.dtype, torch.float32)
            locations = self._locations(query.to(wide), shapes, reference)
        if padding is not None:
            value = value.masked_fill(padding.cells[..., None], 0.0)
        value = value.unflatten(2, (self.num_heads, -1))
        return deformable_attention(value, shapes, locations, weights, self.num_points)

    def _locations(self, query: Tensor, shapes: Shapes, reference: Tensor | None = None) -> Tensor:
        """Where to read, (x, y) in [0, 1]: [B, Q, heads, points of all maps, 2]."""
        split = (self.num_heads, sum(self.num_points), 2)
        linear = self.sampling_offsets
        if reference is not None and reference.shape[-1] == 4:
            offsets = F.linear(query, linear.weight.to(query.dtype), linear.bias.to(query.dtype)).unflatten(2, split)
            centers, sizes = self._per_point(reference, dim=2)[:, :, None].split(2, dim=-1)
            return centers + offsets * (sizes * self._steps(query))
        centers, cell_sizes = _cells(tuple(shapes), query.device, query.dtype)
        per_cell = self._per_point(cell_sizes, dim=0).flatten().repeat(self.num_heads)
        # Scaled in the weights, which are few.
        offsets = F.linear(query, linear.weight * per_cell[:, None], linear.bias * per_cell)
        if reference is None:
            return (offsets + centers.repeat(1, len(per_cell) // 2)).unflatten(2, split)
        return offsets.unflatten(2, split) + self._per_point(reference, dim=2)[:, :, None]

    def _per_point(self, of_maps: Tensor, dim: int) -> Tensor:
        """What each map has, for each point that is read of it: L -> points of all maps, along `dim`."""
        parts = zip(of_maps.split(1, dim), self.num_points, strict=True)
        return torch.cat([part.repeat_interleave(count, dim) for part, count in parts], dim)

    def _steps(self, like: Tensor) -> Tensor:
        """An offset of 1 from a box, in its sides, for each point: [points of all maps, 1]."""
        return torch.cat([like.new_full((count, 1), 0.5 / count) for count in self.num_points])


class DeformableAttention(DeformableSampling):
    """`DeformableSampling` of projected maps, which is projected again (Sec. 4.1).

    Args:
        dim: channels.
        num_heads: divides `dim`.
        num_levels: how many maps.
        num_points: points that a head reads of each map.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__(dim, num_heads, (num_points,) * num_levels)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        shapes: Shapes,
        reference: Tensor | None = None,
        padding: Padding | None = None,
    ) -> Tensor:
        """See `DeformableSampling.forward`."""
        return self.output_proj(super().forward(query, self.value_proj(value), shapes, reference, padding))


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

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        shapes: Shapes,
        reference: Tensor | None = None,
        padding: Padding | None = None,
    ) -> Tensor:
        """x [B, S, C], the cells of all maps of `shapes`; position broadcast to it -> [B, S, C].

        Args:
            reference, padding: as `DeformableAttention` has them.
        """
        x = self.attn_norm(x + self.dropout(self.attn(x + position, x, shapes, reference, padding)))
        return self.ffn_norm(x + self.dropout(self.ffn(x)))


class DeformableDecoderLayer(nn.Module):
    """Self-attention of the queries, deformable cross-attention, feed-forward; residual and LayerNorm after each."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        ffn_dim: int,
        dropout: float,
        cross_heads: int | None = None,  # of the cross-attention; None: as many
    ) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(dim, num_heads, dropout)
        self.self_attn_norm = nn.LayerNorm(dim)
        self.cross_attn = DeformableAttention(dim, cross_heads or num_heads, num_levels, num_points)
        self.cross_attn_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout)
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        query_position: Tensor,
        memory: Tensor,
        shapes: Shapes,
        reference: Tensor,
        padding: Padding | None = None,
        attend: Tensor | None = None,
        num_groups: int = 1,
    ) -> Tensor:
        """x [B, Q, C], query_position broadcast to it, memory [B, S, C] -> [B, Q, C].

        Args:
            shapes: of the maps whose cells `memory` is.
            reference, padding: as `DeformableAttention` has them.
            attend: [Q, Q] bool, which query may attend to which; None: all to all.
            num_groups: of the queries, one after the other, which do not see those of other groups.
        """
        q, v = (each.unflatten(1, (num_groups, -1)).flatten(0, 1) for each in (x + query_position, x))
        seen = self.self_attn(q, q, v, attend).unflatten(0, (-1, num_groups)).flatten(1, 2)
        x = self.self_attn_norm(x + self.dropout(seen))
        read = self.cross_attn(x + query_position, memory, shapes, reference, padding)
        x = self.cross_attn_norm(x + self.dropout(read))
        return self.ffn_norm(x + self.dropout(self.ffn(x)))


def _rings(num_heads: int, num_points: Sequence[int]) -> Tensor:
    """Initial offsets: each head looks in a direction of its own, its points of a map one cell further out each."""
    angle = torch.arange(num_heads) * (2 * math.pi / num_heads)
    direction = torch.stack([angle.cos(), angle.sin()], dim=1)
    direction = direction / direction.abs().amax(dim=1, keepdim=True)
    steps = torch.cat([torch.arange(1, count + 1) for count in num_points])[:, None]
    return (direction[:, None] * steps).flatten()


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
