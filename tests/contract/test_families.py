"""What every family promises beside parity: maps as declared, weights in either layout, nothing built in vain."""

import json

import pytest
import timm
import torch
import transformers

from vision_stack.backbones import load_pretrained
from vision_stack.backbones.config_json import transformers_families
from vision_stack.config import ConfigError, from_dict, to_dict

PLAIN = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
CONVNEXT = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]}
SWIN = {"embed_dim": 16, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 4}
TINY = {
    "resnet": {"hidden_sizes": [16, 24, 32], "depths": [1, 2, 1], "embedding_size": 8},
    "rt_detr_resnet": {"hidden_sizes": [16, 24, 32], "depths": [1, 2, 1], "embedding_size": 8},
    "hgnet_v2": {
        "stem_channels": [3, 8, 8],
        "stage_mid_channels": [8, 8, 8],
        "stage_out_channels": [16, 24, 32],
        "stage_num_blocks": [1, 2, 1],
        "stage_light_block": [False, False, True],
        "stage_kernel_size": [3, 3, 5],
        "stage_numb_of_layers": [2, 2, 2],
        "use_learnable_affine_block": True,
    },
    "swin": SWIN,
    "swinv2": {**SWIN, "image_size": 128},
    "convnext": CONVNEXT,
    "convnextv2": CONVNEXT,
    "vit": {**PLAIN, "intermediate_size": 48, "image_size": 32},
    "dinov2": {**PLAIN, "image_size": 28},
    "dinov2_with_registers": {**PLAIN, "image_size": 28, "patch_size": 14},
    "rf_detr_dinov2": {**PLAIN, "image_size": 28, "num_windows": 2, "window_block_indexes": [0, 2]},
    "lw_detr_vit": {**PLAIN, "pretrain_image_size": 32, "num_windows": 4},
    "dinov3_vit": {**PLAIN, "intermediate_size": 48, "num_register_tokens": 2},
    "dinov3_convnext": CONVNEXT,
}
# Fields that there are not here.
THEIRS = {
    "hgnet_v2": {
        "depths": [1, 2, 1],
        "hidden_sizes": [16, 24, 32],
        "stage_in_channels": [8, 16, 24],
        "stage_downsample": [False, True, True],
    },
    "lw_detr_vit": {"image_size": 64},  # which builds nothing
}
FAMILIES = pytest.mark.parametrize("family", transformers_families())


def tiny(family, **options):
    torch.manual_seed(0)
    return transformers_families()[family](**{**TINY[family], **options})


def image(height, width):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_families_are_registered_by_their_model_type():
    assert all(cls.type == model_type for model_type, cls in transformers_families().items())
    assert set(TINY) == set(transformers_families())


