"""Pictures of data, predictions and training curves."""

from vision_stack.visualization.overlay import (
    draw_instances,
    draw_panoptic,
    draw_segmentation,
    draw_semantic,
    side_by_side,
)

__all__ = ["draw_instances", "draw_panoptic", "draw_segmentation", "draw_semantic", "side_by_side"]
