"""Evaluation as COCO does it, panoptic quality, mean IoU."""

from vision_stack.metrics.base import Evaluator
from vision_stack.metrics.coco import CocoEvaluator, coco_results
from vision_stack.metrics.panoptic import PanopticEvaluator
from vision_stack.metrics.semantic import SemanticEvaluator
from vision_stack.metrics.table import format_table

__all__ = [
    "CocoEvaluator",
    "Evaluator",
    "PanopticEvaluator",
    "SemanticEvaluator",
    "coco_results",
    "format_table",
]
