"""Backbones: importing this package registers them."""

from vision_stack.backbones.base import Backbone, BackboneConfigMixin, BackboneOutput
from vision_stack.backbones.families import (
    ConvNextConfig,
    ConvNextV2Config,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ConvNextConfig,
    DINOv3ViTConfig,
    ResNetConfig,
    SwinConfig,
    Swinv2Config,
    ViTConfig,
)
from vision_stack.backbones.hub import PublishedWeights
from vision_stack.backbones.pretrained import LoadReport, RandomWeightsWarning, load_pretrained
from vision_stack.backbones.stages import select_stages
from vision_stack.backbones.timm_backbone import TimmBackbone, TimmBackboneConfig
from vision_stack.backbones.torchvision_backbone import TorchvisionBackbone, TorchvisionBackboneConfig
from vision_stack.backbones.transformers_backbone import TransformersBackbone, TransformersBackboneConfig

__all__ = [
    "Backbone",
    "BackboneConfigMixin",
    "BackboneOutput",
    "ConvNextConfig",
    "ConvNextV2Config",
    "DINOv3ConvNextConfig",
    "DINOv3ViTConfig",
    "Dinov2Config",
    "Dinov2WithRegistersConfig",
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
    "ViTConfig",
    "load_pretrained",
    "select_stages",
]
