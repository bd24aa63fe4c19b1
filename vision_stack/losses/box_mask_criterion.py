"""The loss of detectors of the DETR family whose queries have masks: they count in the matching and in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vision_stack.losses.box_criterion import BoxCriterion
from vision_stack.losses.criterion import mean_over_ranks, named_by_layer, widened
from vision_stack.losses.functional import point_mask_costs
from vision_stack.losses.matcher import Matches
from vision_stack.losses.point_losses import Points, draw_points, losses_at
from vision_stack.ops.point_sampling import sample_features, sample_masks
from vision_stack.ops.tiles import tile_elements
from vision_stack.outputs import BoxOutputs
from vision_stack.structures import Target

MOST_KEPT = 2**24  # logits at points, of all layers and images, that are kept for the backward


class MaskStack(NamedTuple):
    """Masks of layers that are supervised alike, as factors of a product."""

    embed: Tensor  # [L, B, G * Q, C]
    features: Tensor  # [L, B, C, h, w], of the type that autocast gave them
    extra: int  # predictions of classes and boxes before those of the layers, which have the first layer's masks


class BoxMaskCriterion(nn.Module):
    """A criterion of classes and boxes with masks, at points as Mask2Former has them (Cheng et al. 2022, Sec. 3.3).

    The masks of each layer are learnt by the queries that it is matched with, in which masks count. Noised objects
    (`vision_stack.losses.denoising`) learn no masks: that would be those of a hundred more queries in every layer.

    Differs from RF-DETR's code: objects' masks are read bilinearly, not at the nearest pixel; all images and layers are
    matched at the same points, and masks that are supervised share candidates (see `losses_at`).
    """

    def __init__(self, boxes: BoxCriterion) -> None:
        super().__init__()
        self.boxes = boxes
        self.config = boxes.config

    def set_progress(self, progress: float) -> None:
        """See `BoxCriterion.set_progress`."""
        self.boxes.set_progress(progress)

    def forward(self, outputs: BoxOutputs, targets: Sequence[Target], num_groups: int = 1) -> dict[str, Tensor]:
        """As `BoxCriterion.forward`; targets have masks [N, H, W], and there are `loss_mask` and `loss_dice`, too."""
        factors = outputs.masks
        assert factors is not None
        with torch.autocast(factors.embed.device.type, enabled=False):
            masks = torch.cat([target["masks"].as_subclass(Tensor) for target in targets])
            counts = tuple(len(target["labels"]) for target in targets)
            extra = len(outputs.aux_boxes) + 1 - len(factors.embed)
            stacks = [MaskStack(widened(factors.embed), factors.features, extra)]
            if factors.encoder_embed is not None and factors.encoder_features is not None:
                embed, features = factors.encoder_embed[None], factors.encoder_features[None]
                stacks.append(MaskStack(widened(embed), features, 0))
            costs = [self._mask_costs(stack, masks, counts, num_groups) for stack in stacks]
            losses, matches = self.boxes.matched(outputs, targets, num_groups, costs)
            (num_masks,) = mean_over_ranks([stacks[0].embed.new_full((1,), sum(counts))], at_least=1.0)
            for suffix, stack, found in zip(("", "_encoder"), stacks, matches, strict=False):
                mask, dice = self._mask_losses(stack, masks, found, num_groups)
                losses |= named_by_layer(
                    stack.extra,
                    **{
                        f"loss_mask{suffix}": self.config.mask_weight * mask / (num_masks * num_groups),
                        f"loss_dice{suffix}": self.config.dice_weight * dice / (num_masks * num_groups),
                    },
                )
        return losses

    def _num_points(self, height: int, width: int) -> int:
        return max(height, height * width // self.config.cells_per_point)

    @torch.no_grad()
    def _mask_costs(self, stack: MaskStack, masks: Tensor, counts: tuple[int, ...], num_groups: int) -> list[Tensor]:
        """Of each image with objects, flat [(extra + L) * G, Q, N]: as `match_boxes` lays them out."""
        layers = len(stack.embed)
        points = torch.rand(self._num_points(*stack.features.shape[-2:]), 2, device=masks.device, dtype=torch.float32)
        inside = sample_masks(masks, points)
        costs = []
        for image, objects in enumerate(inside.split(counts)):
            if not len(objects):
                continue
            at_points = sample_features(stack.features[:, image], points).float().mT  # [L, C, P]
            cross_entropy, dice = point_mask_costs(
                stack.embed[:, image].float(), at_points, objects.expand(layers, -1, -1)
            )
            cost = self.config.mask_cost * cross_entropy + self.config.dice_cost * dice  # [L, G * Q, N]
            costs.append(torch.cat([cost[:1]] * stack.extra + [cost]).flatten())
        return costs

    def _mask_losses(self, stack: MaskStack, masks: Tensor, matches: Matches, num_groups: int) -> tuple[Tensor, Tensor]:
        """Cross-entropy and dice loss of each layer, [L] each, sums over the batch; of a stack of layers of groups."""
        num_layers, total = len(stack.embed), stack.embed.shape[2]
        layers = stack.extra + num_layers
        of_layers = [_rows_of(stack.extra + number, layers, num_groups, matches) for number in range(num_layers)]
        if not matches.queries.numel():  # zero, but with gradients for all parameters
            zeros = (stack.embed.sum() + stack.features.sum(dtype=stack.embed.dtype)) * 0
            return zeros.expand(num_layers), zeros.expand(num_layers)
        points = draw_points(self._num_points(*stack.features.shape[-2:]), masks.device)
        inside = sample_masks(masks, points.places)
        # One indexing for all layers and images: each would give a gradient of the whole size.
        found = torch.cat([rows.flatten() for rows in of_layers])
        layer, group = matches.layers[found] // num_groups - stack.extra, matches.layers[found] % num_groups
        queries = group * (total // num_groups) + matches.queries[found]
        width = of_layers[0].shape[1]
        embed = stack.embed[layer, matches.images[found], queries].unflatten(0, (-1, width))
        counts = [count // layers // width for count in matches.counts]
        factors = iter(embed.split(counts * num_layers))
        at_points = iter(sample_features(stack.features, points.places).flatten(0, 1))  # [S, C] each
        sums = []
        for rows in of_layers:
            targets = inside[matches.objects[rows[:, 0]]].split(counts)
            images_of_layer = [MaskPart(next(factors), next(at_points), each) for each in targets]
            sums.append(_sums_at(points, images_of_layer, keep=found.numel() * len(points.places) <= MOST_KEPT))
        mask, dice = torch.stack(sums, dim=1)
        return mask, dice


class MaskPart(NamedTuple):
    """Some objects of an image, and the queries of a layer that are matched with them, one in each group."""

    embed: Tensor  # [n, G, C]
    at_points: Tensor  # [S, C], the image's features
    inside: Tensor  # [n, S], targets


def _sums_at(points: Points, parts: Sequence[MaskPart], *, keep: bool) -> Tensor:
    """Cross-entropy and dice loss, summed over all masks: [2].

    Args:
        keep: what the backward needs, of all parts at once. Otherwise it is made again, a few objects at a time.
    """
    if keep:
        logits = torch.cat([part.embed @ part.at_points.T for part in parts])
        losses = losses_at(points, logits.float(), torch.cat([part.inside for part in parts]))
        return torch.stack([loss.sum() for loss in losses])
    sums = parts[0].embed.new_zeros(2)
    for embed, at_points, inside in parts:
        some = max(1, tile_elements(embed.device, 2**20) // (embed.shape[1] * len(at_points)))
        for few in zip(embed.split(some), inside.split(some), strict=True):
            part = MaskPart(few[0], at_points, few[1])
            sums = sums + checkpoint(_sums_at, points, [part], keep=True, use_reentrant=False, preserve_rng_state=False)
    return sums


def _rows_of(number: int, layers: int, num_groups: int, matches: Matches) -> Tensor:
    """Which matches are of a layer: [objects, groups], or [matches, 1] where objects lack a query in some group."""
    if matches.dropped:
        return (matches.layers // num_groups == number).nonzero()
    rows = torch.arange(len(matches.layers), device=matches.layers.device)
    return rows.view(-1, layers, num_groups)[:, number]  # every object has a query in each layer and group
