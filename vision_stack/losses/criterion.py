"""The loss of mask classification: every layer's queries are matched to the objects, then supervised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from vision_stack.config import Config, ConfigError, Count, Fraction, NonNegative, Range
from vision_stack.losses.functional import classification_loss, focal_and_dice_loss, semantic_loss
from vision_stack.losses.matcher import Matches, Objects, Weights, match, warn_about_dropped
from vision_stack.losses.point_losses import uncertain_point_losses
from vision_stack.outputs import AnyMaskOutputs, LayerGroup
from vision_stack.structures import Target


@dataclass(frozen=True, kw_only=True)
class MaskCriterionConfig(Config):
    """Options of `MaskCriterion`; the defaults are MaskFormer's. Mask2Former: class, mask, dice 2, 5, 5 and "point"."""

    class_weight: NonNegative = 1.0
    mask_weight: NonNegative = 20.0
    dice_weight: NonNegative = 1.0
    no_object_weight: NonNegative = 0.1  # weight of the "no object" class in the cross-entropy
    class_cost: NonNegative | None = None  # in the matching; None: the weight of the loss
    mask_cost: NonNegative | None = None
    dice_cost: NonNegative | None = None
    pixel_ce_weight: NonNegative = 0.0  # auxiliary, classes of the mask features' pixels (MaX-DeepLab, Sec. 3.4)
    mask_loss: Literal["focal", "point"] = "focal"  # at all pixels as MaskFormer, or at points as Mask2Former
    num_points: Count = 12544  # this and what follows is for "point"
    oversample_ratio: Annotated[float, Range(1.0, 100.0)] = 3.0
    importance_sample_ratio: Fraction = 0.75

    def check(self) -> None:
        if not any(self.costs):
            raise ConfigError("mask_cost: all matching costs are 0; at least one of class, mask, dice must count")

    @property
    def costs(self) -> Weights:
        """The matching costs, where they are not given those of the losses."""
        own = (self.class_weight, self.mask_weight, self.dice_weight)
        given = (self.class_cost, self.mask_cost, self.dice_cost)
        return Weights(*(weight if cost is None else cost for cost, weight in zip(given, own, strict=True)))

    def build(self, num_classes: int) -> MaskCriterion:
        return MaskCriterion(self, num_classes)


