"""Sigmoid classification losses of detectors with matched queries, as functions of the logit of a query and a class.

Each is two formulas: one for the class of a query's object, which may depend on how well the boxes overlap, and one for
all other cells. Below, p is sigmoid(logit) and q the IoU of the query's box and its object's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor

FOCAL_ALPHA = 0.25
VARIFOCAL_ALPHA = 0.75
MAL_GAMMA = 1.5
IA_BCE_ALPHA = 0.25
SMALLEST_QUALITY = 0.01

ClassLossName = Literal["focal", "varifocal", "mal", "ia_bce"]


class ClassLoss(NamedTuple):
    """Losses of single cells, of the shape of the logits; gamma is 2 where nothing else is said."""

    positive: Callable[[Tensor, Tensor], Tensor]  # logits of the objects' classes, IoU without gradient
    negative: Callable[[Tensor], Tensor]  # logits of all else


def _minus_log(x: Tensor) -> Tensor:
    """-log(p) of logits; -log(1 - p) is that of `-x`. Exact where p is rounded to 0 or 1."""
    return -F.logsigmoid(x)


def focal_positive(x: Tensor, iou: Tensor | None = None) -> Tensor:
    """Focal loss (Lin et al. 2017b, Eq. 5), which no overlap changes."""
    return FOCAL_ALPHA * (1 - x.sigmoid()) ** 2 * _minus_log(x)


def focal_negative(x: Tensor) -> Tensor:
    return (1 - FOCAL_ALPHA) * x.sigmoid() ** 2 * _minus_log(-x)


def _varifocal_positive(x: Tensor, iou: Tensor) -> Tensor:
    """q * BCE(p, q) (Zhang et al. 2021, Eq. 2)."""
    return iou * (iou * _minus_log(x) + (1 - iou) * _minus_log(-x))


def _varifocal_negative(x: Tensor) -> Tensor:
    return VARIFOCAL_ALPHA * x.detach().sigmoid() ** 2 * _minus_log(-x)


def _mal_positive(x: Tensor, iou: Tensor) -> Tensor:
    """BCE(p, q^gamma) (DEIM, Huang et al. 2025, Eq. 3)."""
    target = iou**MAL_GAMMA
    return target * _minus_log(x) + (1 - target) * _minus_log(-x)


def _mal_negative(x: Tensor) -> Tensor:
    return x.detach().sigmoid() ** MAL_GAMMA * _minus_log(-x)


def _ia_bce_positive(x: Tensor, iou: Tensor) -> Tensor:
    """BCE(p, t), t = p^alpha q^(1 - alpha) (LW-DETR, Chen et al. 2024, Sec. 3.3)."""
    target = (x.detach().sigmoid() ** IA_BCE_ALPHA * iou ** (1 - IA_BCE_ALPHA)).clamp(min=SMALLEST_QUALITY)
    return target * _minus_log(x) + (1 - target) * _minus_log(-x)


def _ia_bce_negative(x: Tensor) -> Tensor:
    return x.sigmoid() ** 2 * _minus_log(-x)  # unlike the others', the weight has a gradient


CLASS_LOSSES: dict[ClassLossName, ClassLoss] = {
    "focal": ClassLoss(focal_positive, focal_negative),
    "varifocal": ClassLoss(_varifocal_positive, _varifocal_negative),
    "mal": ClassLoss(_mal_positive, _mal_negative),
    "ia_bce": ClassLoss(_ia_bce_positive, _ia_bce_negative),
}
