"""What every backbone promises, on one small member of each family, with real numbers."""

import pytest
import torch
from torch import nn

from vision_stack.backbones import ResNetConfig, TimmBackboneConfig, TorchvisionBackboneConfig
from vision_stack.backbones.base import OutputNorms
from vision_stack.structures import FeatureSpec

TIMM = ["test_resnet", "test_convnext", "test_efficientnet", "test_byobnet", "test_nfnet", "regnetx_002", "test_vit"]
TIMM += ["mobilenetv4_conv_small_050", "swin_tiny_patch4_window7_224", "pvt_v2_b0", "hardcorenas_a"]
TORCHVISION = ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "regnet_x_400mf", "swin_v2_t"]
TORCHVISION += ["convnext_tiny"]
CASES = [(TimmBackboneConfig, name) for name in TIMM] + [(TorchvisionBackboneConfig, name) for name in TORCHVISION]
FEW = [(TimmBackboneConfig, "test_resnet"), (TimmBackboneConfig, "test_convnext"), (TimmBackboneConfig, "test_vit")]
FEW += [(TimmBackboneConfig, "test_efficientnet"), (TorchvisionBackboneConfig, "mobilenet_v3_small")]


def build(cls, name, **options):
    torch.manual_seed(0)
    return cls(name, **options).build()


