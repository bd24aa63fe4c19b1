"""Pictures of data, predictions and training curves."""

from vision_stack.visualization.overlay import (
    draw_image,
    draw_instances,
    draw_panoptic,
    draw_semantic,
    side_by_side,
)

__all__ = ["draw_image", "draw_instances", "draw_panoptic", "draw_semantic", "side_by_side"]
