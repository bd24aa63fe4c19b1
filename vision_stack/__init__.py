"""Backbone, neck and head from configs, assembled into one model. The names below are loaded on first use."""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Batch": "structures",
    "Category": "structures",
    "ConfigError": "config",
    "FeatureSpec": "structures",
    "ImageInfo": "structures",
    "Instances": "structures",
    "MaskOutputs": "structures",
    "VisionModel": "model",
    "VisionModelConfig": "model",
    "from_dict": "config",
    "register": "config",
    "registered": "config",
    "to_dict": "config",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name's module when it is first asked for, so that `import vision_stack` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'vision_stack' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vision_stack.{_HOME[name]}"), name)
