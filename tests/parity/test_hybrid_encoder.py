"""`neck=hybrid_encoder` against RT-DETR, D-FINE and DEIMv2 of transformers: maps in float64, both modes; all names."""

import copy
from collections import OrderedDict
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from family_parity import perturb
from torch import nn
from transformers import (
    Deimv2Config,
    Deimv2ForObjectDetection,
    DFineConfig,
    DFineForObjectDetection,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
)
from transformers.models.d_fine.modeling_d_fine import DFineHybridEncoder
from transformers.models.deimv2.modeling_deimv2 import Deimv2HybridEncoder
from transformers.models.rt_detr.modeling_rt_detr import RTDetrHybridEncoder

from vision_stack.layers.csp import CSPRep, RepVGG
from vision_stack.layers.position_encoding import sine_position_encoding
from vision_stack.necks import HybridEncoderConfig, hybrid_encoder
from vision_stack.structures import FeatureSpec
from vision_stack.weights.hybrid_encoder import convert_hybrid_encoder, export_hybrid_encoder

SPECS = tuple(FeatureSpec(f"stage{i}", 8 + 4 * i, 4 * 2**i) for i in range(4))  # strides 4 to 32
OPTIONS = {
    "encoder_hidden_dim": 16,
    "encoder_ffn_dim": 24,
    "encoder_attention_heads": 4,
    "encoder_in_channels": [12, 16, 20],
}
OURS = {"channels": 16, "ffn_dim": 24, "num_heads": 4}


class Family(NamedTuple):
    encoder: Any
    config: Any
    model: Any


FAMILIES = {
    "rt_detr": Family(RTDetrHybridEncoder, RTDetrConfig, RTDetrForObjectDetection),
    "d_fine": Family(DFineHybridEncoder, DFineConfig, DFineForObjectDetection),
    "deimv2": Family(Deimv2HybridEncoder, Deimv2Config, Deimv2ForObjectDetection),
}
LIGHT = {"fusion": "elan_light", "merge": "sum"}
CASES = {  # options of theirs and of ours
    "rt_detr": ({}, {}),
    "rt_detr, narrow": ({"hidden_expansion": 0.5}, {"expansion": 0.5}),
    "d_fine": ({"depth_mult": 0.34}, {"fusion": "elan", "num_blocks": 1}),
    "d_fine, narrow, two layers": (
        {"hidden_expansion": 0.34, "depth_mult": 0.67, "encoder_layers": 2},
        {"fusion": "elan", "expansion": 0.34, "num_blocks": 2, "num_encoder_layers": 2},
    ),
    "deimv2": ({"depth_mult": 0.5}, {"fusion": "elan", "merge": "sum", "num_blocks": 2}),
    "deimv2, light": ({"hidden_expansion": 0.5, "encoder_has_trailing_conv": False}, {**LIGHT, "expansion": 0.5}),
}


class Theirs(nn.Module):
    """The encoder and, as in the whole models, the projections before it."""

    def __init__(self, family, options):
        super().__init__()
        layers = [(nn.Conv2d(spec.channels, 16, 1, bias=False), nn.BatchNorm2d(16)) for spec in SPECS[1:]]
        if family == "deimv2":
            named = (nn.Sequential(OrderedDict(conv=conv, norm=norm)) for conv, norm in layers)
            self.conv_encoder = nn.ModuleDict({"encoder_input_proj": nn.ModuleList(named)})
        else:
            self.encoder_input_proj = nn.ModuleList(nn.Sequential(*pair) for pair in layers)
        encoder, config, _ = FAMILIES[family]
        self.encoder = encoder(config(**OPTIONS, **options, attn_implementation="eager"))

    def forward(self, maps):
        projections = self.conv_encoder["encoder_input_proj"] if "conv_encoder" in self._modules else None
        read = [layer(x) for layer, x in zip(projections or self.encoder_input_proj, maps[1:], strict=True)]
        output = self.encoder(read)
        return output.feature_maps if projections else output.last_hidden_state


