"""What a transform leaves of an image's objects, and the `Target` that is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat, Mask

from vision_stack.data.augment.placing import MaskStride
from vision_stack.ops.masks import coarser, placed_boxes
from vision_stack.structures import PlacedMask, Target


class Objects(NamedTuple):
    """N objects of an image where a transform has moved them, and regions to ignore."""

    labels: Sequence[int]
    masks: Sequence[PlacedMask | None]  # None of an object that has only a box
    boxes: NDArray[np.float64] = np.zeros((0, 4))  # [N, 4], clipped; read of objects without masks, or of coarse ones
    ignored: NDArray[np.float64] = np.zeros((0, 4))  # [M, 4]
    pixels: NDArray[np.float64] | None = None  # [N] areas; None where masks are of pixels


class SampleTarget(NamedTuple):
    target: Target  # without masks
    masks: tuple[PlacedMask, ...] | None  # of its objects


def make_target(
    objects: Objects, size: tuple[int, int], min_pixels: int = 1, *, stride: MaskStride = 1
) -> SampleTarget:
    """The objects with at least `min_pixels` pixels; boxes are tight around their masks of pixels.

    Of an object without a mask the box counts, which must be a pixel wide and high. A coarse mask comes with its box.

    Args:
        stride: of the masks in the target, which all objects must have; None: no masks.
    """
    kept: list[int] = []
    for index, mask in enumerate(objects.masks):
        if mask is not None:
            pixels = np.count_nonzero(mask.cells) if objects.pixels is None else objects.pixels[index]
            if mask.cells.size and pixels >= min_pixels:
                kept.append(index)
        else:
            width, height = objects.boxes[index, 2:] - objects.boxes[index, :2]
            if min(width, height) >= 1 and width * height >= min_pixels:
                kept.append(index)
    masks = [mask for index in kept if (mask := objects.masks[index]) is not None]
    boxes = objects.boxes[kept] if len(objects.boxes) else np.zeros((len(kept), 4))
    if objects.pixels is None:
        boxes[[objects.masks[index] is not None for index in kept]] = placed_boxes(masks)
        if stride is not None and stride > 1:
            masks = [coarser(mask, stride) for mask in masks]
    labels = torch.tensor([objects.labels[index] for index in kept], dtype=torch.int64)
    ignored = torch.from_numpy(objects.ignored[(objects.ignored[:, 2:] > objects.ignored[:, :2]).all(axis=1)]).float()
    target = wrap_target(labels, torch.from_numpy(boxes).float(), size, None, ignored if len(ignored) else None)
    return SampleTarget(target, None if stride is None else tuple(masks))


def wrap_target(
    labels: Tensor, boxes: Tensor, size: tuple[int, int], masks: Tensor | None = None, ignored: Tensor | None = None
) -> Target:
    """Plain tensors -> a `Target` of tv_tensors. Labels [N], boxes [N, 4] xyxy, masks [N, *size], ignored [M, 4]."""
    target: Target = {
        "labels": labels,
        "boxes": BoundingBoxes(boxes, format=BoundingBoxFormat.XYXY, canvas_size=size),
    }
    if masks is not None:
        target["masks"] = Mask(masks)
    if ignored is not None:
        target["ignored"] = ignored
    return target
