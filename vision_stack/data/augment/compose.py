"""Carries out a plan: images onto one canvas, and the objects that can still be seen there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from vision_stack.data.augment.geometry import FILL, GeometricTransform
from vision_stack.data.augment.placing import MaskStride
from vision_stack.data.augment.plan import Placement, Plan, Record
from vision_stack.data.augment.targets import Objects
from vision_stack.ops.masks import fill, placed

BLUR = 1.0  # pixels, standard deviation of the border of what is pasted
Found = tuple[int, NDArray[np.bool_] | None, NDArray[np.float64]]  # an object: label, mask [H, W], box [4]


def compose(
    plan: Plan,
    records: Sequence[Record],
    moved: Callable[[int, GeometricTransform], Tensor],
    merged: Collection[int] = (),
    stride: MaskStride = 1,
) -> tuple[Tensor, Objects]:
    """The canvas, uint8 [3, *plan.size], and its objects.

    Args:
        moved: index of a record, transform -> its pixels there, uint8 [3, *transform.size].
        merged: labels of which an image has one segment, as of stuff; those of several placements become one.
        stride: that masks may have; where images are composed, they are of pixels. None: masks are not needed.
    """
    if plan.is_plain:
        (only,) = plan.placements
        objects = records[only.source].objects(only.transform, only.chosen, stride)
        return moved(only.source, only.transform), objects
    pastes = any(placement.how == "objects" for placement in plan.placements)
    stride = None if stride is None and not pastes else 1
    canvas = torch.tensor(FILL, dtype=torch.uint8)[:, None, None].repeat(1, *plan.size)
    found: list[Found] = []
    ignored = []
    for placement in plan.placements:
        if placement.how == "objects" and not placement.chosen:
            continue
        image = moved(placement.source, placement.transform)
        objects = records[placement.source].objects(placement.transform, placement.chosen, stride)
        here = _on_canvas(objects, placement, plan.size)
        if placement.how == "objects":
            here = [each for each in here if each[0] not in merged]
            found = _paste(canvas, image, placement, here, found)
        else:
            region = _region(canvas, placement)
            share = placement.share
            region.copy_(image if share == 1.0 else (region * (1 - share) + image * share).round_().to(torch.uint8))
            ignored.append(_moved(objects.ignored, placement))
            found += here
    found = _merged(found, merged) if merged else found
    boxes = np.array([box for *_, box in found]).reshape(-1, 4)
    masks = [None if mask is None else placed(mask) for _, mask, _ in found]
    return canvas, Objects([label for label, *_ in found], masks, boxes, np.concatenate([*ignored]))


def _region(canvas: Tensor, placement: Placement) -> Tensor:
    (x, y), (height, width) = placement.corner, placement.transform.size
    return canvas[..., y : y + height, x : x + width]


def _moved(boxes: NDArray[np.float64], placement: Placement) -> NDArray[np.float64]:
    return boxes + np.tile(placement.corner, 2)


def _on_canvas(objects: Objects, placement: Placement, size: tuple[int, int]) -> list[Found]:
    """Objects of a placement; those that its transform has cut to nothing are left out."""
    (x, y), (height, width) = placement.corner, placement.transform.size
    boxes = _moved(objects.boxes, placement) if len(objects.boxes) else np.zeros((len(objects.labels), 4))
    found: list[Found] = []
    for label, mask, box in zip(objects.labels, objects.masks, boxes, strict=True):
        whole = None
        if mask is not None:
            if not mask.cells.size:
                continue
            whole = np.zeros(size, bool)
            fill([mask], whole[None, y : y + height, x : x + width])
        found.append((label, whole, box))
    return found


def _paste(canvas: Tensor, image: Tensor, placement: Placement, pasted: list[Found], below: list[Found]) -> list[Found]:
    """Paste objects into the canvas, in place, with a blurred border; gives them and what is left of those below."""
    masks = [mask for _, mask, _ in pasted if mask is not None]
    if not masks:
        return below
    union = np.logical_or.reduce(masks)
    alpha = F.gaussian_blur(torch.from_numpy(union)[None].float(), kernel_size=[5, 5], sigma=[BLUR, BLUR])
    region, share = _region(canvas, placement), _region(alpha, placement)
    region.copy_((region + share * (image.float() - region)).round_().to(torch.uint8))
    left: list[Found] = [(label, None if mask is None else mask & ~union, box) for label, mask, box in below]
    return [each for each in left if each[1] is None or each[1].any()] + pasted


def _merged(found: list[Found], merged: Collection[int]) -> list[Found]:
    """One mask for each of the labels in `merged`, where the first of that label stands."""
    first: dict[int, int] = {}
    result: list[Found] = []
    for label, mask, box in found:
        if label in first and mask is not None:
            _, other, _ = result[first[label]]
            assert other is not None  # label maps have masks
            other |= mask
            continue
        if label in merged:
            first[label] = len(result)
        result.append((label, mask, box))
    return result
