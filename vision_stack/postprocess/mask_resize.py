"""From stride-4 mask logits to a boolean mask in the image's own pixels, only where it can be positive.

The weights of both resizes are convex: a pixel whose inputs are all negative is negative, so the box around the
positive logits is all that has to be computed, and the result is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_stack.postprocess.axes import Axis, blocks


class MaskCrop(NamedTuple):
    """A mask inside the box that may hold positive pixels; False everywhere else."""

    top: int
    left: int
    mask: Tensor  # [h, w] bool; [0, 0] where no pixel of the image can be positive


class ResizedMasks(NamedTuple):
    """The masks of M queries in the image's own pixels."""

    crops: list[MaskCrop]
    boxes: Tensor  # [M, 4] float32, (x0, y0, x1, y1) tight around the masks; zeros where a mask is empty
    qualities: Tensor  # [M] float32, mean sigmoid inside the mask; 0 where it is empty


def positive_boxes(logits: Tensor) -> list[list[int]]:
    """Boxes (top, bottom, left, right), bottom and right exclusive, around the positive logits: [M, h, w] -> M x 4.

    A mask without any has an empty box. One device-to-host copy for all.
    """
    edges = torch.stack([*_extent(logits.amax(2) > 0), *_extent(logits.amax(1) > 0)], dim=1)
    return edges.tolist()


def resize_masks(logits: Tensor, rows: Axis, columns: Axis) -> ResizedMasks:
    """Mask logits [M, h, w] to masks in the image, one device-to-host copy for all; `rows`, `columns`: `logits_axis`.

    Masks are small and differ in size, so what dominates on a CPU is the number of operations, not of pixels: what can
    be done once for all masks is left until the end.
    """
    count = len(logits)
    crops = []
    marked_rows = torch.zeros(count, len(rows.first), dtype=torch.uint8, device=logits.device)
    marked_columns = torch.zeros(count, len(columns.first), dtype=torch.uint8, device=logits.device)
    sums, areas, owners = [logits.new_zeros(())], [torch.zeros((), dtype=torch.long, device=logits.device)], [0]
    for n, box in enumerate(positive_boxes(logits)):
        frame = _frame(box, rows, columns)
        crops.append(_crop(frame, None, logits.device))
        mask = crops[-1].mask
        for start, stop, block in _blocks(logits[n], frame, rows, columns):
            areas.append(torch.gt(block, 0, out=mask[start:stop]).count_nonzero())
            sums.append(F.threshold(block.sigmoid_(), 0.5, 0.0, inplace=True).sum())
            owners.append(n)
        if mask.numel():
            bits = mask.view(torch.uint8)  # reductions of bytes are several times faster than of bools
            torch.amax(bits, 1, out=marked_rows[n, frame[0] : frame[1]])
            torch.amax(bits, 0, out=marked_columns[n, frame[2] : frame[3]])
    (y0, y1), (x0, x1) = _extent(marked_rows), _extent(marked_columns)
    owner = torch.tensor(owners, device=logits.device)
    total = logits.new_zeros(count).index_add_(0, owner, torch.stack(sums))
    area = logits.new_zeros(count).index_add_(0, owner, torch.stack(areas).to(logits.dtype))
    return ResizedMasks(crops, torch.stack([x0, y0, x1, y1], 1).float(), total / area.clamp(min=1))


def crop_masks(logits: Tensor, rows: Axis, columns: Axis, whole: Tensor | None = None) -> list[MaskCrop]:
    """The crops of `resize_masks`, without boxes and qualities.

    Args:
        whole: [M, height, width], all False, of which the crops become parts; None: each is a tensor of its own.
    """
    crops = []
    for n, box in enumerate(positive_boxes(logits)):
        frame = _frame(box, rows, columns)
        crops.append(_crop(frame, None if whole is None else whole[n], logits.device))
        for start, stop, block in _blocks(logits[n], frame, rows, columns):
            torch.gt(block, 0, out=crops[-1].mask[start:stop])
    return crops


def _frame(box: list[int], rows: Axis, columns: Axis) -> tuple[int, int, int, int]:
    """Where the pixels (top, bottom, left, right) are that the logits in a box take part in; zeros where none are."""
    (top, bottom), (left, right) = rows.outputs_of(box[0], box[1]), columns.outputs_of(box[2], box[3])
    if box[0] >= box[1] or top >= bottom or left >= right:  # nothing positive, or in the padding only
        return 0, 0, 0, 0
    return top, bottom, left, right


def _crop(frame: tuple[int, int, int, int], whole: Tensor | None, device: torch.device) -> MaskCrop:
    """A mask that is still to be filled."""
    top, bottom, left, right = frame
    if whole is not None:
        return MaskCrop(top, left, whole[top:bottom, left:right])
    return MaskCrop(top, left, torch.empty(bottom - top, right - left, dtype=torch.bool, device=device))


def _blocks(
    logits: Tensor, frame: tuple[int, int, int, int], rows: Axis, columns: Axis
) -> Iterator[tuple[int, int, Tensor]]:
    """Resized logits of a frame, a few rows at a time: the first and the last (exclusive), counted from its top."""
    top, bottom, left, right = frame
    if top == bottom:
        return
    needed = rows.inputs_of(top, bottom)
    wide = _product_of_columns(logits[needed], columns, left, right)
    for start, stop in blocks(top, bottom, logits.device):
        band = rows.inputs_of(start, stop)
        yield (
            start - top,
            stop - top,
            rows.weights[start:stop, band] @ wide[band.start - needed.start : band.stop - needed.start],
        )


def _product_of_columns(logits: Tensor, columns: Axis, left: int, right: int) -> Tensor:
    """Logits [h, w] resized along their width, the outputs left..right - 1 of it: [h, right - left]."""
    parts = []
    for start, stop in blocks(left, right, logits.device):
        band = columns.inputs_of(start, stop)
        parts.append(logits[:, band] @ columns.weights[start:stop, band].T)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _extent(marks: Tensor) -> tuple[Tensor, Tensor]:
    """First marked position and one past the last: [..., n] -> two of [...]; (0, 0) where nothing is marked."""
    marks = marks.to(torch.uint8)
    stop = (marks.shape[-1] - marks.flip(-1).argmax(-1)) * marks.amax(-1)
    return marks.argmax(-1), stop
