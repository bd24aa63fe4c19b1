"""Losses and matching costs of mask classification, as functions of tensors.

Legend: M pairs of a predicted mask and its object, N objects, R predicted masks of one image (all queries
of all layers), C channels, h x w pixels of the mask logits, H x W pixels of the target masks, P points.

Two things keep these functions cheap. Sums over pixels are taken tile by tile, so that the dozen elementwise passes of
a focal or dice term run in the cache instead of in main memory. And a mask loss is a scalar per mask, so that its
gradient is found along with its value and only at the low resolution of the logits: no map of H x W is ever kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vision_stack.ops.tiles import slices, tile_elements

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2  # the formulas below are written out for it


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), several times as fast on CPUs as `F.softplus`; destroys nothing, not differentiated."""
    return x.abs().neg_().exp_().log1p_().add_(x.clamp(min=0))


def softplus_sum(x: Tensor) -> Tensor:
    """`softplus(x).sum(-1)`, of which the logarithm is the slowest part: it is taken of products of up to 16 numbers,
    all of which are between 1 and 2; not differentiated.
    """
    products = x.abs().neg_().exp_().add_(1)
    for _ in range(4):
        half, odd = divmod(products.shape[-1], 2)
        if odd or not half:
            break
        products = products[..., :half] * products[..., half:]
    return products.log_().sum(-1) + x.clamp(min=0).sum(-1)


# ---------------------------------------------------------------------------------------------------- matching costs


