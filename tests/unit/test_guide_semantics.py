"""What transformers documents of backbones and what its users trip over: the same meaning here, and better errors.

The rules of choosing stages are in test_backbone_config.py.
"""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("transformers")
import transformers

from vision_stack import (
    AutoBackbone,
    BackboneConfig,
    BackboneConfigMixin,
    BackboneMixin,
    BackboneOutput,
    ConfigError,
    ConvNextConfig,
    ResNetConfig,
    SwinConfig,
    TimmBackbone,
    TimmBackboneConfig,
    TorchvisionBackboneConfig,
    VisionModel,
    from_dict,
    to_dict,
)
from vision_stack.backbones.names import named_backbones
from vision_stack.heads import MaskFormerHeadConfig
from vision_stack.model import VisionModelConfig
from vision_stack.necks import PixelDecoderConfig
from vision_stack.structures import Category

SMALL = {"depths": [1, 1, 1, 1]}
EXACT = {"rtol": 0, "atol": 0}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ResNetConfig, transformers.ResNetConfig),
        (SwinConfig, transformers.SwinConfig),
        (ConvNextConfig, transformers.ConvNextConfig),
    ],
)
@pytest.mark.parametrize(
    "selection", [{}, {"out_features": ["stage2", "stage4"]}, {"out_indices": [0, -1]}, {"out_indices": [1]}]
)
def test_family_stages_and_selection_are_those_of_transformers(ours, theirs, selection):
    expected, found = theirs(**selection), ours(**selection)
    assert found.stage_names == expected.stage_names
    assert found.out_features == expected.out_features
    assert found.out_indices == expected.out_indices
    keys = ("out_features", "out_indices")
    assert {key: found.to_dict()[key] for key in keys} == {key: expected.to_dict()[key] for key in keys}
    expected.out_indices = found.out_indices = (0, 1)
    assert found.out_features == expected.out_features
    expected.out_features = found.out_features = ["stage3"]
    assert found.out_indices == expected.out_indices


def test_backbone_says_its_stages_in_transformers_words():
    config = transformers.ResNetConfig(**SMALL, out_features=["stage1", "stage3"])
    theirs = transformers.ResNetBackbone(config)
    ours = AutoBackbone.from_config(ResNetConfig(**SMALL, out_features=["stage1", "stage3"]))
    for name in ("stage_names", "num_features", "out_features", "out_indices", "channels"):
        assert getattr(ours, name) == list(getattr(theirs, name)), name
    assert isinstance(ours, BackboneMixin)
    assert isinstance(ours.config, BackboneConfigMixin)
    assert isinstance(ours.config, BackboneConfig)


