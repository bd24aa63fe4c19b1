"""Backbone, neck and head from configs, assembled into one model. The names below are loaded on first use."""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "AutoBackbone": "backbones.auto",
    "AutoImageProcessor": "compat.image_processor",
    "BackboneConfig": "structures",
    "BackboneConfigMixin": "backbones.base",
    "BackboneMixin": "backbones.base",
    "BackboneOutput": "backbones.base",
    "Batch": "structures",
    "Category": "structures",
    "ConfigError": "config",
    "ConvNextConfig": "backbones.families",
    "ConvNextV2Config": "backbones.families",
    "DINOv3ConvNextConfig": "backbones.families",
    "DINOv3ViTConfig": "backbones.families",
    "Dinov2Config": "backbones.families",
    "Dinov2WithRegistersConfig": "backbones.families",
    "FeatureSpec": "structures",
    "ImageInfo": "structures",
    "Instances": "structures",
    "MaskFormerConfig": "compat.maskformer",
    "MaskFormerForInstanceSegmentation": "compat.maskformer",
    "MaskOutputs": "outputs",
    "PanopticSegmentation": "structures",
    "Run": "commands.python",
    "SemanticSegmentation": "structures",
    "ResNetConfig": "backbones.families",
    "SwinConfig": "backbones.families",
    "Swinv2Config": "backbones.families",
    "TimmBackbone": "backbones.timm_backbone",
    "TimmBackboneConfig": "backbones.timm_backbone",
    "TorchvisionBackboneConfig": "backbones.torchvision_backbone",
    "TransformersBackboneConfig": "backbones.transformers_backbone",
    "ViTConfig": "backbones.families",
    "VisionModel": "model",
    "VisionModelConfig": "model",
    "evaluate": "commands.python",
    "from_dict": "config",
    "list_backbones": "backbones.auto",
    "register": "config",
    "registered": "config",
    "to_dict": "config",
    "train": "commands.python",
}
__all__ = list(_HOME)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import a public name's module when it is first asked for, so that `import vision_stack` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'vision_stack' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vision_stack.{_HOME[name]}"), name)
