"""The snippets of transformers' backbone guide run as written, with `from vision_stack import ...`.

No network: the hub's cache holds directories that transformers' `save_pretrained` wrote under the names of the
snippets, and what timm publishes as resnet50; a directory by its path does as well. The networks have their true widths
and fewer layers.
"""

import json

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file

import vision_stack
from vision_stack import (
    AutoBackbone,
    AutoImageProcessor,
    ConfigError,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    ResNetConfig,
    SwinConfig,
    TimmBackbone,
    TimmBackboneConfig,
)

transformers = pytest.importorskip("transformers")

SWIN, RESNET = "microsoft/swin-tiny-patch4-window7-224", "microsoft/resnet-50"
STAGES = ["stage1", "stage2", "stage3", "stage4"]
EXACT = {"rtol": 0, "atol": 0}


def snapshot(cache, repo_id):
    """The folder of the hub's cache in which the files of a repository are looked for."""
    folder = cache / f"models--{repo_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    return folder / "snapshots" / "abc"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    cache = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    swin = transformers.SwinForImageClassification(transformers.SwinConfig(depths=[1, 1, 2, 1]))
    swin.save_pretrained(snapshot(cache, SWIN))
    processor = transformers.ViTImageProcessor(resample=3, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4])
    processor.save_pretrained(cache / "models--microsoft--swin-tiny-patch4-window7-224" / "snapshots" / "abc")
    resnet = transformers.ResNetForImageClassification(transformers.ResNetConfig(depths=[1, 1, 1, 1]))
    resnet.save_pretrained(snapshot(cache, RESNET))
    published = {name: value.contiguous() for name, value in timm.create_model("resnet50").state_dict().items()}
    save_file(published, snapshot(cache, "timm/resnet50.a1_in1k") / "model.safetensors")
    return cache


