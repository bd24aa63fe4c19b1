"""`resume=auto` and nothing else: the newest interrupted run ends as if it had not been interrupted."""

import shutil
from pathlib import Path

import pytest
import tiny_run
import yaml
from test_resume import assert_same
from tiny_run import Crash, last

import vision_stack

OPTIONS = [*tiny_run.TINY[:-1], "logger=csv", "head.num_queries=9"]
CRASH = ["+callbacks.crash._target_=tiny_run.CrashAt"]


def interrupted(run_dir: Path, *options: str, after: int) -> Path:
    with pytest.raises(Crash):
        vision_stack.train(run_dir=run_dir, overrides=[*OPTIONS, *options, *CRASH, f"+callbacks.crash.batch={after}"])
    return run_dir


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vision_stack.train(run_dir=tmp_path_factory.mktemp("runs") / "whole", overrides=OPTIONS).run_dir


def test_resume_auto_needs_no_other_option(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(uninterrupted, tmp_path / "outputs" / "whole")
    run_dir = interrupted(tmp_path / "outputs" / "b", after=7)
    run = vision_stack.train(overrides=["resume=auto", "~callbacks.crash"])
    assert run.run_dir == run_dir
    assert_same(run_dir, uninterrupted)
    with pytest.raises(
        ValueError, match="no run in outputs is unfinished; the newest, outputs/b, has done 3 epochs, 12"
    ):
        vision_stack.train(overrides=["resume=auto"])
    longer = vision_stack.train(overrides=["resume=outputs/b", "steps=14"])
    assert last(longer.run_dir)["position"]["step"] == 14
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["trainer"]["max_epochs"] == -1


def test_resume_that_is_refused_leaves_the_options_of_the_run(tmp_path: Path) -> None:
    run_dir = interrupted(tmp_path / "run", after=2)
    config = (run_dir / "config.yaml").read_text()
    for typed, expected in (
        ("head.num_queries=7", r"num_queries: 9 -> 7"),
        ("trainer.accelerator=tpu", "trainer: needs a package"),
    ):
        with pytest.raises(ValueError, match=expected):
            vision_stack.train(overrides=[f"resume={run_dir}", "~callbacks.crash", typed])
    assert (run_dir / "config.yaml").read_text() == config


def test_resume_of_a_run_that_started_from_weights_does_not_need_them_again(
    uninterrupted: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.ckpt"
    shutil.copy(uninterrupted / "checkpoints" / "best.ckpt", weights)
    parts = [option for option in OPTIONS if not option.startswith(("head.", "neck.", "backbone"))]
    options = [*parts, f"weights={weights}"]
    whole = vision_stack.train(run_dir=tmp_path / "whole", overrides=options).run_dir
    with pytest.raises(Crash):
        vision_stack.train(run_dir=tmp_path / "run", overrides=[*options, *CRASH, "+callbacks.crash.batch=6"])
    weights.unlink()
    vision_stack.train(overrides=[f"resume={tmp_path / 'run'}", "~callbacks.crash"])
    assert_same(tmp_path / "run", whole)