class MaskCriterion(nn.Module):
    """Set-prediction loss of MaskFormer (Cheng et al. 2021, Sec. 3.2) and Mask2Former (Cheng et al. 2022, Sec. 3.3).

    `objects_without_query` is the number of objects of the last batch that were ignored, because their image has more
    objects than the head has queries.
    """

    def __init__(self, config: MaskCriterionConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.objects_without_query = 0

    def forward(
        self, outputs: AnyMaskOutputs, targets: Sequence[Target], pixel_logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Weighted losses of all layers, float32 (of float64 outputs float64) whatever autocast says; their sum is the
        total. Over several ranks they are such that the mean of all ranks' gradients is that of one large batch.

        Layers that share their mask features are matched in one product, and all layers are assigned at once.

        Args:
            outputs: of the head; L earlier layers are supervised too.
            targets: one per image, masks [N, H, W] all of one H x W; N may be 0.
            pixel_logits: [B, K + 1, h, w], the classes of the mask features' pixels, for the auxiliary loss.

        Returns:
            scalars `loss_class`, `loss_mask`, `loss_dice` of the last layer, and `loss_class_0` ... `loss_dice_{L-1}`
            of the earlier ones, first to last; `loss_semantic` where `pixel_logits` are given.
        """
        with torch.autocast(outputs.pred_logits.device.type, enabled=False):
            objects = _objects(targets)
            config = self.config
            groups = [_widened(group) for group in outputs.groups]
            matches = match(groups, objects, config.costs, mask_cost=config.mask_loss, num_points=config.num_points)
            self.objects_without_query = matches[0].dropped
            warn_about_dropped(matches[0].dropped, num_queries=outputs.pred_logits.shape[1])
            losses = [self._group_losses(*each, objects) for each in zip(groups, matches, strict=True)]
            class_, class_weights, mask, dice = (_in_order(groups, parts) for parts in zip(*losses, strict=True))
            divisors = [class_weights, class_.new_full((1,), sum(objects.counts))]
            if pixel_logits is not None:
                semantic, weights = semantic_loss(widened(pixel_logits), *objects, config.no_object_weight)
                divisors.append(weights[None])
            class_weights, num_masks, *pixel_weights = mean_over_ranks(divisors)
            named = named_by_layer(
                loss_class=config.class_weight * class_ / class_weights,
                loss_mask=config.mask_weight * mask / num_masks,
                loss_dice=config.dice_weight * dice / num_masks,
            )
            if pixel_logits is not None:
                named["loss_semantic"] = config.pixel_ce_weight * semantic / pixel_weights[0][0]
        return named

    def _group_losses(
        self, group: LayerGroup, matches: Matches, objects: Objects
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sums over the batch, of each layer of the group: class loss, the weights in it, mask loss, dice loss."""
        logits = group.logits
        labels = torch.full(logits.shape[:3], self.num_classes, device=logits.device)
        labels[matches.layers, matches.images, matches.queries] = objects.labels[matches.objects]
        class_, class_weights = classification_loss(logits, labels, self.config.no_object_weight)

        masks = _matched_masks(group.mask_embed, group.mask_features, matches)
        mask, dice = self._mask_losses(masks, objects, matches, num_layers=len(logits))
        zeros = logits.new_zeros(len(logits))
        mask, dice = (zeros.index_add(0, matches.layers, loss.to(zeros.dtype)) for loss in (mask, dice))
        return class_, class_weights, mask, dice

    def _mask_losses(self, masks: Tensor, objects: Objects, matches: Matches, num_layers: int) -> tuple[Tensor, Tensor]:
        """Mask and dice loss [M] of the matched masks' logits [M, h, w]."""
        config = self.config
        # Every object has one query in each layer, unless some were dropped.
        layers, targets = (1, objects.masks[matches.objects]) if matches.dropped else (num_layers, objects.masks)
        masks = masks.unflatten(0, (len(targets), layers))
        if config.mask_loss == "focal":
            losses = focal_and_dice_loss(masks, targets)
        else:
            losses = uncertain_point_losses(
                masks.float(), targets, config.num_points, config.oversample_ratio, config.importance_sample_ratio
            )
        return losses[0].flatten(), losses[1].flatten()


def _in_order(groups: Sequence[LayerGroup], parts: Sequence[Tensor]) -> Tensor:
    """Values of each group's layers -> of all layers, in the head's order."""
    if len(parts) == 1:
        return parts[0]
    places = [layer for group in groups for layer in group.layers]
    return torch.cat(list(parts))[[places.index(layer) for layer in range(len(places))]]


def widened(values: Tensor) -> Tensor:
    """At least float32, whatever autocast made of it."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _widened(group: LayerGroup) -> LayerGroup:
    return group._replace(
        logits=widened(group.logits),
        mask_embed=widened(group.mask_embed),
        mask_features=widened(group.mask_features),
    )


def _objects(targets: Sequence[Target]) -> Objects:
    # Every operation on a tensor subclass such as tv_tensors.Mask pays for dispatch in Python.
    labels = [target["labels"].as_subclass(torch.Tensor) for target in targets]
    masks = [target["masks"].as_subclass(torch.Tensor) for target in targets]
    return Objects(torch.cat(labels), torch.cat(masks).bool(), tuple(len(each) for each in labels))


def _matched_masks(mask_embed: Tensor, features: Tensor, matches: Matches) -> Tensor:
    """Mask logits of only the matched queries, in the order of `matches`: [M, h, w]."""
    embed = mask_embed[matches.layers, matches.images, matches.queries].split(list(matches.counts))
    cells = features.flatten(2).mT  # taken apart so, gradients of channels-last maps are channels-last as well
    masks = [each @ some.T for each, some in zip(embed, cells.unbind(0), strict=True)]
    return torch.cat(masks).unflatten(1, features.shape[-2:])


def mean_over_ranks(divisors: Sequence[Tensor], at_least: float = 1e-6) -> list[Tensor]:
    """What losses that are summed over a rank's part of the batch are divided by: vectors, in a single exchange.

    DDP averages the gradients of all ranks. With a divisor that is the mean of all ranks', the average is the gradient
    that one process would find for the whole batch. Where nothing was summed, as without any object, it is not zero but
    that of a sum of `at_least`.
    """
    ranks, total = 1, torch.cat(list(divisors))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        ranks = torch.distributed.get_world_size()
        torch.distributed.all_reduce(total)
    return list((total.clamp(min=at_least) / ranks).split([len(divisor) for divisor in divisors]))


def named_by_layer(first: int = 0, /, **losses: Tensor) -> dict[str, Tensor]:
    """Losses [L + 1] per layer from layer `first` on, the last layer's first, under its plain name."""
    named = {name: per_layer[-1] for name, per_layer in losses.items()}
    for name, per_layer in losses.items():
        named |= {f"{name}_{layer}": value for layer, value in enumerate(per_layer[:-1].unbind(0), first)}
    return named
