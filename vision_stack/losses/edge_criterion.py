"""D-FINE's loss (Peng et al. 2024, Sec. 4.2), for edges that are distributions; the last layer teaches the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_stack.config import NonNegative
from vision_stack.losses.box_criterion import (
    DENOISING,
    BoxCriterion,
    BoxCriterionConfig,
    Pairs,
    box_sums,
    fit_of,
    ignored_queries,
)
from vision_stack.losses.box_matcher import BoxObjects, box_objects
from vision_stack.losses.class_losses import ClassLossName
from vision_stack.losses.criterion import mean_over_ranks, widened
from vision_stack.losses.matcher import Matches
from vision_stack.ops.box_edges import moves_between, nearest_bins
from vision_stack.outputs import BoxOutputs, EdgeDistributions
from vision_stack.structures import Target

TEMPERATURE = 5.0


@dataclass(frozen=True, kw_only=True)
class EdgeCriterionConfig(BoxCriterionConfig):
    """Options of `EdgeCriterion`; the defaults are D-FINE's. DEIM: "mal"."""

    class_loss: ClassLossName = "varifocal"
    class_weight: NonNegative = 1.0
    fgl_weight: NonNegative = 0.15  # of the cross-entropy of edges
    ddf_weight: NonNegative = 1.5  # of the divergence from the last layer's edges

    def build(self) -> EdgeCriterion:
        return EdgeCriterion(self)


class EdgeCriterion(BoxCriterion):
    """`BoxCriterion` with fine-grained localization loss (FGL) and decoupled distillation focal loss (DDF).

    Classes are learnt by the queries that each layer is matched with. Boxes and edges are learnt in every layer by all
    queries that are matched in any, or as proposals, each of the object that it has most often.
    """

    config: EdgeCriterionConfig

    def matched(
        self, outputs: BoxOutputs, targets: Sequence[Target], num_groups: int, more_costs: Sequence[list[Tensor]] = ()
    ) -> tuple[dict[str, Tensor], list[Matches]]:
        """As `BoxCriterion.matched`, with `loss_fgl` and `loss_ddf` of the layers that have distributions.

        Sums over classes are divided by the number of objects, those over boxes and edges by that of pairs of the
        union, for noised objects all by that of copies. The distillation is a mean of two: over queries with an object
        and over the others, which count as the roots of their numbers; for noised objects by the same numbers.
        """
        assert num_groups == 1, num_groups  # there is no union over groups
        with torch.autocast(outputs.pred_logits.device.type, enabled=False):
            objects = box_objects(targets, outputs.image_sizes, widened(outputs.pred_boxes).dtype)
            parts = self.parts(outputs, objects, num_groups, more_costs)
            total = outputs.pred_boxes.shape[:2].numel()
            searched = [part.matches for part in parts if part.suffix != DENOISING]
            union = union_of(searched, outputs.pred_boxes.shape[1], len(objects.boxes))
            found = len(union.queries)
            numbers = [objects.boxes.new_full((1,), number) for number in (sum(objects.counts), found)]
            num_objects, num_pairs = mean_over_ranks(numbers, at_least=1.0)
            balance = found**0.5 / (found**0.5 + (total - found) ** 0.5)
            losses: dict[str, Tensor] = {}
            for part in parts:
                layers, per_class = len(part.stack.logits), num_objects * part.num_groups
                once, per_box, edges = union, num_pairs, None if part.suffix else outputs.edges
                if part.suffix == DENOISING:
                    once, per_box, edges = _of_first_layer(part.matches, layers), per_class, outputs.denoising_edges
                ignored = ignored_queries(part.stack.boxes.detach(), targets, outputs.image_sizes)
                class_ = self.class_sums(part, objects, fit_of(part.stack, objects, part.matches), ignored)
                pairs = _in_layers(once, layers)
                fit = fit_of(part.stack, objects, pairs)
                boxes = box_sums(part.stack, pairs, fit)
                losses |= self.named(part, torch.cat([class_[None] / per_class, boxes / per_box]))
                if edges is not None:
                    iou = fit.iou.detach().view(layers, -1)[layers - len(edges.logits) :]
                    fgl = self.config.fgl_weight * fine_grained_sums(edges, objects, once, iou) / per_box
                    ddf = self.config.ddf_weight * distillation(edges, part.stack.logits[-1], once, iou, balance)
                    losses |= _named(f"loss_fgl{part.suffix}", fgl, layers)
                    losses |= _named(f"loss_ddf{part.suffix}", ddf, layers)
        return losses, searched


