"""Non-maximum suppression of boxes, hard or soft, class by class or over all classes."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, nms


class Suppression(NamedTuple):
    """How boxes that overlap a better one are treated.

    `hard` drops them if their IoU is above `iou_threshold`; `soft` lowers their scores by exp(-IoU^2 / sigma), the
    Gaussian form (Bodla et al. 2017, Sec. 3).
    """

    method: Literal["hard", "soft"] = "hard"
    iou_threshold: float = 0.5
    class_agnostic: bool = False  # boxes of different classes suppress each other, too
    sigma: float = 0.5


def suppress(
    boxes: Tensor, labels: Tensor, scores: Tensor, how: Suppression, limit: int, min_score: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The boxes that are left, best first.

    Args:
        boxes: [N, 4] xyxy.
        labels, scores: [N].
        limit: the most boxes that are left.
        min_score: boxes that score less are left out.

    Returns:
        indices [M] and scores [M], which soft suppression has lowered.
    """
    if how.method == "soft":
        kept, scores = _soft(boxes, labels, scores, how, limit)
        good = scores >= min_score
        return kept[good], scores[good]
    if how.class_agnostic:
        kept = nms(boxes, scores, how.iou_threshold)
    else:
        kept = batched_nms(boxes, scores, labels, how.iou_threshold)
    kept = kept[:limit]
    kept = kept[scores[kept] >= min_score]
    return kept, scores[kept]


def _soft(boxes: Tensor, labels: Tensor, scores: Tensor, how: Suppression, limit: int) -> tuple[Tensor, Tensor]:
    """Without reading anything back from an accelerator: as many rounds as there may be boxes."""
    if not how.class_agnostic and len(boxes):
        boxes = boxes + (labels * (boxes.max() - boxes.min() + 1)).to(boxes)[:, None]  # classes far from each other
    left = scores.clone()
    kept, found = [], []
    for _ in range(min(limit, len(scores))):
        best = left.argmax()
        kept.append(best)
        found.append(left[best])
        overlap = torch.nan_to_num(box_iou(boxes[best][None], boxes)[0])  # of boxes without area
        left = left * torch.exp(-(overlap**2) / how.sigma)
        left[best] = -1.0  # stays negative
    if not kept:
        return torch.zeros(0, dtype=torch.int64, device=scores.device), scores[:0]
    return torch.stack(kept), torch.stack(found)
