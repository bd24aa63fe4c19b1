"""Things and stuff without overlap from mask-classification outputs (MaskFormer, Sec. 3.4, "general inference")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vision_stack.outputs import AnyMaskOutputs
from vision_stack.postprocess.axes import logits_axis
from vision_stack.postprocess.bands import bands, mask_logits, resized_rows
from vision_stack.postprocess.batch import each_image
from vision_stack.structures import ImageInfo, PanopticSegmentation


@torch.no_grad()
def predict_panoptic(
    outputs: AnyMaskOutputs,
    infos: Sequence[ImageInfo],
    is_thing: Sequence[bool],
    *,
    score_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
) -> Iterator[PanopticSegmentation]:
    """Give the segments of each image, in the image's own pixels, on the outputs' device.

    Queries whose best class is an object with a probability above `score_threshold` take part. Their mask logits are
    resized as for instances; a pixel goes to the query with the highest probability times sigmoid, and belongs to its
    segment where that query's own mask is positive. A query that keeps less than `overlap_threshold` of its own mask
    is dropped; segments of one stuff class are one. Everything is float32. Differs from the papers: none.

    Args:
        outputs: of a batch of B images.
        infos: B of them.
        is_thing: per class; False for stuff.
    """
    for image, info in each_image(outputs, infos):
        with torch.autocast(outputs.mask_features.device.type, enabled=False):
            yield _segments(outputs, image, info, is_thing, score_threshold, overlap_threshold)


def _segments(
    outputs: AnyMaskOutputs,
    image: int,
    info: ImageInfo,
    is_thing: Sequence[bool],
    score_threshold: float,
    overlap_threshold: float,
) -> PanopticSegmentation:
    scores, labels = outputs.pred_logits[image].float().softmax(-1).max(-1)
    kept = torch.nonzero((labels < len(is_thing)) & (scores > score_threshold)).flatten()  # [U]
    scores, labels = scores[kept], labels[kept]
    if not len(kept):
        empty = torch.zeros(info.size, dtype=torch.int32, device=scores.device)
        return PanopticSegmentation(empty, labels, scores)
    query_map, areas = _query_map(mask_logits(outputs, image, kept), scores, info)
    slots: list[int] = []  # per kept query: its segment's number, 0 for none
    members: list[int] = []  # per segment: the query that it takes label and score from
    stuff: dict[int, int] = {}  # label -> segment number
    for query, (label, (won, own, both)) in enumerate(zip(labels.tolist(), areas.T.tolist(), strict=True)):
        if not both or won / own < overlap_threshold:
            slots.append(0)
        elif label in stuff:
            slots.append(stuff[label])
        else:
            members.append(query)
            slots.append(len(members))
            if not is_thing[label]:
                stuff[label] = len(members)
    number = torch.tensor([0, *slots], dtype=torch.int32, device=scores.device)
    return PanopticSegmentation(
        number.index_select(0, query_map.flatten()).view_as(query_map), labels[members], scores[members]
    )


def _query_map(logits: Tensor, scores: Tensor, info: ImageInfo) -> tuple[Tensor, Tensor]:
    """Which query holds each pixel.

    Args:
        logits: [h, w, U] of the kept queries.
        scores: [U].

    Returns:
        [height, width] int64, 1 + the query, 0 where it is not inside its own mask; and areas [3, U] in pixels: those
        that the query won, those of its own mask, and those of both.
    """
    (input_height, input_width), (height, width) = info.input_size, info.size
    count = len(scores)
    result = torch.empty(height, width, dtype=torch.int64, device=logits.device)
    areas = torch.zeros(3, count, dtype=torch.int64, device=logits.device)
    rows = logits_axis(logits.shape[0], input_height, height, logits.device)
    columns = logits_axis(logits.shape[1], input_width, width, logits.device)
    for start, stop in bands(height, 4 * count * 6 * width, logits.device):
        own = resized_rows(logits, rows, columns, start, stop)  # [n, width, U]
        winner = own.sigmoid().mul_(scores).argmax(-1)
        inside = own.gather(-1, winner[..., None])[..., 0] >= 0
        band = torch.where(inside, winner + 1, 0)
        result[start:stop] = band
        areas[0] += torch.bincount(winner.flatten(), minlength=count)
        positive = torch.ge(own, 0, out=torch.empty_like(own)).flatten(0, 1)  # as floats, which are added many at once
        areas[1] += (positive.new_ones(len(positive)) @ positive).long()
        areas[2] += torch.bincount(band.flatten(), minlength=count + 1)[1:]
    return result, areas
