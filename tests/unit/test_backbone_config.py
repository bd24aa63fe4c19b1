"""Choosing a backbone's stages by name, position or stride: what agrees, what is refused, and in which words."""

import copy
import dataclasses
import itertools
import pickle

import pytest
import transformers

from vision_stack.backbones import TimmBackboneConfig, TorchvisionBackboneConfig, select_stages
from vision_stack.config import ConfigError, from_dict, to_dict
from vision_stack.structures import FeatureSpec

NAMES = ["stem", "stage1", "stage2", "stage3", "stage4"]
STAGES = [FeatureSpec(name, 8 * 2**i, max(4, 2 ** (i + 1))) for i, name in enumerate(NAMES)]
PLAIN = [FeatureSpec(f"blocks.{i}", 64, 16) for i in range(4)]


@pytest.mark.parametrize(
    ("given", "features", "indices", "strides"),
    [
        ({}, ["stage4"], [4], [32]),
        ({"out_features": ["stage2", "stage4"]}, ["stage2", "stage4"], [2, 4], [8, 32]),
        ({"out_indices": (0, 1, 2)}, ["stem", "stage1", "stage2"], [0, 1, 2], [4, 4, 8]),
        ({"out_indices": [-3, -1]}, ["stage2", "stage4"], [-3, -1], [8, 32]),
        ({"out_strides": (4, 8, 16, 32)}, ["stage1", "stage2", "stage3", "stage4"], [1, 2, 3, 4], [4, 8, 16, 32]),
        ({"out_features": ["stage1"], "out_indices": [-4], "out_strides": [4]}, ["stage1"], [-4], [4]),
    ],
)
def test_select_stages_given_one_way_the_others_follow(given, features, indices, strides):
    assert select_stages(STAGES, **given) == (features, indices, strides)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"out_features": ("stage1",)}, "out_features: expected a list of stage names, got ('stage1',)"),
        ({"out_features": "stage1"}, "out_features: expected a list of stage names, got 'stage1'"),
        ({"out_features": []}, "out_features: [] is not among the stages, which are ['stem'"),
        ({"out_features": ["stage5"]}, "out_features: ['stage5'] is not among the stages"),
        ({"out_features": ["stage1", "stage1"]}, "out_features: ['stage1', 'stage1'] names a stage twice"),
        (
            {"out_features": ["stage2", "stage1"]},
            "out_features: ['stage2', 'stage1'] is not in the order of the stages; wr",
        ),
        ({"out_indices": []}, "out_indices: expected a list of whole numbers from -5 to 4, got []"),
        ({"out_indices": 3}, "out_indices: expected a list of whole numbers from -5 to 4, got 3"),
        ({"out_indices": [True]}, "out_indices: expected a list of whole numbers"),
        ({"out_indices": [-7]}, "out_indices: [-7] is outside -5 to 4; there are 5 stages"),
        ({"out_indices": [1, 5]}, "out_indices: [5] is outside -5 to 4"),
        ({"out_indices": [4, -1]}, "out_indices: [4, -1] names a stage twice"),
        ({"out_indices": [-1, 1]}, "out_indices: [-1, 1] is not in the order of the stages; write [1, -1]"),
        ({"out_strides": []}, "out_strides: expected a list of strides among [4, 8, 16, 32], got []"),
        ({"out_strides": [4, 64]}, "out_strides: no stage has stride [64]; this backbone has [4, 8, 16, 32]"),
        ({"out_strides": [8, 4]}, "out_strides: [8, 4] is not in the order of the stages; write [4, 8]"),
        ({"out_strides": [8, 8]}, "out_strides: [8, 8] names a stage twice"),
        (
            {"out_features": ["stage1"], "out_indices": [2]},
            "out_indices: means ['stage2'], but out_features means ['stage",
        ),
        (
            {"out_features": ["stage1"], "out_indices": [1, 2]},
            "out_indices: means ['stage1', 'stage2'], but out_features",
        ),
        (
            {"out_indices": [1], "out_strides": [8]},
            "out_strides: [8] was given, but the stages of out_indices have [4]",
        ),
    ],
)
def test_select_stages_wrong_selection_gives_one_line(given, line):
    with pytest.raises(ConfigError) as caught:
        select_stages(STAGES, **given)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_select_stages_plain_transformer_without_the_stride_names_the_neck_that_makes_one():
    assert select_stages(PLAIN, out_strides=[16]).out_features == ["blocks.3"]
    with pytest.raises(ConfigError, match=r"no stage has stride \[4, 8, 32\].*has \[16\]; .*neck=simple_pyramid"):
        select_stages(PLAIN, out_strides=[4, 8, 16, 32])


def choices(values, longest):
    return [None, *(list(c) for n in range(1, longest + 1) for c in itertools.product(values, repeat=n))]


def outcome(make):
    try:
        config = make()
    except ValueError:
        return "ValueError"
    return config.out_features, config.out_indices


