"""The class of every pixel from mask-classification outputs (MaskFormer, Sec. 3.4, "semantic inference")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vision_stack.postprocess.bands import bands, input_rows, mask_logits, resize_columns, resize_rows, source_rows
from vision_stack.postprocess.batch import each_image
from vision_stack.structures import ImageInfo, MaskOutputs, SemanticSegmentation


@torch.no_grad()
def predict_semantic(outputs: MaskOutputs, infos: Sequence[ImageInfo]) -> Iterator[SemanticSegmentation]:
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


def _label_map(outputs: MaskOutputs, image: int, info: ImageInfo) -> Tensor:
    probabilities = outputs.pred_logits[image].float().softmax(-1)[:, :-1].contiguous()  # [Q, K]
    logits = mask_logits(outputs, image)  # [h, w, Q]
    (input_height, input_width), (height, width) = info.input_size, info.size
    num_queries, num_classes = probabilities.shape
    input_rows_each = -(-input_height // height)  # of an image that was enlarged, several make one row
    row_bytes = 4 * (input_rows_each * input_width * (num_queries + num_classes) + 2 * width * num_classes)
    labels = torch.empty(height, width, dtype=torch.int32, device=logits.device)
    for start, stop in bands(height, row_bytes, logits.device):
        first, last = source_rows(start, stop, input_height, height)
        scores = input_rows(logits, first, last, info.input_size).sigmoid_() @ probabilities  # [n, input width, K]
        scores = resize_rows(scores, first, start, stop, input_height, height)
        labels[start:stop] = resize_columns(scores, width).argmax(-1)
    return labels
