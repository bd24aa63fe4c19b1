"""Backbones that come through transformers: as declared at any size, equal to transformers' own, strict in loading."""

import subprocess
import sys

import pytest
import torch

pytest.importorskip("transformers")
import transformers

from vision_stack import AutoBackbone, ConfigError, TransformersBackboneConfig, from_dict, to_dict

SMALL = {  # small members of types that have no family of their own here
    "pvt_v2": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]},
    "bit": {"embedding_size": 8, "hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1], "num_groups": 4},
    "focalnet": {"embed_dim": 12, "hidden_sizes": [12, 24, 48, 96], "depths": [1, 1, 1, 1]},
    "hgnet_v2": {},
    "beit": {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 64,
    },
    "vitdet": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64},
}


def config_of(model_type, **selection):
    return TransformersBackboneConfig(model_type, architecture=SMALL[model_type], **selection)


@pytest.mark.parametrize("model_type", SMALL)
def test_backbone_through_transformers_is_as_declared_and_trains_the_stem(model_type):
    config = config_of(model_type)
    config.out_indices = list(range(len(config.stages)))
    torch.manual_seed(0)
    backbone = config.build()
    for height, width in ((64, 64), (50, 75)):
        pixel_values = torch.randn(2, 3, height, width).requires_grad_()
        maps = backbone(pixel_values).feature_maps
        for spec, x in zip(config.stages, maps, strict=True):
            assert x.shape == (2, spec.channels, -(-height // spec.stride), -(-width // spec.stride)), spec
    maps[-1].square().sum().backward()
    assert pixel_values.grad.abs().sum() > 0
    assert next(backbone.parameters()).grad.abs().sum() > 0


@pytest.mark.parametrize("model_type", ["pvt_v2", "bit"])
def test_backbone_from_a_directory_gives_the_maps_of_transformers(tmp_path, model_type):
    torch.manual_seed(0)
    settings = transformers.AutoConfig.for_model(model_type, **SMALL[model_type])
    whole = transformers.AutoModelForImageClassification.from_config(settings)
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    whole.save_pretrained(tmp_path)
    ours = AutoBackbone.from_pretrained(tmp_path, out_features=["stage2", "stage4"])
    theirs = type(ours.net).from_pretrained(tmp_path, out_features=["stage2", "stage4"]).eval()
    pixel_values = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, found = theirs(pixel_values).feature_maps, ours(pixel_values).feature_maps
    for want, got in zip(expected, found, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)  # the same module
        assert want.std() > 0
    report = ours.load_report
    assert (report.missing, report.unexpected) == ((), ())
    assert any(name.startswith("classifier.") for name in report.not_built)


def test_backbone_from_a_directory_without_some_weights_fails(tmp_path):
    settings = transformers.PvtV2Config(**SMALL["pvt_v2"])
    model = transformers.PvtV2Backbone(settings)
    state = {name: value for name, value in model.state_dict().items() if "blocks.0" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ConfigError, match=r"does not fit: \d+ tensors missing"):
        AutoBackbone.from_pretrained(tmp_path)


def test_config_survives_a_dict_and_holds_plain_values_only():
    config = config_of("pvt_v2", out_strides=[4, 8, 16, 32])
    assert from_dict(to_dict(config), "backbone") == config
    assert AutoBackbone.from_config(to_dict(config)).config == config
    assert config.stage_names == ["stage1", "stage2", "stage3", "stage4"]  # this one has no stem


@pytest.mark.parametrize(
    ("model_type", "architecture", "line"),
    [
        ("os.system", {}, "model_type: transformers has no backbone 'os.system'; choose one of"),
        ("bert", {}, "model_type: transformers has no backbone 'bert'; choose one of"),
        ("pvt_v2", {"hidden_sizs": [8]}, "architecture.hidden_sizs: pvt_v2 has no such option; did you mean"),
        ("pvt_v2", {"depths": [500, 1, 1, 1]}, "architecture.depths: 503 layers are more than the 200"),
        ("pvt_v2", {"drop_path_rate": float("inf")}, "architecture.drop_path_rate: inf is outside the allowed range"),
        ("vitpose_backbone", {}, "model_type: vitpose_backbone gives stem as [1, 192, 768], not a map of one stride"),
    ],
)
def test_config_that_cannot_be_gives_one_line(model_type, architecture, line):
    with pytest.raises(ConfigError) as caught:
        TransformersBackboneConfig(model_type, architecture=architecture)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_config_without_transformers_names_the_extra():
    """In a process of its own, in which transformers cannot be imported; the families do not need it."""
    code = """
import sys
sys.modules["transformers"] = None
import vision_stack
print(vision_stack.AutoBackbone.from_config({"model_type": "resnet", "depths": [1, 1, 1, 1]}).channels)
try:
    vision_stack.TransformersBackboneConfig("pvt_v2")
except vision_stack.ConfigError as error:
    print(error)
try:
    vision_stack.AutoBackbone.from_config({"model_type": "pvt_v2"})
except vision_stack.ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert lines[0] == "[2048]", done.stderr
    assert lines[1] == "model_type: 'pvt_v2' needs transformers; install it with `pip install vision-stack[hf]`"
    assert lines[2] == lines[1]
