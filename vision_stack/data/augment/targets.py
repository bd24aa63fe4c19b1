"""What a transform leaves of an image's objects, and the `Target` that is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat, Mask

from vision_stack.ops.masks import masks_to_boxes
from vision_stack.structures import Target


class Objects(NamedTuple):
    """N objects of an image where a transform has moved them, and regions to ignore."""

    labels: Sequence[int]
    masks: Sequence[NDArray[np.bool_] | None]  # [H, W]; None of an object that has only a box
    boxes: NDArray[np.float64] = np.zeros((0, 4))  # [N, 4], clipped; read of objects without masks
    ignored: NDArray[np.float64] = np.zeros((0, 4))  # [M, 4]


def make_target(objects: Objects, size: tuple[int, int], min_pixels: int = 1, *, masks: bool = True) -> Target:
    """A `Target` of the objects with at least `min_pixels` pixels, whose boxes are tight around their masks.

    Of an object without a mask the box counts, which must be a pixel wide and high.

    Args:
        masks: whether the target has masks; then all objects must.
    """
    kept: list[int] = []
    for index, mask in enumerate(objects.masks):
        if mask is not None:
            if np.count_nonzero(mask) >= min_pixels:
                kept.append(index)
        else:
            width, height = objects.boxes[index, 2:] - objects.boxes[index, :2]
            if min(width, height) >= 1 and width * height >= min_pixels:
                kept.append(index)
    found = [objects.masks[index] for index in kept]
    stacked = _stacked([mask for mask in found if mask is not None], size)
    boxes = torch.from_numpy(objects.boxes[kept] if len(objects.boxes) else np.zeros((len(kept), 4))).float()
    boxes[[mask is not None for mask in found]] = masks_to_boxes(stacked)
    labels = torch.tensor([objects.labels[index] for index in kept], dtype=torch.int64)
    ignored = torch.from_numpy(objects.ignored[(objects.ignored[:, 2:] > objects.ignored[:, :2]).all(axis=1)]).float()
    return wrap_target(labels, boxes, size, stacked if masks else None, ignored if len(ignored) else None)


def _stacked(masks: Sequence[NDArray[np.bool_]], size: tuple[int, int]) -> Tensor:
    return torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, *size, dtype=torch.bool)


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
