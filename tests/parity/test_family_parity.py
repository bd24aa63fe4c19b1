"""Every family, every stage, at its native and other sizes, against transformers with the same weights."""

import copy
from functools import cache

import pytest
import torch
from family_parity import CASES, differences, pair
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block

from vision_stack.weights.hgnet_v2 import export_hgnet_v2
from vision_stack.weights.resnet import export_resnet, export_rt_detr_resnet

TOLERANCE = 1e-4  # of a map's standard deviation: fp32, other kernels, fused attention

cached_pair = cache(pair)


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, case in CASES.items() for size in case.sizes])
def test_family_maps_of_every_stage_equal_those_of_transformers(name, size):
    found = differences(name, *cached_pair(name), size)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize(
    "name", [name for name in CASES if name.startswith(("rt_detr", "hgnet_v2", "rf_detr", "lw_detr"))]
)
def test_family_of_a_detr_in_float64_equals_transformers_but_for_rounding(name):
    theirs, ours = (copy.deepcopy(model).double() for model in cached_pair(name))
    size = CASES[name].sizes[0 if name == "lw_detr_vit" else -1]  # whose positions transformers resamples in float64
    found = differences(name, theirs, ours, size)
    assert max(found.values()) < 1e-9, found


@pytest.mark.parametrize(
    ("name", "export"),
    [
        ("resnet", export_resnet),
        ("rt_detr_resnet", export_rt_detr_resnet),
        ("rt_detr_resnet, basic", export_rt_detr_resnet),
        ("hgnet_v2", export_hgnet_v2),
        ("hgnet_v2, affine, three stages", export_hgnet_v2),
    ],
)
def test_family_names_lead_back_to_those_of_transformers(name, export):
    theirs, ours = cached_pair(name)
    found = export({key.removeprefix("net."): value for key, value in ours.state_dict().items()})
    expected = theirs.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def lose_a_bias(ours):
    ours.net.layer3[0].bn2.bias.zero_()


def stride_in_the_other_convolution(ours):
    first = ours.net.layer2[0]
    first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride


def forget_the_first_shortcut(ours):
    ours.net.layer1[0].downsample = None


def forget_the_pooling(ours):
    shortcut = ours.net.layer2[0].downsample
    shortcut[0], shortcut[1].stride = torch.nn.Identity(), (2, 2)


def forget_an_affine_shift(ours):
    ours.net.stages[1].blocks[0].layers[0].lab.bias.zero_()


def add_no_input_to_a_block(ours):
    ours.net.stages[2].blocks[1].residual = False


def swap_channels_of_a_norm(ours):
    ours.norms[2].weight.copy_(ours.norms[2].weight.flip(0))


def drop_the_last_shift(ours):
    ours.net.layers[-1].blocks[1].shift_size = (0, 0)


def shift_the_last_stage(ours):
    ours.net.layers[-1].blocks[1].shift_size = (2, 2)


def shift_before_padding(ours):
    for block in ours.net.layers[0].blocks:
        block.__class__ = SwinTransformerV2Block if "V2" in type(block).__name__ else SwinTransformerBlock


def forget_the_pretrained_window(ours):
    attention = ours.net.layers[1].blocks[0].attn
    attention.pretrained_window_size = (0, 0)
    attention._init_buffers()


def forget_layer_scale(ours):
    ours.net.stages[1].blocks[0].gamma.fill_(1.0)


def forget_response_norm(ours):
    ours.net.stages[1].blocks[0].mlp.grn.weight.zero_()


def antialias_positions_or_not(ours):
    ours.antialias = not ours.antialias


def transpose_positions(ours):
    first = 0 if ours.net.no_embed_class else 1
    positions = ours.net.pos_embed
    side = ours.net.patch_embed.grid_size[0]
    positions[:, first:] = positions[:, first:].unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)


def forget_layer_scale_of_attention(ours):
    ours.net.blocks[1].ls1.gamma.fill_(1.0)


