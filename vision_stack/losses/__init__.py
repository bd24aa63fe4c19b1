"""Matching and losses: of mask classification, and of boxes that queries find."""

from vision_stack.losses.box_criterion import BoxCriterion, BoxCriterionConfig
from vision_stack.losses.criterion import MaskCriterion, MaskCriterionConfig
from vision_stack.losses.edge_criterion import EdgeCriterion, EdgeCriterionConfig

__all__ = [
    "BoxCriterion",
    "BoxCriterionConfig",
    "EdgeCriterion",
    "EdgeCriterionConfig",
    "MaskCriterion",
    "MaskCriterionConfig",
]
