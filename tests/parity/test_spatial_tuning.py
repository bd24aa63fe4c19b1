"""`neck=spatial_tuning` against transformers' DEIMv2 on DINOv3, in float64; whole models with it; its names."""

import copy
from functools import cache

import pytest
import torch
from family_parity import perturb
from torch import nn
from transformers import Deimv2Config, Deimv2ForObjectDetection, DINOv3ViTConfig
from transformers.models.deimv2.modeling_deimv2 import Deimv2DINOv3ConvEncoder, Deimv2HybridEncoder

from vision_stack.config import ConfigError, from_dict, to_dict
from vision_stack.model import VisionModel, VisionModelConfig
from vision_stack.necks import SpatialTuningConfig
from vision_stack.structures import Features, FeatureSpec
from vision_stack.testing import check_neck
from vision_stack.weights.hybrid_encoder import (
    convert_hybrid_encoder,
    export_hybrid_encoder,
    neck_fields,
    neck_options,
)

FAMILY = "deimv2, spatial_tuning"
WIDTH = 24
PLAIN = tuple(FeatureSpec(f"stage{i}", WIDTH, 16) for i in (1, 2, 3))


def config(**options):
    backbone = DINOv3ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        num_register_tokens=2,
        out_indices=[1, 2, 3],
    )
    return Deimv2Config(
        backbone_config=backbone,
        encoder_hidden_dim=16,
        encoder_ffn_dim=24,
        encoder_attention_heads=4,
        encoder_in_channels=[16, 16, 16],
        hidden_expansion=0.5,
        depth_mult=0.67,
        encoder_has_trailing_conv=False,
        spatial_tuning_adapter_inplanes=4,
        attn_implementation="eager",
        **options,
    )


OURS = from_dict(neck_options(config().to_dict()), "neck")


@cache
def pair():
    torch.manual_seed(0)
    front, encoder = Deimv2DINOv3ConvEncoder(config()), Deimv2HybridEncoder(config())
    theirs = perturb(nn.ModuleDict({"conv_encoder": front, "encoder": encoder})).double()
    for norm in (module for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.weight.data.mul_(2)  # SiLU and GELU shrink the spread
    state = {f"model.{k}": v for k, v in theirs.state_dict().items() if not k.startswith("conv_encoder.backbone.")}
    neck = OURS.build(PLAIN)
    neck.load_state_dict({k.removeprefix("neck."): v for k, v in convert_hybrid_encoder(state, FAMILY).items()})
    return theirs, neck.double().eval()


@torch.no_grad()
def worst_difference(theirs, neck, size, *, train=False):
    """Over the three maps, in standard deviations of transformers'."""
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    layers = theirs["conv_encoder"].backbone(pixels).feature_maps
    theirs, neck = copy.deepcopy(theirs).train(train), copy.deepcopy(neck).train(train)
    theirs["conv_encoder"].backbone.eval()
    found = neck(Features(tuple(layers), size, pixels=pixels))
    differences = []
    for x, expected in zip(found, theirs["encoder"](theirs["conv_encoder"](pixels)).feature_maps, strict=True):
        assert x.shape == expected.shape
        assert expected.std() >= 1
        differences.append(float((x - expected).abs().max() / expected.std()))
    return max(differences)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_spatial_tuning_every_map_equals_that_of_transformers(size, train):
    assert worst_difference(*pair(), size, train=train) < 1e-9


def activate_what_a_step_gives(neck):
    neck.detail.steps[1].append(nn.GELU())


def swap_two_layers(neck):
    first, second = neck.projections[1], neck.projections[2]
    neck.projections[1], neck.projections[2] = second, first


@pytest.mark.parametrize("plant", [activate_what_a_step_gives, swap_two_layers])
def test_spatial_tuning_planted_fault_shows(plant):
    theirs, neck = pair()
    broken = copy.deepcopy(neck)
    plant(broken)
    assert worst_difference(theirs, broken, (96, 160)) > 1e-3


def test_spatial_tuning_options_lead_back_to_the_fields_of_transformers():
    assert isinstance(OURS, SpatialTuningConfig)
    raw, fields = config().to_dict(), neck_fields(to_dict(OURS), "deimv2")
    assert fields.pop("depth_mult") == 2 / 3
    assert {key: raw[key] for key in fields} == fields


def test_spatial_tuning_names_cover_the_whole_model_both_ways():
    options = {"d_model": 16, "decoder_attention_heads": 4, "decoder_layers": 2, "decoder_in_channels": [16] * 3}
    with torch.device("meta"):
        theirs = Deimv2ForObjectDetection(config(**options)).state_dict()
        neck = OURS.build(PLAIN)
    front = {k: v for k, v in theirs.items() if k.startswith(("model.conv_encoder.", "model.encoder."))}
    in_memory = {k: v for k, v in front.items() if not k.startswith("model.conv_encoder.backbone.")}
    found = convert_hybrid_encoder(in_memory, FAMILY)
    assert {k: v.shape for k, v in found.items()} == {f"neck.{k}": v.shape for k, v in neck.state_dict().items()}
    assert export_hybrid_encoder(found, FAMILY).keys() == in_memory.keys()


@pytest.mark.parametrize("specs", [PLAIN, PLAIN[:1], tuple(FeatureSpec(f"stage{i}", WIDTH, 14) for i in range(3))])
def test_spatial_tuning_of_three_layers_or_one_keeps_the_contract(specs):
    check_neck(OURS, specs)


@pytest.mark.parametrize("strides", [(16, 16), (4, 8, 16), (4, 8, 16, 32)])
def test_spatial_tuning_of_other_maps_fails_with_the_remedy(strides):
    with pytest.raises(
        ConfigError, match=r"^neck: spatial_tuning needs three maps .*neck=hybrid_encoder for a"
    ) as error:
        OURS.build(tuple(FeatureSpec(f"m{i}", 8, stride) for i, stride in enumerate(strides)))
    assert "\n" not in str(error.value)


def test_spatial_tuning_in_a_whole_model_reads_its_pixels():
    torch.manual_seed(0)
    backbone = {"type": "dinov3_vit", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    neck = {"type": "spatial_tuning", "channels": 16, "num_heads": 4, "ffn_dim": 32, "detail_channels": 4}
    plain = {
        "backbone": {**backbone, "out_indices": [1, 2, 3]},
        "neck": neck,
        "head": {"type": "fcos"},
        "task": "detection",
        "categories": [{"id": 1, "name": "thing"}],
    }
    model = VisionModel(from_dict(plain, cls=VisionModelConfig)).train()
    target = {"labels": torch.zeros(1, dtype=torch.int64), "boxes": torch.tensor([[20.0, 10, 60, 40]])}
    outputs = model(torch.randn(2, 3, 75, 101), image_sizes=[(75, 101), (60, 90)], targets=[target] * 2)
    sum(model.head.compute_loss(outputs, [target] * 2).values()).backward()
    gradient = model.neck.detail.stem[0].conv.weight.grad
    assert gradient is not None
    assert gradient.any()
