"""From a head's outputs to instances, semantic or panoptic segmentations in the image's own pixels."""

from vision_stack.postprocess.instance import encode_instances, predict_instances
from vision_stack.postprocess.panoptic import predict_panoptic
from vision_stack.postprocess.semantic import predict_semantic

__all__ = ["encode_instances", "predict_instances", "predict_panoptic", "predict_semantic"]
