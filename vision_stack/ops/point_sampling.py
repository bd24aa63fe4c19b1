"""Values of maps and masks at points, and the choice of points (PointRend; Mask2Former, Sec. 3.3).

Points are (x, y) in [0, 1]; (0, 0) is the upper left corner of the upper left pixel (`align_corners=False`), and
whatever lies outside a map counts as zero.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vision_stack.ops.tiles import slices, tile_elements


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of maps [N, C, H, W] at points [N, P, 2]: [N, C, P]."""
    grid = 2 * points[:, None] - 1  # [N, 1, P, 2]
    return F.grid_sample(maps, grid, align_corners=False)[:, :, 0]


def pixel_centers(height: int, width: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """The centres of all pixels of a map, row by row: [height * width, 2]."""
    y = (torch.arange(height, device=device, dtype=dtype) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=dtype) + 0.5) / width
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1)


class SparseMatrix(NamedTuple):
    """A matrix [R, S], row after row, to be multiplied with dense ones.

    `torch.sparse` has such matrices too; `F.embedding_bag` is the same product, several times as fast on CPUs.
    """

    columns: Tensor  # [entries] int64
    values: Tensor  # [entries]
    starts: Tensor  # [R] int64, the first entry of each row
    num_columns: int  # S

    def matmul(self, dense: Tensor) -> Tensor:
        """[S, K] -> [R, K]; K contiguous numbers are taken at once. Not differentiable."""
        return F.embedding_bag(self.columns, dense, self.starts, mode="sum", per_sample_weights=self.values)

    def transpose(self) -> SparseMatrix:
        """[S, R]."""
        order = self.columns.argsort()
        rows = torch.arange(len(self.columns), device=order.device)
        rows = torch.searchsorted(self.starts, rows, right=True) - 1
        wanted = torch.arange(self.num_columns, device=order.device)
        starts = torch.searchsorted(self.columns[order], wanted)
        return SparseMatrix(rows[order], self.values[order], starts, len(self.starts))


def interpolation_matrix(points: Tensor, height: int, width: int) -> SparseMatrix:
    """Bilinear interpolation at points [P, 2] of maps that are flattened to [height * width]: [P, height * width].

    It serves any number of maps, which `sample_maps` would each interpolate again, and its transpose takes gradients
    back to the pixels.
    """
    column, row = points[:, 0] * width - 0.5, points[:, 1] * height - 0.5
    left, top = column.floor(), row.floor()
    x, y = torch.stack([left, left + 1], 1)[:, None, :], torch.stack([top, top + 1], 1)[:, :, None]  # four pixels
    weights = (1 - (column[:, None, None] - x).abs()) * (1 - (row[:, None, None] - y).abs())
    weights = weights * ((x >= 0) & (x < width) & (y >= 0) & (y < height))
    pixels = y.clamp(0, height - 1).long() * width + x.clamp(0, width - 1).long()
    starts = torch.arange(0, 4 * len(points), 4, device=points.device)
    return SparseMatrix(pixels.flatten(), weights.flatten(), starts, height * width)


def sample_features(features: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of maps [..., C, h, w] at points [P, 2] that all of them share: [..., P, C], at least float32.

    Fastest where maps are stored cell by cell (channels last), as their gradients are. Not twice differentiable.
    """
    values: Tensor = _SampledFeatures.apply(features, points)
    return values


class _SampledFeatures(torch.autograd.Function):
    """Maps of a smaller type are widened, and their gradients rounded, one at a time."""

    @staticmethod
    def forward(ctx, features: Tensor, points: Tensor) -> Tensor:
        points = points.to(torch.promote_types(features.dtype, torch.float32))
        ctx.save_for_backward(points)
        ctx.size, ctx.dtype = features.shape[-2:], features.dtype
        matrix = interpolation_matrix(points, *ctx.size)
        cells = features.movedim(-3, -1).flatten(0, -4).flatten(1, 2)  # [maps, h * w, C]
        values = torch.stack([matrix.matmul(each.to(points.dtype)) for each in cells])
        return values.view(*features.shape[:-3], *values.shape[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None]:
        (points,) = ctx.saved_tensors
        matrix = interpolation_matrix(points, *ctx.size).transpose()
        values = upstream.flatten(0, -3).contiguous()
        cells = torch.stack([matrix.matmul(each).to(ctx.dtype) for each in values]).unflatten(1, ctx.size)
        return cells.view(*upstream.shape[:-2], *cells.shape[1:]).movedim(-1, -3), None


def sample_masks(masks: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of masks [N, H, W] bool at points [P, 2]: [N, P] in [0, 1], a few masks at a time as floats."""
    at_points = interpolation_matrix(points, *masks.shape[-2:])
    values = points.new_empty(len(masks), len(points))
    for some in slices(len(masks), max(1, tile_elements(masks.device, 2**22) // at_points.num_columns)):
        values[some] = at_points.matmul(masks[some].flatten(1).T.contiguous().to(points.dtype)).T
    return values


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear values of masks [N, H, W] bool at the pixel centres of a map of `size`, no larger: [N, *size]."""
    values = masks.new_empty(len(masks), *size, dtype=torch.float32)
    for some in slices(len(masks), max(1, tile_elements(masks.device, 2**22) // masks.shape[1:].numel())):
        values[some] = F.interpolate(masks[some, None].float(), size=size, mode="bilinear")[:, 0]
    return values


def nearest_to_zero(values: Tensor, count: int) -> Tensor:
    """Where in each row of values [M, n] the `count` smallest magnitudes are, in no order: [M, count] int64."""
    magnitude = values.abs()
    if magnitude.device.type == "cpu" and count:  # NumPy selects with vector instructions, four times as fast
        return torch.from_numpy(np.argpartition(magnitude.numpy(), count - 1, axis=-1)[..., :count])
    return magnitude.topk(count, dim=-1, largest=False, sorted=False).indices
