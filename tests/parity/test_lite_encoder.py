"""`neck=lite_encoder` against transformers' DEIMv2 with `encoder_type: lite`, in float64, eval and train; its names."""

import copy
from functools import cache

import pytest
import torch
from family_parity import perturb
from torch import nn
from transformers import Deimv2Config
from transformers.models.deimv2.modeling_deimv2 import Deimv2LiteEncoder

import vision_stack.necks  # noqa: F401  registers them
from vision_stack.config import from_dict, to_dict
from vision_stack.structures import FeatureSpec
from vision_stack.weights.hybrid_encoder import (
    convert_hybrid_encoder,
    export_hybrid_encoder,
    neck_fields,
    neck_options,
)

FAMILY = "deimv2, lite_encoder"
SPECS = (FeatureSpec("stage2", 12, 8), FeatureSpec("stage3", 20, 16))


@cache
def pair():
    torch.manual_seed(0)
    options = {"encoder_hidden_dim": 16, "encoder_in_channels": [20], "hidden_expansion": 0.5, "depth_mult": 0.67}
    config = Deimv2Config(**options, encoder_type="lite", encoder_layers=0)
    theirs = perturb(Deimv2LiteEncoder(config)).double()
    for norm in (module for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.weight.data.mul_(2)  # SiLU shrinks the spread
    state = convert_hybrid_encoder({f"model.encoder.{k}": v for k, v in theirs.state_dict().items()}, FAMILY)
    ours = from_dict(neck_options(config.to_dict()), "neck")
    fields = neck_fields(to_dict(ours), "deimv2")
    assert fields.pop("depth_mult") == 2 / 3
    assert {key: config.to_dict()[key] for key in fields} == fields
    neck = ours.build(SPECS)
    neck.load_state_dict({k.removeprefix("neck."): v for k, v in state.items()})
    exported = export_hybrid_encoder(state, FAMILY)
    assert {k.removeprefix("model.encoder.") for k in exported} == theirs.state_dict().keys()
    return theirs, neck.double().eval()


@torch.no_grad()
def worst_difference(theirs, neck, size, *, train=False):
    """Over both maps, in standard deviations of transformers'."""
    generator = torch.Generator().manual_seed(1)
    maps = [
        torch.randn(2, s.channels, size[0] // s.stride, size[1] // s.stride, generator=generator, dtype=torch.float64)
        for s in SPECS
    ]
    theirs, neck = copy.deepcopy(theirs).train(train), copy.deepcopy(neck).train(train)
    differences = []
    for x, expected in zip(neck(maps), theirs(maps[1:]).feature_maps, strict=True):
        assert x.shape == expected.shape
        assert expected.std() >= 1
        differences.append(float((x - expected).abs().max() / expected.std()))
    return max(differences)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_lite_encoder_both_maps_equal_those_of_transformers(size, train):
    assert worst_difference(*pair(), size, train=train) < 1e-9


def test_lite_encoder_planted_fault_shows():
    theirs, neck = pair()
    broken = copy.deepcopy(neck)
    broken.pool.count_include_pad = False
    assert worst_difference(theirs, broken, (96, 160)) > 1e-3