@pytest.fixture(autouse=True)
def hub(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def directory(cache, repo_id):
    return str(cache / f"models--{repo_id.replace('/', '--')}" / "snapshots" / "abc")


GUIDE = """
processor = AutoImageProcessor.from_pretrained("microsoft/swin-tiny-patch4-window7-224")
model = AutoBackbone.from_pretrained("microsoft/swin-tiny-patch4-window7-224", out_indices=(0, 1, 2))
inputs = processor(image, return_tensors="pt")
feature_maps = model(**inputs).feature_maps
shapes = [list(x.shape) for x in feature_maps]

backbone_config = ResNetConfig.from_pretrained("microsoft/resnet-50")
model = MaskFormerForInstanceSegmentation(MaskFormerConfig(backbone_config=backbone_config))
config = MaskFormerConfig(backbone="resnet50", use_timm_backbone=True, use_pretrained_backbone=True)
model = MaskFormerForInstanceSegmentation(config)
backbone_config = TimmBackboneConfig("resnet50", use_pretrained_backbone=True)
model = TimmBackbone(config=backbone_config)
model = MaskFormerForInstanceSegmentation(MaskFormerConfig(backbone_config=backbone_config))
model = AutoBackbone.from_config(SwinConfig(out_features=["stage2", "stage4"]))
"""


def test_guide_runs_as_written(image):
    names = {name: getattr(vision_stack, name) for name in vision_stack.__all__} | {"image": image}
    exec(GUIDE, names)
    assert names["shapes"] == [[1, 96, 56, 56], [1, 96, 56, 56], [1, 192, 28, 28]]
    assert names["model"].out_features == ["stage2", "stage4"]


def test_every_public_name_can_be_imported():
    for name in vision_stack.__all__:
        assert getattr(vision_stack, name) is not None


@pytest.mark.parametrize("by_path", [False, True], ids=["hub id", "directory"])
def test_auto_backbone_gives_the_maps_of_the_guide_and_of_transformers(cache, image, by_path):
    name = directory(cache, SWIN) if by_path else SWIN
    processor = AutoImageProcessor.from_pretrained(name)
    model = AutoBackbone.from_pretrained(name, out_indices=(0, 1, 2))
    inputs = processor(image, return_tensors="pt")
    with torch.no_grad():
        feature_maps = model(**inputs).feature_maps
    assert list(feature_maps[0].shape) == [1, 96, 56, 56]
    assert list(feature_maps[1].shape) == [1, 96, 56, 56]
    assert list(feature_maps[2].shape) == [1, 192, 28, 28]
    assert not model.training

    theirs = transformers.SwinBackbone.from_pretrained(directory(cache, SWIN), out_indices=(0, 1, 2)).eval()
    their_processor = transformers.AutoImageProcessor.from_pretrained(directory(cache, SWIN))
    their_inputs = their_processor(image, return_tensors="pt")
    torch.testing.assert_close(inputs["pixel_values"], their_inputs["pixel_values"], rtol=0, atol=1e-5)
    with torch.no_grad():
        their_maps = theirs(**their_inputs).feature_maps
    for ours, their in zip(feature_maps, their_maps, strict=True):
        assert (ours - their).abs().max() < 1e-4 * their.std()  # float32 rounding comes to 1e-5


def test_auto_backbone_takes_the_mean_and_std_that_lie_beside_the_weights(cache):
    model = AutoBackbone.from_pretrained(SWIN)
    assert (model.image_mean, model.image_std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert model.out_features == ["stage4"]


def test_resnet_config_from_pretrained_brings_its_weights_into_maskformer(cache, capsys):
    backbone_config = ResNetConfig.from_pretrained(RESNET)
    model = MaskFormerForInstanceSegmentation(MaskFormerConfig(backbone_config=backbone_config))
    backbone = model.vision_model.backbone
    published = timm.models.load_state_dict(f"{directory(cache, RESNET)}/model.safetensors")
    stem = published["resnet.embedder.embedder.convolution.weight"]
    torch.testing.assert_close(backbone.net.conv1.weight.detach(), stem, **EXACT)
    assert backbone.out_features == STAGES
    told = capsys.readouterr().err
    assert f"taking {STAGES} in place of ['stage4']" in told
    assert f"{RESNET} (cached): {len(backbone.load_report.matched)} matched, 0 missing, 0 unexpected" in told
    assert backbone_config.out_features == ["stage4"]  # the caller's own is left as it was


def test_resnet_config_by_itself_starts_from_random_weights():
    model = MaskFormerForInstanceSegmentation(MaskFormerConfig(backbone_config=ResNetConfig(depths=[1, 1, 1, 1])))
    assert model.vision_model.backbone.load_report is None
    assert model.vision_model.backbone.channels == [256, 512, 1024, 2048]


def test_maskformer_with_a_timm_backbone_by_name_loads_the_published_weights(cache, capsys):
    config = MaskFormerConfig(backbone="resnet50", use_timm_backbone=True, use_pretrained_backbone=True)
    model = MaskFormerForInstanceSegmentation(config)
    assert_is_published(cache, model.vision_model.backbone)
    assert "taking ['layer1', 'layer2', 'layer3', 'layer4'] in place of ['layer4']" in capsys.readouterr().err


def test_timm_backbone_with_pretrained_weights_stands_alone_and_in_maskformer(cache):
    backbone_config = TimmBackboneConfig("resnet50", use_pretrained_backbone=True)
    model = TimmBackbone(config=backbone_config)
    assert_is_published(cache, model)
    model = MaskFormerForInstanceSegmentation(MaskFormerConfig(backbone_config=backbone_config))
    assert_is_published(cache, model.vision_model.backbone)


def assert_is_published(cache, backbone):
    published = timm.models.load_state_dict(f"{directory(cache, 'timm/resnet50.a1_in1k')}/model.safetensors")
    state = backbone.state_dict()
    assert len(state) > 300
    for name, value in state.items():
        torch.testing.assert_close(value, published[name.removeprefix("net.")], **EXACT)


def test_auto_backbone_from_config_takes_the_stages_of_the_config():
    model = AutoBackbone.from_config(SwinConfig(out_features=["stage2", "stage4"]))
    assert (model.out_features, model.out_indices, model.channels) == (["stage2", "stage4"], [2, 4], [192, 768])


@pytest.mark.parametrize(
    "config",
    [
        {"type": "resnet", "depths": [1, 1, 1, 1], "out_features": ["stage2"]},
        {"model_type": "resnet", "depths": [1, 1, 1, 1], "out_features": ["stage2"]},
        {"model_type": "timm_backbone", "backbone": "resnet50", "out_indices": [2]},
        transformers.ResNetConfig(depths=[1, 1, 1, 1], out_features=["stage2"]),
    ],
    ids=["ours", "transformers'", "transformers' timm", "an object of transformers'"],
)
def test_auto_backbone_from_config_takes_mappings_of_ours_and_of_transformers(config):
    assert AutoBackbone.from_config(config).out_strides == [8]


def test_maskformer_config_default_backbone_is_that_of_transformers():
    with torch.device("meta"):
        ours = MaskFormerConfig().backbone_config.build()
    theirs = transformers.MaskFormerConfig().backbone_config
    assert ours.channels == [theirs.embed_dim * 2**i for i in range(4)]
    assert list(ours.config.depths) == theirs.depths
    assert ours.config.window_size == theirs.window_size


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: MaskFormerConfig(backbone="resnet18", use_timm_backbone=True, use_pretrained_backbone=True),
            "use_pretrained_backbone: resnet18: tried the cache",
        ),
        (
            lambda: TimmBackboneConfig("resnet18", use_pretrained_backbone=True),
            "use_pretrained_backbone: resnet18: tried",
        ),
        (
            lambda: TimmBackboneConfig("resnet18", use_pretrained_backbone="no/such.pth"),
            "use_pretrained_backbone: resnet18: no file no/such.pth",
        ),
        (
            lambda: TimmBackboneConfig("resnet18", use_pretrained_backbone="x" * 300),
            "use_pretrained_backbone: resnet18: no file xxx",
        ),
        (lambda: ResNetConfig().starting_from(True), "use_pretrained_backbone: resnet: none are published; give"),
        (
            lambda: MaskFormerConfig(backbone_config=ResNetConfig(), use_pretrained_backbone=True),
            "use_pretrained_backbone: resnet: none are published; give",
        ),
    ],
)
def test_pretrained_weights_that_cannot_be_had_fail_when_the_backbone_is_built(make, line, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(vision_stack.backbones.hub, "_answers", lambda address: False)
    config = make()
    build = MaskFormerForInstanceSegmentation if isinstance(config, MaskFormerConfig) else AutoBackbone.from_config
    with pytest.raises(ConfigError) as caught:
        build(config)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "resnet-5o",
            "'resnet-5o' is not a directory, a built-in name, a timm model or a Hub id (owner/name);",
        ),
        ("../../etc/passwd", "'../../etc/passwd' is not a directory, a built-in name, a timm model or a Hub id"),
        (
            "microsoft/resnet-51",
            "'microsoft/resnet-51' is not a directory, a built-in name or a timm model; as a Hub id,",
        ),
        ("", "name: expected a directory, a hub id or the name of a model, got ''"),
        ("a\0b", "name: expected a directory"),
        ("x" * 5000, "name: expected a directory"),
        ("x" * 500, "'xxxx"),  # longer than a file's name may be
        (
            "~no_such_user/model/x",
            "'~no_such_user/model/x' is not a directory, a built-in name, a timm model or a Hub",
        ),
        (
            "microsoft/resnet--50",
            "'microsoft/resnet--50' is not a directory, a built-in name, a timm model or a Hub id",
        ),
        (None, "name: expected a directory"),
        ("timm/resnet50.a1_in1k/../..", "model_name: resnet50 has no weights tagged 'a1_in1k/../..'; choose one of"),
    ],
)
def test_auto_backbone_unknown_name_gives_one_line_with_what_was_tried(name, line):
    for auto in (AutoBackbone, AutoImageProcessor):
        with pytest.raises(ConfigError) as caught:
            auto.from_pretrained(name)
        assert str(caught.value).startswith(line)
        assert "\n" not in str(caught.value)


