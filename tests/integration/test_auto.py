"""`auto` through whole runs: what is stored and printed, what a resumed run takes, what the measured step changes."""

from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
import yaml

from vision_stack.config import ConfigError, from_dict
from vision_stack.data.datamodule import build_datamodule
from vision_stack.data.shapes.generate import generate_shapes
from vision_stack.training import settling
from vision_stack.training.auto import without_autos

SMALL = [text for text in tiny_run.TINY if not text.startswith(("data.", "trainer.max_", "trainer.check_", "optim."))]
SMALL += ["backbone.pretrained=false", "head.loss.num_points=64", "trainer.max_steps=4", "trainer.val_check_interval=2"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder of 8 and 2 images."""
    folder = tmp_path_factory.mktemp("own")
    return generate_shapes(folder, seed=0, image_size=64, num_train=8, num_val=2, min_objects=1, max_objects=3)


def train(run_dir: Path, root: Path, *overrides: str, **options: Any) -> Any:
    data = ["data=coco", f"data.root='{root}'", "data.num_workers=0"]
    known = {text.partition("=")[0] for text in overrides}
    base = [text for text in SMALL if text.partition("=")[0] not in known]
    return tiny_run.train_composed(run_dir, [*base, *data, *overrides], **options)


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    run_dir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("vision_stack.training.run.say", lambda *texts: lines.extend(texts))
        train(run_dir, root)
    return run_dir, "\n".join(lines)


def test_settled_values_are_stored_printed_and_used(run: tuple[Path, str]) -> None:
    run_dir, printed = run
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    last = tiny_run.last(run_dir)
    assert config["data"]["batch_size"] == last["run_config"]["data"]["batch_size"] == 2
    assert config["optim"]["lr"] == last["run_config"]["optim"]["lr"] == last["run_config"]["recipe"]["optim.lr"]
    assert config["data"]["eval_transform"]["short_edge"] == last["model_config"]["input_size"]["short_edge"] == 64
    assert last["optimizer"]["param_groups"][-1]["initial_lr"] == pytest.approx(config["optim"]["lr"])
    assert "data.batch_size 2 (auto: 8 training images)" in printed
    assert "optim.backbone_lr_multiplier 1 (auto: random backbone)" in printed
    assert "THE BACKBONE IS A TOY" in printed
    assert "GB, measured in a step on the largest batch" in printed
    assert "for 4 steps of" in printed
    assert "and 2 validations" in printed
    text = (run_dir / "config.yaml").read_text()
    assert {line.strip() for line in text.splitlines() if line.endswith(" auto")} <= {
        "accelerator: auto",
        "strategy: auto",
        "pretrained: auto",
    }


def test_run_is_the_same_with_and_without_the_measured_step(run: tuple[Path, str], root: Path, tmp_path: Path) -> None:
    train(tmp_path, root, "measure=false")
    same_state(tiny_run.last(run[0]), tiny_run.last(tmp_path))


def test_resumed_run_takes_what_the_interrupted_one_had(
    run: tuple[Path, str], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the facts are by then, so that it ends with the same bits."""
    with pytest.raises(tiny_run.Crash):
        train(tmp_path / "run", root, callbacks=(tiny_run.CrashAt(2),))
    monkeypatch.setattr("vision_stack.training.settling.gather", lambda *_, **__: pytest.fail("facts were asked for"))
    train(tmp_path / "run", root, f"resume='{tmp_path}/run/checkpoints/last.ckpt'")
    same_state(tiny_run.last(run[0]), tiny_run.last(tmp_path / "run"))


def test_processes_that_the_first_one_starts_take_its_values(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by trying, say: another process might find another batch."""
    config = tiny_run.compose_options("train", ["run_dir=x", "data=coco", f"data.root='{root}'", "backbone=tiny"])
    data = build_datamodule(from_dict(without_autos(config)["data"], kind="data"))
    monkeypatch.delenv("VISION_STACK_RECIPE", raising=False)
    config["trainer"]["auto_batch"] = True
    monkeypatch.setattr(settling, "_largest_batch", lambda *_: (5, "by trying"))
    first, _ = settling.settle_options(config, data, None, None, [])
    assert first["data"]["batch_size"] == 5
    monkeypatch.setattr(settling, "_rank", lambda: 1)
    monkeypatch.setattr(settling, "gather", lambda *_, **__: pytest.fail("facts were asked for"))
    second, _ = settling.settle_options(config, data, None, None, [])
    assert second == first


def test_typed_value_on_resume_wins_over_the_stored_one(run: tuple[Path, str], root: Path, tmp_path: Path) -> None:
    train(tmp_path, root, f"resume='{run[0]}/checkpoints/last.ckpt'", "optim.lr=1e-5", "trainer.max_steps=5")
    assert tiny_run.last(tmp_path)["run_config"]["optim"]["lr"] == 1e-5
    assert tiny_run.last(tmp_path)["run_config"]["data"]["batch_size"] == 2


def test_auto_batch_takes_the_largest_that_fits_and_scales_the_rate(root: Path, tmp_path: Path) -> None:
    train(tmp_path, root, "trainer.auto_batch=true", "trainer.max_steps=2")
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["data"]["batch_size"] == 8  # all images
    assert config["optim"]["lr"] == pytest.approx(5e-4 * 96 / 16 * 2**0.5, rel=0.02)


def test_auto_batch_beside_a_typed_batch_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer.auto_batch: data.batch_size is given, too"):
        train(tmp_path, root, "trainer.auto_batch=true", "data.batch_size=2")


def test_auto_on_generated_scenes_may_be_typed(tmp_path: Path) -> None:
    tiny_run.train(tmp_path, "optim.lr=auto", "trainer.max_steps=1", "measure=true")
    assert tiny_run.last(tmp_path)["run_config"]["optim"]["lr"] == pytest.approx(5e-4 * 6 * 0.5**0.5, rel=0.02)


def test_weights_take_values_for_fine_tuning_and_no_auto_of_the_model(
    run: tuple[Path, str], root: Path, tmp_path: Path
) -> None:
    start = [f"weights='{run[0]}/checkpoints/best.ckpt'", "experiment=from_weights", "trainer.max_steps=1"]
    train(tmp_path, root, *start)
    recipe = tiny_run.last(tmp_path)["run_config"]["recipe"]
    assert recipe["optim.lr"] == pytest.approx(5e-4 * 6 * 0.5**0.5 / 2, rel=0.05)
    assert recipe["head.hidden_dim"] == 16
    with pytest.raises(ConfigError, match=r"head.num_queries: with weights="):
        train(tmp_path / "other", root, *start, "head.num_queries=auto")


def same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    assert one["run_config"]["recipe"] == other["run_config"]["recipe"]
