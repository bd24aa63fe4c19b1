"""RoIAlign (He et al. 2017, Sec. 3) on CPUs, as torchvision computes it and several times as fast.

A bin's value is the mean of bilinear samples, hence a weighted sum of a few cells, each a row of C channels: for all
bins together one sum over rows of a table, and for the gradient its transpose. torchvision's kernel goes channel by
channel, and its backward pass runs in one thread.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_stack.ops.row_sums import spread_rows


def roi_align(x: Tensor, boxes: Tensor, images: Tensor, size: int, scale: float, samples: int) -> Tensor:
    """Pools boxes of one map; gradients go to the map only.

    Args:
        x: [B, C, h, w] float32 or float64, on the CPU.
        boxes: [K, 4] xyxy in pixels of the image.
        images: [K] int64, which image of the batch each box is in.
        size: of the result, in bins.
        scale: of the map, 1 / stride.
        samples: per bin and axis.

    Returns:
        [K, C, size, size], channels last in memory.
    """
    _, channels, height, width = x.shape
    boxes = boxes.to(x.dtype) * scale
    first = images * (height * width)
    extent = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    columns, near_x = _samples(boxes[:, 0], extent[:, 0], width, size, samples)
    rows, near_y = _samples(boxes[:, 1], extent[:, 1], height, size, samples)
    index = rows[:, :, None, :, None] * width + columns[:, None, :, None, :]  # [K, bins, bins, cells, cells]
    index = (index + first[:, None, None, None, None]).flatten(3).flatten(0, 2)
    weights = (near_y[:, :, None, :, None] * near_x[:, None, :, None, :]).flatten(3).flatten(0, 2)
    table = x.permute(0, 2, 3, 1).reshape(-1, channels)
    pooled: Tensor = _SumRows.apply(table, index.int(), weights)
    return pooled.view(len(boxes), size, size, channels).permute(0, 3, 1, 2)


def _samples(start: Tensor, extent: Tensor, length: int, size: int, samples: int) -> tuple[Tensor, Tensor]:
    """Cells along one axis that each bin reads, and what each counts: [K, size, 2 * samples], twice."""
    step = torch.arange(size * samples, dtype=start.dtype).view(size, samples) + 0.5
    position = start[:, None, None] + step * (extent / (size * samples))[:, None, None]
    inside = (position >= -1) & (position <= length)  # torchvision's rule: beyond a cell outside, a sample is zero
    position = position.clamp(0, length - 1)
    low = position.floor()
    far = position - low
    count = inside / samples
    cells = torch.cat([low, (low + 1).clamp(max=length - 1)], 2).long()
    return cells, torch.cat([(1 - far) * count, far * count], 2)


class _SumRows(torch.autograd.Function):
    """Weighted sums of rows of a table: [R, C], [N, K] int32, [N, K] -> [N, C]. Gradients of the table only."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(index, weights)
        ctx.num_rows = len(table)
        return F.embedding_bag(index, table, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        index, weights = ctx.saved_tensors
        return spread_rows(grad.contiguous(), index, weights, ctx.num_rows), None, None
