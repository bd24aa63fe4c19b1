"""`neck=scale_projector` against transformers' RF-DETR and LW-DETR: every map in float64, and all names."""

import copy
from functools import cache

import pytest
import torch
from family_parity import perturb
from transformers import LwDetrConfig, RfDetrConfig
from transformers.models.lw_detr.configuration_lw_detr import LwDetrViTConfig
from transformers.models.lw_detr.modeling_lw_detr import LwDetrMultiScaleProjector
from transformers.models.rf_detr.configuration_rf_detr import RfDetrDinov2Config
from transformers.models.rf_detr.modeling_rf_detr import RfDetrScaleProjector

from vision_stack.config import ConfigError, from_dict, to_dict
from vision_stack.necks import ScaleProjectorConfig
from vision_stack.structures import FeatureSpec
from vision_stack.weights.scale_projector import (
    convert_scale_projector,
    export_scale_projector,
    neck_fields,
    neck_options,
)

PLAIN = {"num_hidden_layers": 3, "num_attention_heads": 2, "out_indices": [1, 2, 3]}
CASES = {  # width of the backbone, scales
    "rf_detr": (20, [1.0]),
    "lw_detr": (20, [2.0, 1.0, 0.5]),
    "lw_detr, wide": (520, [2.0]),  # which narrows it before it is upsampled
}
PREFIX = "model.backbone.projector."


@cache
def pair(name):
    width, scales = CASES[name]
    family = name.partition(",")[0]
    torch.manual_seed(0)
    if family == "rf_detr":
        backbone = RfDetrDinov2Config(**PLAIN, hidden_size=width)
        config = RfDetrConfig(backbone_config=backbone, d_model=16)
        theirs = RfDetrScaleProjector(config)
    else:
        backbone = LwDetrViTConfig(**PLAIN, hidden_size=width)
        config = LwDetrConfig(backbone_config=backbone, d_model=16, projector_scale_factors=scales)
        theirs = LwDetrMultiScaleProjector(config)
    theirs = perturb(theirs).double()
    for level in [theirs] if family == "rf_detr" else theirs.scale_layers:
        level.layer_norm.weight.data.mul_(2)
    specs = tuple(FeatureSpec(f"stage{i}", width, 16) for i in range(3))
    ours = from_dict(neck_options(config.to_dict()), "neck")
    fields = neck_fields(to_dict(ours), family)
    assert {key: config.to_dict()[key] for key in fields} == fields
    neck = ours.build(specs)
    state = convert_scale_projector({f"{PREFIX}{key}": value for key, value in theirs.state_dict().items()}, family)
    neck.load_state_dict({key.removeprefix("neck."): value for key, value in state.items()})
    return theirs, neck.double().eval()


@torch.no_grad()
def worst_difference(name, theirs, neck, size, *, train=False):
    """Over the maps, in standard deviations of transformers'."""
    generator = torch.Generator().manual_seed(1)
    width = CASES[name][0]
    maps = tuple(torch.randn(2, width, *size, generator=generator, dtype=torch.float64) for _ in range(3))
    theirs, neck = copy.deepcopy(theirs).train(train), copy.deepcopy(neck).train(train)
    expected = theirs(maps)
    expected = expected if isinstance(expected, list) else [expected]
    differences = []
    for want, found in zip(expected, neck(maps), strict=True):
        assert found.shape == want.shape
        assert want.std() >= 1
        differences.append(float((found - want).abs().max() / want.std()))
    return max(differences)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("size", [(4, 4), (5, 7)])
@pytest.mark.parametrize("name", CASES)
def test_scale_projector_every_map_equals_that_of_transformers(name, size, train):
    assert worst_difference(name, *pair(name), size, train=train) < 1e-9


def swap_the_halves(neck):
    weight = neck.levels[0].block.split.conv.weight.data
    weight.copy_(weight.roll(len(weight) // 2, 0))


def forget_the_last_norm(neck):
    neck.levels[0].norm.eps = 1e-2


@pytest.mark.parametrize("plant", [swap_the_halves, forget_the_last_norm])
def test_scale_projector_planted_fault_shows(plant):
    theirs, neck = pair("rf_detr")
    broken = copy.deepcopy(neck)
    plant(broken)
    assert worst_difference("rf_detr", theirs, broken, (5, 7)) > 1e-3


@pytest.mark.parametrize(("name", "first"), [("rf_detr", "backbone.0.projector.stages.0.0.cv1."), ("lw_detr", PREFIX)])
def test_scale_projector_names_hold_both_ways(name, first):
    _, neck = pair(name)
    ours = {f"neck.{key}": value for key, value in neck.state_dict().items()}
    theirs = export_scale_projector(ours, name)
    assert any(key.startswith(first) for key in theirs)
    assert convert_scale_projector(theirs, name).keys() == ours.keys()


def test_scale_projector_that_transformers_has_not_is_refused_in_one_line():
    options = to_dict(ScaleProjectorConfig(scales=(2.0, 1.0)))
    with pytest.raises(ConfigError, match=r"^neck.scales: transformers' rf_detr has \[1.0\], not \[2.0, 1.0\]$"):
        neck_fields(options, "rf_detr")
