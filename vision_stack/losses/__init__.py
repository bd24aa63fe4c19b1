"""Matching and losses: of mask classification, and of boxes that queries find."""

from vision_stack.losses.box_criterion import BoxCriterion, BoxCriterionConfig
from vision_stack.losses.criterion import MaskCriterion, MaskCriterionConfig

__all__ = ["BoxCriterion", "BoxCriterionConfig", "MaskCriterion", "MaskCriterionConfig"]
