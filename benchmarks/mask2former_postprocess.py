"""Outputs of 8 images to instances, classes and segments of 480 x 640 pixels: vision_stack's and transformers'.

transformers is given the mask logits, vision_stack multiplies them itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from maskformer_postprocess import CLASSES, IMAGES, INPUT, QUERIES, SIZE, THRESHOLD, ellipses, overlap
from timing import alternate, report
from torch import Tensor
from transformers import Mask2FormerImageProcessor
from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentationOutput

from vision_stack.outputs import MaskOutputs
from vision_stack.postprocess import predict_instances, predict_panoptic, predict_semantic
from vision_stack.structures import ImageInfo, PanopticSegmentation

OBJECTS = 15  # confident ones in an image
THINGS = 60  # of the classes; the others are stuff
SURE, OVERLAP = 0.8, 0.8  # what a segment needs
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
    is_thing = [label < THINGS for label in range(CLASSES)]
    thresholds = {"score_threshold": SURE, "overlap_threshold": OVERLAP}
    return {
        "instance": lambda: list(predict_instances(outputs, infos, top_k=QUERIES, score_threshold=THRESHOLD)),
        "semantic": lambda: list(predict_semantic(outputs, infos)),
        "panoptic": lambda: list(predict_panoptic(outputs, infos, is_thing, **thresholds)),
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
            named,
            threshold=SURE,
            overlap_mask_area_threshold=OVERLAP,
            label_ids_to_fuse=set(range(THINGS, CLASSES)),
            target_sizes=sizes,
        ),
    }


def _equal(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return float(torch.stack([(a == b).float().mean() for a, b in zip(ours, theirs, strict=True)]).mean())


def _same_segments(ours: list[PanopticSegmentation], theirs: list[dict[str, Any]]) -> str:
    """transformers gives pixels outside of a query's own mask to its segment, and counts overlaps of other areas; so
    segments are counted, and classes compared where both have one."""
    same, counts = [], [0, 0]
    for own, other in zip(ours, theirs, strict=True):
        labels = {info["id"]: info["label_id"] for info in other["segments_info"]}
        both = (own.segment_map > 0) & (other["segmentation"] > 0)
        names = torch.tensor([labels.get(number, -1) for number in range(max(labels, default=0) + 1)])
        mine = own.labels[own.segment_map[both] - 1]
        same.append((mine == names[other["segmentation"][both].long()]).float().mean())
        counts = [counts[0] + len(own.labels), counts[1] + len(labels)]
    return (
        f"{counts[0] / IMAGES:.1f} segments an image (transformers {counts[1] / IMAGES:.1f}), the same class at "
        f"{float(torch.stack(same).mean()):.2%} of the pixels that both have in a segment"
    )
