"""A run that was interrupted and resumed ends as one that was not: same weights, optimizer, best score."""

import csv
import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny_run
import torch
from tiny_run import Crash, CrashAt, best, last

from vision_stack.data.checks.issues import DataError
from vision_stack.data.dataset import SegmentationDataset
from vision_stack.training.interrupts import Stopped
from vision_stack.training.resume import changed_options

Run = tuple[Path, dict[str, Any]]
RARELY_SAVED = "callbacks.checkpoints.every_n_steps=1000"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    tiny_run.train(run_dir, "logger=csv")
    return run_dir, last(run_dir)


def assert_same(run_dir: Path, other: Path) -> None:
    mine, theirs = last(run_dir), last(other)
    assert mine["position"] == theirs["position"]
    assert mine["best_score"] == theirs["best_score"]
    for name, tensor in theirs["state_dict"].items():
        assert torch.equal(mine["state_dict"][name], tensor), name
    for key, state in theirs["optimizer"]["state"].items():
        for name, tensor in state.items():
            assert torch.equal(mine["optimizer"]["state"][key][name], tensor), (key, name)
    my_best = best(run_dir)["state_dict"]
    for name, tensor in best(other)["state_dict"].items():
        assert torch.equal(my_best[name], tensor), name
    for name in ("metrics.csv", "metrics.json", "predictions.json"):
        assert (run_dir / name).read_text() == (other / name).read_text(), name


def resume(run_dir: Path, *overrides: str) -> None:
    tiny_run.train(run_dir, f"resume='{run_dir}/checkpoints/last.ckpt'", "logger=csv", *overrides)


def test_kill_9_in_mid_epoch_resumed_equals_uninterrupted(uninterrupted: Run, tmp_path: Path) -> None:
    run_dir = tmp_path / "killed, a=b [1] é"
    command = [sys.executable, str(tiny_run.ROOT / "train.py"), *tiny_run.TINY, f"run_dir={run_dir}", "logger=csv"]
    command += ["+callbacks.kill._target_=tiny_run.kill", "+callbacks.kill.batch=7"]
    result = subprocess.run(command, cwd=Path(__file__).parent, env=os.environ, capture_output=True, timeout=120)
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()[-2000:]
    assert last(run_dir)["position"]["batches_done"] == 2  # of the second epoch's four; the third was not saved
    with (run_dir / "metrics.csv").open("ab") as file:
        file.write(b"7,1,0.5,\0\0\0\xff")  # as a power cut leaves it
    resume(run_dir)
    assert_same(run_dir, uninterrupted[0])


