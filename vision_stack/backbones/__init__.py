"""Backbones: importing this package registers them."""

from vision_stack.backbones.base import Backbone, BackboneConfigMixin, BackboneOutput, PublishedWeights, select_stages
from vision_stack.backbones.families import ResNetConfig, SwinConfig, Swinv2Config
from vision_stack.backbones.pretrained import LoadReport, RandomWeightsWarning, load_pretrained
from vision_stack.backbones.timm_backbone import TimmBackbone, TimmBackboneConfig
from vision_stack.backbones.torchvision_backbone import TorchvisionBackbone, TorchvisionBackboneConfig
from vision_stack.backbones.transformers_backbone import TransformersBackbone, TransformersBackboneConfig

__all__ = [
    "Backbone",
    "BackboneConfigMixin",
    "BackboneOutput",
    "LoadReport",
    "PublishedWeights",
    "RandomWeightsWarning",
    "ResNetConfig",
    "SwinConfig",
    "Swinv2Config",
    "TimmBackbone",
    "TimmBackboneConfig",
    "TorchvisionBackbone",
    "TorchvisionBackboneConfig",
    "TransformersBackbone",
    "TransformersBackboneConfig",
    "load_pretrained",
    "select_stages",
]
