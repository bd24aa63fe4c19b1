"""Boxes as tensors: overlaps, the logits that detectors refine, and which lie in ignored regions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vision_stack.structures import Target

COVERED = 0.5  # the share of a box in an ignored region from which on it is not background
SMALLEST_AREA = 1e-9  # of a union or hull, so that boxes without area have no overlap instead of NaN


def iou_and_giou(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (Rezatofighi et al. 2019) of boxes xyxy that broadcast: [..., 4] -> [...] each.

    Boxes that are turned inside out have no area: with both sides negative, as D-FINE's moved edges can make them, the
    area would be positive again, and the generalised IoU far above 1.
    """
    x0, y0, x1, y1 = one.unbind(-1)
    u0, v0, u1, v1 = other.unbind(-1)
    width = torch.minimum(x1, u1) - torch.maximum(x0, u0)
    height = torch.minimum(y1, v1) - torch.maximum(y0, v0)
    common = width.clamp(min=0) * height.clamp(min=0)
    area = (x1 - x0).clamp(min=0) * (y1 - y0).clamp(min=0)
    union = area + (u1 - u0).clamp(min=0) * (v1 - v0).clamp(min=0) - common
    hull = (torch.maximum(x1, u1) - torch.minimum(x0, u0)) * (torch.maximum(y1, v1) - torch.minimum(y0, v0))
    iou = common / union.clamp(min=SMALLEST_AREA)
    return iou, iou - (hull - union) / hull.clamp(min=SMALLEST_AREA)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logits of coordinates; those beyond 0 or 1, or nearer than `eps` to it, count as `eps` away."""
    return torch.log(x.clamp(eps, 1) / (1 - x).clamp(eps, 1))


def covered(boxes: Tensor, regions: Tensor) -> Tensor:
    """The largest share of each box [N, 4] that lies in one of the regions [M, 4]: [N]."""
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    corner, end = torch.maximum(boxes[:, None, :2], regions[:, :2]), torch.minimum(boxes[:, None, 2:], regions[:, 2:])
    common = (end - corner).clamp(min=0).prod(2)  # [N, M]
    return (common / area[:, None].clamp(min=1e-6)).amax(1)


def is_ignored(boxes: Tensor, target: Mapping[str, Any] | Target) -> Tensor | None:
    """[N] True where a box [N, 4] is not background, since it lies in an ignored region; None without such regions.

    Args:
        boxes: xyxy, in pixels of the resized image as the target's.
    """
    regions = target.get("ignored")
    return covered(boxes, regions) >= COVERED if isinstance(regions, Tensor) and len(regions) else None
