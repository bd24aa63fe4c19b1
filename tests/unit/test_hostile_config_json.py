"""A `config.json` of whatever content gives one line, quickly; nothing that it names is imported, run or opened."""

import json
import os
import sys
import time

import pytest

pytest.importorskip("transformers")
import transformers.models.auto.modeling_auto  # noqa: F401  once: its import takes seconds

from vision_stack import AutoBackbone, AutoImageProcessor, ConfigError, MaskFormerConfig

RESNET = {"model_type": "resnet", "depths": [1, 1, 1, 1]}
PVT = {"model_type": "pvt_v2"}  # comes through transformers
DEEP = '{"model_type": "pvt_v2", "depths": ' + "[" * 100_000 + "]" * 100_000 + "}"
NESTED = {"model_type": "pvt_v2", "depths": {"a": {"b": {"c": {"d": {"e": [1]}}}}}}

CASES = {
    "unknown model_type": ({"model_type": "resnett"}, "model_type: no backbone 'resnett'; did you mean 'resnet'?"),
    "no backbone": ({"model_type": "bert"}, "model_type: no backbone 'bert'; "),
    "path as model_type": ({"model_type": "../../evil"}, "model_type: '../../evil' is not a model type; known are"),
    "module as model_type": ({"model_type": "os.system"}, "model_type: 'os.system' is not a model type; known are"),
    "long model_type": ({"model_type": "a" * 100_000}, "model_type: 'aaaaaaa"),
    "number as model_type": ({"model_type": 7}, "model_type: expected a name, got 7"),
    "no model_type": ({"depths": [1]}, "model_type: missing; a transformers config has it"),
    "_target_": ({**RESNET, "_target_": "os.system"}, "'_target_' names code to run, which is never done"),
    "auto_map": ({**RESNET, "auto_map": {"AutoBackbone": "evil.py"}}, "'auto_map' names code to run, which is never"),
    "wrong type": ({**RESNET, "depths": "many"}, "depths: expected a list, got 'many'"),
    "wrong type inside": ({**RESNET, "depths": [1, "x"]}, "depths[1]: expected a whole number, got 'x'"),
    "endless number": (
        '{"model_type": "swin", "mlp_ratio": 1' + "0" * 400 + "}",
        "mlp_ratio: expected a number, got 1000",
    ),
    "whole model": ({"backbone": {"type": "resnet"}, "neck": {}}, "model_type: missing; this is a whole model, which"),
    "not a choice": ({**RESNET, "layer_type": "__import__('os')"}, "layer_type: \"__import__('os')\" is not a choice"),
    "10,000 layers": ({**RESNET, "depths": [10_000] * 4}, "depths[0]: 10000 is outside the allowed range 1 to 200"),
    "10,000 stages": ({**RESNET, "depths": [1] * 10_000, "hidden_sizes": [4] * 10_000}, "depths: 10000 entries"),
    "200 wide layers": (
        {"model_type": "vit", "num_hidden_layers": 200, "hidden_size": 16_384, "num_attention_heads": 64},
        "model_type: this vit has 2",
    ),
    "huge width": ({**RESNET, "hidden_sizes": [2**40] * 4}, "hidden_sizes[0]: 1099511627776 is outside the allowed"),
    "negative width": ({**RESNET, "embedding_size": -64}, "embedding_size: -64 is outside the allowed range"),
    "no such stage": ({**RESNET, "out_features": ["stage9"]}, "out_features: ['stage9'] is not among the stages"),
    "no such index": ({**RESNET, "out_indices": [-7]}, "out_indices: [-7] is outside -5 to 4"),
    "ours with a path": ({"type": "timm", "model_name": "local-dir:/etc"}, "backbone.model_name: timm has no model"),
    "ours unknown": ({"type": "os.system"}, "backbone.type: unknown backbone 'os.system'"),
    "timm by a path": ({"model_type": "timm_backbone", "backbone": "local-dir:/etc"}, "model_name: timm has no model"),
    "timm from the hub": ({"architecture": "hf-hub:evil/model"}, "model_name: timm has no model 'hf-hub:evil/model'"),
    "timm wrong type": ({"model_type": "timm_backbone", "backbone": ["resnet18"]}, "backbone: expected the name of a"),
    "timm wrong index": (
        {"model_type": "timm_backbone", "backbone": "resnet18", "out_indices": "all"},
        "out_indices: expected a list",
    ),
    "theirs, 10,000 layers": ({**PVT, "depths": [10_000, 1, 1, 1]}, "architecture.depths: 10003 layers are more than"),
    "theirs, huge width": (
        {**PVT, "hidden_sizes": [2**40, 1, 1, 1]},
        "architecture.hidden_sizes: 1099511627776 is",
    ),
    "theirs, wide layers": (
        {**PVT, "depths": [4] * 4, "hidden_sizes": [16_384] * 4, "num_attention_heads": [8] * 4},
        "model_type: this pvt_v2 has ",
    ),
    "theirs, wrong type": ({**PVT, "depths": "many"}, "architecture: refused by transformers' pvt_v2 ("),
    "theirs, nested": (NESTED, "architecture.depths.a.b.c"),
    "theirs, long list": (
        {**PVT, "hidden_sizes": [1] * 100_000},
        "hidden_sizes: 100000 entries are more than",
    ),
    "theirs, odd shape": ({**PVT, "depths": [1]}, "architecture: transformers cannot build this"),
    "not json": ("{", "not valid json"),
    "empty": ("", "not valid json"),
    "not text": (b"\xff\xfe\x00", "not valid json"),
    "not a mapping": ("[1, 2]", "expected a mapping of options, got a list"),
    "nested json": (DEEP, "nested too deeply for a config"),
    "long number": ('{"model_type": ' + "9" * 1_000_000 + "}", "not valid json"),
    "33 MB": ('{"model_type": "' + "a" * 33_000_000 + '"}', "33,000,018 bytes are not a config"),
}


