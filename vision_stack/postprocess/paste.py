"""Masks predicted inside of boxes, as in Mask R-CNN, pasted into the image (He et al. 2017, Sec. 3.1)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vision_stack.postprocess.crop_rle import encode_crop

THRESHOLD = 0.5


def paste_masks(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], form: Literal["bool", "rle"] = "bool"
) -> Tensor | list[Any]:
    """Paste each mask into its box, at the box's own size only.

    As in torchvision, a mask [M, M] gets a rim of one zero, its box grows by the same share and is rounded to pixels,
    and the mask is resized to it bilinearly and thresholded at 0.5.

    Args:
        masks: [N, M, M] probabilities.
        boxes: [N, 4] in pixels of the image.
        size: (height, width) of the image.

    Returns:
        [N, height, width] bool, or N RLEs.
    """
    height, width = size
    side = masks.shape[-1]
    padded = F.pad(masks, (1, 1, 1, 1)).cpu().numpy()
    grown = _grown(boxes, (side + 2) / side).cpu().tolist()
    frame = np.zeros((len(masks), height, width), dtype=bool) if form == "bool" else None
    rles: list[Any] = []
    for number, (mask, (x0, y0, x1, y1)) in enumerate(zip(padded, grown, strict=True)):
        w, h = max(x1 - x0 + 1, 1), max(y1 - y0 + 1, 1)
        left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1 + 1, width), min(y1 + 1, height)
        if right <= left or bottom <= top:
            crop, left, top = np.zeros((0, 0), dtype=bool), 0, 0
        else:
            rows = _axis(h, side + 2)[top - y0 : bottom - y0]
            columns = _axis(w, side + 2)[left - x0 : right - x0]
            crop = rows @ mask @ columns.T > THRESHOLD
        if frame is None:
            rles.append(encode_crop(crop, top, left, size))
        else:
            frame[number, top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return rles if frame is None else torch.from_numpy(frame).to(masks.device)


def _grown(boxes: Tensor, scale: float) -> Tensor:
    """Boxes [N, 4] grown around their middle and cut to whole pixels, int64."""
    half, middle = (boxes[:, 2:] - boxes[:, :2]) * 0.5, (boxes[:, 2:] + boxes[:, :2]) * 0.5
    return torch.cat([middle - half * scale, middle + half * scale], dim=1).to(torch.int64)


def _axis(length: int, side: int) -> np.ndarray:
    """Bilinear interpolation of `side` values to `length`, as `align_corners=False` has it: [length, side]."""
    position = np.clip((np.arange(length, dtype=np.float32) + 0.5) * np.float32(side / length) - 0.5, 0, side - 1)
    low = np.minimum(position.astype(np.int64), side - 1)
    high = np.minimum(low + 1, side - 1)
    share = (position - low).astype(np.float32)
    matrix = np.zeros((length, side), dtype=np.float32)
    index = np.arange(length)
    matrix[index, low] += 1 - share
    matrix[index, high] += share
    return matrix
