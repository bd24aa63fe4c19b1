"""What every neck promises, and what each one is."""

import itertools

import pytest
import torch
from torch import nn

import vision_stack.necks
from vision_stack.backbones.base import crop_to_image
from vision_stack.config import ConfigError, from_dict, registered
from vision_stack.layers.transformer import DetrEncoderLayer
from vision_stack.structures import FeatureSpec, Pyramid
from vision_stack.testing import check_neck

LEVELS = {
    "three": (FeatureSpec("a", 6, 4), FeatureSpec("b", 8, 8), FeatureSpec("c", 12, 16)),
    "four": tuple(FeatureSpec(f"stage{i}", 8 * 2**i, 2 ** (i + 1)) for i in range(1, 5)),
    "gap": (FeatureSpec("a", 6, 4), FeatureSpec("b", 12, 16)),
    "one": (FeatureSpec("a", 6, 4),),
}
SMALL = {
    "pixel_decoder": {"channels": 16, "mask_channels": 12, "ffn_dim": 32},
    "fpn": {"channels": 16},
    "scale_projector": {"channels": 16, "num_blocks": 1},
    "simple_pyramid": {"channels": 16},
    "hybrid_encoder": {"channels": 16, "ffn_dim": 32, "num_heads": 4, "num_blocks": 1},
    "lite_encoder": {"channels": 16, "num_blocks": 1},
    "ms_deform": {"channels": 16, "mask_channels": 12, "ffn_dim": 32, "num_heads": 4, "num_encoder_layers": 2},
    "deformable_encoder": {"channels": 16, "ffn_dim": 32, "num_heads": 4, "num_encoder_layers": 2},
}


NECKS = [name for name in registered("neck") if name != "spatial_tuning"]  # which is for plain transformers only
NEEDS_COARSER = {
    ("lite_encoder", "one"),
    ("ms_deform", "one"),
    ("hybrid_encoder", "one"),
    ("deformable_encoder", "one"),
}  # than stride 4


