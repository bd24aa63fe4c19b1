"""Losses and matching costs of mask classification, as functions of tensors.

Legend: M pairs of a predicted mask and its object, N objects of one image, R predicted masks of one image (all queries
of all layers), C channels, h x w pixels of the mask logits, H x W pixels of the target masks, P points.

Two things keep these functions cheap. Sums over pixels are taken tile by tile, so that the dozen elementwise passes of
a focal or dice term run in the cache instead of in main memory. And a mask loss is a scalar per mask, so that its
gradient is found along with its value and only at the low resolution of the logits: no map of H x W is ever kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2  # the formulas below are written out for it


def tile_elements(device: torch.device) -> int:
    """How many floats a temporary may hold: a share of the cache on a CPU, enough to fill an accelerator elsewhere."""
    return 2**19 if device.type == "cpu" else 2**26


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), several times as fast on CPUs as `F.softplus`; destroys nothing, not differentiated."""
    return x.abs().neg_().exp_().log1p_().add_(x.clamp(min=0))


# ---------------------------------------------------------------------------------------------------- matching costs


@torch.no_grad()
def dense_mask_costs(mask_embed: Tensor, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and dice cost of every predicted mask with every object, over all pixels (MaskFormer, Sec. 3.2).

    Args:
        mask_embed: [R, C].
        features: [C, p] mask features at p pixels; the logits are `mask_embed @ features`.
        targets: [N, p] float, 0 or 1.

    Returns:
        focal [R, N] (mean over pixels) and dice [R, N].
    """
    rows, pixels = len(mask_embed), features.shape[1]
    focal = mask_embed.new_zeros(rows, len(targets))
    overlap = torch.zeros_like(focal)
    background, area = mask_embed.new_zeros(rows), mask_embed.new_zeros(rows)
    step = max(256, tile_elements(mask_embed.device) // max(rows, 1))
    for start in range(0, pixels, step):
        tile = slice(start, start + step)
        logits, inside = mask_embed @ features[:, tile], targets[:, tile].T
        prob, negative = logits.sigmoid(), softplus(logits)
        positive = negative - logits  # -log(p); `negative` is -log(1 - p)
        negative.mul_(prob).mul_(prob).mul_(1 - FOCAL_ALPHA)
        # focal = sum over mask of `positive` + sum over the rest of `negative`, as one product with the masks
        complement = 1 - prob
        positive.mul_(complement).mul_(complement).mul_(FOCAL_ALPHA).sub_(negative)
        focal.addmm_(positive, inside)
        overlap.addmm_(prob, inside)
        background += negative.sum(1)
        area += prob.sum(1)
    focal = (focal + background[:, None]) / pixels
    return focal, _dice(overlap, area[:, None] + targets.sum(1))


@torch.no_grad()
def point_mask_costs(mask_embed: Tensor, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sigmoid cross-entropy and dice cost at points (Mask2Former, Sec. 3.3).

    Args:
        mask_embed: [R, C].
        features: [C, P] mask features at the points.
        targets: [N, P] float in [0, 1], the objects' masks at the points.

    Returns:
        cross-entropy [R, N] (mean over points) and dice [R, N].
    """
    logits = mask_embed @ features
    # -log(1 - p) off the mask, -log(p) = -log(1 - p) - logit on it
    cross_entropy = (softplus(logits).sum(1, keepdim=True) - logits @ targets.T) / logits.shape[1]
    prob = logits.sigmoid_()
    return cross_entropy, _dice(prob @ targets.T, prob.sum(1, keepdim=True) + targets.sum(1))


def _dice(overlap: Tensor, total: Tensor) -> Tensor:
    return 1 - (2 * overlap + 1) / (total + 1)


# ------------------------------------------------------------------------------------------------------------ losses


def focal_and_dice_loss(logits: Tensor, masks: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and dice loss of masks that are upsampled bilinearly to the targets' size (MaskFormer, Sec. 3.2).

    Equal to interpolating, then writing the two formulas out; memory grows with M * h * w instead of with M * H * W.

    Args:
        logits: [M, h, w] float32.
        masks: [N, H, W] bool, the objects.
        index: [M] int64, the object of each predicted mask.

    Returns:
        focal loss [M] (mean over the H x W pixels) and dice loss [M]. Not twice differentiable.
    """
    return _FocalAndDice.apply(logits, masks, index)


class _FocalAndDice(torch.autograd.Function):
    """Finds the gradients of both losses, at h x w, while the H x W maps of a few masks are in the cache."""

    @staticmethod
    def forward(ctx, logits: Tensor, masks: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        differentiate = ctx.needs_input_grad[0]
        focal, dice = logits.new_empty(len(logits)), logits.new_empty(len(logits))
        d_focal, d_dice = torch.zeros_like(logits), torch.zeros_like(logits)
        height, width = masks.shape[-2:]
        rows = _interpolation(logits.shape[-2], height, logits)
        columns = _interpolation(logits.shape[-1], width, logits)
        step = max(1, tile_elements(logits.device) // (height * width))
        for start in range(0, len(logits), step):
            part = slice(start, start + step)
            inside = masks[index[part]].to(logits.dtype).flatten(1)  # [m, H * W]
            sign = inside.mul(-2).add_(1)
            upsampled = F.interpolate(logits[part, None], size=(height, width), mode="bilinear").flatten(1)
            # z > 0 where the pixel is wrong: off the mask z is the logit, on it its negative
            z = upsampled.mul_(sign)
            wrong, cross_entropy = z.sigmoid(), softplus(z)
            weight = inside.mul(2 * FOCAL_ALPHA - 1).add_(1 - FOCAL_ALPHA).mul_(wrong).mul_(wrong)
            focal[part] = torch.mul(weight, cross_entropy, out=z).mean(1)
            area = inside.sum(1)
            missed = torch.mul(inside, wrong, out=z).sum(1)
            overlap, total = area - missed, wrong.sum(1) - 2 * missed + 2 * area  # sum(p) = false positives + overlap
            dice[part] = _dice(overlap, total)
            if not differentiate:
                continue
            # d focal / d z = weight * (wrong + 2 * (1 - wrong) * cross_entropy)
            slope = cross_entropy.mul_(wrong.neg().add_(1)).mul_(2).add_(wrong).mul_(weight).mul_(sign)
            d_focal[part] = (rows.T @ slope.view(-1, height, width) @ columns).div_(height * width)
            # d dice / d p = (2 * overlap + 1) / (total + 1)^2 - [on the mask] 2 / (total + 1);  d p / d x = p (1 - p)
            everywhere, on_mask = (2 * overlap + 1) / (total + 1) ** 2, -2 / (total + 1)
            factor = inside.mul_(on_mask[:, None]).add_(everywhere[:, None])
            slope = torch.addcmul(wrong, wrong, wrong, value=-1, out=slope).mul_(factor)
            d_dice[part] = rows.T @ slope.view(-1, height, width) @ columns
        ctx.save_for_backward(d_focal, d_dice)
        return focal, dice

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_focal: Tensor, grad_dice: Tensor) -> tuple[Tensor, None, None]:
        d_focal, d_dice = ctx.saved_tensors
        return d_focal * grad_focal[:, None, None] + d_dice * grad_dice[:, None, None], None, None


def _interpolation(size: int, new_size: int, like: Tensor) -> Tensor:
    """Linear interpolation as a matrix [new_size, size], whose transpose is the adjoint: faster than scattering."""
    identity = torch.eye(size, dtype=like.dtype, device=like.device)
    return F.interpolate(identity[None], size=new_size, mode="linear")[0].T


def point_cross_entropy_and_dice_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sigmoid cross-entropy (mean over points) and dice loss at points (Mask2Former, Sec. 3.3).

    Args:
        logits: [M, P].
        targets: [M, P] in [0, 1].

    Returns:
        cross-entropy [M] and dice [M].
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    prob = logits.sigmoid()
    return cross_entropy, _dice((prob * targets).sum(1), prob.sum(1) + targets.sum(1))


def classification_loss(logits: Tensor, labels: Tensor, no_object_weight: float) -> Tensor:
    """Cross-entropy of every query, those without an object down-weighted, as a weighted mean per layer.

    Args:
        logits: [L, B, Q, K + 1].
        labels: [L, B, Q] int64; K is "no object".

    Returns:
        [L].
    """
    num_classes = logits.shape[-1] - 1
    loss = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), reduction="none").view_as(labels)
    weight = torch.where(labels == num_classes, no_object_weight, 1.0)
    return (loss * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1e-6)
