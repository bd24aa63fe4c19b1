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

from vision_stack.config import ConfigError, from_dict, to_dict
from vision_stack.layers.csp import CSPRep, RepVGG
from vision_stack.layers.position_encoding import sine_position_encoding
from vision_stack.necks import HybridEncoderConfig, LiteEncoderConfig, hybrid_encoder
from vision_stack.structures import FeatureSpec
from vision_stack.weights.hybrid_encoder import (
    convert_hybrid_encoder,
    export_hybrid_encoder,
    neck_fields,
    neck_options,
)

SPECS = tuple(FeatureSpec(f"stage{i}", 8 + 4 * i, 4 * 2**i) for i in range(4))  # strides 4 to 32
OPTIONS = {
    "encoder_hidden_dim": 16,
    "encoder_ffn_dim": 24,
    "encoder_attention_heads": 4,
    "encoder_in_channels": [12, 16, 20],
}


class Family(NamedTuple):
    encoder: Any
    config: Any
    model: Any


FAMILIES = {
    "rt_detr": Family(RTDetrHybridEncoder, RTDetrConfig, RTDetrForObjectDetection),
    "d_fine": Family(DFineHybridEncoder, DFineConfig, DFineForObjectDetection),
    "deimv2": Family(Deimv2HybridEncoder, Deimv2Config, Deimv2ForObjectDetection),
}
CASES = {  # options of theirs
    "rt_detr": {},
    "rt_detr, narrow": {"hidden_expansion": 0.5},
    "d_fine": {"depth_mult": 0.34},
    "d_fine, narrow, two layers": {"hidden_expansion": 0.34, "depth_mult": 0.67, "encoder_layers": 2},
    "deimv2": {"depth_mult": 0.5},
    "deimv2, light": {"hidden_expansion": 0.5, "encoder_has_trailing_conv": False},
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
    family = name.partition(",")[0]
    torch.manual_seed(0)
    theirs = perturb(Theirs(family, CASES[name])).double()
    for norm in (module for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.weight.data.mul_(2)  # SiLU shrinks the spread
    neck = from_dict(neck_options(theirs.encoder.config.to_dict()), "neck").build(SPECS)
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


def whole_model(family, **options):
    """On the meta device, with a backbone that is the same for all."""
    backbone = RTDetrResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_indices=[2, 3, 4])
    decoder = {"d_model": 16, "decoder_attention_heads": 4, "decoder_layers": 2}
    _, config, model = FAMILIES[family]
    with torch.device("meta"):
        return model(config(**OPTIONS, **decoder, backbone_config=backbone, **options))


@pytest.mark.parametrize(
    ("family", "options", "in_files"),
    [
        ("rt_detr", {"hidden_expansion": 0.5}, "model.encoder.encoder.0.layers.0.self_attn.out_proj.weight"),
        ("d_fine", {}, "model.encoder.encoder.0.layers.0.self_attn.out_proj.weight"),
        ("deimv2", {}, "model.encoder.aifi.0.layers.0.self_attn.o_proj.weight"),
    ],
)
def test_hybrid_encoder_names_cover_the_whole_models_both_ways(family, options, in_files):
    theirs = whole_model(family, **options)
    specs = tuple(FeatureSpec(f"stage{i}", 8, 8 * 2**i) for i in range(3))
    with torch.device("meta"):
        neck = from_dict(neck_options(theirs.config.to_dict()), "neck").build(specs)
    parts = ("model.encoder.", "model.encoder_input_proj.", "model.conv_encoder.encoder_input_proj.")
    in_memory = {key: value for key, value in theirs.state_dict().items() if key.startswith(parts)}
    expected = {f"neck.{key}": value.shape for key, value in neck.state_dict().items()}
    found = convert_hybrid_encoder(in_memory, family)
    assert {key: value.shape for key, value in found.items()} == expected
    exported = export_hybrid_encoder(found, family)
    assert in_files in exported
    assert len(exported) == len(in_memory)
    assert {k: v.shape for k, v in convert_hybrid_encoder(exported, family).items()} == expected


@pytest.mark.parametrize("name", CASES)
def test_hybrid_encoder_options_lead_back_to_the_fields_of_transformers(name):
    family = name.partition(",")[0]
    raw = FAMILIES[family].config(**OPTIONS, **CASES[name]).to_dict()
    options = to_dict(from_dict(neck_options(raw), "neck"))
    fields = neck_fields(options, family)
    rounded = {"depth_mult"}  # of which only the number of blocks is known
    assert {key: raw[key] for key in fields.keys() - rounded} == {key: fields[key] for key in fields.keys() - rounded}
    assert neck_options({**raw, **fields}) == neck_options(raw)


@pytest.mark.parametrize(
    ("model_type", "change", "line"),
    [
        ("rt_detr", {"normalize_before": True}, "normalize_before: True is not built here, only False is"),
        ("d_fine", {"encode_proj_layers": [1, 2]}, r"encode_proj_layers: \[1, 2\] is not built here, only \[2\] is"),
        ("deimv2", {"encoder_fuse_op": "cat"}, "encoder_fuse_op: 'cat' is not built here, only 'sum' is"),
        ("d_fine", {"depth_mult": "1"}, "depth_mult: expected a number from 0 to 60, got '1'"),
        ("d_fine", {"feat_strides": 8}, "feat_strides: expected a list of strides, got 8"),
    ],
)
def test_hybrid_encoder_of_another_architecture_is_refused_in_one_line(model_type, change, line):
    with pytest.raises(ConfigError, match=f"^{line}$"):
        neck_options({"model_type": model_type, **change})


def test_hybrid_encoder_that_transformers_has_not_is_refused_in_one_line():
    options = to_dict(HybridEncoderConfig(fusion="elan", num_blocks=2))
    assert neck_fields(options, "d_fine")["depth_mult"] == 2 / 3
    with pytest.raises(ConfigError, match=r"^neck.num_blocks: transformers' rt_detr has 3, not 2$"):
        neck_fields({**options, "fusion": "csp_rep"}, "rt_detr")
    with pytest.raises(
        ConfigError, match=r"^neck.type: transformers' rt_detr has 'hybrid_encoder', not 'lite_encoder'$"
    ):
        neck_fields(to_dict(LiteEncoderConfig()), "rt_detr")


def test_transformers_forgets_positions_with_eval_size_in_eval_mode_but_not_in_training():
    """Its authors' code has them either way, and so have we: with `eval_size`, the oracle is wrong."""
    theirs, neck = pair("rt_detr")
    wrong = copy.deepcopy(theirs)
    wrong.encoder.aifi[0].eval_size = [96, 160]
    assert worst_difference(wrong, neck, (96, 160), train=True) < 1e-9
    assert worst_difference(wrong, neck, (96, 160)) > 1e-3


def test_rep_vgg_in_eval_mode_equals_its_two_branches():
    torch.manual_seed(0)
    block = perturb(RepVGG(6)).double()
    x = torch.randn(2, 6, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(block(x), F.silu(block.wide(x) + block.point(x)), rtol=0, atol=1e-12)


def test_csp_rep_of_the_same_width_needs_no_convolution_at_its_end():
    assert isinstance(CSPRep(8, 4, 1).output, nn.Identity)
