"""The loss of detectors of the DETR family whose queries have masks: they count in the matching and in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vision_stack.losses.box_criterion import BoxCriterion
from vision_stack.losses.criterion import mean_over_ranks, named_by_layer, widened
from vision_stack.losses.functional import point_mask_costs
from vision_stack.losses.matcher import Matches
from vision_stack.losses.point_losses import draw_points, losses_at
from vision_stack.ops.point_sampling import sample_features, sample_masks
from vision_stack.outputs import BoxOutputs
from vision_stack.structures import Target


class MaskStack(NamedTuple):
    """Masks of layers that are supervised alike, as factors of a product."""

    embed: Tensor  # [L, B, G * Q, C]
    features: Tensor  # [L, B, C, h, w]
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
            stacks = [MaskStack(widened(factors.embed), widened(factors.features), extra)]
            if factors.encoder_embed is not None and factors.encoder_features is not None:
                embed, features = factors.encoder_embed[None], factors.encoder_features[None]
                stacks.append(MaskStack(widened(embed), widened(features), 0))
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
            at_points = sample_features(stack.features[:, image].float(), points).mT  # [L, C, P]
            cross_entropy, dice = point_mask_costs(
                stack.embed[:, image].float(), at_points, objects.expand(layers, -1, -1)
            )
            cost = self.config.mask_cost * cross_entropy + self.config.dice_cost * dice  # [L, G * Q, N]
            costs.append(torch.cat([cost[:1]] * stack.extra + [cost]).flatten())
        return costs

    def _mask_losses(self, stack: MaskStack, masks: Tensor, matches: Matches, num_groups: int) -> tuple[Tensor, Tensor]:
        """Cross-entropy and dice loss of each layer, [L] each, sums over the batch; of a stack of layers of groups."""
        num_layers, images, total = stack.embed.shape[:3]
        layers = stack.extra + num_layers
        of_layers = [_rows_of(stack.extra + number, layers, num_groups, matches) for number in range(num_layers)]
        if not matches.queries.numel():  # zero, but with gradients for all parameters
            zeros = (stack.embed.sum() + stack.features.sum()) * 0
            return zeros.expand(num_layers), zeros.expand(num_layers)
        points = draw_points(self._num_points(*stack.features.shape[-2:]), masks.device)
        inside = sample_masks(masks, points.places)
        # One indexing for all layers and images: each would give a gradient of the whole size.
        found = torch.cat([rows.flatten() for rows in of_layers])
        layer, group = matches.layers[found] // num_groups - stack.extra, matches.layers[found] % num_groups
        queries = group * (total // num_groups) + matches.queries[found]
        embed = stack.embed[layer, matches.images[found], queries]
        factors = embed.split([count // layers for count in matches.counts] * num_layers)
        at_points = sample_features(stack.features, points.places).flatten(0, 1)  # [L * B, S, C]
        products = [each @ values.T for each, values in zip(factors, at_points, strict=True)]
        sums = []
        for number, rows in enumerate(of_layers):
            logits = torch.cat(products[number * images : (number + 1) * images]).view(*rows.shape, -1)
            losses = losses_at(points, logits.float(), inside[matches.objects[rows[:, 0]]])
            sums.append(torch.stack([loss.sum() for loss in losses]))
        mask, dice = torch.stack(sums, dim=1)
        return mask, dice


def _rows_of(number: int, layers: int, num_groups: int, matches: Matches) -> Tensor:
    """Which matches are of a layer: [objects, groups], or [matches, 1] where objects lack a query in some group."""
    if matches.dropped:
        return (matches.layers // num_groups == number).nonzero()
    rows = torch.arange(len(matches.layers), device=matches.layers.device)
    return rows.view(-1, layers, num_groups)[:, number]  # every object has a query in each layer and group
