"""ViTDet's pyramid against the same layers written out, level by level; where its cells lie; whole models with it."""

import pytest
import torch
from torch.nn import functional as F

from vision_stack.backbones import load_pretrained  # noqa: F401  registers the backbones
from vision_stack.config import from_dict, registered
from vision_stack.heads import MaskHead
from vision_stack.model import VisionModel, VisionModelConfig
from vision_stack.necks import SimplePyramidConfig
from vision_stack.necks.pyramid import resample
from vision_stack.structures import FeatureSpec

TINY_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
TINY_HEAD = {"hidden_dim": 16, "num_heads": 2, "num_queries": 5, "num_decoder_layers": 3, "ffn_dim": 32}


def perturbed(neck):
    torch.manual_seed(0)
    with torch.no_grad():
        for p in neck.parameters():
            p.copy_(torch.randn_like(p) if p.ndim == 1 else torch.randn_like(p) * p[0].numel() ** -0.5)
    return neck.eval()


def norm(x, weights):
    """A LayerNorm over channels, at each pixel."""
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    scale, shift = (weights.pop(0)[:, None, None] for _ in range(2))
    return (x - mean) / (variance + 1e-6).sqrt() * scale + shift


def plain_level(x, level, weights):
    """Appendix A.2: the stride of the input is 16."""
    weights = list(weights)
    if level == "p2":
        x = F.conv_transpose2d(x, weights.pop(0), weights.pop(0), stride=2)
        x = F.gelu(norm(x, weights))
    if level in ("p2", "p3"):
        x = F.conv_transpose2d(x, weights.pop(0), weights.pop(0), stride=2)
    if level == "p5":
        x = F.max_pool2d(x, 2)
    x = norm(F.conv2d(x, weights.pop(0)), weights)
    x = norm(F.conv2d(x, weights.pop(0), padding=1), weights)
    assert not weights
    return x


@torch.no_grad()
def worst_difference(neck, x, weights):
    maps = zip(neck.out_specs, neck((x,)), weights, strict=True)
    expected = [(out, plain_level(x, spec.name, own)) for spec, out, own in maps]
    assert all(want.std() >= 1 for _, want in expected)
    return max(float((out - want).abs().max() / want.std()) for out, want in expected)


def test_simple_pyramid_levels_equal_their_layers_written_out_and_a_planted_fault_shows():
    neck = perturbed(SimplePyramidConfig(channels=24).build((FeatureSpec("last", 32, 16),)))
    weights = [[p.clone() for p in level.parameters()] for level in neck.levels]
    x = torch.randn(2, 32, 6, 8)
    assert worst_difference(neck, x, weights) < 1e-4  # fp32, sums in another order
    neck.levels[0][1] = torch.nn.Identity()  # no norm between the deconvolutions
    assert worst_difference(neck, x, weights) > 0.1


@pytest.mark.parametrize(("stride", "rows"), [(14, 6), (12, 7), (28, 5)])
def test_simple_pyramid_resampled_cells_keep_their_place_in_the_image(stride, rows):
    centres = (torch.arange(rows) + 0.5) * stride  # of the cells, in pixels
    x = centres[None, None, :, None].expand(1, 1, rows, rows)
    out = resample(x, stride / 16)[0, 0, :, 0]
    assert len(out) * 16 >= rows * stride
    expected = (torch.arange(len(out)) + 0.5) * 16
    inner = (expected >= centres[0]) & (expected <= centres[-1])
    assert inner.sum() >= 3
    torch.testing.assert_close(out[inner], expected[inner], rtol=0, atol=1e-4)  # pixels; rounding of weights


@pytest.mark.parametrize("head", [name for name, config in registered("head").items() if not config().tail])
@pytest.mark.parametrize(("backbone", "patch"), [("vit", 16), ("dinov2", 14), ("vit", 8)])
def test_simple_pyramid_plain_transformer_with_any_head_takes_an_odd_image_and_trains(backbone, patch, head):
    torch.manual_seed(0)
    fields = registered("head")[head].__dataclass_fields__
    config = {
        "backbone": {"type": backbone, **TINY_VIT, "patch_size": patch},
        "neck": {"type": "simple_pyramid", "channels": 16},
        "head": {"type": head, **{name: value for name, value in TINY_HEAD.items() if name in fields}},
        "task": "instance" if "instance" in registered("head")[head].tasks else "detection",
        "categories": [{"id": 1, "name": "thing"}],
    }
    model = VisionModel(from_dict(config, cls=VisionModelConfig)).train()
    masks = torch.zeros(1, 75, 101, dtype=torch.bool)
    masks[:, 10:40, 20:60] = True
    target = {"labels": torch.zeros(1, dtype=torch.int64), "masks": masks, "boxes": torch.tensor([[20.0, 10, 60, 40]])}
    targets = [target, target]
    outputs = model(torch.randn(2, 3, 75, 101), targets=targets)
    if isinstance(model.head, MaskHead):
        assert outputs.mask_features.shape[-2:] == (19, 26)
    sum(model.head.compute_loss(outputs, targets).values()).backward()
    patches = model.backbone.net.patch_embed.proj.weight.grad
    assert patches is not None
    assert patches.abs().sum() > 0
