"""Contrastive denoising (DINO, Zhang et al. 2022, Sec. 3.3), in groups as RT-DETR has them.

While training a decoder also gets queries that are made of the objects: with a little noise it is to find the object,
with more of it nothing. With N the most objects of an image of the batch, G groups and D = G * 2 * N queries, each
group has N queries of the first kind and then N of the second, both in the objects' order. Where an image has fewer
than N objects, the rest are queries of no class that are to find nothing; a batch without any object has two of them,
so that all parameters take part in every step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert

from vision_stack.losses.box_matcher import BoxObjects, LayerStack
from vision_stack.losses.matcher import Matches
from vision_stack.ops.boxes import inverse_sigmoid


class NoisedQueries(NamedTuple):
    """D queries of each image."""

    labels: Tensor  # [B, D] int64; K where an image has fewer than N objects
    boxes: Tensor  # [B, D, 4] (cx, cy, w, h) as shares of the image
    num_groups: int


def noised_queries(
    objects: BoxObjects, num_classes: int, *, num_denoising: int, label_noise: float, box_noise: float
) -> NoisedQueries:
    """Queries of as many groups as give about `num_denoising` of the first kind.

    Args:
        label_noise: twice the share of labels that are replaced by a random one.
        box_noise: how far corners are moved at most, in halves of the box's sides; of the second kind at least that
            far, and at most twice as far.
    """
    most = _most(objects.counts)
    num_groups = max(1, num_denoising // most) if any(objects.counts) else 1
    device, dtype, batch = objects.boxes.device, objects.boxes.dtype, len(objects.counts)
    images, slots = (x.to(device, non_blocking=True) for x in _places(objects.counts))
    labels = torch.full((batch, most), num_classes, device=device)
    boxes = torch.zeros(batch, most, 4, device=device, dtype=dtype)
    labels[images, slots], boxes[images, slots] = objects.labels, objects.boxes
    labels, boxes = labels.repeat(1, 2 * num_groups), boxes.repeat(1, 2 * num_groups, 1)

    real = labels < num_classes
    flipped = torch.rand(labels.shape, device=device, dtype=torch.float32) < 0.5 * label_noise
    labels = torch.where(flipped & real, torch.randint(num_classes, labels.shape, device=device), labels)

    sign = torch.randint(2, boxes.shape, device=device).to(dtype) * 2 - 1
    second = torch.arange(2, device=device).repeat_interleave(most).repeat(num_groups)[:, None]
    moved = (torch.rand(boxes.shape, device=device, dtype=dtype) + second) * sign
    corners = box_convert(boxes, "cxcywh", "xyxy") + moved * boxes[..., 2:].repeat(1, 1, 2) * (0.5 * box_noise)
    boxes = box_convert(corners.clamp(0, 1), "xyxy", "cxcywh")
    return NoisedQueries(labels, inverse_sigmoid(boxes).sigmoid(), num_groups)


def attention_between(noised: NoisedQueries, num_queries: int) -> Tensor:
    """[D + Q, D + Q] bool, where a query may attend: to its own group and to the Q others, which see none of the D."""
    total, device = noised.labels.shape[1], noised.labels.device
    group = torch.arange(noised.num_groups, device=device).repeat_interleave(total // noised.num_groups)
    group = torch.cat([group, group.new_full((num_queries,), -1)])
    return (group[:, None] == group) | (group == -1)


def num_groups_of(stack: LayerStack, objects: BoxObjects) -> int:
    """G, of the outputs for `noised_queries`."""
    return stack.logits.shape[2] // (2 * _most(objects.counts))


def denoising_matches(stack: LayerStack, objects: BoxObjects) -> Matches:
    """Which query was made of which object, in every layer and group, of those that are to find it."""
    layers, num_groups = len(stack.logits), num_groups_of(stack, objects)
    images, slots = _places(objects.counts)
    shape = (len(images), layers, num_groups)
    columns = (
        torch.arange(layers)[None, :, None],
        images[:, None, None],
        torch.arange(num_groups) * (2 * _most(objects.counts)) + slots[:, None, None],
        torch.arange(len(images))[:, None, None],
    )
    index = torch.stack([column.expand(shape).flatten() for column in columns])
    per_image = tuple(count * layers * num_groups for count in objects.counts)
    return Matches.found(index, per_image, stack.logits.device)


def _most(counts: tuple[int, ...]) -> int:
    """N."""
    return max(1, *counts)


def _places(counts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The image of each object and its number in it, on the CPU."""
    places = [(image, number) for image, count in enumerate(counts) for number in range(count)]
    images, numbers = torch.tensor(places, dtype=torch.int64).view(-1, 2).unbind(1)
    return images, numbers
