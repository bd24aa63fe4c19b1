"""The class of every pixel from mask-classification outputs (MaskFormer, Sec. 3.4, "semantic inference")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_stack.ops.tiles import slices, tile_elements
from vision_stack.outputs import AnyMaskOutputs
from vision_stack.postprocess.axes import logits_axis
from vision_stack.postprocess.bands import bands, mask_logits, resized_rows
from vision_stack.postprocess.batch import each_image
from vision_stack.structures import ImageInfo, SemanticSegmentation


@torch.no_grad()
def predict_semantic(outputs: AnyMaskOutputs, infos: Sequence[ImageInfo]) -> Iterator[SemanticSegmentation]:
    """Give the label of each pixel of each image, in the image's own pixels, on the outputs' device.

    A class scores the sum over queries of its softmax probability ("no object" dropped) times the sigmoid of the
    query's mask, at the size of the network's input; scores are cropped, resized bilinearly to `info.size`, and the
    highest wins. Everything is float32. Differs from the papers: none.

    Args:
        outputs: of a batch of B images.
        infos: B of them.
    """
    for image, info in each_image(outputs, infos):
        with torch.autocast(outputs.mask_features.device.type, enabled=False):
            yield SemanticSegmentation(_label_map(outputs, image, info))


def _label_map(outputs: AnyMaskOutputs, image: int, info: ImageInfo) -> Tensor:
    probabilities = outputs.pred_logits[image].float().softmax(-1)[:, :-1].contiguous()  # [Q, K]
    logits = mask_logits(outputs, image)  # [h, w, Q]
    (input_height, input_width), (height, width) = info.input_size, info.size
    to_rows = logits_axis(logits.shape[0], input_height, input_height, logits.device)
    to_columns = logits_axis(logits.shape[1], input_width, input_width, logits.device)
    rows, columns = _neighbours(input_height, height), _neighbours(input_width, width).to(logits.device)
    labels = torch.empty(height, width, dtype=torch.int32, device=logits.device)
    input_rows_each = -(-input_height // height)  # of an image that was enlarged, several make one row
    row_bytes = 4 * input_rows_each * input_width * (2 * len(probabilities) + probabilities.shape[1])
    for start, stop in bands(height, row_bytes, logits.device):
        first, last = int(rows.low[start]), int(rows.high[stop - 1]) + 1
        masks = resized_rows(logits, to_rows, to_columns, first, last).sigmoid_()  # [n, input width, Q]
        here = _Neighbours(rows.low[start:stop] - first, rows.high[start:stop] - first, rows.weight[start:stop])
        labels[start:stop] = _best_of_resized(masks @ probabilities, here.to(logits.device), columns)
    return labels


class _Neighbours(NamedTuple):
    """The two inputs that an output of bilinear interpolation lies between, along one axis."""

    low: Tensor  # [out] int64
    high: Tensor  # [out] int64
    weight: Tensor  # [out] float32, of `high`

    def to(self, device: torch.device) -> _Neighbours:
        return _Neighbours(*(values.to(device, non_blocking=True) for values in self))


def _best_of_resized(scores: Tensor, rows: _Neighbours, columns: _Neighbours) -> Tensor:
    """Best class of the resized scores: [n, w, K] -> [rows, columns].

    Where the four pixels around have the same best class, so has their mean, whatever its weights. Only the others,
    along the borders of classes, are interpolated.
    """
    best = scores.argmax(-1)
    upper, lower = best[rows.low], best[rows.high]
    labels = upper[:, columns.low]
    others = upper[:, columns.high], lower[:, columns.low], lower[:, columns.high]
    y, x = torch.nonzero(torch.stack([labels != other for other in others]).any(0), as_tuple=True)
    pixels, width = scores.flatten(0, 1), scores.shape[1]
    for some in slices(len(y), max(1, tile_elements(scores.device, 2**22) // scores.shape[2])):
        above, below, down = rows.low[y[some]], rows.high[y[some]], rows.weight[y[some]]
        left, right, across = columns.low[x[some]], columns.high[x[some]], columns.weight[x[some]]
        around = [above * width + left, above * width + right, below * width + left, below * width + right]
        weights = [(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across]
        mean = F.embedding_bag(
            torch.stack(around, 1), pixels, mode="sum", per_sample_weights=torch.stack(weights, 1)
        )  # gathers and adds in one pass
        labels[y[some], x[some]] = mean.argmax(-1)
    return labels


def _neighbours(length: int, size: int) -> _Neighbours:
    """Of each of `size` pixels, resized from `length`, `align_corners=False`."""
    position = (torch.arange(size, dtype=torch.float32) + 0.5) * (length / size) - 0.5
    position.clamp_(0, length - 1)
    low = position.long()
    return _Neighbours(low, (low + 1).clamp_(max=length - 1), position - low)