def written(folder, content, name="config.json"):
    data = content if isinstance(content, str | bytes) else json.dumps(content)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


@pytest.mark.parametrize(("content", "line"), CASES.values(), ids=CASES)
def test_auto_backbone_hostile_config_json_gives_one_line_quickly(tmp_path, monkeypatch, content, line):
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("it was run"))
    folder, modules = written(tmp_path, content), set(sys.modules)
    start = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        AutoBackbone.from_pretrained(folder)
    assert time.monotonic() - start < 5  # of which a first import of one of transformers' modules takes most
    message = str(caught.value)
    assert message.startswith(f"{folder / 'config.json'}: ")
    assert message.removeprefix(f"{folder / 'config.json'}: ").startswith(line)
    assert "\n" not in message
    assert len(message) < 600
    imported = {name.split(".")[0] for name in set(sys.modules) - modules}
    assert not imported & {"evil", "config"}


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_auto_backbone_fifo_or_folder_in_place_of_a_file_is_not_waited_for(tmp_path, name):
    written(tmp_path, RESNET)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    if name == "config.json":
        with pytest.raises(ConfigError, match="no such file"):
            AutoBackbone.from_pretrained(tmp_path)
    else:
        assert AutoBackbone.from_pretrained(tmp_path, use_pretrained_backbone=False).channels == [2048]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"size": "large"}, "size: expected a number or a mapping, got 'large'"),
        (
            {"size": {"longest": 3}},
            "size: ['longest'] is not what ViTImageProcessor resizes by; give height and width or",
        ),
        ({"size": {"height": 10**9, "width": 1}}, "exact_size[0]: 1000000000 is outside the allowed range 1 to 16384"),
        ({"size": 224, "resample": 99}, "resample: 99 is not among 0 (nearest-exact), 1 (lanczos), 2 (bilinear), 3 ("),
        ({"image_mean": [0.5]}, "image_mean: expected a list of 3 values, got [0.5]"),
        ({"image_std": [0, 0, 0]}, "image_std[0]: 0 is outside the allowed range: at least 1e-06"),
        ({"do_center_crop": True, "crop_size": "x"}, "crop_size: expected a number, or height and width, got 'x'"),
        (
            {"do_pad": True, "pad_size": {"height": 8}},
            "pad_size: expected a number, or height and width, got {'height'",
        ),
        ({"rescale_factor": "1/255"}, "rescale_factor: expected a number, got '1/255'"),
        ({"image_processor_type": "os.system"}, "image_processor_type: 'os.system' is not supported; known are Beit"),
        ({"image_processor_type": ["ViT"]}, "image_processor_type: ['ViT'] is not supported; did you mean"),
        ({"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0}, "crop_pct: expected a part of the image"),
        ({"auto_map": {"AutoImageProcessor": "evil.py"}}, "'auto_map' names code to run, which is never done"),
        ("[", "not valid json"),
    ],
)
def test_auto_image_processor_hostile_file_gives_one_line(tmp_path, content, line):
    if isinstance(content, dict):
        content = {"image_processor_type": "ViTImageProcessor", **content}
    written(tmp_path, content, "preprocessor_config.json")
    with pytest.raises(ConfigError) as caught:
        AutoImageProcessor.from_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'preprocessor_config.json'}: {line}")
    assert "\n" not in str(caught.value)


def test_auto_backbone_hostile_processor_file_beside_the_config_gives_one_line(tmp_path):
    written(written(tmp_path, RESNET), {"image_mean": "grey"}, "preprocessor_config.json")
    with pytest.raises(ConfigError, match=r"config\.json: image_mean: expected a list, got 'grey'"):
        AutoBackbone.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"backbone_config": {}}, "model_type: missing"),
        ({"backbone_config": {"model_type": "vit_of_mine"}}, "model_type: no backbone 'vit_of_mine'"),
        ({"backbone_config": "resnet50"}, "backbone_config: expected a backbone config or a mapping, got a str"),
        ({"backbone": "resnet50", "backbone_config": RESNET}, "backbone: given as well as backbone_config; give one"),
        ({"use_timm_backbone": True}, "use_timm_backbone: needs the name of a timm model as `backbone`"),
        ({"backbone_config": RESNET, "num_labels": 0}, "num_labels: 0 is outside the allowed range"),
        (
            {"backbone_config": RESNET, "id2label": {1: "a", 2: "b"}},
            "id2label: the classes are 0 to 1, each",
        ),
        (
            {"backbone": "test_vit", "use_timm_backbone": True},
            "backbone_config: MaskFormer needs maps at strides",
        ),
    ],
)
def test_maskformer_config_that_cannot_be_gives_one_line(options, line):
    with pytest.raises(ConfigError) as caught:
        MaskFormerConfig(**options)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
