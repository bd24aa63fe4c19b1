"""`neck=hybrid_encoder` against transformers' RT-DETR and D-FINE: every map in float64, eval and train; all names."""

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from family_parity import perturb
from torch import nn
from transformers import (
    DFineConfig,
    DFineForObjectDetection,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
)
from transformers.models.d_fine.modeling_d_fine import DFineHybridEncoder
from transformers.models.rt_detr.modeling_rt_detr import RTDetrHybridEncoder

from vision_stack.layers.csp import CSPRep, RepVGG
from vision_stack.layers.position_encoding import sine_position_encoding
from vision_stack.necks import HybridEncoderConfig, hybrid_encoder
from vision_stack.structures import FeatureSpec
from vision_stack.weights.hybrid_encoder import HYBRID_ENCODER
from vision_stack.weights.renaming import rename, to_ours, to_theirs

SPECS = tuple(FeatureSpec(f"stage{i}", 8 + 4 * i, 4 * 2**i) for i in range(4))  # strides 4 to 32
SMALL = {
    "encoder_hidden_dim": 16,
    "encoder_ffn_dim": 24,
    "encoder_attention_heads": 4,
    "encoder_in_channels": [12, 16, 20],
}
CASES = {
    "csp_rep": (RTDetrHybridEncoder, RTDetrConfig, {}, {"num_blocks": 3}),
    "csp_rep, narrow": (
        RTDetrHybridEncoder,
        RTDetrConfig,
        {"hidden_expansion": 0.5},
        {"num_blocks": 3, "expansion": 0.5},
    ),
    "elan": (DFineHybridEncoder, DFineConfig, {"depth_mult": 0.34}, {"num_blocks": 1}),
    "elan, narrow, two layers": (
        DFineHybridEncoder,
        DFineConfig,
        {"hidden_expansion": 0.34, "depth_mult": 0.67, "encoder_layers": 2},
        {"num_blocks": 2, "expansion": 0.34, "num_encoder_layers": 2},
    ),
}


class Theirs(nn.Module):
    """The encoder and, as in the whole models, the projections before it."""

    def __init__(self, encoder, config, options):
        super().__init__()
        config = config(**SMALL, **options, attn_implementation="eager")
        self.encoder_input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(spec.channels, 16, 1, bias=False), nn.BatchNorm2d(16)) for spec in SPECS[1:]
        )
        self.encoder = encoder(config)

    def forward(self, maps):
        read = [projection(x) for projection, x in zip(self.encoder_input_proj, maps[1:], strict=True)]
        return self.encoder(read).last_hidden_state


@cache
def pair(name):
    encoder, config, options, ours = CASES[name]
    torch.manual_seed(0)
    theirs = perturb(Theirs(encoder, config, options)).double()
    for norm in (module for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.weight.data.mul_(2)  # SiLU shrinks the spread
    fusion = name.partition(",")[0]
    neck = HybridEncoderConfig(channels=16, ffn_dim=24, num_heads=4, fusion=fusion, **ours).build(SPECS)
    state = rename(
        {f"model.{key}": value for key, value in theirs.state_dict().items()}, to_ours(HYBRID_ENCODER[fusion])
    )
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
        differences.append(float((found - expected).abs().max() / expected.std()))
        assert expected.std() >= 1
    return max(differences)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
@pytest.mark.parametrize("name", CASES)
def test_hybrid_encoder_every_map_equals_that_of_transformers(name, size, train):
    assert worst_difference(*pair(name), size, train=train) < 1e-9


def forget_the_point_convolution(neck, monkeypatch):
    nn.init.zeros_(neck.top_down[0].get_submodule(POINT).point.norm.weight)


def use_detrs_positions(neck, monkeypatch):
    monkeypatch.setattr(hybrid_encoder, "cell_position_encoding", sine_position_encoding)


def use_relu(neck, monkeypatch):
    neck.encoder[0].ffn.activation = F.relu


POINT = "branches.0.0.blocks.0"


@pytest.mark.parametrize("plant", [forget_the_point_convolution, use_detrs_positions, use_relu])
def test_hybrid_encoder_planted_fault_shows(plant, monkeypatch):
    theirs, neck = pair("elan")
    broken = copy.deepcopy(neck)
    plant(broken, monkeypatch)
    assert worst_difference(theirs, broken, (96, 160)) > 1e-3


@pytest.mark.parametrize("fusion", HYBRID_ENCODER)
def test_hybrid_encoder_names_cover_the_whole_models_both_ways(fusion):
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_indices=[2, 3, 4]
    )
    options = {**SMALL, "backbone_config": backbone, "d_model": 16, "decoder_attention_heads": 4, "decoder_layers": 2}
    with torch.device("meta"):
        if fusion == "csp_rep":
            theirs = RTDetrForObjectDetection(RTDetrConfig(**options, hidden_expansion=0.5))
        else:
            theirs = DFineForObjectDetection(DFineConfig(**options))
        specs = [FeatureSpec(f"stage{i}", 8, 8 * 2**i) for i in range(3)]
        expansion = 0.5 if fusion == "csp_rep" else 1.0
        config = HybridEncoderConfig(channels=16, ffn_dim=24, num_heads=4, fusion=fusion, expansion=expansion)
        neck = config.build(tuple(specs))
    parts = ("model.encoder.", "model.encoder_input_proj.")
    in_memory = {key: value for key, value in theirs.state_dict().items() if key.startswith(parts)}
    ours = {f"neck.{key}": value for key, value in neck.state_dict().items()}
    converted = rename(in_memory, to_ours(HYBRID_ENCODER[fusion]))
    assert {key: value.shape for key, value in converted.items()} == {key: value.shape for key, value in ours.items()}
    of_files = rename(ours, to_theirs(HYBRID_ENCODER[fusion]))
    assert any(key.startswith("model.encoder.encoder.0.layers.0.self_attn.out_proj") for key in of_files)
    assert rename(of_files, to_ours(HYBRID_ENCODER[fusion])).keys() == ours.keys()


def test_rep_vgg_in_eval_mode_equals_its_two_branches():
    torch.manual_seed(0)
    block = perturb(RepVGG(6)).double()
    x = torch.randn(2, 6, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(block(x), F.silu(block.wide(x) + block.point(x)), rtol=0, atol=1e-12)


def test_csp_rep_of_the_same_width_needs_no_convolution_at_its_end():
    assert isinstance(CSPRep(8, 4, 1).output, nn.Identity)