def maps_of(specs, height, width, *, channels_last=False):
    """Random maps of a height x width image, two of them."""
    generator = torch.Generator().manual_seed(0)
    maps = (
        torch.randn(2, s.channels, -(-height // s.stride), -(-width // s.stride), generator=generator) for s in specs
    )
    return tuple(m.contiguous(memory_format=torch.channels_last) if channels_last else m for m in maps)


def build(name, specs, **options):
    torch.manual_seed(0)
    return from_dict({"type": name, **SMALL.get(name, {}), **options}, "neck").build(specs).eval()


@pytest.mark.parametrize(
    ("name", "levels"),
    [pair for pair in itertools.product(NECKS, LEVELS) if pair not in NEEDS_COARSER],
)
def test_neck_any_levels_and_odd_sizes_gives_maps_as_declared(name, levels):
    neck = build(name, LEVELS[levels])
    maps = neck(maps_of(LEVELS[levels], 75, 101))
    assert isinstance(maps, tuple)
    assert len(maps) == len(neck.out_specs)
    if name == "simple_pyramid":  # from one coarse map it cannot know where the image ends; the model cuts the rest off
        maps = crop_to_image(maps, neck.out_specs, (75, 101))
    for spec, out in zip(neck.out_specs, maps, strict=True):
        assert out.shape == (2, spec.channels, -(-75 // spec.stride), -(-101 // spec.stride))
    strides = [spec.stride for spec in neck.out_specs]
    assert strides == sorted(strides)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in NECKS),
        ("pixel_decoder", {"num_encoder_layers": 2}),
        ("hybrid_encoder", {"fusion": "elan"}),
        ("scale_projector", {"norm": "batch", "scales": [2.0, 1.0, 0.5]}),
    ],
)
def test_neck_channels_last_gives_equal_channels_last_maps(name, options):
    neck, specs = build(name, LEVELS["four"], **options), LEVELS["four"]
    expected = neck(maps_of(specs, 96, 128))
    neck.to(memory_format=torch.channels_last)
    for out, want in zip(neck(maps_of(specs, 96, 128, channels_last=True)), expected, strict=True):
        assert out.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(out, want, atol=1e-4, rtol=1e-4)  # convolutions sum in another order


@pytest.mark.parametrize("name", [name for name in NECKS if name != "none"])
def test_neck_trained_every_parameter_gets_a_gradient(name):
    neck = build(name, LEVELS["three"]).train()
    for p in neck.parameters():
        if not p.any():  # what starts at zero, such as the offsets of deformable attention, lets no gradient through
            nn.init.normal_(p, std=0.1)
    sum(out.square().mean() for out in neck(maps_of(LEVELS["three"], 64, 96))).backward()
    assert [key for key, p in neck.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_fpn_levels_are_named_by_stride_with_the_same_channels():
    assert build("fpn", LEVELS["four"]).out_specs == tuple(FeatureSpec(f"p{i}", 16, 2**i) for i in range(2, 6))


@pytest.mark.parametrize("name", ["fpn", "simple_pyramid"])
def test_pyramid_follows_the_head_where_its_options_say_auto(name):
    dense = Pyramid(extra_levels="p6p7", finest_stride=8)
    options = {"auto": {}, "typed": {"extra_levels": "pool", "finest_stride": 4}}
    strides = {}
    for key, typed in options.items():
        config = from_dict({"type": name, "channels": 16, **typed}, "neck").fitted(dense)
        assert config.fitted(Pyramid()) == config
        neck = config.build(LEVELS["four"])
        maps = crop_to_image(neck(maps_of(LEVELS["four"], 75, 101)), neck.out_specs, (75, 101))
        assert [m.shape[-2:] for m in maps] == [(-(-75 // s.stride), -(-101 // s.stride)) for s in neck.out_specs]
        strides[key] = [spec.stride for spec in neck.out_specs]
    assert strides == {"auto": [8, 16, 32, 64, 128], "typed": [4, 8, 16, 32, 64]}


def test_pyramid_without_a_map_that_is_coarse_enough_says_so():
    with pytest.raises(ConfigError, match=r"neck.finest_stride: 64, but the maps have strides \(4, 8, 16, 32\); lower"):
        build("fpn", LEVELS["four"], finest_stride=64)


def test_simple_pyramid_has_no_map_of_the_backbone_at_stride_32():
    with pytest.raises(ConfigError, match=r"^neck.extra_levels: p6p7_on_c5 needs .*; give p6p7$"):
        build("simple_pyramid", LEVELS["four"], extra_levels="p6p7_on_c5")
    assert build("simple_pyramid", LEVELS["four"]).out_specs[-1].stride == 32
    on_c5 = from_dict({"type": "simple_pyramid"}, "neck").fitted(Pyramid("p6p7_on_c5"))
    assert on_c5.extra_levels == "p6p7"


def test_fpn_identity_convolutions_gives_sums_of_upsampled_maps():
    specs = (FeatureSpec("a", 3, 4), FeatureSpec("b", 3, 8), FeatureSpec("c", 3, 16))
    neck = build("fpn", specs, channels=3, norm="none")
    with torch.no_grad():
        for conv in (m for m in neck.modules() if isinstance(m, nn.Conv2d)):
            nn.init.dirac_(conv.weight)
    a, b, c = maps_of(specs, 64, 64)
    p2, p3, p4 = neck((a, b, c))
    up = nn.UpsamplingNearest2d(scale_factor=2)
    torch.testing.assert_close(p4, c)
    torch.testing.assert_close(p3, b + up(c))
    torch.testing.assert_close(p2, a + up(b + up(c)))


@pytest.mark.parametrize(("norm", "kind"), [("group", nn.GroupNorm), ("batch", nn.BatchNorm2d)])
def test_fpn_norm_follows_each_convolution_which_has_no_bias(norm, kind):
    neck = build("fpn", LEVELS["three"], norm=norm)
    assert sum(isinstance(m, kind) for m in neck.modules()) == 6
    assert all(m.bias is None for m in neck.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(("name", "channels"), itertools.product(["fpn", "pixel_decoder"], [20, 48, 64]))
def test_neck_group_norm_takes_channels_that_32_does_not_divide(name, channels):
    neck = build(name, LEVELS["three"], channels=channels, **({"norm": "group"} if name == "fpn" else {}))
    assert all(out.isfinite().all() for out in neck(maps_of(LEVELS["three"], 32, 32)))


def test_fpn_equal_strides_fails_naming_the_neck_that_fits():
    specs = tuple(FeatureSpec(f"stage{i}", 8, 16) for i in range(2))
    with pytest.raises(ConfigError, match=r"increasing strides, got \(16, 16\); use neck=simple_pyramid"):
        build("fpn", specs)


@pytest.mark.parametrize(
    ("strides", "remedy"),
    [
        ((8, 16, 32), "got (8, 16, 32); take a backbone that has one (resnet50"),
        ((2, 4, 8), "got (2, 4, 8); leave out the finer maps (backbone.out_indices"),
        ((4, 4), "needs increasing strides, got (4, 4)"),
    ],
)
def test_pixel_decoder_unfit_strides_fails_with_the_remedy(strides, remedy):
    specs = tuple(FeatureSpec(f"m{i}", 8, stride) for i, stride in enumerate(strides))
    with pytest.raises(ConfigError) as error:
        build("pixel_decoder", specs)
    assert remedy in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("strides", "remedy"),
    [
        ((4,), "needs maps coarser than stride 4 too, got (4,)"),
        ((8, 16, 32), "got (8, 16, 32); take a backbone that has one (resnet50"),
        ((2, 4, 8), "got (2, 4, 8); leave out the finer maps (backbone.out_indices"),
        ((4, 16, 16), "needs increasing strides, got (4, 16, 16)"),
    ],
)
def test_ms_deform_unfit_strides_fails_with_the_remedy(strides, remedy):
    specs = tuple(FeatureSpec(f"m{i}", 8, stride) for i, stride in enumerate(strides))
    with pytest.raises(ConfigError) as error:
        build("ms_deform", specs)
    assert remedy in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("strides", "line"),
    [
        ((4,), "neck.finest_stride: 8, but the maps have strides (4,); lower it, or take coarser maps"),
        ((4, 8, 32), "needs strides that double from map to map, got (8, 32); choose them by backbone.out_strides"),
        ((16, 16), "needs strides that double from map to map, got (16, 16); choose them by"),
    ],
)
def test_hybrid_encoder_unfit_strides_fails_with_the_remedy(strides, line):
    specs = tuple(FeatureSpec(f"m{i}", 8, stride) for i, stride in enumerate(strides))
    with pytest.raises(ConfigError) as error:
        build("hybrid_encoder", specs)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [{"fusion": "elan"}, {"fusion": "elan_light", "merge": "sum"}, {"expansion": 0.5, "num_encoder_layers": 0}],
)
def test_hybrid_encoder_with_other_blocks_keeps_the_contract(options):
    check_neck(from_dict({"type": "hybrid_encoder", **SMALL["hybrid_encoder"], **options}, "neck"))


def test_lite_encoder_without_a_map_at_stride_16_fails_with_the_remedy():
    with pytest.raises(
        ConfigError, match=r"needs a map at stride 16, got \(4, 8\); choose one by backbone.out_strides"
    ):
        build("lite_encoder", (FeatureSpec("a", 8, 4), FeatureSpec("b", 8, 8)))
    assert [(s.name, s.stride) for s in build("lite_encoder", LEVELS["four"]).out_specs] == [("p4", 16), ("p5", 32)]


@pytest.mark.parametrize(
    ("strides", "scales", "out"),
    [
        ((14, 14), [2.0, 1.0, 0.5], [("p3", 7), ("p4", 14), ("p5", 28)]),
        ((4, 8, 16, 32), [2.0, 1.0, 0.5], [("p3", 8), ("p4", 16), ("p5", 32)]),
        ((8, 32), [1.0], [("p4", 16)]),
        ((4, 8, 16), [0.5], [("p5", 32)]),
    ],
)
def test_scale_projector_gives_a_map_for_each_scale_of_any_strides(strides, scales, out):
    specs = tuple(FeatureSpec(f"m{i}", 8 + i, stride) for i, stride in enumerate(strides))
    neck = build("scale_projector", specs, scales=scales)
    assert neck.out_specs == tuple(FeatureSpec(name, 16, stride) for name, stride in out)
    maps = crop_to_image(neck(maps_of(specs, 75, 101)), neck.out_specs, (75, 101))
    assert [m.shape[-2:] for m in maps] == [(-(-75 // s.stride), -(-101 // s.stride)) for s in neck.out_specs]


def test_scale_projector_strides_too_far_from_the_wanted_one_fail_with_the_remedy():
    specs = (FeatureSpec("a", 8, 4), FeatureSpec("b", 8, 64))
    with pytest.raises(
        ConfigError, match=r"a map of stride 16 from maps of strides \(4, 64\); choose others by neck.sc"
    ):
        build("scale_projector", specs)
    with pytest.raises(ConfigError, match=r"of stride 7.5 from maps of strides \(15, 15\)"):
        build("scale_projector", tuple(FeatureSpec(f"m{i}", 8, 15) for i in range(2)), scales=[2.0])


@pytest.mark.parametrize("scales", [[], [1.0, 2.0], [4.0], [1.0, 1.0]])
def test_scale_projector_other_scales_fail_in_one_line(scales):
    with pytest.raises(ConfigError, match=r"^neck.scales: some of 2, 1 and 0.5 in this order, got \["):
        build("scale_projector", LEVELS["four"], scales=scales)


def test_ms_deform_gives_mask_features_and_every_coarser_map():
    assert build("ms_deform", LEVELS["four"]).out_specs == (
        FeatureSpec("mask_features", 12, 4),
        *(FeatureSpec(f"p{i}", 16, 2**i) for i in (3, 4, 5)),
    )


def test_pixel_decoder_plain_passes_the_coarsest_map_untouched():
    specs, maps = LEVELS["four"], maps_of(LEVELS["four"], 64, 96)
    neck = build("pixel_decoder", specs)
    assert neck.out_specs == (FeatureSpec("mask_features", 12, 4), specs[-1])
    assert neck(maps)[1] is maps[-1]


def test_pixel_decoder_with_encoder_gives_its_output_and_feeds_it_to_the_pyramid():
    specs, maps = LEVELS["four"], maps_of(LEVELS["four"], 64, 96)
    neck = build("pixel_decoder", specs, num_encoder_layers=2)
    assert neck.out_specs == (FeatureSpec("mask_features", 12, 4), FeatureSpec("stage4", 16, 32))
    mask_features, memory = neck(maps)
    torch.testing.assert_close(memory, neck.encoder(maps[-1]))
    plain = build("pixel_decoder", (*specs[:-1], FeatureSpec("stage4", 16, 32)))
    plain.load_state_dict({k: v for k, v in neck.state_dict().items() if not k.startswith("encoder.")})
    torch.testing.assert_close(mask_features, plain((*maps[:-1], memory))[0])


def test_encoder_layer_without_positions_equals_torch_and_with_them_moves_q_and_k_alone():
    """torch's layer knows no positions; where value and residual must stay without, its parts are called one by one."""
    torch.manual_seed(0)
    ours = DetrEncoderLayer(16, 4, 32, dropout=0.1).eval()
    theirs = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=True).eval()
    with torch.no_grad():
        for p in ours.parameters():
            p.copy_(torch.randn(p.shape))
    attention = ours.self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([p.weight for p in projections]),
            "self_attn.in_proj_bias": torch.cat([p.bias for p in projections]),
            "self_attn.out_proj.weight": attention.out_proj.weight,
            "self_attn.out_proj.bias": attention.out_proj.bias,
            "linear1.weight": ours.ffn.linear1.weight,
            "linear1.bias": ours.ffn.linear1.bias,
            "linear2.weight": ours.ffn.linear2.weight,
            "linear2.bias": ours.ffn.linear2.bias,
            "norm1.weight": ours.self_attn_norm.weight,
            "norm1.bias": ours.self_attn_norm.bias,
            "norm2.weight": ours.ffn_norm.weight,
            "norm2.bias": ours.ffn_norm.bias,
        }
    )
    x, position = torch.randn(2, 9, 16), torch.randn(9, 16)
    torch.testing.assert_close(
        ours(x, torch.zeros(9, 16)), theirs(x), atol=1e-4, rtol=1e-4
    )  # float32 sums, O(10) values
    attended = theirs.self_attn(x + position, x + position, x, need_weights=False)[0]
    middle = theirs.norm1(x + attended)
    expected = theirs.norm2(middle + theirs.linear2(theirs.linear1(middle).relu()))
    torch.testing.assert_close(ours(x, position), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, theirs(x + position), atol=0.1)


def test_pixel_decoder_encoder_channels_that_heads_do_not_divide_fails():
    with pytest.raises(ConfigError, match="channels: 20 must be a multiple of 4 and of num_heads"):
        vision_stack.necks.PixelDecoderConfig(channels=20, num_encoder_layers=1)
