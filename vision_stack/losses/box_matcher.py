"""Hungarian matching of boxes (DETR, Sec. 3.1): all layers, groups of queries and images in one copy to the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert

from vision_stack.losses.class_losses import focal_negative, focal_positive
from vision_stack.losses.matcher import Matches, assign, padded_rows
from vision_stack.ops.boxes import iou_and_giou
from vision_stack.ops.tiles import slices, tile_elements
from vision_stack.structures import Target

QUALITY_EXPONENT = 4  # of the IoU


class BoxObjects(NamedTuple):
    """The targets of a batch as plain tensors, one image after the other."""

    labels: Tensor  # [N1 + ... + NB] int64
    boxes: Tensor  # [N1 + ... + NB, 4] (cx, cy, w, h) as shares of the image
    counts: tuple[int, ...]  # N of every image


class LayerStack(NamedTuple):
    """Layers with equally many queries. A group of queries that is matched on its own counts as a layer."""

    logits: Tensor  # [L, B, Q, K], or [L, B, Q, 1] where all objects are of one class
    boxes: Tensor  # [L, B, Q, 4] (cx, cy, w, h)


class BoxCosts(NamedTuple):
    """What the terms count in the matching cost."""

    class_: float
    l1: float
    giou: float
    quality: float = 0.0


@torch.no_grad()
def match_boxes(
    stacks: Sequence[LayerStack], objects: BoxObjects, weights: BoxCosts, more: Sequence[list[Tensor]] = ()
) -> list[Matches]:
    """Assign every object of every image one query per layer, at the least total cost; a Matches for each stack.

    The cost is the focal loss that the object's class would have beyond that of no object (Deformable DETR), L1 of
    normalised boxes, -GIoU, and minus the quality: the probability of the class times IoU^4 (DEIMv2). With more objects
    than queries the cheapest are kept.

    Args:
        more: costs to add, for each of the first stacks those of each image with objects, flat [layers, queries,
            objects].
    """
    parts = [_costs(stack, objects, weights) for stack in stacks]
    for part, added in zip(parts, more, strict=False):
        if part:
            part[:] = [torch.cat(part) + torch.cat(added)]
    costs = [each for part in parts for each in part]
    sizes = [(len(stack.logits), stack.logits.shape[2]) for stack in stacks]
    return assign(costs, sizes, objects.counts, objects.boxes.device)


def box_objects(targets: Sequence[Target], image_sizes: Tensor, dtype: torch.dtype) -> BoxObjects:
    """Targets as matching and losses take them.

    Args:
        targets: one per image, boxes xyxy in pixels.
        image_sizes: [B, 2] (width, height) in pixels.
        dtype: of the boxes.
    """
    # Every operation on a tensor subclass such as tv_tensors.BoundingBoxes pays for dispatch in Python.
    labels = [target["labels"].as_subclass(Tensor) for target in targets]
    pairs = zip(targets, image_sizes.to(dtype).repeat(1, 2), strict=True)
    boxes = torch.cat([target["boxes"].as_subclass(Tensor).to(dtype) / size for target, size in pairs])
    return BoxObjects(torch.cat(labels), box_convert(boxes, "xyxy", "cxcywh"), tuple(len(each) for each in labels))


def labels_for(stack: LayerStack, labels: Tensor) -> Tensor:
    """Labels of objects -> the logits that stand for them."""
    return torch.zeros_like(labels) if stack.logits.shape[3] == 1 else labels


def _costs(stack: LayerStack, objects: BoxObjects, weights: BoxCosts) -> list[Tensor]:
    """Flat, image by image [layers, queries, objects of the image]."""
    logits = stack.logits.transpose(0, 1).flatten(1, 2)  # [B, R, K], R = L * Q
    boxes = stack.boxes.transpose(0, 1).flatten(1, 2)
    corners, object_corners = (box_convert(x, "cxcywh", "xyxy") for x in (boxes, objects.boxes))
    labels = labels_for(stack, objects.labels)
    rows = logits.shape[1]
    images_at_once = max(1, tile_elements(logits.device, 2**20) // (rows * max(1, *objects.counts)))
    costs: list[Tensor] = []
    for images in slices(len(logits), images_at_once):
        counts = objects.counts[images]
        if not any(counts):
            continue
        theirs = padded_rows(objects.counts, images, logits.device)  # [b, N]
        of_class = logits[images].gather(2, labels[theirs][:, None].expand(-1, rows, -1))  # [b, R, N]
        iou, giou = iou_and_giou(corners[images][:, :, None], object_corners[theirs][:, None])
        cost = -weights.giou * giou
        if weights.class_ or weights.l1:
            l1 = torch.zeros_like(of_class)
            # Coordinate by coordinate: several times as fast as `torch.cdist`, and no [b, R, N, 4] is made.
            for one, other in zip(boxes[images].unbind(-1), objects.boxes[theirs].unbind(-1), strict=True):
                l1 += (one[:, :, None] - other[:, None]).abs()
            cost += weights.class_ * (focal_positive(of_class) - focal_negative(of_class)) + weights.l1 * l1
        if weights.quality:
            cost -= weights.quality * of_class.sigmoid() * iou**QUALITY_EXPONENT
        costs += [each[:, :count].flatten() for each, count in zip(cost, counts, strict=True)]
    return costs