def test_auto_backbone_unknown_name_offline_says_what_would_work():
    with pytest.raises(ConfigError, match=r"connect to the network, or give a directory .* or take 'resnet50'"):
        AutoBackbone.from_pretrained("microsoft/resnet-51")


def test_auto_backbone_one_of_ours_is_what_its_yaml_says():
    model = AutoBackbone.from_pretrained("swin_tiny", out_strides=(8, 16), use_pretrained_backbone=False)
    assert model.config.model_name == "swin_tiny_patch4_window7_224.ms_in1k"
    assert (model.out_strides, model.config.out_norms) == ([8, 16], True)
    assert vision_stack.list_backbones("swin_tiny") == vision_stack.list_backbones("swin_t*") == ["swin_tiny"]
    assert "test_resnet" in vision_stack.list_backbones(timm_models=True)


def test_auto_backbone_options_that_are_no_fields_are_named():
    with pytest.raises(ConfigError, match=r"out_indexes: unknown option; did you mean 'out_indices'"):
        AutoBackbone.from_pretrained(SWIN, out_indexes=(1,))
    with pytest.raises(ConfigError, match=r"out_features: expected a list of stage names, got \('stage1',\)"):
        AutoBackbone.from_pretrained(SWIN, out_features=("stage1",))
    with pytest.raises(ConfigError, match="is not a ResNetConfig but a SwinConfig"):
        ResNetConfig.from_pretrained(SWIN)


