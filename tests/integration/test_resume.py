"""A run that was interrupted and resumed ends as one that was not: same weights, optimizer, best score."""

import csv
import os
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

from vision_stack.training.resume import changed_options

Run = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    tiny_run.train(run_dir)
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


def resume(run_dir: Path, *overrides: str) -> None:
    tiny_run.train(run_dir, f"resume='{run_dir}/checkpoints/last.ckpt'", *overrides)


def test_kill_9_in_mid_epoch_resumed_equals_uninterrupted(uninterrupted: Run, tmp_path: Path) -> None:
    run_dir = tmp_path / "killed, a=b [1] é"
    command = [sys.executable, str(tiny_run.ROOT / "train.py"), *tiny_run.TINY, f"run_dir={run_dir}"]
    command += ["+callbacks.kill._target_=tiny_run.kill", "+callbacks.kill.batch=7"]
    result = subprocess.run(command, cwd=Path(__file__).parent, env=os.environ, capture_output=True, timeout=120)
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()[-2000:]
    assert last(run_dir)["position"]["batches_done"] == 2  # of the second epoch's four; the third was not saved
    resume(run_dir)
    assert_same(run_dir, uninterrupted[0])


@pytest.mark.parametrize(
    "crash",
    [CrashAt(4), CrashAt(validation_after=4), CrashAt(validation_after=12)],
    ids=["last_step_of_epoch", "in_validation", "in_the_last_validation"],
)
def test_crash_resumed_equals_uninterrupted(crash: CrashAt, uninterrupted: Run, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        tiny_run.train(tmp_path, callbacks=(crash,))
    resume(tmp_path)
    assert_same(tmp_path, uninterrupted[0])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_finishes_the_step_saves_and_exits_as_shells_expect(
    signum: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("callbacks.checkpoints.every_n_steps=1000", "trainer.accumulate_grad_batches=2")
    before = signal.getsignal(signum)
    with pytest.raises(SystemExit) as stop:
        tiny_run.train(tmp_path, *options, callbacks=(CrashAt(1, signum=signum),))
    assert stop.value.code == 128 + signum
    assert last(tmp_path)["position"] == {
        "epoch": 0,
        "batches_done": 2,  # the optimizer's step of two batches was finished
        "total_batches": 2,
        "step": 1,
        "validated": True,
    }
    assert "resume=" in capsys.readouterr().out
    assert signal.getsignal(signum) == before


def test_accumulating_run_crashed_between_steps_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    options = ("trainer.accumulate_grad_batches=2", "trainer.max_epochs=2")
    tiny_run.train(tmp_path / "a", *options)
    with pytest.raises(Crash):
        tiny_run.train(tmp_path / "b", *options, callbacks=(CrashAt(7),))
    assert last(tmp_path / "b")["position"]["batches_done"] == 2
    resume(tmp_path / "b", *options)
    assert_same(tmp_path / "b", tmp_path / "a")


VALIDATED_BETWEEN_STEPS = ("trainer.accumulate_grad_batches=2", "trainer.val_check_interval=1", "trainer.max_epochs=2")


def test_run_validated_while_gradients_accumulate_crashed_there_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """Batch norm has seen a batch by then that the weights have not."""
    options = (*VALIDATED_BETWEEN_STEPS, "backbone.freeze_norm=false")
    tiny_run.train(tmp_path / "a", *options)
    with pytest.raises(Crash):
        tiny_run.train(tmp_path / "b", *options, callbacks=(CrashAt(4),))  # the third batch has been validated
    assert last(tmp_path / "b")["position"]["batches_done"] == 2
    resume(tmp_path / "b", *options)
    assert_same(tmp_path / "b", tmp_path / "a")


def test_signal_in_a_validation_while_gradients_accumulate_loses_no_step(tmp_path: Path) -> None:
    options = (*VALIDATED_BETWEEN_STEPS, "callbacks.checkpoints.every_n_steps=1000", "data.eval_batch_size=1")
    with pytest.raises(SystemExit):
        tiny_run.train(tmp_path, *options, callbacks=(CrashAt(validation_after=3, signum=signal.SIGTERM),))
    assert last(tmp_path)["position"]["step"] == 2  # the one in hand, of the batches 3 and 4


class StopAt(CrashAt):
    """Stops the run as `max_time` does."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.count += 1
        trainer.should_stop = self.count >= self.batch


def test_run_stopped_while_gradients_accumulate_leaves_its_last_step(tmp_path: Path) -> None:
    options = ("trainer.accumulate_grad_batches=2", "callbacks.checkpoints.every_n_steps=1000")
    tiny_run.train(tmp_path, *options, callbacks=(StopAt(3),))
    assert last(tmp_path)["position"]["step"] == 1


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


def test_resume_another_model_says_what_differs(uninterrupted: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"head\.num_queries: 10 -> 11"):
        tiny_run.train(tmp_path, f"resume='{uninterrupted[0]}/checkpoints/last.ckpt'", "head.num_queries=11")


def test_resume_best_checkpoint_has_no_optimizer_and_says_so(uninterrupted: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no optimizer state; give a last\.ckpt"):
        tiny_run.train(tmp_path, f"resume='{uninterrupted[0]}/checkpoints/best.ckpt'")
