"""Multi-scale deformable attention's sampling (Zhu et al. 2021, Sec. 4.1), in pure PyTorch.

B images, S cells of all maps together, Q queries, H heads, D channels of a head, L maps, P points of a head on all maps
together.

On CPUs the weighted mean of bilinear samples is one weighted sum of rows: every sample is four cells, so each head of
each query sums 4 * P rows of `value`, which `embedding_bag` does in one pass over data that stays in the cache.
Nothing of size [B, Q, H, P, D] is made, which `grid_sample` cannot avoid. Elsewhere, and where a model is exported,
`grid_sample` does it, which accelerators and export formats know.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_stack.ops.row_sums import spread_rows

Shapes = Sequence[tuple[int, int]]


def deformable_attention(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, num_points: Sequence[int]
) -> Tensor:
    """Weighted sum of bilinear samples of the maps, for every head of every query.

    Args:
        value: [B, S, H, D], the cells of all maps, map after map, row by row.
        shapes: (height, width) of each map; their products sum to S.
        locations: [B, Q, H, P, 2], map after map, (x, y) in [0, 1]; (0, 0) is the upper left corner of the upper left
            cell (`align_corners=False`), and whatever lies outside a map counts as zero. float32 or float64.
        weights: [B, Q, H, P].
        num_points: how many of the P points are on each map.

    Returns:
        [B, Q, H * D].
    """
    assert sum(height * width for height, width in shapes) == value.shape[1], (shapes, value.shape)
    assert sum(num_points) == weights.shape[3], (num_points, weights.shape)
    if value.device.type == "cpu" and not torch.compiler.is_exporting():
        batch, _, heads, dim = value.shape
        index, scale = _rows(value, shapes, locations, weights, num_points)
        table = value.reshape(-1, dim).to(scale.dtype)
        return sum_rows(table, index, scale).view(batch, -1, heads * dim).to(value.dtype)
    return sample_by_grid(value, shapes, locations, weights, num_points)


def sample_by_grid(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, num_points: Sequence[int]
) -> Tensor:
    """`deformable_attention` by `grid_sample`, map by map, in the type of the locations: bfloat16 is up to a sixth of a
    cell off on a map of 167 cells."""
    batch, _, heads, dim = value.shape
    queries = locations.shape[1]
    points = list(num_points)
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1).split(points, dim=2)  # [B * H, Q, P, 2]
    scale = weights.to(locations.dtype).transpose(1, 2).reshape(batch * heads, 1, queries, -1).split(points, dim=3)
    maps = value.to(locations.dtype).permute(0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in shapes], dim=2)
    out = maps[0].new_zeros(batch * heads, dim, queries)
    for level, shape in enumerate(shapes):
        samples = F.grid_sample(maps[level].unflatten(2, shape), grid[level], align_corners=False)
        out = out + (samples * scale[level]).sum(3)
    return out.view(batch, heads * dim, queries).transpose(1, 2).to(value.dtype)


def _rows(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, num_points: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The four cells of every sample, as rows of `value` seen as [B * S * H, D], and what each counts.

    Returns:
        index [B * Q * H, 4 * P] int32, and weights of the same shape.
    """
    batch, cells, heads, _ = value.shape
    points = torch.tensor(num_points)
    sizes = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float32)  # [L, 2]
    sizes = sizes.T.repeat_interleave(points, dim=1, output_size=weights.shape[3])
    starts = torch.tensor([0] + [h * w for h, w in shapes[:-1]]).cumsum(0)
    starts = starts.repeat_interleave(points, output_size=weights.shape[3]).int() * heads
    coordinates = locations.unbind(-1)  # [B, Q, H, P] each
    left, near_x = _two_cells(coordinates[0], sizes[0], any_single=any(w == 1 for _, w in shapes))
    top, near_y = _two_cells(coordinates[1], sizes[1], any_single=any(h == 1 for h, _ in shapes))

    widths = sizes[0].int() * heads
    right, down = (sizes[0] > 1).int() * heads, (sizes[1] > 1).int() * widths  # to the next cell, if there is one
    first = torch.arange(batch, dtype=torch.int32)[:, None] * (cells * heads) + torch.arange(heads, dtype=torch.int32)
    corners = [top * widths + (first[:, None, :, None] + starts) + left * heads]
    corners.append(corners[0] + right)
    corners += [corner + down for corner in corners]
    index = torch.stack(corners, dim=3)
    scaled = [near * weights for near in near_y]
    counts = torch.stack([x * y for y in scaled for x in near_x], dim=3)
    per_row = 4 * weights.shape[3]
    return index.view(-1, per_row), counts.view(-1, per_row)


def _two_cells(coordinate: Tensor, size: Tensor, *, any_single: bool) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The first of two neighbouring cells that lie within the map, and what each of the two counts.

    Args:
        coordinate: [..., N] in [0, 1].
        size: [N] of the map, in cells.
        any_single: whether any of the sizes is 1, so that there is no second cell.
    """
    position = coordinate * size - 0.5
    with torch.no_grad():
        cell = position.floor().int()  # bounded as integers, so that not even NaN leads out of the map
        cell = cell.clamp_(min=torch.zeros_like(size, dtype=cell.dtype), max=(size.int() - 2).clamp(min=0))
    # A cell counts 1 - distance, or nothing if that is negative: which leaves out what lies outside, too.
    distance = position - cell
    near = (1 - distance.abs()).clamp(min=0)
    far = (1 - (distance - 1).abs()).clamp(min=0)
    return cell, (near, far * (size > 1) if any_single else far)


@torch.library.custom_op("vision_stack::sum_rows", mutates_args=())
def sum_rows(table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows of a table, on the CPU: [R, D], [N, K] int32, [N, K] -> [N, D]."""
    return F.embedding_bag(index, table, mode="sum", per_sample_weights=weights)


@sum_rows.register_fake
def _(table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    return table.new_empty(len(index), table.shape[1])


@torch.library.custom_op("vision_stack::sum_rows_backward", mutates_args=())
def sum_rows_backward(grad: Tensor, table: Tensor, index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `sum_rows` by table and weights.

    The sums are a sparse matrix times the table; the gradient of its entries is `grad @ table.T` at their places.
    """
    (count, per_row), rows = index.shape, len(table)
    ends = torch.arange(0, (count + 1) * per_row, per_row, dtype=torch.int32)
    if per_row > rows:  # more entries in a row than columns, as no sparse tensor may have
        grad_weights = (grad[:, None] * table[index.long()]).sum(2)
    else:
        grad_weights = _products_at(index, ends, grad, table)
    return spread_rows(grad, index, weights, rows), grad_weights


def _products_at(index: Tensor, ends: Tensor, grad: Tensor, table: Tensor) -> Tensor:
    """`grad @ table.T` [N, R] at the columns `index` [N, K] of each row: [N, K]."""
    values, size = grad.new_zeros(index.numel()), (len(grad), len(table))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse ", category=UserWarning)
        pattern = torch.sparse_csr_tensor(ends, index.flatten(), values, size=size, check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, grad.contiguous(), table.T).values().view(index.shape)


@sum_rows_backward.register_fake
def _(grad: Tensor, table: Tensor, index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(table), torch.empty_like(weights)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
    grad_table, grad_weights = sum_rows_backward(grad.contiguous(), *ctx.saved_tensors)
    return grad_table, None, grad_weights


sum_rows.register_autograd(_backward, setup_context=_save)
