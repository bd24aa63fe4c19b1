"""Matching and losses of mask classification."""

from vision_stack.losses.criterion import MaskCriterion, MaskCriterionConfig

__all__ = ["MaskCriterion", "MaskCriterionConfig"]
