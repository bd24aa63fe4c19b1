"""What code written for transformers' backbones finds on ours: attributes, saved configs, attentions or a refusal."""

import pytest
import torch
import transformers
from transformers.backbone_utils import BackboneType

from vision_stack import AutoBackbone
from vision_stack.backbones import (
    BackboneConfigMixin,
    Dinov2Config,
    DINOv3ViTConfig,
    ResNetConfig,
    SwinConfig,
    Swinv2Config,
    TimmBackboneConfig,
    TorchvisionBackboneConfig,
    TransformersBackboneConfig,
    ViTConfig,
)
from vision_stack.config import ConfigError

SWIN = {"embed_dim": 16, "depths": (1, 2, 1), "num_heads": (1, 2, 2), "window_size": 4}
PLAIN = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
BEIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 64}
BIT = {"embedding_size": 8, "hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1], "num_groups": 4}
CONFIGS = {
    "resnet": ResNetConfig(hidden_sizes=(16, 24, 32), embedding_size=8, depths=(1, 2, 1), out_indices=[0, -1]),
    "swin": SwinConfig(**SWIN, out_indices=[1, 2]),
    "swin, no norms": SwinConfig(**SWIN, out_norms=False, image_mean=(0.1, 0.2, 0.3)),
    "swinv2": Swinv2Config(**SWIN, out_strides=[4, 16]),
    "vit": ViTConfig(**PLAIN, image_size=64),
    "dinov2": Dinov2Config(**PLAIN, image_size=28, mlp_ratio=2.0, out_features=["stem", "stage3"]),
    "dinov3_vit": DINOv3ViTConfig(**PLAIN, use_gated_mlp=True, num_register_tokens=2),
    "timm": TimmBackboneConfig("test_resnet", out_strides=[4, 16], freeze_norm=True),
    "torchvision": TorchvisionBackboneConfig("resnet18", out_indices=[1, 4]),
    "transformers": TransformersBackboneConfig("beit", architecture=BEIT, out_indices=[1, 2], freeze_norm=True),
    "transformers, without attention": TransformersBackboneConfig("bit", architecture=BIT, out_indices=[1, 4]),
}
EACH = pytest.mark.parametrize("name", CONFIGS)
ATTENTIVE = {"swin", "swin, no norms", "swinv2", "vit", "dinov2", "dinov3_vit", "transformers"}


def built(name):
    torch.manual_seed(0)
    return CONFIGS[name].build().eval()


def image():
    return torch.randn(1, 3, 56, 64, generator=torch.Generator().manual_seed(1))


@EACH
def test_backbone_has_the_attributes_of_transformers(name):
    backbone = built(name)
    assert list(backbone.out_feature_channels) == backbone.stage_names
    assert [backbone.out_feature_channels[stage] for stage in backbone.out_features] == backbone.channels
    assert list(backbone.out_feature_channels.values()) == backbone.num_features
    assert backbone.backbone_type is (BackboneType.TIMM if name == "timm" else BackboneType.TRANSFORMERS)
    assert backbone.has_attentions == (name in ATTENTIVE)


@EACH
def test_config_saved_alone_is_read_back_by_its_class_and_by_auto_backbone(name, tmp_path):
    config = CONFIGS[name]
    config.save_pretrained(tmp_path / "new folder")
    again = type(config).from_pretrained(tmp_path / "new folder")
    assert again == BackboneConfigMixin.from_pretrained(tmp_path / "new folder") == config
    backbone = AutoBackbone.from_pretrained(tmp_path / "new folder", use_pretrained_backbone=False)
    assert backbone.config == config
    with pytest.raises(ConfigError, match=r"new folder.*safetensors"):  # weights are never random unasked
        AutoBackbone.from_pretrained(tmp_path / "new folder")


def test_config_use_pretrained_backbone_can_be_set_and_nothing_else_but_stages():
    config = ResNetConfig()
    config.use_pretrained_backbone = True
    assert config.initial_weights is True
    config.use_pretrained_backbone = False
    assert config.initial_weights is False
    with pytest.raises(AttributeError, match="depths is fixed"):
        config.depths = (1, 1, 1, 1)


def test_family_config_that_transformers_has_no_model_for_is_not_read_by_it(tmp_path):
    CONFIGS["swin, no norms"].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type"):
        transformers.AutoConfig.from_pretrained(tmp_path)


def test_wrapped_config_saved_here_is_read_by_transformers(tmp_path):
    CONFIGS["transformers"].save_pretrained(tmp_path)
    read = transformers.AutoConfig.from_pretrained(tmp_path)
    assert {name: getattr(read, name) for name in BEIT} == BEIT
    assert read.out_features == ["stage1", "stage2"]


@pytest.mark.parametrize("name", sorted(ATTENTIVE))
def test_backbone_attentions_on_request_leave_maps_modules_and_later_calls_as_they_were(name):
    backbone = built(name)
    with torch.no_grad():
        before = backbone(image())
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.modules())
        state = {path: dict(vars(m)).get("fused_attn") for path, m in backbone.named_modules()}
        asked = backbone(image(), output_attentions=True)
        after = backbone(image())
    assert before.attentions is after.attentions is None
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.modules())
    assert state == {path: dict(vars(m)).get("fused_attn") for path, m in backbone.named_modules()}
    for x, y, z in zip(before.feature_maps, asked.feature_maps, after.feature_maps, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)  # another order of summation
        assert torch.equal(x, z)
    assert len(asked.attentions) > 0
    for probabilities in asked.attentions:
        torch.testing.assert_close(probabilities.sum(-1), torch.ones_like(probabilities[..., 0]))


def test_backbone_attentions_that_fail_halfway_leave_no_hooks():
    backbone = built("vit")
    backbone.net.blocks[1].mlp.forward = None
    with pytest.raises(TypeError):
        backbone(image(), output_attentions=True)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - ATTENTIVE))
def test_backbone_without_attentions_refuses_them_in_one_line(name):
    with pytest.raises(ValueError, match=r"^output_attentions: \w+ gives none: [^\n]+$"):
        built(name)(image(), output_attentions=True)


def test_backbone_attentions_with_gradient_checkpointing_are_refused_where_it_recomputes():
    backbone = built("vit").train()
    backbone.enable_gradient_checkpointing()
    with pytest.raises(ValueError, match=r"gradient checkpointing keeps none; ask for them in torch\.no_grad\(\)"):
        backbone(image(), output_attentions=True)
    with torch.no_grad():
        assert len(backbone(image(), output_attentions=True).attentions) == 3


def test_backbone_attentions_have_gradients():
    backbone = built("swin")
    backbone(image(), output_attentions=True).attentions[0].square().sum().backward()
    assert backbone.net.layers[0].blocks[0].attn.qkv.weight.grad.abs().sum() > 0