@pytest.mark.parametrize(
    "config",
    [
        ResNetConfig(**SMALL, out_indices=[1, 3]),
        SwinConfig(**SMALL, out_indices=[2]),
        TimmBackboneConfig("test_resnet", out_indices=[1, 3]),
        TimmBackboneConfig("test_vit", out_indices=[1, -1]),
        TimmBackboneConfig("swin_tiny_patch4_window7_224", out_indices=[1]),
        TorchvisionBackboneConfig("resnet18", out_indices=[1, 3]),
    ],
    ids=lambda config: getattr(config, "model_name", config.type),
)
def test_backbone_hidden_states_on_request_are_every_stage_up_to_the_last(config):
    torch.manual_seed(0)
    backbone = config.build().eval()
    pixel_values = torch.randn(1, 3, 50, 75)
    with torch.no_grad():
        plain, asked = backbone(pixel_values), backbone(pixel_values, output_hidden_states=True)
    assert isinstance(plain, BackboneOutput)
    assert (plain.hidden_states, plain.attentions) == (None, None)
    for one, other in zip(plain.feature_maps, asked.feature_maps, strict=True):
        torch.testing.assert_close(one, other, **EXACT)
    last = config.stage_names.index(config.out_features[-1])
    for spec, x in zip(config.stages[: last + 1], asked.hidden_states, strict=True):
        assert x.shape == (1, spec.channels, -(-50 // spec.stride), -(-75 // spec.stride))
    if backbone.norms is None:
        for spec, x in zip(config.out_specs, plain.feature_maps, strict=True):
            torch.testing.assert_close(asked.hidden_states[config.stages.index(spec)], x, **EXACT)


def test_backbone_hidden_states_are_those_of_transformers():
    torch.manual_seed(0)
    theirs = transformers.ResNetBackbone(transformers.ResNetConfig(**SMALL)).eval()
    ours = AutoBackbone.from_config(ResNetConfig(**SMALL)).eval()
    converted, _ = ours.convert_weights(theirs.state_dict())
    ours.load_state_dict(converted)
    with torch.no_grad():
        pixel_values = torch.randn(1, 3, 64, 96)
        expected = theirs(pixel_values, output_hidden_states=True).hidden_states
        found = ours(pixel_values, output_hidden_states=True).hidden_states
    for want, got in zip(expected, found, strict=True):
        assert (want - got).abs().max() < 1e-4 * want.std()


def test_timm_config_takes_the_options_of_transformers():
    theirs = transformers.TimmBackboneConfig(backbone="resnet18", freeze_batch_norm_2d=True, output_stride=16)
    ours = TimmBackboneConfig("resnet18", freeze_batch_norm_2d=True, output_stride=16, features_only=True)
    assert ours.out_indices == [4]  # transformers keeps -1
    assert ours.freeze_norm
    assert ours.out_strides == [16]
    assert from_dict(to_dict(ours), "backbone") == ours
    decoded = AutoBackbone.from_config(theirs.to_dict()).config
    assert to_dict(decoded) == {**to_dict(ours), "out_indices": [-1]}
    with pytest.raises(ConfigError, match="features_only: False is not a choice; a backbone has no classifier"):
        TimmBackboneConfig("resnet18", features_only=False)


def test_timm_backbone_batch_norms_are_frozen_and_thawed_without_a_change_of_values():
    backbone = TimmBackbone(TimmBackboneConfig("test_resnet"))
    pixel_values = torch.randn(2, 3, 64, 64)
    backbone(pixel_values)  # moves the statistics off their initial values
    expected = backbone.eval()(pixel_values).feature_maps[0]
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    count = sum(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert count > 0

    backbone.freeze_batch_norm_2d()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    torch.testing.assert_close(backbone.train()(pixel_values).feature_maps[0], expected, rtol=1e-4, atol=1e-5)

    backbone.unfreeze_batch_norm_2d()
    assert sum(isinstance(module, nn.BatchNorm2d) for module in backbone.modules()) == count
    torch.testing.assert_close(backbone.eval()(pixel_values).feature_maps[0], expected, rtol=1e-4, atol=1e-5)
    after = backbone.state_dict()
    for name, value in before.items():
        if not name.endswith("num_batches_tracked"):  # which a frozen norm has not
            torch.testing.assert_close(after[name], value, **EXACT)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: AutoBackbone.from_config({}), "model_type: missing; a transformers config has it"),
        (
            lambda: AutoBackbone.from_config({"type": "swim"}),
            "backbone.type: unknown backbone 'swim'; did you",
        ),
        (lambda: ResNetConfig(out_indices=[-7]), "out_indices: [-7] is outside -5 to 4; there are 5 stages"),
        (lambda: ResNetConfig(out_features=[]), "out_features: [] is not among the stages, which are ['stem'"),
        (lambda: ResNetConfig(out_indices=[]), "out_indices: expected a list of whole numbers from -5 to 4, got []"),
        (lambda: TimmBackboneConfig("convnext_tiny", out_indices=[1, 2, 3, 4]), "out_indices: [4] is outside -4 to 3"),
    ],
)
def test_mistakes_that_transformers_answers_with_bare_errors_get_one_line(make, line):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_strides_mean_the_same_where_indices_do_not():
    for config in (
        TimmBackboneConfig("resnet18", out_strides=(4, 8, 16, 32)),
        TimmBackboneConfig("convnext_tiny", out_strides=(4, 8, 16, 32)),
        ResNetConfig(out_strides=(4, 8, 16, 32)),
        TorchvisionBackboneConfig("resnet18", out_strides=(4, 8, 16, 32)),
    ):
        assert [spec.stride for spec in config.out_specs] == [4, 8, 16, 32]


def build_model(config):
    return VisionModel(
        VisionModelConfig(
            backbone=config,
            neck=PixelDecoderConfig(channels=16, mask_channels=16),
            head=MaskFormerHeadConfig(num_queries=5, hidden_dim=16, num_heads=2, ffn_dim=16, num_decoder_layers=1),
            categories=(Category(id=1, name="thing"),),
        )
    )


def test_normalisation_follows_the_weights_lite0_against_swin():
    """The same grey image becomes other numbers: Lite0 was trained with 0.5 and 0.5, Swin with ImageNet's."""
    images = torch.full((1, 3, 8, 8), 0.5)
    normalized = {}
    for name in ("efficientnet_lite0", "swin_tiny"):
        config = AutoBackbone.from_pretrained(name, use_pretrained_backbone=False, out_strides=(4, 8, 16, 32)).config
        normalized[name] = build_model(config).normalize(images)
    assert torch.equal(normalized["efficientnet_lite0"], torch.zeros(1, 3, 8, 8))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = ((0.5 - mean) / std)[None, :, None, None].expand(1, 3, 8, 8)
    torch.testing.assert_close(normalized["swin_tiny"], expected)


def test_normalisation_beside_transformers_weights_survives_saving_the_model(tmp_path):
    torch.manual_seed(0)
    theirs = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], **SMALL, layer_type="basic")
    transformers.ResNetBackbone(theirs).save_pretrained(tmp_path / "theirs")
    processor = transformers.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    processor.save_pretrained(tmp_path / "theirs")
    model = build_model(ResNetConfig.from_pretrained(str(tmp_path / "theirs"), out_strides=(4, 8, 16, 32)))
    model.save_pretrained(tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = VisionModel.from_pretrained(tmp_path / "ours")
    assert again.backbone.config.initial_weights is False  # no path is ever stored
    for twin in (model, again):
        torch.testing.assert_close(twin.image_mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
        torch.testing.assert_close(twin.image_std.flatten(), torch.tensor([0.4, 0.5, 0.6]))
    image = Image.fromarray(np.zeros((40, 50, 3), np.uint8))
    assert len(again.predict(image, threshold=0.0)) == len(model.predict(image, threshold=0.0))


def test_named_backbones_are_the_yamls_but_for_those_of_a_type_alone():
    names = named_backbones()
    assert {"swin_tiny", "resnet50", "efficientnet_lite0"} <= set(names)
    assert not {"timm", "torchvision", "transformers", "resnet", "swin"} & set(names)
