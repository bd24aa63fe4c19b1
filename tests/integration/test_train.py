import csv
import json
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny_run
import torch
import yaml

from vision_stack.model import VisionModel
from vision_stack.training.checkpoints import Checkpoints
from vision_stack.training.lightning_module import NonFiniteLoss, likely_cause, step_seed
from vision_stack.training.optim import OptimConfig
from vision_stack.training.pictures import draw_validation


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("run, a=b [1] é")
    tiny_run.train(run_dir, "trainer.max_epochs=2", "logger=both", "num_pictures=2")
    return run_dir


def test_run_leaves_checkpoints_metrics_predictions_pictures_and_options(run: Path) -> None:
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.json", "predictions.json", "config.yaml"):
        assert (run / name).is_file(), name
    assert len(list((run / "pictures").glob("[0-9]*.jpg"))) == 2
    assert (run / "pictures" / "curves.png").is_file()
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"AP", "AP50", "AP75"} <= metrics["segm"].keys() & metrics["bbox"].keys()
    assert yaml.safe_load((run / "config.yaml").read_text())["head"]["num_queries"] == 10


def test_run_metrics_file_has_a_row_for_each_step_and_the_validations(run: Path) -> None:
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["step"]) for r in rows if r["train/loss"]] == list(range(8))
    assert [int(r["step"]) for r in rows if r["val/segm_AP"]] == [3, 7]
    parts = [name for name in rows[0] if name.startswith("train/loss_")]
    assert parts == ["train/loss_class", "train/loss_mask", "train/loss_dice", "train/loss_semantic"]  # of all layers
    for row in rows:
        if row["train/loss"]:
            assert sum(float(row[part]) for part in parts) == pytest.approx(float(row["train/loss"]), rel=1e-5)


def test_run_tensorboard_has_scalars_and_pictures(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert "train/loss" in events.Tags()["scalars"]
    assert len(events.Tags()["images"]) == 2


def test_run_best_checkpoint_loads_as_a_model_of_the_data_classes(run: Path) -> None:
    model = VisionModel.from_pretrained(run / "checkpoints" / "best.ckpt")
    assert len(model.categories) == 4
    assert model.config.input_size.short_edge == 64


def test_run_results_are_those_of_the_best_checkpoint(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["segm"]["AP"] == tiny_run.best(run)["best_score"]


@pytest.mark.parametrize("found", [True, False], ids=["something_found", "nothing_found"])
def test_pictures_are_drawn_of_all_images_validated_and_of_no_others(found: bool, tmp_path: Path) -> None:
    options = ["data.num_val=3", "data.eval_batch_size=1", "trainer.limit_val_batches=2"]
    trainer = tiny_run.train(tmp_path, *options, "trainer.max_steps=1")
    data = trainer.datamodule
    if not found:
        (tmp_path / "predictions.json").write_text("[]")
    names = [path.stem for path in draw_validation(tmp_path, data.val_records, data.categories, 3, data.task)]
    assert names == [f"{record.image_id}_{Path(record.file_name).stem}" for record in data.val_records[:2]]


def test_max_steps_in_mid_epoch_is_validated_at_the_end(tmp_path: Path) -> None:
    trainer = tiny_run.train(tmp_path, "trainer.max_steps=3", "trainer.check_val_every_n_epoch=5")
    assert trainer.global_step == 3
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file()


def test_weights_of_another_run_start_all_that_fits(run: Path, tmp_path: Path, capsys: Any) -> None:
    options = [f"weights='{run}/checkpoints/best.ckpt'", "head.num_queries=11", "optim.lr=1e-12"]
    tiny_run.train(tmp_path, *options, "trainer.max_steps=1")
    assert "; queries: 10 of 10 kept, 1 more at random\n" in capsys.readouterr().out
    names = [n for n in tiny_run.best(run)["state_dict"] if n.startswith("model.backbone") and n.endswith("weight")]
    name = names[0]
    # one step at a rate of 1e-12 moves a weight by less than 1e-11
    start, after = tiny_run.best(run)["state_dict"][name], tiny_run.last(tmp_path)["state_dict"][name]
    torch.testing.assert_close(after, start, rtol=0, atol=1e-11)


class PoisonAt(pl.Callback):
    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch:
            module.model.head.class_embed.bias.data.fill_(float("nan"))


def test_nan_loss_stops_with_the_files_and_the_cause_and_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLoss, match=r"became nan near step 2 .* with \d+\.jpg, \d+\.jpg; try a smaller optim"):
        tiny_run.train(tmp_path, callbacks=(PoisonAt(2),))
    assert all(t.isfinite().all() for t in tiny_run.last(tmp_path)["state_dict"].values())


def test_likely_cause_names_half_precision_first() -> None:
    assert likely_cause("16-mixed", OptimConfig()).startswith("half precision")
    assert "warmup_steps (now 0)" in likely_cause("32-true", OptimConfig())


def test_step_seed_differs_between_steps_epochs_and_ranks_and_repeats() -> None:
    seeds = {step_seed(s, e, b, r) for s in range(3) for e in range(10) for b in range(50) for r in range(2)}
    assert len(seeds) == 3 * 10 * 50 * 2
    assert step_seed(1, 2, 3, 4) == step_seed(1, 2, 3, 4)


def test_script_sweep_of_broken_runs_says_each_error_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    sweep_dir = tmp_path / "sweep, a=b [1] é"
    command = [sys.executable, str(tiny_run.ROOT / "train.py"), "-m", "seed=1,2", f"run_dir={sweep_dir}"]
    command += ["data=coco", "data.root=/nowhere, at=all", "plugins=[my_plugin]"]
    (tmp_path / "my_plugin.py").write_text("print('my plugin was imported')")
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 2, result.stderr
    assert all(line.startswith("error: /nowhere, at=all: data.root: there is no such folder") for line in lines)
    assert not sweep_dir.exists()
    assert "my plugin was imported" in result.stdout


def test_script_sweep_into_finished_runs_is_refused_and_leaves_them_alone(tmp_path: Path) -> None:
    last = tmp_path / "sweep" / "0" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.write_text("as it was")
    command = [sys.executable, str(tiny_run.ROOT / "train.py"), "-m", "seed=1", f"run_dir={tmp_path / 'sweep'}"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"error: run_dir: {tmp_path / 'sweep' / '0'} already contains a run")
    assert last.read_text() == "as it was"
    assert not (tmp_path / "sweep" / "0" / "config.yaml").exists()


def test_checkpoint_that_does_not_fit_says_what_the_system_said_and_keeps_the_old_one(tmp_path: Path) -> None:
    """A limit on the size of files, 200 kB, in place of a full disk: the write stops in its middle alike."""
    trainer: Any = SimpleNamespace(default_root_dir=str(tmp_path))
    Checkpoints()._write(trainer, "last.ckpt", {"weights": torch.zeros(10)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"too large.*last\.ckpt"):
            Checkpoints()._write(trainer, "last.ckpt", {"weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(tiny_run.last(tmp_path)["weights"], torch.zeros(10))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