def test_select_stages_any_short_selection_is_as_in_transformers():
    names = ["stem", "stage1", "stage2"]
    stages = [FeatureSpec(name, 8, 4 * 2**i) for i, name in enumerate(names)]
    compared = 0
    for features, indices in itertools.product(choices([*names, "other"], 2), choices([-3, -1, 0, 1, 2], 2)):
        make = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}
        theirs = outcome(lambda: transformers.ResNetConfig(out_features=features, out_indices=indices, **make))  # noqa: B023
        assert outcome(lambda: select_stages(stages, features, indices)) == theirs, (features, indices)  # noqa: B023
        compared += theirs != "ValueError"
    assert compared > 10


def test_config_setting_one_field_recomputes_the_others():
    config = TimmBackboneConfig("resnet18")
    assert (config.out_features, config.out_indices, config.out_strides) == (["layer4"], [4], [32])
    config.out_indices = (1, 2)
    assert (config.out_features, config.out_strides, config.channels) == (["layer1", "layer2"], [4, 8], [64, 128])
    config.out_features = ["act1"]
    assert (config.out_indices, config.out_strides) == ([0], [2])
    config.out_strides = [4, 32]
    assert config.out_features == ["layer1", "layer4"]
    config.out_strides = None
    assert config.out_features == ["layer4"]


def test_config_failed_setter_changes_nothing_and_other_fields_are_fixed():
    config = TimmBackboneConfig("resnet18", out_strides=[4, 8])
    before = to_dict(config)
    with pytest.raises(ConfigError, match=r"out_indices: \[7\] is outside -5 to 4"):
        config.out_indices = [7]
    with pytest.raises(dataclasses.FrozenInstanceError, match="model_name is fixed"):
        config.model_name = "resnet50"
    assert to_dict(config) == before


def test_config_built_backbone_keeps_its_stages_when_the_config_is_set_later():
    config = TimmBackboneConfig("resnet18", out_strides=[4, 8])
    backbone = config.build()
    config.out_strides = [32]
    assert backbone.config.out_strides == [4, 8]
    assert backbone.channels == [64, 128]


@pytest.mark.parametrize(
    "config", [TimmBackboneConfig("resnet18", out_indices=[-2]), TorchvisionBackboneConfig("swin_t")]
)
def test_config_survives_dict_copy_and_pickle(config):
    assert from_dict(to_dict(config), "backbone") == config
    assert to_dict(config).keys() >= {"out_features", "out_indices", "out_strides"}
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config
        twin.out_indices = [0]
        assert twin != config


def test_config_stage_names_and_features_cover_every_stage():
    config = TorchvisionBackboneConfig("resnet50", out_strides=[4, 8, 16, 32])
    assert config.stage_names == NAMES
    assert config.num_features == [64, 256, 512, 1024, 2048]
    assert config.out_indices == [1, 2, 3, 4]  # 0 is the stem


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"type": "timm", "model_name": "resnet5o"}, "backbone.model_name: timm has no model 'resnet5o'; did you mean"),
        (
            {"type": "timm", "model_name": "resnet50.x"},
            "backbone.model_name: resnet50 has no weights tagged 'x'; choose",
        ),
        ({"type": "timm", "model_name": "hf_hub:a/b"}, "backbone.model_name: timm has no model 'hf_hub:a/b'"),
        ({"type": "timm", "model_name": "local-dir:/tmp"}, "backbone.model_name: timm has no model 'local-dir:/tmp'"),
        ({"type": "timm"}, "backbone.model_name: missing"),
        (
            {"type": "timm", "model_name": "mixer_b16_224", "output_stride": 16},
            "backbone.output_stride: mixer_b16_224 does",
        ),
        (
            {"type": "timm", "model_name": "resnet18", "out_indices": [9]},
            "backbone.out_indices: [9] is outside -5 to 4",
        ),
        (
            {"type": "timm", "model_name": "resnet18", "out_indexes": [1]},
            "backbone.out_indexes: unknown option; did you",
        ),
        (
            {"type": "torchvision", "model_name": "resnet19"},
            "backbone.model_name: no torchvision backbone 'resnet19'; did",
        ),
        ({"type": "torchvision", "model_name": "vit_b_16"}, "backbone.model_name: no torchvision backbone 'vit_b_16'"),
        (
            {"type": "torchvision", "model_name": "resnet18", "weights": "V9"},
            "backbone.weights: resnet18 has no 'V9'; choo",
        ),
    ],
)
def test_config_from_dict_bad_value_gives_one_line_with_path(data, line):
    with pytest.raises(ConfigError) as caught:
        from_dict(data, "backbone")
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_build_option_the_model_does_not_have_names_the_option():
    with pytest.raises(ConfigError, match=r"drop_path_rate: vgg11 does not take 0\.1; leave it null"):
        TimmBackboneConfig("vgg11", drop_path_rate=0.1).build()
    with pytest.raises(ConfigError, match="drop_path_rate: ResNet has no such option; leave it null"):
        TorchvisionBackboneConfig("resnet18", drop_path_rate=0.1).build()
