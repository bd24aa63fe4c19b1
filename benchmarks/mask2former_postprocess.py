"""Outputs of 8 images to instances, classes and segments of 480 x 640 pixels: vision_stack's and transformers'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from maskformer_postprocess import CLASSES, IMAGES, INPUT, QUERIES, SIZE, THRESHOLD, ellipses, overlap
from timing import alternate, report
from torch import Tensor
from transformers import Mask2FormerImageProcessor
from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentationOutput

from vision_stack.postprocess.instance import predict_instances
from vision_stack.postprocess.panoptic import predict_panoptic
from vision_stack.postprocess.semantic import predict_semantic
from vision_stack.structures import ImageInfo, MaskOutputs, PanopticSegmentation

OBJECTS = 15  # confident ones in an image
REQUIRED = {"instance": 8.0, "semantic": 2.0, "panoptic": 3.0}


def compare_postprocessing(rounds: int) -> None:
    outputs = ellipses(OBJECTS)
    ours, theirs = _ours(outputs), _theirs(outputs)
    agreement: dict[str, Callable[[Any, Any], str]] = {
        "instance": overlap,
        "semantic": lambda a, b: f"the same class at {_equal([x.label_map for x in a], b):.4%} of the pixels",
        "panoptic": _same_segments,
    }
    print(f"\n{IMAGES} images to {SIZE[0]} x {SIZE[1]}, {OBJECTS} confident objects each")
    for task, required in REQUIRED.items():
        print(f"{task}: {agreement[task](ours[task](), theirs[task]())}")
        contenders = {"vision_stack": ours[task], "transformers": theirs[task]}
        report(f"{task} post-processing", alternate(contenders, rounds), "vision_stack", required)


def _ours(outputs: MaskOutputs) -> dict[str, Callable[[], Any]]:
    infos = [ImageInfo(i, "", SIZE, INPUT) for i in range(IMAGES)]
    return {
        "instance": lambda: list(predict_instances(outputs, infos, top_k=QUERIES, score_threshold=THRESHOLD)),
        "semantic": lambda: list(predict_semantic(outputs, infos)),
        "panoptic": lambda: list(predict_panoptic(outputs, infos, [True] * CLASSES, score_threshold=THRESHOLD)),
    }


def _theirs(outputs: MaskOutputs) -> dict[str, Callable[[], Any]]:
    processor, sizes = Mask2FormerImageProcessor(), [SIZE] * IMAGES
    named = Mask2FormerForUniversalSegmentationOutput(
        class_queries_logits=outputs.pred_logits, masks_queries_logits=outputs.pred_masks
    )
    return {
        "instance": lambda: processor.post_process_instance_segmentation(
            named, THRESHOLD, target_sizes=sizes, return_binary_maps=True
        ),
        "semantic": lambda: processor.post_process_semantic_segmentation(named, target_sizes=sizes),
        "panoptic": lambda: processor.post_process_panoptic_segmentation(
            named, THRESHOLD, label_ids_to_fuse=set(), target_sizes=sizes
        ),
    }


def _equal(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return float(torch.stack([(a == b).float().mean() for a, b in zip(ours, theirs, strict=True)]).mean())


def _same_segments(ours: list[PanopticSegmentation], theirs: list[dict[str, Any]]) -> str:
    """By the class at each pixel: the two number segments each in their own way, and drop others."""
    maps, inside = ([], []), []  # type: tuple[list[Tensor], list[Tensor]], list[Tensor]
    for own, other in zip(ours, theirs, strict=True):
        ids = [info["label_id"] for info in other["segments_info"]]
        maps[0].append(torch.cat([torch.tensor([-1]), own.labels])[own.segment_map.long()])
        maps[1].append(torch.tensor([-1, *ids])[other["segmentation"].long().clamp(min=0)])
        inside.append((own.segment_map > 0).float().mean())
    counts = sum(len(x.labels) for x in ours) / IMAGES, sum(len(x["segments_info"]) for x in theirs) / IMAGES
    within = torch.cat([(a == b)[a >= 0] for a, b in zip(*maps, strict=True)]).float().mean()
    return (
        f"{counts[0]:.1f} segments an image (transformers {counts[1]:.1f}), the same class at {within:.2%} of the "
        f"pixels with a segment of vision_stack ({torch.stack(inside).mean():.0%} of all)"
    )
