"""Evaluation as COCO does it."""

from vision_stack.metrics.coco import CocoEvaluator, coco_results
from vision_stack.metrics.table import format_table

__all__ = ["CocoEvaluator", "coco_results", "format_table"]