def forget_the_registers(ours):
    ours.net.reg_token.zero_()


def attend_to_the_whole_image_before_a_map(ours):
    ours.windowed = {1}


def forget_the_windows(ours):
    ours.windowed = set()


def swap_gate_and_value(ours):
    fc1 = ours.net.blocks[0].mlp.fc1
    fc1.weight.copy_(fc1.weight.roll(len(fc1.weight) // 2, 0))
    fc1.bias.copy_(fc1.bias.roll(len(fc1.bias) // 2, 0))


def swap_split_gate_and_value(ours):
    mlp = ours.net.blocks[0].mlp
    mlp.fc1_g, mlp.fc1_x = mlp.fc1_x, mlp.fc1_g


def interleave_rotary_positions(ours):
    for block in ours.net.blocks:
        block.attn.rotate_half = False


def rotate_by_index(ours):
    ours.net.rope.grid_offset = 0.5


FAULTS = [
    ("resnet", lose_a_bias, "stage3"),
    ("resnet", stride_in_the_other_convolution, "stage2"),
    ("resnet, v1", stride_in_the_other_convolution, "stage2"),
    ("rt_detr_resnet", forget_the_pooling, "stage2"),
    ("rt_detr_resnet, basic", forget_the_first_shortcut, "stage1"),
    ("rt_detr_resnet, v1", stride_in_the_other_convolution, "stage2"),
    ("hgnet_v2", add_no_input_to_a_block, "stage3"),
    ("hgnet_v2, affine, three stages", forget_an_affine_shift, "stage2"),
    ("swin", swap_channels_of_a_norm, "stage2"),
    ("swin", drop_the_last_shift, "stage4"),
    ("swin", shift_before_padding, "stage1"),
    ("swinv2", shift_the_last_stage, "stage4"),
    ("swinv2", shift_before_padding, "stage1"),
    ("swinv2", forget_the_pretrained_window, "stage2"),
    ("convnext", forget_layer_scale, "stage2"),
    ("convnext", swap_channels_of_a_norm, "stage2"),
    ("convnextv2", forget_response_norm, "stage2"),
    ("vit", antialias_positions_or_not, "stem"),
    ("vit", transpose_positions, "stem"),
    ("dinov2", forget_layer_scale_of_attention, "stage2"),
    ("dinov2", antialias_positions_or_not, "stem"),
    ("dinov2, giant", swap_gate_and_value, "stage1"),
    ("dinov2_with_registers", forget_the_registers, "stage1"),
    ("dinov2_with_registers", antialias_positions_or_not, "stem"),
    ("rf_detr_dinov2", attend_to_the_whole_image_before_a_map, "stage1"),
    ("rf_detr_dinov2", forget_the_windows, "stage1"),
    ("rf_detr_dinov2", antialias_positions_or_not, "stem"),
    ("rf_detr_dinov2, SwiGLU", swap_gate_and_value, "stage1"),
    ("lw_detr_vit", attend_to_the_whole_image_before_a_map, "stage1"),
    ("lw_detr_vit", antialias_positions_or_not, "stem"),
    ("dinov3_vit", interleave_rotary_positions, "stage1"),
    ("dinov3_vit", rotate_by_index, "stage1"),
    ("dinov3_vit, gated, raw maps", swap_split_gate_and_value, "stage1"),
    ("dinov3_convnext", forget_layer_scale, "stage2"),
]


@pytest.mark.parametrize(("name", "plant", "stage"), FAULTS)
def test_family_a_planted_fault_shows_at_its_stage(name, plant, stage):
    theirs, ours = cached_pair(name)
    broken = copy.deepcopy(ours)
    with torch.no_grad():
        plant(broken)
    found = differences(name, theirs, broken, CASES[name].sizes[-1])
    assert found[stage] > 100 * TOLERANCE, found
    assert all(before <= TOLERANCE for before in list(found.values())[: list(found).index(stage)])
