"""The loss of detectors of the DETR family: queries are matched to the objects by class and box, then supervised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert

from vision_stack.config import Config, ConfigError, Count, Fraction, NonNegative
from vision_stack.losses.box_matcher import BoxCosts, BoxObjects, LayerStack, box_objects, labels_for, match_boxes
from vision_stack.losses.class_losses import CLASS_LOSSES, ClassLossName
from vision_stack.losses.criterion import mean_over_ranks, named_by_layer, widened
from vision_stack.losses.denoising import denoising_matches, num_groups_of
from vision_stack.losses.matcher import Matches, warn_about_dropped
from vision_stack.ops.boxes import iou_and_giou, is_ignored
from vision_stack.outputs import BoxOutputs
from vision_stack.structures import Target

PARTS = ("class", "bbox", "giou")
DENOISING = "_denoising"  # suffix of the losses of noised objects


@dataclass(frozen=True, kw_only=True)
class BoxCriterionConfig(Config):
    """Options of `BoxCriterion`; the defaults are Deformable DETR's. LW-DETR: "ia_bce", class_weight 1; RT-DETR:
    "varifocal", class_weight 1; DEIM: "mal", class_weight 1.
    """

    class_loss: ClassLossName = "focal"
    class_weight: NonNegative = 2.0
    bbox_weight: NonNegative = 5.0  # of L1
    giou_weight: NonNegative = 2.0
    class_cost: NonNegative = 2.0  # in the matching, whatever the loss that of the focal loss
    bbox_cost: NonNegative = 5.0
    giou_cost: NonNegative = 2.0
    quality_cost_from: Fraction = 1.0  # part of the training from which boxes are matched by p * IoU^4 alone (DEIMv2)
    # Of heads with masks; the defaults are RF-DETR-Seg's (see `vision_stack.losses.box_mask_criterion`).
    mask_weight: NonNegative = 5.0  # of cross-entropy at points
    dice_weight: NonNegative = 5.0
    mask_cost: NonNegative = 5.0
    dice_cost: NonNegative = 5.0
    cells_per_point: Count = 16  # of the mask features, for each point that is looked at

    def check(self) -> None:
        if not any(self.costs):
            raise ConfigError("bbox_cost: all matching costs are 0; at least one of class, bbox, giou must count")
        if not (self.class_weight or self.bbox_weight or self.giou_weight):
            raise ConfigError("class_weight: all loss weights are 0, so that nothing would be learnt; raise one")

    @property
    def costs(self) -> BoxCosts:
        return BoxCosts(self.class_cost, self.bbox_cost, self.giou_cost)

    def costs_at(self, progress: float) -> BoxCosts:
        """Those at a part of the training."""
        return BoxCosts(0.0, 0.0, 0.0, quality=1.0) if progress >= self.quality_cost_from else self.costs

    def build(self) -> BoxCriterion:
        return BoxCriterion(self)


class BoxCriterion(nn.Module):
    """Set-prediction loss of DETR (Carion et al. 2020, Sec. 3.1) with sigmoid classes (Deformable DETR, Sec. A.4).

    All decoder layers are supervised, and the encoder's proposals where there are any; each layer is matched on its
    own, and so is each group of queries (Group DETR, Chen et al. 2023, Sec. 3.2).
    """

    def __init__(self, config: BoxCriterionConfig) -> None:
        super().__init__()
        self.config = config
        self.progress = 0.0

    def set_progress(self, progress: float) -> None:
        """Hear what part of the training is done, from 0 on."""
        self.progress = progress

    def forward(self, outputs: BoxOutputs, targets: Sequence[Target], num_groups: int = 1) -> dict[str, Tensor]:
        """Weighted losses of all layers, float32 (of float64 outputs float64) whatever autocast says; their sum is the
        total. Sums over queries are divided by the number of objects, of all ranks, and by the number of groups.

        Args:
            outputs: of the head.
            targets: one per image, boxes xyxy in pixels; N may be 0. A query without an object whose box lies in one of
                the `ignored` regions has no class loss.
            num_groups: how many groups the queries, and the proposals, are of.

        Returns:
            scalars `loss_class`, `loss_bbox`, `loss_giou` of the last layer, with `_0` ... `_{L-1}` of the earlier ones
            and with `_encoder` of the proposals; with `_denoising` (and `_denoising_0` ...) of noised objects.
        """
        return self.matched(outputs, targets, num_groups)[0]

    def matched(
        self, outputs: BoxOutputs, targets: Sequence[Target], num_groups: int, more_costs: Sequence[list[Tensor]] = ()
    ) -> tuple[dict[str, Tensor], list[Matches]]:
        """The losses, and the matches of the decoder's layers and of the proposals.

        Args:
            more_costs: to add in the matching, see `match_boxes`; of the decoder's layers, then of the proposals.
        """
        with torch.autocast(outputs.pred_logits.device.type, enabled=False):
            objects = box_objects(targets, outputs.image_sizes, widened(outputs.pred_boxes).dtype)
            parts = self.parts(outputs, objects, num_groups, more_costs)
            (num_boxes,) = mean_over_ranks([objects.boxes.new_full((1,), sum(objects.counts))], at_least=1.0)
            losses: dict[str, Tensor] = {}
            for part in parts:
                fit = fit_of(part.stack, objects, part.matches)
                ignored = ignored_queries(part.stack.boxes.detach(), targets, outputs.image_sizes)
                class_ = self.class_sums(part, objects, fit, ignored)
                sums = torch.cat([class_[None], box_sums(part.stack, part.matches, fit)])
                losses |= self.named(part, sums / (num_boxes * part.num_groups))
        return losses, [part.matches for part in parts if part.suffix != DENOISING]

    def parts(
        self, outputs: BoxOutputs, objects: BoxObjects, num_groups: int, more_costs: Sequence[list[Tensor]] = ()
    ) -> list[Part]:
        """The decoder's layers, the encoder's proposals, and noised objects; the first two are matched."""
        searched = {
            "": (
                torch.cat([outputs.aux_logits, outputs.pred_logits[None]]),
                torch.cat([outputs.aux_boxes, outputs.pred_boxes[None]]),
            )
        }
        if outputs.encoder_logits is not None and outputs.encoder_boxes is not None:
            searched["_encoder"] = (outputs.encoder_logits[None], outputs.encoder_boxes[None])
        stacks = [LayerStack(*(_grouped(x, num_groups) for x in pair)) for pair in searched.values()]
        matches = match_boxes(stacks, objects, self.config.costs_at(self.progress), more_costs)
        warn_about_dropped(matches[0].dropped, num_queries=stacks[0].logits.shape[2])
        named = zip(searched, stacks, matches, strict=True)
        parts = [Part(suffix, stack, num_groups, found) for suffix, stack, found in named]
        if outputs.denoising_logits is not None and outputs.denoising_boxes is not None:
            stack = LayerStack(widened(outputs.denoising_logits), widened(outputs.denoising_boxes))
            copies = denoising_matches(stack, objects)
            parts.append(Part(DENOISING, stack, num_groups_of(stack, objects), copies))
        return parts

    def class_sums(self, part: Part, objects: BoxObjects, fit: Fit, ignored: Tensor | None) -> Tensor:
        """Class loss of each layer [L], summed over the batch; `fit` is that of the part's matches."""
        stack, matches = part.stack, part.matches
        queries = (matches.layers, matches.images, matches.queries)
        cells = (*queries, labels_for(stack, objects.labels)[matches.objects])
        loss = CLASS_LOSSES[self.config.class_loss]
        negative = loss.negative(stack.logits)
        negative = negative.index_put(cells, negative.new_zeros(()))
        if ignored is not None:
            ignored[queries] = False
            negative = negative.masked_fill(ignored[..., None], 0.0)
        positive = loss.positive(stack.logits[cells], fit.iou.detach())
        return negative.sum((1, 2, 3)).index_add(0, matches.layers, positive)

    def named(self, part: Part, means: Tensor) -> dict[str, Tensor]:
        """Weighted losses by name, of class loss, L1 and 1 - GIoU [3, L], which are added up over groups."""
        weights = (self.config.class_weight, self.config.bbox_weight, self.config.giou_weight)
        layers = means if part.suffix == DENOISING else means.unflatten(1, (-1, part.num_groups)).sum(2)
        rows = zip(PARTS, weights, layers, strict=True)
        return named_by_layer(**{f"loss_{name}{part.suffix}": weight * row for name, weight, row in rows})