@pytest.mark.parametrize(
    "crash",
    [CrashAt(4), CrashAt(validation_after=4), CrashAt(validation_after=12)],
    ids=["last_step_of_epoch", "in_validation", "in_the_last_validation"],
)
def test_crash_resumed_equals_uninterrupted(crash: CrashAt, uninterrupted: Run, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        tiny_run.train(tmp_path, "logger=csv", callbacks=(crash,))
    resume(tmp_path)
    assert_same(tmp_path, uninterrupted[0])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_the_last_step_and_says_how_to_resume(signum: signal.Signals, tmp_path: Path) -> None:
    before = signal.getsignal(signum)
    path = tmp_path / "a b" / "checkpoints" / "last.ckpt"
    with pytest.raises(Stopped, match=f"resume='{path}'$") as stop:
        tiny_run.train(path.parents[1], RARELY_SAVED, callbacks=(CrashAt(2, signum=signum),))
    assert stop.value.exit_code == 128 + signum
    position = {"epoch": 0, "batches_done": 2, "total_batches": 2, "step": 2, "validated": True}
    assert last(path.parents[1])["position"] == position
    assert signal.getsignal(signum) == before


def test_signal_in_a_step_of_several_batches_leaves_the_one_before_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """Batch norm, which has seen a batch more than the weights, too."""
    options = ("trainer.accumulate_grad_batches=2", "trainer.max_epochs=2", "backbone.freeze_norm=false", "logger=csv")
    tiny_run.train(tmp_path / "a", *options)
    with pytest.raises(Stopped):
        tiny_run.train(tmp_path / "b", *options, RARELY_SAVED, callbacks=(CrashAt(3, signum=signal.SIGTERM),))
    assert last(tmp_path / "b")["position"]["step"] == 1
    resume(tmp_path / "b", *options)
    assert_same(tmp_path / "b", tmp_path / "a")


def test_signal_before_the_first_step_leaves_no_checkpoint(tmp_path: Path) -> None:
    class Early(pl.Callback):
        def on_train_start(self, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped, match=r"^stopped by SIGINT$"):
        tiny_run.train(tmp_path, callbacks=(Early(),))
    assert not (tmp_path / "checkpoints").exists()


def test_accumulating_run_crashed_between_steps_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    options = ("trainer.accumulate_grad_batches=2", "trainer.max_epochs=2", "logger=csv")
    tiny_run.train(tmp_path / "a", *options)
    with pytest.raises(Crash):
        tiny_run.train(tmp_path / "b", *options, callbacks=(CrashAt(7),))
    assert last(tmp_path / "b")["position"]["batches_done"] == 2
    resume(tmp_path / "b", *options)
    assert_same(tmp_path / "b", tmp_path / "a")


VALIDATED_BETWEEN_STEPS = ("trainer.accumulate_grad_batches=2", "trainer.val_check_interval=1", "trainer.max_epochs=2")


def test_run_validated_while_gradients_accumulate_crashed_there_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """Batch norm has seen a batch by then that the weights have not."""
    options = (*VALIDATED_BETWEEN_STEPS, "backbone.freeze_norm=false", "logger=csv")
    tiny_run.train(tmp_path / "a", *options)
    with pytest.raises(Crash):
        tiny_run.train(tmp_path / "b", *options, callbacks=(CrashAt(4),))  # the third batch has been validated
    assert last(tmp_path / "b")["position"]["batches_done"] == 2
    resume(tmp_path / "b", *options)
    assert_same(tmp_path / "b", tmp_path / "a")


def test_signal_in_a_validation_while_gradients_accumulate_loses_no_step(tmp_path: Path) -> None:
    options = (*VALIDATED_BETWEEN_STEPS, RARELY_SAVED, "data.eval_batch_size=1")
    with pytest.raises(Stopped):
        tiny_run.train(tmp_path, *options, callbacks=(CrashAt(validation_after=3, signum=signal.SIGTERM),))
    assert last(tmp_path)["position"]["step"] == 1


class StopAt(CrashAt):
    """Stops the run as `max_time` does."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.count += 1
        trainer.should_stop = self.count >= self.batch


def test_run_stopped_while_gradients_accumulate_leaves_its_last_step(tmp_path: Path) -> None:
    tiny_run.train(tmp_path, "trainer.accumulate_grad_batches=2", RARELY_SAVED, callbacks=(StopAt(3),))
    assert last(tmp_path)["position"]["step"] == 1


@pytest.mark.parametrize(
    ("options", "stop_at", "steps"),
    [
        (["trainer.limit_val_batches=0", "trainer.max_steps=5"], 0, 5),
        (["trainer.limit_val_batches=0"], 3, 3),
        (["+trainer.min_steps=3", "trainer.max_steps=5"], 0, 5),
        (["+trainer.min_epochs=1", "trainer.max_steps=3"], 0, 3),
        (["+trainer.min_epochs=2", "trainer.check_val_every_n_epoch=9"], 3, 8),
        (["trainer.check_val_every_n_epoch=9"], 3, 3),
    ],
)
def test_last_checkpoint_is_the_last_steps_and_validated_whatever_ends_the_run(
    options: list[str], stop_at: int, steps: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = tiny_run.train(tmp_path, RARELY_SAVED, *options, callbacks=(StopAt(stop_at),) if stop_at else ())
    assert trainer.global_step == last(tmp_path)["position"]["step"] == steps
    validated = "trainer.limit_val_batches=0" not in options
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file() == validated
    if validated:
        assert best(tmp_path)["position"]["step"] <= steps
        assert last(tmp_path)["position"]["validated"]
    (named,) = re.findall(r"checkpoint: (\S+)", capsys.readouterr().out)
    assert Path(named).is_file()


def test_run_of_no_step_names_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_run.train(tmp_path, "trainer.max_steps=0", "optim.schedule=constant")
    assert "no step was trained" in capsys.readouterr().out.splitlines()[-1]
    assert not (tmp_path / "checkpoints").exists()


def test_checkpoints_reach_the_disk_before_their_names_do_and_after_what_was_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut loses what was not synced: of `last.ckpt` either version is whole, with its rows in metrics.csv."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        calls.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def watched_replace(scratch: str, path: str) -> None:
        calls.append(f"{Path(scratch).name} -> {Path(path).name}")
        replace(scratch, path)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    tiny_run.train(tmp_path, "trainer.max_steps=1", "logger=csv")
    assert calls
    for name in ("last.ckpt", "best.ckpt", "metrics.json", "predictions.json", "config.yaml"):
        at = max(i for i, call in enumerate(calls) if call.endswith(f" -> {name}"))
        scratch = calls[at].partition(" ")[0]
        folder = "checkpoints" if name.endswith(".ckpt") else tmp_path.name
        assert (calls[at - 1], calls[at + 1]) == (f"sync {scratch}", f"sync {folder}"), name
        if name == "last.ckpt":
            assert calls[at - 2] == "sync metrics.csv"


def test_resumed_in_another_folder_takes_the_best_checkpoint_along(uninterrupted: Run, tmp_path: Path) -> None:
    old, _ = uninterrupted
    tiny_run.train(tmp_path, f"resume='{old}/checkpoints/last.ckpt'")
    assert_same_best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert assert_same_best["best_score"] == best(old)["best_score"]
    assert (tmp_path / "metrics.json").read_text() == (old / "metrics.json").read_text()


def test_resumed_in_another_folder_by_a_bare_name_takes_the_best_checkpoint_along(
    uninterrupted: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(uninterrupted[0] / "checkpoints")
    tiny_run.train(tmp_path, "resume=last.ckpt")
    assert best(tmp_path)["best_score"] == best(uninterrupted[0])["best_score"]


@pytest.mark.parametrize("validated", [True, False])
def test_resumed_in_another_folder_goes_on_with_the_curves(validated: bool, tmp_path: Path) -> None:
    """Steps logged after the checkpoint was written, which the resumed run repeats, stand there once."""
    options = ["logger=csv", "callbacks.checkpoints.every_n_steps=2"]
    options += [] if validated else ["trainer.limit_val_batches=0"]
    with pytest.raises(Crash):
        tiny_run.train(tmp_path / "old", *options, callbacks=(CrashAt(8),))
    source = tmp_path / "old" / "checkpoints" / "last.ckpt"
    assert last(tmp_path / "old")["position"]["step"] == 6
    tiny_run.train(tmp_path / "new", f"resume='{source}'", *options)
    with (tmp_path / "new" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["train/loss"]] == list(range(12))
    assert [int(row["step"]) for row in rows if row.get("val/segm_AP")] == ([3, 7, 11] if validated else [])


def test_error_of_the_data_leaves_the_last_step_and_says_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = itertools.count()
    read = SegmentationDataset._read

    def fails_in_the_third_batch(self: SegmentationDataset, *arguments: int) -> Any:
        if next(reads) == 5:
            raise DataError("a.jpg: pixels: gone; put it back")
        return read(self, *arguments)

    monkeypatch.setattr(SegmentationDataset, "_read", fails_in_the_third_batch)
    with pytest.raises(DataError, match=r"^a\.jpg: pixels: gone; put it back; then resume .*/last\.ckpt$"):
        tiny_run.train(tmp_path, RARELY_SAVED)
    assert last(tmp_path)["position"]["step"] == 2


WARNING = "warning: not as in the interrupted run, so the result will differ: "


def test_resume_with_other_steps_or_precision_warns(
    uninterrupted: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last_of_old = f"resume='{uninterrupted[0]}/checkpoints/last.ckpt'"
    changed = ("trainer.accumulate_grad_batches=2", "trainer.precision=bf16-mixed")
    tiny_run.train(tmp_path / "changed", last_of_old, *changed)
    warnings = [line.removeprefix(WARNING) for line in capsys.readouterr().out.splitlines() if WARNING in line]
    assert warnings == ["trainer.accumulate_grad_batches: 1 -> 2", "trainer.precision: 32-true -> bf16-mixed"]
    tiny_run.train(tmp_path / "same", last_of_old, "trainer.precision=32")  # another name of 32-true
    assert WARNING not in capsys.readouterr().out


def test_resumed_from_a_checkpoint_that_was_moved_takes_no_strange_files_along(
    uninterrupted: Run, tmp_path: Path
) -> None:
    moved = tmp_path / "mine" / "last.ckpt"
    moved.parent.mkdir()
    moved.write_bytes((uninterrupted[0] / "checkpoints" / "last.ckpt").read_bytes())
    (tmp_path / "metrics.csv").write_text("animal,count\ncat,2\n")
    options = ("logger=csv", "trainer.max_epochs=4")
    with pytest.raises(Crash):  # before anything is logged
        tiny_run.train(tmp_path / "new", f"resume='{moved}'", *options, callbacks=(CrashAt(1),))
    assert not (tmp_path / "new" / "metrics.csv").exists()


def test_resumed_from_a_last_checkpoint_alone_finds_its_own_best(uninterrupted: Run, tmp_path: Path) -> None:
    """The score of a best checkpoint that is not at hand is none to compare with: there would be no result."""
    moved = tmp_path / "last.ckpt"
    moved.write_bytes((uninterrupted[0] / "checkpoints" / "last.ckpt").read_bytes())
    tiny_run.train(tmp_path / "new", f"resume='{moved}'", "trainer.max_epochs=4")
    assert best(tmp_path / "new")["position"]["epoch"] == 4
    assert (tmp_path / "new" / "metrics.json").is_file()


def test_changed_options_what_an_older_checkpoint_does_not_store_is_no_change() -> None:
    old = {"run_config": {"seed": 0, "optim": {"lr": 1e-3}}}
    new = {"seed": 0, "optim": {"lr": 5e-4}, "trainer": {"precision": "32-true"}}
    assert changed_options(old, new) == ["optim.lr: 0.001 -> 0.0005"]


def test_resume_checkpoint_of_an_earlier_version_may_have_old_names_of_options(
    uninterrupted: Run, tmp_path: Path
) -> None:
    old = last(uninterrupted[0])
    head = old["model_config"]["head"]
    head["mask_positions"] = head.pop("mask_feature_pos_embed")
    head["loss"]["semantic_weight"] = head["loss"].pop("pixel_ce_weight")
    torch.save(old, tmp_path / "last.ckpt")
    tiny_run.train(tmp_path / "run", f"resume='{tmp_path}/last.ckpt'", "trainer.max_epochs=4")
    assert last(tmp_path / "run")["model_config"]["head"]["mask_feature_pos_embed"] is True


def test_resume_another_model_says_what_differs(uninterrupted: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"head\.num_queries: 10 -> 11"):
        tiny_run.train(tmp_path, f"resume='{uninterrupted[0]}/checkpoints/last.ckpt'", "head.num_queries=11")


def test_resume_best_checkpoint_has_no_optimizer_and_says_so(uninterrupted: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no optimizer state; give a last\.ckpt"):
        tiny_run.train(tmp_path, f"resume='{uninterrupted[0]}/checkpoints/best.ckpt'")


def test_composed_images_of_a_resumed_run_are_those_of_the_uninterrupted_one(tmp_path: Path) -> None:
    """Mosaic, copy-paste, rotation, repeated images, with the end of augmentation between the two parts."""
    options = (
        "logger=csv",
        "augment=strong",
        "data.train_transform.stop_fraction=0.4",
        "data.sampling.class_weights={ring: 2}",
    )
    tiny_run.train(tmp_path / "a", *options)
    with pytest.raises(Crash):
        tiny_run.train(tmp_path / "b", *options, callbacks=(CrashAt(6),))
    resume(tmp_path / "b", *options[1:])
    assert_same(tmp_path / "b", tmp_path / "a")
