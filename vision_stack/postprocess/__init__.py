"""From a head's outputs to instances in the image's own pixels."""

from vision_stack.postprocess.instance import encode_instances, predict_instances

__all__ = ["encode_instances", "predict_instances"]
