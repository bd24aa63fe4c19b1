"""What of a run depends on its task: the evaluator, and what evaluation keeps of a model's outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vision_stack.data.datamodule import DataModule
from vision_stack.metrics import CocoEvaluator, Evaluator, PanopticEvaluator, SemanticEvaluator
from vision_stack.metrics.coco import IouType
from vision_stack.model import VisionModel
from vision_stack.structures import ImageInfo, Prediction


def build_evaluator(data: DataModule, *, top_k: int, boundary_ap: bool = False) -> Evaluator:
    """The evaluator of the validation images, for the task that the data is read for.

    Args:
        top_k: detections of an image that count (instances).
        boundary_ap: boundary AP beside mask and box AP (instances).
    """
    truth, categories = data.val_ground_truth(), data.categories
    if data.task == "semantic":
        return SemanticEvaluator(truth, categories)
    if data.task == "panoptic":
        return PanopticEvaluator(truth, categories)
    if data.task == "detection":
        return CocoEvaluator(truth, categories, ("bbox",), max_detections=top_k)
    kinds: tuple[IouType, ...] = ("segm", "bbox", "boundary") if boundary_ap else ("segm", "bbox")
    return CocoEvaluator(truth, categories, kinds, max_detections=top_k)


def predictions_for(
    evaluator: Evaluator, model: VisionModel, outputs: Any, infos: Sequence[ImageInfo]
) -> Iterator[Prediction]:
    """What the evaluator takes of a batch, one image after the other: instances as run-length codes, of whatever
    score; segmentations without overlap as the model's `predict` gives them."""
    if isinstance(evaluator, CocoEvaluator):
        return model.decode(outputs, infos, threshold=0.0, top_k=evaluator.max_detections, masks="rle")
    return model.decode(outputs, infos)