@torch.no_grad()
def dense_mask_costs(mask_embed: Tensor, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and dice cost of every predicted mask with every object, over all pixels (MaskFormer, Sec. 3.2).

    Args:
        mask_embed: [..., R, C], of one image or of several.
        features: [..., C, p] mask features at p pixels; the logits are `mask_embed @ features`.
        targets: [..., N, p] float, 0 or 1.

    Returns:
        focal [..., R, N] (mean over pixels) and dice [..., R, N].
    """
    background, area, overlap = _zeros(mask_embed, targets)
    focal = torch.zeros_like(overlap)
    for tile in _tiles(mask_embed, features, 2**18):
        logits, inside = mask_embed @ features[..., tile], targets[..., tile].mT
        prob, negative = logits.sigmoid(), softplus(logits)
        positive = negative - logits  # -log(p); `negative` is -log(1 - p)
        negative.mul_(prob).mul_(prob).mul_(1 - FOCAL_ALPHA)
        # focal = sum over mask of `positive` + sum over the rest of `negative`, as one product with the masks
        complement = 1 - prob
        positive.mul_(complement).mul_(complement).mul_(FOCAL_ALPHA).sub_(negative)
        focal += positive @ inside
        overlap += prob @ inside
        background += negative.sum(-1)
        area += prob.sum(-1)
    focal = (focal + background[..., None]) / features.shape[-1]
    return focal, _dice(overlap, area[..., None] + targets.sum(-1)[..., None, :])


@torch.no_grad()
def point_mask_costs(mask_embed: Tensor, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sigmoid cross-entropy and dice cost at points (Mask2Former, Sec. 3.3).

    Args:
        mask_embed: [..., R, C], of one image or of several.
        features: [..., C, P] mask features at the points.
        targets: [..., N, P] float in [0, 1], the objects' masks at the points.

    Returns:
        cross-entropy [..., R, N] (mean over points) and dice [..., R, N].
    """
    background, area, overlap = _zeros(mask_embed, targets)
    for tile in _tiles(mask_embed, features, 2**20):
        logits = mask_embed @ features[..., tile]
        background += softplus_sum(logits)
        prob = logits.sigmoid_()
        overlap += prob @ targets[..., tile].mT
        area += prob.sum(-1)
    # -log(1 - p) off the mask, -log(p) = -log(1 - p) - logit on it; the logits' sum over a mask is a product with the
    # features' sum over it, so that it takes no product of all masks with all objects at every point
    on_mask = mask_embed @ (features @ targets.mT)
    cross_entropy = (background[..., None] - on_mask) / features.shape[-1]
    return cross_entropy, _dice(overlap, area[..., None] + targets.sum(-1)[..., None, :])


def _zeros(mask_embed: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What sums over pixels start from: two [..., R], one [..., R, N]."""
    per_mask = mask_embed.new_zeros(mask_embed.shape[:-1])
    return per_mask, per_mask.clone(), mask_embed.new_zeros(*per_mask.shape, targets.shape[-2])


def _tiles(mask_embed: Tensor, features: Tensor, on_cpu: int) -> Iterator[slice]:
    """Parts of the pixels at which the logits of all masks stay in a CPU's cache."""
    masks = max(mask_embed.shape[:-1].numel(), 1)
    return slices(features.shape[-1], max(256, tile_elements(mask_embed.device, on_cpu) // masks // 16 * 16))


def _dice(overlap: Tensor, total: Tensor) -> Tensor:
    return 1 - (2 * overlap + 1) / (total + 1)


# ------------------------------------------------------------------------------------------------------------ losses


def focal_and_dice_loss(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and dice loss of masks that are upsampled bilinearly to the targets' size (MaskFormer, Sec. 3.2).

    Equal to interpolating, then writing the two formulas out; memory grows with h * w instead of with H * W.

    Args:
        logits: [N, L, h, w] float32, the masks that L layers predict for each of N objects.
        masks: [N, H, W] bool.

    Returns:
        focal loss [N, L] (mean over the H x W pixels) and dice loss [N, L]. Not twice differentiable.
    """
    return _FocalAndDice.apply(logits, masks)


class _FocalAndDice(torch.autograd.Function):
    """Finds the gradients of both losses, at h x w, while the H x W maps of a few masks are in the cache."""

    @staticmethod
    def forward(ctx, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        (num_objects, layers, h, w), (height, width) = logits.shape, masks.shape[-2:]
        pixels = height * width
        focal, dice = logits.new_empty(num_objects, layers), logits.new_empty(num_objects, layers)
        d_focal, d_dice = torch.zeros_like(logits), torch.zeros_like(logits)
        rows, columns = _interpolation(h, height, logits), _interpolation(w, width, logits)
        at_once = max(1, tile_elements(logits.device, 2**20) // pixels)  # masks
        for objects in slices(num_objects, max(1, at_once // layers)):
            inside = masks[objects].to(logits.dtype).flatten(1)[:, None]  # [n, 1, H * W], the same for all layers
            sign, area = 1 - 2 * inside, inside.sum(2)
            for some in slices(layers, at_once):
                part = (objects, some)
                maps = logits[part].flatten(0, 1)[:, None]  # as a batch: interpolation is slower over few channels
                upsampled = F.interpolate(maps, size=(height, width), mode="bilinear").view(len(inside), -1, pixels)
                focal[part], dice[part], slopes = _on_pixels(upsampled, inside, sign, area)
                if ctx.needs_input_grad[0]:
                    d_focal[part], d_dice[part] = (rows.T @ s.unflatten(2, (height, width)) @ columns for s in slopes())
        ctx.save_for_backward(d_focal.div_(pixels), d_dice)
        return focal, dice

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_focal: Tensor, grad_dice: Tensor) -> tuple[Tensor, None]:
        d_focal, d_dice = ctx.saved_tensors
        return d_focal * grad_focal[..., None, None] + d_dice * grad_dice[..., None, None], None


def _on_pixels(
    logits: Tensor, inside: Tensor, sign: Tensor, area: Tensor
) -> tuple[Tensor, Tensor, Callable[[], Iterator[Tensor]]]:
    """Losses of masks at full size, and what gives their slopes if asked; works in place, in as few buffers as will do.

    Args:
        logits: [n, l, H * W], overwritten.
        inside: [n, 1, H * W], 1 on the object.
        sign: [n, 1, H * W], -1 on the object, else 1.
        area: [n, 1] pixels of the object.

    Returns:
        focal loss [n, l], dice loss [n, l]; a function that yields the derivatives of H * W times the focal and of the
        dice loss with respect to `logits`, each to be used before the next is asked for.
    """
    # z > 0 where the pixel is wrong: off the object z is the logit, on it its negative
    z = logits.mul_(sign)
    wrong, cross_entropy = z.sigmoid(), softplus(z)
    alpha = (1 - FOCAL_ALPHA) - (1 - 2 * FOCAL_ALPHA) * inside
    weight = torch.mul(wrong, wrong, out=z).mul_(alpha)
    work = weight * cross_entropy
    focal = work.mean(2)
    missed = torch.mul(wrong, inside, out=work).sum(2)
    overlap, total = area - missed, wrong.sum(2) - 2 * missed + 2 * area  # sum(p) = false positives + overlap

    def slopes() -> Iterator[Tensor]:
        # d focal / d z = weight * (wrong + 2 * (1 - wrong) * cross_entropy)
        slope = torch.neg(wrong, out=work).add_(1).mul_(cross_entropy).mul_(2).add_(wrong)
        yield slope.mul_(weight).mul_(sign)
        # d dice / d p = (2 * overlap + 1) / (total + 1)^2 - [on the object] 2 / (total + 1);  d p / d logit = p (1 - p)
        everywhere, on_object = (2 * overlap + 1) / (total + 1) ** 2, -2 / (total + 1)
        factor = torch.addcmul(everywhere[..., None], on_object[..., None], inside, out=cross_entropy)
        yield torch.addcmul(wrong, wrong, wrong, value=-1, out=work).mul_(factor)

    return focal, _dice(overlap, total), slopes


def _interpolation(size: int, new_size: int, like: Tensor) -> Tensor:
    """Linear interpolation as a matrix [new_size, size], whose transpose is the adjoint: faster than scattering."""
    identity = torch.eye(size, dtype=like.dtype, device=like.device)
    return F.interpolate(identity[None], size=new_size, mode="linear")[0].T


def point_cross_entropy_and_dice_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sigmoid cross-entropy (mean over points) and dice loss at points (Mask2Former, Sec. 3.3).

    Args:
        logits: [..., P].
        targets: [..., P] in [0, 1].

    Returns:
        cross-entropy [...] and dice [...].
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(-1)
    prob = logits.sigmoid()
    return cross_entropy, _dice((prob * targets).sum(-1), prob.sum(-1) + targets.sum(-1))


def classification_loss(logits: Tensor, labels: Tensor, no_object_weight: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every query, those without an object down-weighted; per layer a weighted mean's two parts.

    Args:
        logits: [L, B, Q, K + 1].
        labels: [L, B, Q] int64; K is "no object".

    Returns:
        the sum of weighted losses and the sum of weights, [L] each.
    """
    num_classes = logits.shape[-1] - 1
    loss = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), reduction="none").view_as(labels)
    weight = torch.where(labels == num_classes, no_object_weight, 1.0).to(loss.dtype)
    return (loss * weight).sum((1, 2)), weight.sum((1, 2))


def semantic_loss(
    logits: Tensor, labels: Tensor, masks: Tensor, counts: Sequence[int], no_object_weight: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every pixel's class, pixels without an object down-weighted; a weighted mean's two parts.

    Args:
        logits: [B, K + 1, h, w], the last is "no object".
        labels: [N] int64, of all images' objects, one image after the other.
        masks: [N, H, W] bool. A pixel of several objects is that of the one with the fewest pixels.
        counts: how many of the N are in each image.

    Returns:
        the sum of weighted losses and the sum of weights, scalars.
    """
    no_object = logits.shape[1] - 1
    maps = torch.full((len(logits), *logits.shape[-2:]), no_object, device=logits.device)
    inside = F.interpolate(masks[:, None].view(torch.uint8), size=logits.shape[-2:], mode="nearest-exact")[:, 0].float()
    share = inside / inside.sum((1, 2), keepdim=True).clamp(min=1)
    for image, (shares, classes) in enumerate(zip(share.split(list(counts)), labels.split(list(counts)), strict=True)):
        if len(classes):
            most, which = shares.max(0)
            maps[image] = torch.where(most > 0, classes[which], no_object)
    pixels = logits.permute(0, 2, 3, 1).flatten(1, 2)  # [B, h * w, K + 1]
    loss, weight = classification_loss(pixels[None], maps.flatten(1)[None], no_object_weight)
    return loss[0], weight[0]