@cache
def pair(name):
    options, ours = CASES[name]
    family = name.partition(",")[0]
    torch.manual_seed(0)
    theirs = perturb(Theirs(family, options)).double()
    for norm in (module for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.weight.data.mul_(2)  # SiLU shrinks the spread
    neck = HybridEncoderConfig(**OURS, **ours).build(SPECS)
    state = convert_hybrid_encoder({f"model.{key}": value for key, value in theirs.state_dict().items()}, family)
    neck.load_state_dict({key.removeprefix("neck."): value for key, value in state.items()})
    return theirs, neck.double().eval()


@torch.no_grad()
def worst_difference(theirs, neck, size, *, train=False):
    """Over the three maps, in standard deviations of transformers'."""
    generator = torch.Generator().manual_seed(1)
    maps = [
        torch.randn(2, s.channels, size[0] // s.stride, size[1] // s.stride, generator=generator, dtype=torch.float64)
        for s in SPECS
    ]
    theirs, neck = copy.deepcopy(theirs).train(train), copy.deepcopy(neck).train(train)
    differences = []
    for expected, found in zip(theirs(maps), neck(maps), strict=True):
        assert found.shape == expected.shape
        assert expected.std() >= 1
        differences.append(float((found - expected).abs().max() / expected.std()))
    return max(differences)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
@pytest.mark.parametrize("name", CASES)
def test_hybrid_encoder_every_map_equals_that_of_transformers(name, size, train):
    assert worst_difference(*pair(name), size, train=train) < 1e-9


def forget_the_point_convolution(neck, monkeypatch):
    nn.init.zeros_(neck.top_down[0].branches[0][0].blocks[0].point.norm.weight)


def swap_main_and_shortcut(neck, monkeypatch):
    block = neck.bottom_up[0].branches[0][0]
    block.main, block.shortcut = block.shortcut, block.main


def use_detrs_positions(neck, monkeypatch):
    monkeypatch.setattr(hybrid_encoder, "cell_position_encoding", sine_position_encoding)


def use_relu(neck, monkeypatch):
    neck.encoder[0].ffn.activation = F.relu


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("d_fine", forget_the_point_convolution),
        ("deimv2, light", swap_main_and_shortcut),
        ("d_fine", use_detrs_positions),
        ("rt_detr", use_relu),
    ],
)
def test_hybrid_encoder_planted_fault_shows(name, plant, monkeypatch):
    theirs, neck = pair(name)
    broken = copy.deepcopy(neck)
    plant(broken, monkeypatch)
    assert worst_difference(theirs, broken, (96, 160)) > 1e-3


@pytest.mark.parametrize(
    ("family", "ours", "in_files"),
    [
        ("rt_detr", {"expansion": 0.5}, "model.encoder.encoder.0.layers.0.self_attn.out_proj.weight"),
        ("d_fine", {"fusion": "elan"}, "model.encoder.encoder.0.layers.0.self_attn.out_proj.weight"),
        ("deimv2", {"fusion": "elan", "merge": "sum"}, "model.encoder.aifi.0.layers.0.self_attn.o_proj.weight"),
    ],
)
def test_hybrid_encoder_names_cover_the_whole_models_both_ways(family, ours, in_files):
    backbone = RTDetrResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_indices=[2, 3, 4])
    options = {**OPTIONS, "backbone_config": backbone, "d_model": 16, "decoder_attention_heads": 4, "decoder_layers": 2}
    _, config, model = FAMILIES[family]
    with torch.device("meta"):
        theirs = model(config(**options, hidden_expansion=ours.get("expansion", 1.0))).state_dict()
        specs = tuple(FeatureSpec(f"stage{i}", 8, 8 * 2**i) for i in range(3))
        neck = HybridEncoderConfig(**OURS, **ours).build(specs)
    parts = ("model.encoder.", "model.encoder_input_proj.", "model.conv_encoder.encoder_input_proj.")
    in_memory = {key: value for key, value in theirs.items() if key.startswith(parts)}
    expected = {f"neck.{key}": value.shape for key, value in neck.state_dict().items()}
    found = convert_hybrid_encoder(in_memory, family)
    assert {key: value.shape for key, value in found.items()} == expected
    exported = export_hybrid_encoder(found, family)
    assert in_files in exported
    assert len(exported) == len(in_memory)
    assert {k: v.shape for k, v in convert_hybrid_encoder(exported, family).items()} == expected


def test_rep_vgg_in_eval_mode_equals_its_two_branches():
    torch.manual_seed(0)
    block = perturb(RepVGG(6)).double()
    x = torch.randn(2, 6, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(block(x), F.silu(block.wide(x) + block.point(x)), rtol=0, atol=1e-12)


def test_csp_rep_of_the_same_width_needs_no_convolution_at_its_end():
    assert isinstance(CSPRep(8, 4, 1).output, nn.Identity)