@FAMILIES
def test_family_every_stage_at_an_odd_size_is_as_declared_and_uses_every_parameter(family):
    config = tiny(family)
    config.out_indices = list(range(len(config.stages)))
    backbone = config.build().train()
    maps = backbone(image(75, 101)).feature_maps
    assert [spec.name for spec in backbone.out_specs] == ["stem", *(f"stage{i}" for i in range(1, len(maps)))]
    for spec, x in zip(backbone.out_specs, maps, strict=True):
        assert x.shape == (2, spec.channels, -(-75 // spec.stride), -(-101 // spec.stride))
    sum((x * torch.randn_like(x)).sum() for x in maps).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []


@FAMILIES
@pytest.mark.parametrize("index", [0, 1])
def test_family_early_stage_alone_is_the_same_map_and_builds_nothing_after_it(family, index):
    config = tiny(family, out_indices=[0, 1], out_norms=False)
    whole = tiny(family, out_indices=list(range(len(config.stages))), out_norms=False).build()
    early = tiny(family, out_indices=[index], out_norms=False).build()
    converted, not_built = early.convert_weights(
        {name.removeprefix("net."): value for name, value in whole.state_dict().items()}
    )
    early.load_state_dict(converted)
    assert not_built
    assert not set(not_built) & {name.removeprefix("net.") for name in early.state_dict()}
    expected = whole.eval()(image(64, 64), output_hidden_states=True)
    (found,) = early.eval()(image(64, 64)).feature_maps
    torch.testing.assert_close(found, expected.feature_maps[index])
    assert len(expected.hidden_states) == len(config.stages)


@FAMILIES
def test_family_config_survives_dicts_and_transformers_json(family):
    config = tiny(family, out_indices=[-1], drop_path_rate=0.2)
    assert from_dict(to_dict(config), "backbone") == config
    theirs = transformers.AutoConfig.for_model(family, **TINY[family], **THEIRS.get(family, {}), drop_path_rate=0.2)
    raw = json.loads(json.dumps(theirs.to_dict()))
    assert transformers_families()[family].from_transformers(raw).stages == config.stages


@FAMILIES
def test_family_stages_freeze_and_layers_are_in_order(family):
    backbone = tiny(family).build()
    groups = backbone.layer_groups()
    assert sorted(name for group in groups for name in group) == sorted(
        name for name, _ in backbone.named_parameters() if not name.startswith("norms.")
    )
    backbone.freeze_stages(2)  # the stem and the first stage
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    stage1 = backbone.stage_modules()["stage1"]
    stage2 = backbone.stage_modules()["stage2"]
    assert all(name in frozen for name, _ in backbone.named_parameters() if name.startswith(f"{stage1}."))
    assert not any(name.startswith(f"{stage2}.") for name in frozen)


# fmt: off
PUBLISHED = [
    ("resnet50", "resnet", {}),
    ("resnet18", "resnet", {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}),
    ("swin_tiny_patch4_window7_224", "swin", {}),
    ("swinv2_tiny_window8_256", "swinv2", {"image_size": 256, "window_size": 8}),
    ("convnext_tiny", "convnext", {}),
    ("convnextv2_tiny", "convnextv2", {}),
    ("convnext_tiny.dinov3_lvd1689m", "dinov3_convnext", {}),
    ("resnet50d", "rt_detr_resnet", {}),
    ("hgnetv2_b4", "hgnet_v2", {}),
    ("vit_base_patch16_224", "vit", {}),
    ("vit_base_patch14_dinov2", "dinov2", {"image_size": 518}),
    ("vit_giant_patch14_dinov2", "dinov2", {"image_size": 518, "hidden_size": 1536, "num_hidden_layers": 40,
                                            "num_attention_heads": 24, "use_swiglu_ffn": True}),
    ("vit_base_patch14_reg4_dinov2", "dinov2_with_registers", {"image_size": 518, "patch_size": 14}),
    ("vit_small_patch16_dinov3_qkvb", "dinov3_vit", {"num_register_tokens": 4}),
    ("vit_small_plus_patch16_dinov3_qkvb", "dinov3_vit", {"num_register_tokens": 4, "use_gated_mlp": True}),
]
# fmt: on


@pytest.mark.parametrize(("model_name", "family", "options"), PUBLISHED)
def test_family_of_a_published_size_takes_timms_own_weights_whole(model_name, family, options):
    with torch.device("meta"):
        state = timm.create_model(model_name.split(".")[0]).state_dict()
        backbone = transformers_families()[family](**options).build()
    converted, not_built = backbone.convert_weights(state)
    own = {name: x.shape for name, x in backbone.state_dict().items() if not name.startswith("norms.")}
    assert {name: x.shape for name, x in converted.items()} == own
    assert all(name.split(".")[0] in ("fc", "head", "norm") for name in not_built)


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("ResNetForImageClassification", "resnet"),
        ("SwinForImageClassification", "swin"),
        ("Swinv2ForImageClassification", "swinv2"),
        ("ConvNextV2ForImageClassification", "convnextv2"),
        ("ViTForImageClassification", "vit"),
        ("ViTModel", "vit"),
        ("ViTForMaskedImageModeling", "vit"),
        ("SwinForMaskedImageModeling", "swin"),
        ("Dinov2ForImageClassification", "dinov2"),
        ("DINOv3ViTModel", "dinov3_vit"),
        ("DINOv3ConvNextModel", "dinov3_convnext"),
    ],
)
def test_family_takes_transformers_classifier_without_its_head(model, family, tmp_path):
    cls = getattr(transformers, model)
    cls(cls.config_class(**TINY[family])).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    config = transformers_families()[family].from_transformers(raw)
    report = load_pretrained(config.build(), config, str(tmp_path))
    assert report.matched
    assert not report.missing
    assert all(
        name.startswith(
            ("classifier.", "layernorm.", "layer_norm.", "norm.", "pooler.", "embeddings.mask_token", "decoder.")
        )
        for name in report.not_built
    )


