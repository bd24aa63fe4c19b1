"""configs/backbone has a file for what people ask for. What each file holds and builds is in test_backbone_grid.py."""

from pathlib import Path

import vision_stack.backbones  # noqa: F401
from vision_stack.config import registered

FILES = sorted((Path(__file__).parents[2] / "configs" / "backbone").glob("*.yaml"))
NAMED = {
    "resnet": "18 34 50 101 152 18d 34d 50d 101d 152d",
    "resnext": "50_32x4d 101_32x8d",
    "swin_": "tiny small base large",
    "swinv2_": "tiny small base large",
    "convnext_": "tiny small base large",
    "convnextv2_": "tiny base large",
    "vit_": "small base large",
    "dinov2_": "small base large",
    "dinov3_": "small base large",
    "eva02_": "small base large",
    "efficientnet_": "b0 b1 b2 b3 b4 b5 b6 b7 lite0",
    "mobilenetv3_": "small large",
    "mobilenetv4_": "small medium large",
    "hiera_": "tiny small base_plus large",
    "maxvit_": "tiny small base large",
    "pvt_v2_": "b0 b1 b2 b3 b4 b5",
}


def test_yaml_there_is_one_per_registered_backbone_and_named_model():
    names = {family + size for family, sizes in NAMED.items() for size in sizes.split()}
    assert {file.stem for file in FILES} >= {*registered("backbone"), *names}
