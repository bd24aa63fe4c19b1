"""Values of maps and masks at points, and the choice of points (PointRend; Mask2Former, Sec. 3.3).

Points are (x, y) in [0, 1]; (0, 0) is the upper left corner of the upper left pixel (`align_corners=False`), and
whatever lies outside of a map counts as zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of maps [N, C, H, W] at points [N, P, 2]: [N, C, P]."""
    grid = 2 * points[:, None] - 1  # [N, 1, P, 2]
    return F.grid_sample(maps, grid, align_corners=False)[:, :, 0]


def sample_masks(masks: Tensor, index: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of binary masks at points, read where they lie: no float copy of the masks is made.

    Args:
        masks: [N, H, W] bool.
        index: [M] which mask each row of points belongs to.
        points: [M, P, 2].

    Returns:
        [M, P] in [0, 1], equal to `sample_maps` of the masks as floats.
    """
    height, width = masks.shape[-2:]
    flat = masks.reshape(-1)
    start = (index * (height * width))[:, None]
    column, row = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = column.floor(), row.floor()
    fraction_x, fraction_y = column - left, row - top
    value = torch.zeros_like(fraction_x)
    for x, weight_x in ((left, 1 - fraction_x), (left + 1, fraction_x)):
        for y, weight_y in ((top, 1 - fraction_y), (top + 1, fraction_y)):
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            pixel = y.clamp(0, height - 1).long() * width + x.clamp(0, width - 1).long()
            value += weight_x * weight_y * (flat[start + pixel] & inside)
    return value


def pixel_centers(height: int, width: int, device: torch.device) -> Tensor:
    """The centres of all pixels of a map, row by row: [height * width, 2]."""
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1)


@torch.no_grad()
def uncertain_points(
    logits: Tensor, num_points: int, oversample_ratio: float = 3.0, importance_ratio: float = 0.75
) -> Tensor:
    """Points for a mask loss, most of them where the prediction is undecided (Mask2Former, Sec. 3.3).

    `oversample_ratio * num_points` uniform points are drawn for every mask; the `importance_ratio * num_points` whose
    logit is nearest to zero are kept, the rest is uniform.

    Args:
        logits: [M, h, w] mask logits.

    Returns:
        [M, num_points, 2].
    """
    rows, device = len(logits), logits.device
    candidates = torch.rand(rows, int(num_points * oversample_ratio), 2, device=device)
    num_uncertain = int(num_points * importance_ratio)
    certainty = sample_maps(logits[:, None], candidates)[:, 0].abs()
    nearest = certainty.topk(num_uncertain, dim=1, largest=False, sorted=False).indices
    chosen = candidates.gather(1, nearest[..., None].expand(-1, -1, 2))
    uniform = torch.rand(rows, num_points - num_uncertain, 2, device=device)
    return torch.cat([chosen, uniform], dim=1)