def test_family_weights_with_a_tensor_too_few_or_too_many_fail_in_one_line(tmp_path):
    backbone = tiny("vit").build()
    state = {name.removeprefix("net."): value for name, value in backbone.state_dict().items()}
    torch.save({**state, "blocks.0.extra": torch.zeros(1)}, tmp_path / "more.pth")
    state.pop("blocks.1.norm1.bias")
    torch.save(state, tmp_path / "less.pth")
    for file, line in (("more", "1 tensors unexpected (e.g. net.blocks.0.extra)"), ("less", "1 tensors missing")):
        with pytest.raises(ConfigError) as caught:
            load_pretrained(backbone, tiny("vit"), str(tmp_path / f"{file}.pth"))
        assert line in str(caught.value)
        assert "\n" not in str(caught.value)


# fmt: off
HOSTILE = [
    ("resnet", {"depths": [10_000, 4]}, "depths[0]: 10000 is outside"),
    ("resnet", {"depths": "3"}, "depths: expected a list"),
    ("resnet", {"depths": [3, 4], "hidden_sizes": [8, 8, 8]}, "depths: [3, 4] and hidden_sizes"),
    ("rt_detr_resnet", {"layer_type": "basic", "hidden_sizes": [32, 64], "depths": [1, 1]}, "hidden_sizes: with"),
    ("hgnet_v2", {"stage_downsample": [True] * 4}, "stage_downsample: [True, True, True, True] is not supported"),
    ("hgnet_v2", {"stage_in_channels": [48, 96, 512, 1024]}, "stage_in_channels: [48, 96, 512, 1024] is not supported"),
    ("hgnet_v2", {"stem_strides": [1, 1, 1, 1, 1]}, "stem_strides: [1, 1, 1, 1, 1] is not supported"),
    ("resnet", {"downsample_in_first_stage": True}, "downsample_in_first_stage: True is not supported"),
    ("vit", {"num_hidden_layers": 10_000}, "num_hidden_layers: 10000 is outside"),
    ("vit", {"hidden_size": "768"}, "hidden_size: expected a whole number"),
    ("vit", {"patch_size": [16, 8]}, "patch_size: expected a whole number"),
    ("vit", {"image_size": 8}, "image_size: 1 to 512 patches"),
    ("vit", {"num_channels": 4}, "num_channels: 4 is not supported by type=vit"),
    ("vit", {"num_attention_heads": 7}, "num_attention_heads: 7 does not divide hidden_size"),
    ("swin", {"use_absolute_embeddings": True}, "use_absolute_embeddings: True is not supported"),
    ("swin", {"mlp_ratio": 1e300}, "mlp_ratio: 1e+300 is outside"),
    ("convnext", {"hidden_sizes": [1, 2], "depths": [1, 1]}, "depths: a ConvNeXt has four stages"),
    ("convnextv2", {"num_stages": 3}, "num_stages: 3 is not supported by type=convnextv2, only 4 is"),
    ("dinov3_vit", {"use_gated_mlp": True, "hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported"),
    ("dinov3_vit", {"use_gated_mlp": True}, "hidden_act: 'gelu' is not supported here, only 'silu' is"),
    ("dinov3_vit", {"query_bias": False}, "query_bias: must equal value_bias"),
]
# fmt: on


@pytest.mark.parametrize(("family", "raw", "line"), HOSTILE)
def test_family_hostile_config_json_gives_one_line(family, raw, line):
    with pytest.raises(ConfigError) as caught:
        transformers_families()[family].from_transformers(raw)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
