"""Instances from mask-classification outputs (MaskFormer, Sec. 3.4; Mask2Former's instance inference).

Legend: Q queries, K classes, U queries kept, N detections (a query kept for several classes is several detections).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vision_stack.ops.tiles import slices
from vision_stack.outputs import AnyMaskOutputs
from vision_stack.postprocess.axes import Axis, logits_axis
from vision_stack.postprocess.batch import each_image
from vision_stack.postprocess.crop_rle import encode_crop
from vision_stack.postprocess.mask_resize import MaskCrop, ResizedMasks, crop_masks, resize_masks
from vision_stack.structures import RLE, ImageInfo, Instances

CHUNK_BYTES = 32 * 2**20  # of mask logits and full-size masks that exist at once, beside the results


class _Detections(NamedTuple):
    """The detections of an image, best first; the mask of detection n is `masks[mask_index[n]]`."""

    boxes: Tensor  # [N, 4] float32
    labels: Tensor  # [N] int64
    scores: Tensor  # [N] float32
    mask_index: list[int]
    masks: list[Any]  # U, as the caller packed them


@torch.no_grad()
def predict_instances(
    outputs: AnyMaskOutputs, infos: Sequence[ImageInfo], *, top_k: int = 100, score_threshold: float = 0.0
) -> Iterator[Instances]:
    """Give the instances of each image, best first, in the image's own pixels, on the outputs' device.

    Candidates are the `top_k` of queries x classes by softmax probability, "no object" dropped. Masks are resized
    bilinearly to the network's input, cropped to `info.input_size`, resized to `info.size` and thresholded at 0; a
    detection's score is its class probability times the mean sigmoid inside its mask. Everything is float32.

    Args:
        outputs: of a batch of B images.
        infos: B of them.
        top_k: the most detections per image.
        score_threshold: detections with a lower score are left out, before their masks are resized where possible.

    Differs from the papers: detections without a single pixel are left out (they would score 0).
    """
    for image, info in each_image(outputs, infos):
        with torch.autocast(outputs.mask_features.device.type, enabled=False):
            found = _detect(outputs, image, info, top_k, score_threshold, list)
        masks = _pasted([found.masks[index] for index in found.mask_index], info, found.labels.device)
        yield Instances(found.boxes, found.labels, found.scores, masks)


@torch.no_grad()
def encode_instances(
    outputs: AnyMaskOutputs, infos: Sequence[ImageInfo], *, top_k: int = 100, score_threshold: float = 0.0
) -> Iterator[Instances]:
    """The same detections as `predict_instances`, on the CPU, with masks as COCO RLE.

    No full-size mask outlives its encoding, so that memory depends on neither `top_k` nor the number of images.
    """
    for image, info in each_image(outputs, infos):
        with torch.autocast(outputs.mask_features.device.type, enabled=False):
            found = _detect(outputs, image, info, top_k, score_threshold, partial(_encoded, info=info))
        rles = [dict(found.masks[index]) for index in found.mask_index]
        yield Instances(found.boxes.cpu(), found.labels.cpu(), found.scores.cpu(), rles)


@torch.no_grad()
def predict_boxes(
    outputs: AnyMaskOutputs, infos: Sequence[ImageInfo], *, top_k: int = 100, score_threshold: float = 0.0
) -> Iterator[Instances]:
    """The same detections as `predict_instances`, without their masks: the boxes are those around them."""
    for image, info in each_image(outputs, infos):
        with torch.autocast(outputs.mask_features.device.type, enabled=False):
            found = _detect(outputs, image, info, top_k, score_threshold, lambda crops: [None] * len(crops))
        yield Instances(found.boxes, found.labels, found.scores)


@torch.no_grad()
def query_masks(
    features: Tensor, embed: Tensor, queries: Tensor, info: ImageInfo, form: Literal["bool", "rle"]
) -> Tensor | list[RLE]:
    """Masks of N detections of an image in its own pixels, as `predict_instances` makes them: [N, height, width] bool,
    or run-length codes.

    Args:
        features: [C, h, w], mask features of the image.
        embed: [Q, C], of its queries.
        queries: [N], of the detections; one may have several.
    """
    kept, slot = queries.unique(return_inverse=True)
    if len(kept) == len(queries):
        kept, slot = queries, torch.arange(len(queries), device=queries.device)
    whole = _blank_masks(len(kept), info.size, features.device) if form == "bool" else None
    crops: list[MaskCrop] = []
    with torch.autocast(features.device.type, enabled=False):
        for chunk, logits, rows, columns in _logits(features, embed[kept], info):
            crops += crop_masks(logits, rows, columns, None if whole is None else whole[chunk])
    if whole is None:
        codes = _encoded(crops, info)
        return [dict(codes[index]) for index in slot.tolist()]
    return whole if kept is queries else whole[slot]


def _detect(
    outputs: AnyMaskOutputs,
    image: int,
    info: ImageInfo,
    top_k: int,
    score_threshold: float,
    pack: Callable[[list[MaskCrop]], list[Any]],
) -> _Detections:
    """Detections of one image; `pack` turns the crops of a chunk into what is kept of them."""
    probabilities, labels, queries = _candidates(outputs.pred_logits[image], top_k, score_threshold)
    kept, slot = queries.unique(return_inverse=True)  # [U], [N]
    boxes, qualities = [probabilities.new_zeros(0, 4)], [probabilities.new_zeros(0)]
    masks: list[Any] = []
    for resized in _resized_masks(outputs.mask_features[image], outputs.mask_embed[image, kept], info):
        boxes.append(resized.boxes)
        qualities.append(resized.qualities)
        masks += pack(resized.crops)
    quality = torch.cat(qualities)[slot]
    scores = probabilities * quality
    order = scores.argsort(descending=True, stable=True)
    order = order[((quality > 0) & (scores >= score_threshold))[order]]
    slot = slot[order]
    return _Detections(torch.cat(boxes)[slot], labels[order], scores[order], slot.tolist(), masks)


def _candidates(class_logits: Tensor, top_k: int, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """The best (query, class) pairs: class_logits [Q, K + 1] -> probabilities, labels, queries, each [N]."""
    probabilities = class_logits.float().softmax(-1)[:, :-1]
    best, flat = probabilities.flatten().topk(min(top_k, probabilities.numel()))
    if threshold > 0:  # a score is never above its class probability
        best, flat = best[best >= threshold], flat[best >= threshold]
    num_classes = probabilities.shape[1]
    return best, flat % num_classes, flat // num_classes


def _resized_masks(features: Tensor, embed: Tensor, info: ImageInfo) -> Iterator[ResizedMasks]:
    """Masks of queries of one image, a bounded chunk at a time: features [C, h, w], embed [U, C]."""
    return (resize_masks(logits, rows, columns) for _, logits, rows, columns in _logits(features, embed, info))


def _logits(features: Tensor, embed: Tensor, info: ImageInfo) -> Iterator[tuple[slice, Tensor, Axis, Axis]]:
    """A bounded chunk of the queries at a time: which, their logits [m, h, w], and how both axes are resized."""
    features, embed = features.float(), embed.float()
    h, w = features.shape[1:]
    (input_height, input_width), (height, width) = info.input_size, info.size
    rows = logits_axis(h, input_height, height, features.device)
    columns = logits_axis(w, input_width, width, features.device)
    for chunk in slices(len(embed), max(1, CHUNK_BYTES // (4 * h * w + height * width))):
        yield chunk, torch.einsum("mc,chw->mhw", embed[chunk], features), rows, columns


def _pasted(crops: Sequence[MaskCrop], info: ImageInfo, device: torch.device) -> Tensor:
    """Whole masks, [N, height, width] bool."""
    masks = _blank_masks(len(crops), info.size, device)
    for whole, crop in zip(masks, crops, strict=True):
        height, width = crop.mask.shape
        whole[crop.top : crop.top + height, crop.left : crop.left + width] = crop.mask
    return masks


def _encoded(crops: Sequence[MaskCrop], info: ImageInfo) -> list[RLE]:
    if not crops:
        return []
    masks = _to_host([crop.mask for crop in crops])
    return [encode_crop(mask, crop.top, crop.left, info.size) for mask, crop in zip(masks, crops, strict=True)]


def _blank_masks(count: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """All False, [count, height, width]. On the CPU, memory that no mask touches is never paged in (calloc)."""
    if device.type == "cpu":
        return torch.from_numpy(np.zeros((count, *size), dtype=bool))
    return torch.zeros(count, *size, dtype=torch.bool, device=device)


def _to_host(masks: list[Tensor]) -> list[np.ndarray]:
    """The masks as arrays; from a GPU in one transfer."""
    if masks[0].device.type == "cpu":
        return [mask.numpy() for mask in masks]
    flat = torch.cat([mask.flatten() for mask in masks]).cpu().numpy()
    pieces = np.split(flat, np.cumsum([mask.numel() for mask in masks])[:-1])
    return [piece.reshape(mask.shape) for piece, mask in zip(pieces, masks, strict=True)]
