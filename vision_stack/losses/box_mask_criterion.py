"""The loss of detectors of the DETR family whose queries have masks: they count in the matching and in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vision_stack.config import Count, NonNegative
from vision_stack.losses.box_criterion import BoxCriterion, BoxCriterionConfig
from vision_stack.losses.criterion import mean_over_ranks, named_by_layer, widened
from vision_stack.losses.functional import point_mask_costs
from vision_stack.losses.matcher import Matches
from vision_stack.losses.point_losses import uncertain_point_losses
from vision_stack.ops.point_sampling import sample_maps, sample_masks
from vision_stack.outputs import MaskedBoxOutputs
from vision_stack.structures import Target


@dataclass(frozen=True, kw_only=True)
class BoxMaskCriterionConfig(BoxCriterionConfig):
    """Options of `BoxMaskCriterion`; the defaults are RF-DETR-Seg's."""

    mask_weight: NonNegative = 5.0  # of cross-entropy at points
    dice_weight: NonNegative = 5.0
    mask_cost: NonNegative = 5.0
    dice_cost: NonNegative = 5.0
    cells_per_point: Count = 16  # of the mask features, for each point that is looked at

    def build(self) -> BoxMaskCriterion:
        return BoxMaskCriterion(self)


class MaskStack(NamedTuple):
    """Masks of layers that are supervised alike, as factors of a product."""

    embed: Tensor  # [L, B, G * Q, C]
    features: Tensor  # [L, B, C, h, w]


class BoxMaskCriterion(BoxCriterion):
    """`BoxCriterion` with masks, at points as Mask2Former has them (Cheng et al. 2022, Sec. 3.3).

    Differs from RF-DETR's code: objects' masks are read bilinearly, not at the nearest pixel; all images and layers are
    matched at the same points, and masks that are supervised share candidates (see `uncertain_point_losses`).
    """

    config: BoxMaskCriterionConfig

    def forward(  # type: ignore[override]
        self, outputs: MaskedBoxOutputs, targets: Sequence[Target], num_groups: int = 1
    ) -> dict[str, Tensor]:
        """As `BoxCriterion.forward`; targets have masks [N, H, W], and there are `loss_mask` and `loss_dice`, too."""
        with torch.autocast(outputs.mask_embed.device.type, enabled=False):
            masks = torch.cat([target["masks"].as_subclass(Tensor) for target in targets])
            counts = tuple(len(target["labels"]) for target in targets)
            stacks = [MaskStack(widened(outputs.mask_embed), widened(outputs.mask_features))]
            if outputs.encoder_embed is not None and outputs.encoder_features is not None:
                encoder = (outputs.encoder_embed[None], outputs.encoder_features[None])
                stacks.append(MaskStack(*(widened(x) for x in encoder)))
            costs = [self._mask_costs(stack, masks, counts, num_groups) for stack in stacks]
            losses, matches = self.matched(outputs.boxes, targets, num_groups, costs)
            (num_masks,) = mean_over_ranks([stacks[0].embed.new_full((1,), sum(counts))], at_least=1.0)
            for suffix, stack, found in zip(("", "_encoder"), stacks, matches, strict=False):
                mask, dice = self._mask_losses(stack, masks, found, num_groups)
                losses |= named_by_layer(
                    **{
                        f"loss_mask{suffix}": self.config.mask_weight * mask / (num_masks * num_groups),
                        f"loss_dice{suffix}": self.config.dice_weight * dice / (num_masks * num_groups),
                    }
                )
        return losses

    def _num_points(self, height: int, width: int) -> int:
        return max(height, height * width // self.config.cells_per_point)

    @torch.no_grad()
    def _mask_costs(self, stack: MaskStack, masks: Tensor, counts: tuple[int, ...], num_groups: int) -> list[Tensor]:
        """Of each image with objects, flat [L * G, Q, N]: as `match_boxes` lays them out."""
        layers, _, queries = stack.embed.shape[:3]
        points = torch.rand(self._num_points(*stack.features.shape[-2:]), 2, device=masks.device, dtype=torch.float32)
        inside = sample_masks(masks, points)
        costs = []
        for image, objects in enumerate(inside.split(counts)):
            if not len(objects):
                continue
            at_points = sample_maps(stack.features[:, image].float(), points.expand(layers, -1, -1))  # [L, C, P]
            cross_entropy, dice = point_mask_costs(
                stack.embed[:, image].float(), at_points, objects.expand(layers, -1, -1)
            )
            cost = self.config.mask_cost * cross_entropy + self.config.dice_cost * dice  # [L, G * Q, N]
            costs.append(cost.view(layers * num_groups, queries // num_groups, -1).flatten())
        return costs

    def _mask_losses(self, stack: MaskStack, masks: Tensor, matches: Matches, num_groups: int) -> tuple[Tensor, Tensor]:
        """Cross-entropy and dice loss of each layer, [L] each, sums over the batch; of a stack of layers of groups."""
        layers, _, total = stack.embed.shape[:3]
        embed = stack.embed.unflatten(2, (num_groups, total // num_groups))  # [L, B, G, Q, C]
        sums = []
        for number, features in enumerate(stack.features):
            rows = _rows_of(number, layers, num_groups, matches)
            if not rows.numel():  # zero, but with gradients for all parameters
                sums.append((embed[number].sum() + features.sum()).expand(2) * 0)
                continue
            flat = rows.flatten()
            factors = embed[number][matches.images[flat], matches.layers[flat] % num_groups, matches.queries[flat]]
            of_images = factors.split([count // layers for count in matches.counts])
            products = [each @ maps for each, maps in zip(of_images, features.flatten(2), strict=True)]
            logits = torch.cat(products).view(*rows.shape, *features.shape[-2:])
            num_points = self._num_points(*features.shape[-2:])
            losses = uncertain_point_losses(logits.float(), masks[matches.objects[rows[:, 0]]], num_points)
            sums.append(torch.stack([loss.sum() for loss in losses]))
        mask, dice = torch.stack(sums, dim=1)
        return mask, dice


def _rows_of(number: int, layers: int, num_groups: int, matches: Matches) -> Tensor:
    """Which matches are of a layer: [objects, groups], or [matches, 1] where objects lack a query in some group."""
    if matches.dropped:
        return (matches.layers // num_groups == number).nonzero()
    rows = torch.arange(len(matches.layers), device=matches.layers.device)
    return rows.view(-1, layers, num_groups)[:, number]  # every object has a query in each layer and group