def image(*size, batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("cls", "name"), CASES, ids=lambda case: getattr(case, "__name__", case))
def test_backbone_every_stage_at_an_odd_size_is_as_declared_and_trains_the_stem(cls, name):
    config = cls(name)
    config.out_indices = list(range(len(config.stages)))
    torch.manual_seed(0)
    backbone = config.build()
    for height, width in ((64, 64), (50, 75)):
        pixel_values = image(height, width).requires_grad_()
        maps = backbone(pixel_values).feature_maps
        assert isinstance(maps, tuple)
        for spec, x in zip(config.stages, maps, strict=True):
            assert x.shape == (2, spec.channels, -(-height // spec.stride), -(-width // spec.stride)), spec
    maps[-1].square().sum().backward()
    assert pixel_values.grad.abs().sum() > 0
    assert next(backbone.parameters()).grad.abs().sum() > 0
    strides = [spec.stride for spec in config.stages]
    assert strides == sorted(strides)


@pytest.mark.parametrize(("cls", "name"), FEW)
def test_backbone_fewer_stages_give_the_same_maps_and_hold_fewer_parameters(cls, name):
    config = cls(name)
    config.out_indices = list(range(len(config.stages)))
    torch.manual_seed(0)
    whole = config.build().eval()
    middle = len(config.stages) // 2
    part = build(cls, name, out_indices=[middle]).eval()
    assert sum(p.numel() for p in part.parameters()) < sum(p.numel() for p in whole.parameters())
    unused = part.load_state_dict(whole.state_dict(), strict=False)
    assert not unused.missing_keys
    pixel_values = image(64, 64)
    expected = whole(pixel_values).feature_maps[middle]
    torch.testing.assert_close(part(pixel_values).feature_maps[0], expected, rtol=0, atol=0)  # the same operations


@pytest.mark.parametrize(("cls", "name"), FEW)
def test_backbone_every_parameter_is_used(cls, name):
    backbone = build(cls, name, out_strides=[16]).train()
    sum(x.square().sum() for x in backbone(image(64, 64)).feature_maps).backward()
    assert [key for key, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("cls", "name"), [*FEW, (TimmBackboneConfig, "swin_tiny_patch4_window7_224")])
def test_backbone_channels_last_gives_equal_maps_in_the_same_format(cls, name):
    backbone = build(cls, name, out_strides=[16], out_norms=True).eval()
    pixel_values = image(64, 96)
    expected = backbone(pixel_values).feature_maps
    backbone = backbone.to(memory_format=torch.channels_last)
    found = backbone(pixel_values.contiguous(memory_format=torch.channels_last)).feature_maps
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)  # other kernels sum in another order
        assert x.is_contiguous(memory_format=torch.channels_last) or "vit" in name  # tokens come in neither format


@pytest.mark.parametrize(
    "config",
    [
        TimmBackboneConfig("resnet18", freeze_norm=True, out_strides=[8]),
        TorchvisionBackboneConfig("resnet18", freeze_norm=True, out_strides=[8]),
        ResNetConfig(freeze_norm=True, out_strides=[8]),
    ],
    ids=lambda config: config.type,
)
def test_backbone_frozen_norms_survive_train_and_have_no_parameters(config):
    backbone = config.build().train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone(image(32, 32))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert all(p.ndim == 4 for p in backbone.parameters())


def test_backbone_norms_of_outputs_have_mean_zero_and_variance_one_per_pixel():
    maps = [3 + 5 * torch.randn(2, 48, 5, 7)]
    (x,) = OutputNorms([FeatureSpec("a", 48, 4)])(maps)
    assert x.shape == maps[0].shape
    torch.testing.assert_close(x.mean(1), torch.zeros(2, 5, 7), rtol=0, atol=1e-5)  # rounding of 48 numbers
    torch.testing.assert_close(x.var(1, unbiased=False), torch.ones(2, 5, 7), rtol=0, atol=1e-4)


def test_backbone_output_stride_dilates_instead_of_going_coarser():
    backbone = build(TimmBackboneConfig, "resnet18", output_stride=8, out_indices=[-1])
    assert backbone.out_specs == (FeatureSpec("layer4", 512, 8),)
    assert backbone(image(40, 50)).feature_maps[0].shape == (2, 512, 5, 7)


@pytest.mark.parametrize(("name", "rate"), [("swin_t", 0.3), ("convnext_tiny", 0.5), ("efficientnet_b0", 0.4)])
def test_torchvision_drop_path_deepest_block_has_the_rate(name, rate):
    backbone = build(TorchvisionBackboneConfig, name, drop_path_rate=rate)
    rates = [module.p for module in backbone.modules() if type(module).__name__ == "StochasticDepth"]
    assert max(rates) == pytest.approx(rate)
    assert rates == sorted(rates)


@pytest.mark.parametrize(
    ("config", "mean"),
    [
        (TimmBackboneConfig("tf_efficientnet_lite0"), (0.5, 0.5, 0.5)),
        (TimmBackboneConfig("swin_tiny_patch4_window7_224"), (0.485, 0.456, 0.406)),
        (TorchvisionBackboneConfig("resnet18"), (0.485, 0.456, 0.406)),
    ],
)
def test_backbone_mean_is_that_of_its_weights(config, mean):
    with torch.device("meta"):
        backbone = config.build()
    assert backbone.image_mean == mean
    assert len(backbone.image_std) == 3


def test_timm_model_of_one_image_size_takes_smaller_ones_and_says_how_it_takes_larger_ones():
    with torch.device("meta"):
        backbone = build(TimmBackboneConfig, "convit_tiny")
        assert backbone(torch.zeros(1, 3, 64, 80)).feature_maps[0].shape == (1, 192, 4, 5)
        with pytest.raises(ValueError, match=r"up to 224 x 224 pixels, not 225 x 80; give backbone.img_size=\[height,"):
            backbone(torch.zeros(1, 3, 225, 80))
        backbone = build(TimmBackboneConfig, "convit_tiny", img_size=(256, 256))
        assert backbone(torch.zeros(1, 3, 225, 80)).feature_maps[0].shape == (1, 192, 15, 5)


def test_timm_image_padded_to_the_canvas_gives_the_maps_of_the_padded_image():
    backbone = build(TimmBackboneConfig, "efficientformerv2_s0", img_size=(64, 96), out_strides=[4, 16]).eval()
    whole = torch.zeros(1, 3, 64, 96)
    whole[..., :50, :75] = image(50, 75, batch=1)
    for x, y in zip(backbone(whole[..., :50, :75]).feature_maps, backbone(whole).feature_maps, strict=True):
        assert torch.equal(x, y[..., : x.shape[2], : x.shape[3]])


def test_timm_windows_are_padded_to_as_many_as_it_takes():
    with torch.device("meta"):
        backbone = build(TimmBackboneConfig, "maxvit_rmlp_pico_rw_256", out_strides=[4, 32])
        assert [x.shape[2:] for x in backbone(torch.zeros(1, 3, 250, 333)).feature_maps] == [(63, 84), (8, 11)]


@pytest.mark.parametrize(("name", "lost"), [("inception_v3", 2), ("inception_v4", 1), ("inception_resnet_v2", 2)])
def test_timm_inception_maps_are_whole_and_equal_timm_s_inside(name, lost):
    """timm's maps lose `lost` cells of stride 4 and a pixel at each border; ours do not. Inside they are the same."""
    backbone = build(TimmBackboneConfig, name, out_indices=[1]).eval()
    pixel_values = image(96, 132, batch=1)
    (x,) = backbone(pixel_values[..., 1:, 1:]).feature_maps
    assert x.shape[2:] == (24, 33)
    for module in backbone.modules():
        module._forward_pre_hooks.clear()
    (y,) = backbone.net(pixel_values)
    inside = y[..., 3:-3, 3:-3]  # what no padding reaches
    rows, columns = inside.shape[2:]
    ours = x[..., lost + 3 : lost + 3 + rows, lost + 3 : lost + 3 + columns]
    torch.testing.assert_close(ours, inside, rtol=0, atol=1e-5 * float(y.abs().max()))  # fp32, sums in another order


def test_backbone_describing_and_building_on_meta_draws_no_random_numbers():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with torch.device("meta"):
        TimmBackboneConfig("mobilenetv2_050").build()
        TorchvisionBackboneConfig("mobilenet_v3_large").build()
    TorchvisionBackboneConfig("regnet_y_400mf")
    assert torch.equal(torch.rand(3), expected)