def test_auto_backbone_directory_in_timm_s_hub_layout(tmp_path):
    torch.manual_seed(0)
    published = {name: value.contiguous() for name, value in timm.create_model("test_resnet").state_dict().items()}
    save_file(published, tmp_path / "model.safetensors")
    facts = {"architecture": "test_resnet", "num_features": 96, "pretrained_cfg": {"tag": "r160_in1k"}}
    facts["label_names"] = [f"species {i}" for i in range(10_000)]
    (tmp_path / "config.json").write_text(json.dumps(facts))
    model = AutoBackbone.from_pretrained(tmp_path, out_strides=(4, 8))
    assert model.config.model_name == "test_resnet.r160_in1k"
    torch.testing.assert_close(model.state_dict()["net.conv1.0.weight"], published["conv1.0.weight"], **EXACT)


def test_auto_backbone_directory_of_transformers_timm_backbone(tmp_path):
    torch.manual_seed(0)
    theirs = transformers.TimmBackbone(transformers.TimmBackboneConfig(backbone="test_resnet", out_indices=[1, 3]))
    theirs.eval().save_pretrained(tmp_path)
    ours = AutoBackbone.from_pretrained(tmp_path)
    assert ours.out_indices == [1, 3]
    pixel_values = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, found = theirs(pixel_values).feature_maps, ours(pixel_values).feature_maps
    for want, got in zip(expected, found, strict=True):
        assert (got - want).abs().max() < 1e-4 * want.std()


def test_auto_backbone_folder_of_a_built_in_name_does_not_shadow_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_resnet").mkdir()
    assert AutoBackbone.from_pretrained("test_resnet", use_pretrained_backbone=False).channels == [96]
    transformers.ResNetConfig(depths=[1, 1, 1, 1]).save_pretrained("test_resnet")
    assert AutoBackbone.from_pretrained("test_resnet", use_pretrained_backbone=False).channels == [2048]
