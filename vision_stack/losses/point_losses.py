"""Mask2Former's mask losses at points (Cheng et al. 2022, Sec. 3.3), most of them where the prediction is undecided.

Legend: N objects, L masks predicted for each (one per layer), h x w pixels of the mask logits, H x W pixels of the
target masks, S points.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vision_stack.losses.functional import point_cross_entropy_and_dice_loss
from vision_stack.ops.point_sampling import interpolation_matrix, nearest_to_zero, sample_masks
from vision_stack.ops.tiles import slices, tile_elements


def uncertain_point_losses(
    logits: Tensor,
    masks: Tensor,
    num_points: int,
    oversample_ratio: float = 3.0,
    importance_ratio: float = 0.75,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and dice loss at random points of every mask.

    `oversample_ratio * num_points` uniform candidates are drawn; each mask keeps the `importance_ratio * num_points`
    whose logit is nearest to zero, the rest of its points is uniform.

    Differs from paper: the candidates, and the uniform points, are the same for all masks of a call, where the paper
    draws both for each mask. For a single mask the points are distributed as in the paper, so that the expectation
    of every loss and gradient is the paper's, but their errors are no longer independent. In return one sparse matrix
    interpolates all masks, another takes the gradients back, and targets are sampled once for all layers.

    Args:
        logits: [N, L, h, w] float32.
        masks: [N, H, W] bool.

    Returns:
        cross-entropy [N, L] (mean over a mask's points) and dice loss [N, L]. Not twice differentiable.
    """
    num_uncertain = int(num_points * importance_ratio)
    # Not of the default type, which may be one that cannot tell neighbouring pixels apart.
    candidates = torch.rand(int(num_points * oversample_ratio), 2, device=logits.device, dtype=torch.float32)
    uniform = torch.rand(num_points - num_uncertain, 2, device=logits.device, dtype=torch.float32)
    return _PointLosses.apply(logits, masks, candidates, uniform, num_uncertain)


class Points(NamedTuple):
    """Where masks are looked at: S places, of which each mask keeps some."""

    places: Tensor  # [S, 2]
    num_candidates: int  # the first of them, of which a mask keeps those whose logits are nearest to zero
    num_uncertain: int  # so many; all of the rest are kept


def draw_points(
    num_points: int, device: torch.device, oversample_ratio: float = 3.0, importance_ratio: float = 0.75
) -> Points:
    """Places for `losses_at` of any number of masks, as `uncertain_point_losses` draws them."""
    num_candidates, num_uncertain = int(num_points * oversample_ratio), int(num_points * importance_ratio)
    total = num_candidates + num_points - num_uncertain
    return Points(torch.rand(total, 2, device=device, dtype=torch.float32), num_candidates, num_uncertain)


def losses_at(points: Points, logits: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """The losses of `uncertain_point_losses`, of masks whose logits are made at the points only: where these are fewer
    than the pixels of a map, products of embeddings and features are smaller so.

    Args:
        logits: [N, L, S].
        inside: [N, S] in [0, 1], the targets there.
    """
    uncertain = nearest_to_zero(logits.detach()[..., : points.num_candidates], points.num_uncertain)
    rest = torch.arange(points.num_candidates, logits.shape[2], device=logits.device)
    chosen = torch.cat([uncertain, rest.expand(*uncertain.shape[:2], -1)], dim=2)
    return point_cross_entropy_and_dice_loss(logits.gather(2, chosen), _targets(inside, (slice(None),), chosen))


class _PointLosses(torch.autograd.Function):
    """Goes through the masks a few at a time, and keeps only logits and places of their points for the backward."""

    @staticmethod
    def forward(
        ctx, logits: Tensor, masks: Tensor, candidates: Tensor, uniform: Tensor, num_uncertain: int
    ) -> tuple[Tensor, Tensor]:
        num_objects, layers, h, w = logits.shape
        points = torch.cat([candidates, uniform])
        at_points, inside = interpolation_matrix(points, h, w), sample_masks(masks, points)
        num_points = num_uncertain + len(uniform)
        places = torch.empty(num_objects, layers, num_points, dtype=torch.int32, device=points.device)
        kept = logits.new_empty(places.shape)
        places[..., num_uncertain:] = torch.arange(len(candidates), len(points), device=points.device)
        cross_entropy, dice = logits.new_empty(2, num_objects, layers)
        for part in _parts(logits, len(points)):
            values = _transposed(at_points.matmul(_transposed(logits[part].flatten(2).flatten(0, 1))))
            values = values.view(*logits[part].shape[:2], -1)
            places[part][..., :num_uncertain] = nearest_to_zero(values[..., : len(candidates)], num_uncertain)
            chosen = places[part].long()
            kept[part] = values.gather(2, chosen)
            cross_entropy[part], dice[part] = point_cross_entropy_and_dice_loss(
                kept[part], _targets(inside, part, chosen)
            )
        ctx.save_for_backward(kept, places, inside, points)
        ctx.size = (h, w)
        return cross_entropy, dice

    @staticmethod
    @once_differentiable
    def backward(ctx, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        kept, places, inside, points = ctx.saved_tensors
        h, w = ctx.size
        to_pixels = interpolation_matrix(points, h, w).transpose()
        gradient = kept.new_empty(*kept.shape[:2], h, w)
        for part in _parts(gradient, len(points)):
            chosen = places[part].long()
            with torch.enable_grad():
                logits = kept[part].requires_grad_()
                losses = point_cross_entropy_and_dice_loss(logits, _targets(inside, part, chosen))
                (slopes,) = torch.autograd.grad(losses, logits, [outer[part] for outer in upstream])
            at_points = slopes.new_zeros(*slopes.shape[:2], len(points)).scatter_(2, chosen, slopes)
            on_map = to_pixels.matmul(_transposed(at_points.flatten(0, 1)))
            gradient[part] = on_map.T.view(gradient[part].shape)
        return gradient, None, None, None, None


def _parts(maps: Tensor, num_points: int) -> Iterator[tuple[slice, slice]]:
    """Which of N x L masks to do at once."""
    num_objects, layers = maps.shape[:2]
    at_once = max(1, tile_elements(maps.device, 2**21) // num_points)
    for objects in slices(num_objects, max(1, at_once // max(layers, 1))):
        for some in slices(layers, at_once):
            yield objects, some


def _targets(inside: Tensor, part: tuple[slice, ...], chosen: Tensor) -> Tensor:
    """Targets [N, S] at the chosen points of a part of the masks, the same targets for each layer: [n, l, P]."""
    return inside[part[0], None].expand(-1, chosen.shape[1], -1).gather(2, chosen)


def _transposed(matrix: Tensor) -> Tensor:
    return matrix.T.contiguous()