def union_of(matches: Sequence[Matches], num_queries: int, num_objects: int) -> Pairs:
    """Of each query that has an object in any layer the one that it has most often, then the first; as of layer 0."""
    columns = max(1, num_objects)
    _, images, queries, objects = torch.cat([each.on_host for each in matches], dim=1)
    cells, votes = ((images * num_queries + queries) * columns + objects).unique(return_counts=True)
    cells = cells[votes.argsort(descending=True, stable=True)]
    rows, order = (cells // columns).sort(stable=True)
    best = rows.diff(prepend=rows.new_full((1,), -1)) != 0
    rows, objects = rows[best], (cells % columns)[order][best]
    found = torch.stack([torch.zeros_like(rows), rows // num_queries, rows % num_queries, objects])
    return Pairs(*found.to(matches[0].queries.device, non_blocking=True))


def fine_grained_sums(edges: EdgeDistributions, objects: BoxObjects, pairs: Pairs, iou: Tensor) -> Tensor:
    """Cross-entropy of the two bins next to where each edge should be, weighted by the IoU (FGL): sums by layer, [L].

    Args:
        pairs: M of them.
        iou: [L, M] of the boxes that each layer predicts.
    """
    wanted = moves_between(edges.boxes[pairs.images, pairs.queries], objects.boxes[pairs.objects])
    lower, upper_share = nearest_bins(wanted, edges.bin_values)
    bins = torch.stack([lower, lower + 1], dim=-1)  # [M, 4, 2]
    shares = torch.stack([1 - upper_share, upper_share], dim=-1)
    log_probabilities = edges.logits[:, pairs.images, pairs.queries].log_softmax(-1)
    near = log_probabilities.gather(3, bins.expand(len(iou), -1, -1, -1))
    return -(iou * (shares * near).sum((2, 3))).sum(1)


def distillation(edges: EdgeDistributions, logits: Tensor, pairs: Pairs, iou: Tensor, balance: float) -> Tensor:
    """Divergence of the last layer's distributions from those of each earlier layer (DDF), [L - 1].

    It is weighted by the IoU of queries with an object, by the confidence of the last layer for the others.

    Args:
        logits: [B, Q, K] class logits of the last layer.
        pairs: M of them.
        iou: [L, M] of the boxes that each layer predicts.
        balance: what the mean over the queries with an object counts; that over the others counts the rest.
    """
    last, earlier = (edges.logits[-1].detach(), edges.logits[:-1])
    teacher = (last / TEMPERATURE).log_softmax(-1).expand_as(earlier)
    student = (earlier / TEMPERATURE).log_softmax(-1)
    divergence = TEMPERATURE**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1).mean(-1)
    with_object = divergence[:, pairs.images, pairs.queries]  # [L - 1, M]
    has_object = torch.zeros(logits.shape[:2], dtype=torch.bool, device=logits.device)
    has_object[pairs.images, pairs.queries] = True
    confidence = logits.detach().sigmoid().amax(-1).masked_fill(has_object, 0.0)
    found = with_object.shape[1]
    mean_found = (iou[:-1] * with_object).sum(1) / max(1, found)
    mean_rest = (confidence * divergence).sum((1, 2)) / max(1, has_object.numel() - found)
    return balance * mean_found + (1 - balance) * mean_rest


def _of_first_layer(matches: Matches, layers: int) -> Pairs:
    """Pairs of layer 0, of matches that are the same in all layers."""
    first = slice(None, len(matches.layers) // layers)
    order = matches.layers.argsort(stable=True)[first]
    return Pairs(*(column[order] for column in matches[:4]))


def _in_layers(pairs: Pairs, layers: int) -> Pairs:
    """Pairs of layer 0, in every layer, one after the other."""
    numbers = torch.arange(layers, device=pairs.layers.device).repeat_interleave(len(pairs.layers))
    return Pairs(numbers, *(column.repeat(layers) for column in pairs[1:]))


def _named(name: str, losses: Tensor, layers: int) -> dict[str, Tensor]:
    """Losses of layers from 1 on, of `layers` in all, by name; the last one's has the plain name."""
    return {name if n == layers - 1 else f"{name}_{n}": loss for n, loss in enumerate(losses.unbind(0), 1)}
