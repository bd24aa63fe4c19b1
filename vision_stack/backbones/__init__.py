"""Backbones: importing this package registers them."""

from vision_stack.backbones.base import Backbone, BackboneConfigMixin, BackboneOutput, PublishedWeights, select_stages
from vision_stack.backbones.timm_backbone import TimmBackbone, TimmBackboneConfig

__all__ = [
    "Backbone",
    "BackboneConfigMixin",
    "BackboneOutput",
    "PublishedWeights",
    "TimmBackbone",
    "TimmBackboneConfig",
    "select_stages",
]
