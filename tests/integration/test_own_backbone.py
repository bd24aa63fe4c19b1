"""docs/your_own_backbone.md, done: a package beside this one, trained, evaluated and used by the three scripts."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
import torch
from PIL import Image

from vision_stack.commands.composing import Composition, compose_options
from vision_stack.commands.plugins import import_plugins, offer_plugins
from vision_stack.config import ConfigError, from_dict

EXAMPLES = tiny_run.ROOT / "docs" / "examples"
PAGE = (tiny_run.ROOT / "docs" / "your_own_backbone.md").read_text(encoding="utf-8")
PLUGIN = "plugins=[my_package.plain_cnn]"
TINY = [option for option in tiny_run.TINY if option != "backbone=tiny"]


def script(name: str, *options: str) -> str:
    command = [sys.executable, str(tiny_run.ROOT / name), *options]
    result = subprocess.run(command, cwd=EXAMPLES, env=os.environ, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "Warning" not in result.stderr
    return result.stdout


def script_in_this_process(monkeypatch: pytest.MonkeyPatch, name: str, *options: str) -> None:
    """As `script`, without the seconds that importing everything takes."""
    monkeypatch.setattr(sys, "argv", [name, *options])
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(tiny_run.ROOT / name), run_name="__main__")
    assert stop.value.code == 0


@pytest.fixture
def plain_cnn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import my_package.plain_cnn

    return my_package.plain_cnn


def test_page_shows_the_files_and_options_that_are_tested() -> None:
    package = EXAMPLES / "my_package"
    for file in (package / "plain_cnn.py", package / "configs" / "backbone" / "plain_cnn.yaml"):
        assert file.read_text(encoding="utf-8") in PAGE
    for option in (PLUGIN, "hydra.searchpath=[pkg://my_package.configs]", "backbone=plain_cnn backbone.width=32"):
        assert option in PAGE


def test_own_backbone_trains_evaluates_and_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["hydra.searchpath=[pkg://my_package.configs]", "backbone=plain_cnn", "backbone.width=8", PLUGIN]
    options += ["finetune.freeze_stages=2", "finetune.gradient_checkpointing=true", "optim.layer_decay=0.9"]
    printed = script("train.py", *TINY, *options, "trainer.max_steps=1", f"run_dir={tmp_path / 'run'}")
    assert "backbone    plain_cnn, " in printed
    assert "maps stage1/4, stage2/8, stage3/16, stage4/32" in printed
    assert "frozen      stem, stage1\n" in printed
    checkpoint = f"checkpoint={tmp_path / 'run' / 'checkpoints' / 'best.ckpt'}"
    run_dir = f"run_dir={tmp_path / 'eval'}"
    script_in_this_process(monkeypatch, "eval.py", checkpoint, PLUGIN, "num_pictures=0", run_dir)
    assert (tmp_path / "eval" / "metrics.json").is_file()
    Image.new("RGB", (80, 60)).save(tmp_path / "image.png")
    source, run_dir = f"source={tmp_path / 'image.png'}", f"run_dir={tmp_path / 'predict'}"
    script_in_this_process(monkeypatch, "predict.py", checkpoint, PLUGIN, source, run_dir)
    assert (tmp_path / "predict" / "predictions.json").is_file()


def test_own_backbone_without_a_yaml_file_has_the_options_of_its_config(plain_cnn) -> None:
    offer_plugins([PLUGIN])
    options = ["backbone=plain_cnn", "backbone.width=8", "backbone.out_strides=[4,8]"]
    config, _ = compose_options(Composition("train", ["run_dir=x", *options]))
    assert config["backbone"].pop("pretrained") is False
    assert from_dict(config["backbone"], "backbone").width == 8


def test_own_backbone_keeps_what_backbones_promise(plain_cnn) -> None:
    backbone = plain_cnn.PlainCNNConfig(width=4, out_strides=[4, 16]).build()
    maps = backbone(torch.randn(2, 3, 50, 75)).feature_maps
    assert [tuple(x.shape) for x in maps] == [(2, 4, 13, 19), (2, 16, 4, 5)]
    assert [group.name for group in backbone.stage_groups()] == ["stem", "stage1", "stage2", "stage3", "stage4"]


def test_own_backbone_whose_module_is_not_imported_says_how() -> None:
    with pytest.raises(ConfigError, match=r"unknown backbone 'plain_cn'; .*; a backbone .* plugins=\[ITS\.MODULE\]"):
        from_dict({"type": "plain_cn"}, "backbone")


def test_plugin_alone_needs_no_brackets(plain_cnn) -> None:
    import_plugins("my_package.plain_cnn")
    with pytest.raises(ValueError, match=r"^plugins: no module no_such_package in "):
        import_plugins("no_such_package")


def test_plugin_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^plugins: no module my_packages\.x in .*, nor among what is installed$"):
        import_plugins(["my_packages.x"])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    with pytest.raises(ValueError, match=r"no module my_package\.y in"):
        import_plugins(["my_package.y"])