class Part(NamedTuple):
    """Layers that are supervised alike; each group of queries that is matched on its own is one more."""

    suffix: str  # of their losses' names
    stack: LayerStack
    num_groups: int  # of queries that each object has one query in
    matches: Matches


class Pairs(NamedTuple):
    """M queries and their objects, as `Matches` has them."""

    layers: Tensor  # [M] int64
    images: Tensor  # [M]
    queries: Tensor  # [M]
    objects: Tensor  # [M]


class Fit(NamedTuple):
    """How near the boxes of M pairs are, [M] each."""

    l1: Tensor
    iou: Tensor
    giou: Tensor


def fit_of(stack: LayerStack, objects: BoxObjects, pairs: Matches | Pairs) -> Fit:
    """L1, IoU and generalised IoU of the boxes of queries and their objects."""
    boxes, wanted = stack.boxes[pairs.layers, pairs.images, pairs.queries], objects.boxes[pairs.objects]
    iou, giou = iou_and_giou(*(box_convert(x, "cxcywh", "xyxy") for x in (boxes, wanted)))
    return Fit(F.l1_loss(boxes, wanted, reduction="none").sum(1), iou, giou)


def box_sums(stack: LayerStack, pairs: Matches | Pairs, fit: Fit) -> Tensor:
    """L1 and 1 - GIoU, summed over the pairs of each layer: [2, L]."""
    of_pairs = torch.stack([fit.l1, 1 - fit.giou])
    return of_pairs.new_zeros(2, len(stack.logits)).index_add(1, pairs.layers, of_pairs)


def _grouped(x: Tensor, num_groups: int) -> Tensor:
    """[L, B, G * Q, D] -> [L * G, B, Q, D]."""
    return widened(x).unflatten(2, (num_groups, -1)).transpose(1, 2).flatten(0, 1)


def ignored_queries(boxes: Tensor, targets: Sequence[Target], image_sizes: Tensor) -> Tensor | None:
    """[L, B, Q] True where a box [L, B, Q, 4] lies in an ignored region of its image; None without such regions."""
    if not any("ignored" in target for target in targets):
        return None
    corners = box_convert(boxes * image_sizes.to(boxes.dtype).repeat(1, 2)[:, None], "cxcywh", "xyxy")
    found = torch.zeros(boxes.shape[:3], dtype=torch.bool, device=boxes.device)
    for image, target in enumerate(targets):
        if (inside := is_ignored(corners[:, image].flatten(0, 1), target)) is not None:
            found[:, image] = inside.view(len(boxes), -1)
    return found
