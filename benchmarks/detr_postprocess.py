"""Outputs of 8 images to boxes, instances or segments of 480 x 640 pixels: vision_stack's and transformers'.

transformers is given the mask logits, vision_stack multiplies them itself.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from maskformer_postprocess import CLASSES, IMAGES, INPUT, SIZE, THRESHOLD, ellipses, overlap
from timing import alternate, report
from torch import Tensor
from transformers import EomtImageProcessor, RfDetrImageProcessor, RTDetrImageProcessor

from vision_stack.heads import DFineHeadConfig, RFDETRSegHeadConfig
from vision_stack.outputs import BoxOutputs, MaskFactors, MaskOutputs
from vision_stack.postprocess import predict_instances, predict_panoptic
from vision_stack.structures import DecodeOptions, FeatureSpec, ImageInfo, Instances

OBJECTS, REQUIRED = 15, 3.0  # confident ones in an image
THINGS = 60  # of the classes; the others are stuff
SURE, OVERLAP = 0.8, 0.8  # what a panoptic segment needs
INFOS = [ImageInfo(i, "", SIZE, INPUT) for i in range(IMAGES)]
# An image of 480 x 640 in the padded square that EoMT reads.
PADDED = [ImageInfo(i, "", SIZE, (INPUT[0] * SIZE[0] // SIZE[1], INPUT[1])) for i in range(IMAGES)]

Contenders = dict[str, Callable[[], Any]]


def compare_postprocessing(family: str, title: str, rounds: int) -> None:
    for name, (contenders, agreement) in CASES[family]().items():
        with torch.inference_mode():
            found = [contender() for contender in contenders.values()]
            print(f"\n{name} of {IMAGES} images to {SIZE[0]} x {SIZE[1]}: {agreement(*found[:2])}")
            report(
                f"post-processing, {title}, {name}", alternate(contenders, rounds, warmup=2), "vision_stack", REQUIRED
            )


def rf_detr_seg() -> dict[str, tuple[Contenders, Callable[[Any, Any], str]]]:
    outputs, boxes = _sigmoids(ellipses(OBJECTS)), _boxes(100)
    head = RFDETRSegHeadConfig(masks=True).build((FeatureSpec("p4", 256, 16),), CLASSES)
    embed = torch.nn.functional.pad(outputs.mask_embed, (0, 1), value=1.0)[None]
    features = torch.nn.functional.pad(outputs.mask_features, (0, 0, 0, 0, 0, 1))[None]
    ours = _box_outputs(outputs.pred_logits, boxes)._replace(masks=MaskFactors(embed, features))
    theirs = SimpleNamespace(logits=outputs.pred_logits, pred_boxes=boxes, pred_masks=outputs.pred_masks)
    processor = RfDetrImageProcessor()

    def decode(masks: Any) -> list[Instances]:
        return list(head.predict(ours, INFOS, "instance", DecodeOptions(THRESHOLD, 100, masks)))

    def transformers(**kind: bool) -> list[dict[str, Any]]:
        return processor.post_process_instance_segmentation(theirs, THRESHOLD, target_sizes=[SIZE] * IMAGES, **kind)

    def with_product() -> list[dict[str, Any]]:
        outputs.pred_masks  # noqa: B018  vision_stack multiplies the kept queries only, and does it here
        return transformers(return_binary_maps=True)

    contenders: Contenders = {
        "vision_stack": lambda: decode("bool"),
        "transformers": lambda: transformers(return_binary_maps=True),
        "with its mask product": with_product,
        "vision_stack, RLE": lambda: decode("rle"),
        "transformers, RLE of its map": lambda: transformers(return_coco_annotation=True),
    }
    return {"instances": (contenders, overlap)}


def d_fine() -> dict[str, tuple[Contenders, Callable[[Any, Any], str]]]:
    generator = torch.Generator().manual_seed(0)
    logits, boxes = 2 * torch.randn(IMAGES, 300, CLASSES, generator=generator) - 6, _boxes(300)
    specs = tuple(FeatureSpec(f"p{i}", 256, 2**i) for i in (3, 4, 5))
    head = DFineHeadConfig(num_decoder_layers=1).build(specs, CLASSES)
    ours, theirs = _box_outputs(logits, boxes), SimpleNamespace(logits=logits, pred_boxes=boxes)
    processor = RTDetrImageProcessor()
    contenders: Contenders = {
        "vision_stack": lambda: list(head.predict(ours, INFOS, "detection", DecodeOptions(THRESHOLD, 300))),
        "transformers": lambda: processor.post_process_object_detection(theirs, THRESHOLD, [SIZE] * IMAGES),
    }
    return {"boxes": (contenders, _same_boxes)}


def eomt() -> dict[str, tuple[Contenders, Callable[[Any, Any], str]]]:
    outputs = ellipses(OBJECTS, queries=200, channels=384)
    theirs = SimpleNamespace(class_queries_logits=outputs.pred_logits, masks_queries_logits=outputs.pred_masks)
    size = {"shortest_edge": INPUT[0], "longest_edge": INPUT[1]}
    processor, sizes = EomtImageProcessor(size=size), [SIZE] * IMAGES
    sure: dict[str, Any] = {"score_threshold": SURE, "overlap_threshold": OVERLAP}
    is_thing = [label < THINGS for label in range(CLASSES)]
    instances: Contenders = {
        "vision_stack": lambda: list(predict_instances(outputs, PADDED, top_k=200, score_threshold=THRESHOLD)),
        "transformers": lambda: processor.post_process_instance_segmentation(theirs, sizes, THRESHOLD, size),
    }
    panoptic: Contenders = {
        "vision_stack": lambda: list(predict_panoptic(outputs, PADDED, is_thing, **sure)),
        "transformers": lambda: processor.post_process_panoptic_segmentation(
            theirs, sizes, SURE, 0.5, OVERLAP, list(range(THINGS, CLASSES)), size
        ),
    }
    return {"instances": (instances, _counts), "panoptic segments": (panoptic, _counts)}


CASES = {"rf_detr_seg": rf_detr_seg, "d_fine": d_fine, "eomt": eomt}


def _sigmoids(outputs: MaskOutputs) -> MaskOutputs:
    """Class logits of sigmoids: the confident queries are those that softmax is confident of."""
    return outputs._replace(pred_logits=outputs.pred_logits[..., :-1] - 16)


def _boxes(queries: int) -> Tensor:
    uniform = torch.rand(IMAGES, queries, 4, generator=torch.Generator().manual_seed(1))
    return torch.cat([0.2 + 0.6 * uniform[..., :2], 0.05 + 0.3 * uniform[..., 2:]], -1)


def _box_outputs(logits: Tensor, boxes: Tensor) -> BoxOutputs:
    sizes = torch.tensor([INPUT[::-1]] * IMAGES)
    return BoxOutputs(logits, boxes, logits[None][:0], boxes[None][:0], sizes)


def _same_boxes(ours: list[Instances], theirs: list[dict[str, Tensor]]) -> str:
    far = max(float((own.boxes - other["boxes"]).abs().max()) for own, other in zip(ours, theirs, strict=True))
    count = statistics.mean(len(own) for own in ours)
    return f"{count:.1f} boxes an image, the same to {far:.1g} pixels"


def _counts(ours: list[Any], theirs: list[dict[str, Any]]) -> str:
    """transformers gives one map of all objects, in which some are hidden."""
    counts = [
        statistics.mean(len(own.labels) for own in ours),
        statistics.mean(len(x["segments_info"]) for x in theirs),
    ]
    return f"{counts[0]:.1f} an image (transformers {counts[1]:.1f})"
