"""configs/backbone: every option of the dataclass is listed, and every file builds, without memory or time."""

from pathlib import Path

import pytest
import torch
import yaml

import vision_stack.backbones  # noqa: F401
from vision_stack.config import from_dict, registered, to_dict

FILES = sorted((Path(__file__).parents[2] / "configs" / "backbone").glob("*.yaml"))
NAMED = "resnet18 resnet34 resnet50 resnet101 swin_tiny swin_small swin_base convnext_tiny convnext_small convnext_base"


def read(file):
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    return data.pop("pretrained"), data


def test_yaml_there_is_one_per_registered_backbone_and_named_model():
    names = {file.stem for file in FILES}
    assert names >= {*registered("backbone"), *NAMED.split()}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_yaml_lists_every_field_and_pretrained(file):
    pretrained, data = read(file)
    config = from_dict(data, "backbone")
    assert data.keys() == to_dict(config).keys()
    assert pretrained in ("auto", False)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_yaml_builds_on_the_meta_device_and_gives_maps_as_declared(file):
    config = from_dict(read(file)[1], "backbone")
    with torch.device("meta"):
        backbone = config.build().eval()
        maps = backbone(torch.zeros(2, 3, 50, 75)).feature_maps
    strides = [spec.stride for spec in backbone.out_specs]
    assert strides[:3] == [4, 8, 16] or len(strides) == 1  # what heads ask for, or neck=simple_pyramid
    for spec, x in zip(backbone.out_specs, maps, strict=True):
        assert x.shape == (2, spec.channels, -(-50 // spec.stride), -(-75 // spec.stride))
