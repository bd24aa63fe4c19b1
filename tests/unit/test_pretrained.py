"""Initial weights: loaded to the last tensor and reported, or refused in one line; never silently random."""

import time
import warnings

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from huggingface_hub import constants

from vision_stack.backbones import (
    RandomWeightsWarning,
    TimmBackboneConfig,
    TorchvisionBackboneConfig,
    hub,
    load_pretrained,
    pretrained,
)
from vision_stack.config import ConfigError

LAYOUTS = ["test_resnet", "test_vit", "test_efficientnet", "hardcorenas_a", "swin_tiny_patch4_window7_224"]  # of names


def saved(tmp_path, model, name="weights.safetensors"):
    """The published file of a model, with weights that no initialisation would give."""
    torch.manual_seed(1)
    state = {k: v + 0.2 * torch.rand(v.shape) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    path = tmp_path / name
    safetensors.torch.save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize("name", LAYOUTS)
def test_load_timm_file_gives_the_maps_that_timm_itself_gives(tmp_path, name):
    path = saved(tmp_path, timm.create_model(name))
    is_swin = name.startswith("swin")
    options = {"strict_img_size": False, "always_partition": True} if is_swin else {}
    source = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    reference = timm.create_model(name, features_only=True, **source, **options).eval()
    config = TimmBackboneConfig(name, out_indices=[0, -1])
    backbone = config.build().eval()
    report = load_pretrained(backbone, config, str(path))
    assert (report.missing, report.unexpected, report.fresh, report.reshaped) == ((), (), (), ())
    assert set(report.matched) == set(backbone.state_dict())
    assert len(report.matched) + len(report.not_built) == len(safetensors.torch.load_file(path))
    pixel_values = torch.randn(1, 3, 112, 112)  # Swin's windows divide its first map; beyond, timm shifts otherwise
    expected, found = reference(pixel_values), backbone(pixel_values).feature_maps
    pair = (found[0], expected[0].permute(0, 3, 1, 2)) if is_swin else (found[1], expected[-1])
    torch.testing.assert_close(*pair, rtol=0, atol=0)  # the same operations
    assert pair[0].std() > 0.01


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("freeze_norm", [False, True])
def test_load_torchvision_file_stages_not_built_are_no_fault(tmp_path, suffix, freeze_norm):
    path = saved(tmp_path, torchvision.models.resnet18(), f"w.{suffix}")
    config = TorchvisionBackboneConfig("resnet18", out_strides=[8], out_norms=True, freeze_norm=freeze_norm)
    backbone = config.build()
    report = load_pretrained(backbone, config, str(path))
    published = pretrained.read_tensors(path)
    for name, value in backbone.state_dict().items():
        if not name.startswith("norms."):
            assert torch.equal(value, published[name.removeprefix("net.")])
    assert report.fresh == ("norms.0.weight", "norms.0.bias")
    assert {"fc.weight", "layer4.0.conv1.weight"} <= set(report.not_built)
    assert str(report).startswith(f"{path}: {len(report.matched)} matched, 0 missing, 0 unexpected, 2 new here, ")
    assert "fresh       norms.0.weight" in report.details()


def test_load_position_table_of_another_size_is_resampled_and_reported(tmp_path):
    config = TimmBackboneConfig("test_vit")
    path = saved(tmp_path, timm.create_model("test_vit", img_size=64))
    report = load_pretrained(config.build(), config, str(path))
    assert report.reshaped == ("net.model.pos_embed",)
    assert "1 reshaped" in str(report)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "no file "),
        (b"", "cannot be read as weights"),
        (b"\x80\x04cos\nsystem\n(S'echo'\ntR.", "holds more than tensors and plain values"),
        ({"a": 1}, "a is of type int; expected a state dict"),
        ({}, "holds no tensors by name"),
        ({"conv1.weight": torch.zeros(1)}, "does not fit: 99 tensors missing"),
    ],
)
def test_load_bad_file_gives_one_line_and_changes_nothing(tmp_path, content, line):
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    config = TimmBackboneConfig("resnet18")
    backbone = config.build()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(ConfigError, match=f"^backbone.pretrained: resnet18: .*{line}") as caught:
        load_pretrained(backbone, config, str(path))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_load_weights_of_another_width_names_a_tensor_and_both_shapes(tmp_path):
    path = saved(tmp_path, timm.create_model("mobilenetv4_conv_small_050"))
    config = TimmBackboneConfig("mobilenetv4_conv_small_035")
    with pytest.raises(ConfigError, match=r"of another kind \(e\.g\. net\.model\.\S+: shape \[[\d, ]+\], not \["):
        load_pretrained(config.build(), config, str(path))


def test_load_directory_finds_its_weights_or_says_what_it_looked_for(tmp_path):
    config = TimmBackboneConfig("test_resnet")
    with pytest.raises(ConfigError, match=r"holds none of model\.safetensors"):
        load_pretrained(config.build(), config, str(tmp_path))
    saved(tmp_path, timm.create_model("test_resnet"), "model.safetensors")
    assert not load_pretrained(config.build(), config, str(tmp_path)).missing


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    asked = []
    monkeypatch.setattr(hub, "_answers", lambda address: asked.append(address) or False)
    return asked


@pytest.mark.parametrize("config", [TimmBackboneConfig("test_resnet"), TorchvisionBackboneConfig("resnet18")])
def test_load_offline_auto_warns_and_true_fails_with_what_was_tried(no_network, config):
    with pytest.warns(RandomWeightsWarning, match="STARTS FROM RANDOM WEIGHTS"):
        report = load_pretrained(config.build(), config, "auto")
    assert report.source == "random weights"
    assert "tried the cache" in str(report)
    with pytest.raises(ConfigError, match=r"tried the cache .*no answer.*pretrained=<path> .*pretrained=false"):
        load_pretrained(config.build(), config, True)
    assert no_network


def test_load_false_keeps_the_weights_without_a_word(no_network):
    config = TimmBackboneConfig("test_resnet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = load_pretrained(config.build(), config, False)
    assert str(report) == "random weights"
    assert not no_network


def test_load_cached_weights_are_found_without_asking_the_network(no_network, tmp_path):
    folder = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    saved(folder / "snapshots" / "abc", timm.create_model("test_resnet"), "model.safetensors")
    config = TimmBackboneConfig("test_resnet.r160_in1k")
    assert str(load_pretrained(config.build(), config, True)).startswith("timm/test_resnet.r160_in1k (cached): ")
    (tmp_path / "torch" / "checkpoints").mkdir(parents=True)
    saved(tmp_path / "torch" / "checkpoints", torchvision.models.resnet18(), "resnet18-f37072fd.pth")
    config = TorchvisionBackboneConfig("resnet18")
    assert load_pretrained(config.build(), config, "auto").source == "resnet18-f37072fd.pth (cached)"
    assert no_network == []


def test_answers_an_address_that_never_does_gives_up_in_time(monkeypatch):
    monkeypatch.setattr(hub, "PATIENCE", 0.2)

    def never(*_, **__):
        time.sleep(2)
        raise OSError

    monkeypatch.setattr(hub.urllib.request, "urlopen", never)
    start = time.monotonic()
    assert not hub._answers("https://example.invalid")
    assert time.monotonic() - start < 1.5  # not the two seconds that the call takes
