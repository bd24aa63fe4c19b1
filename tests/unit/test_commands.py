"""The command `vision-stack`: verbs, what the processes of a run and a shell's completion start it with, help."""

import importlib
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import vision_stack
from vision_stack import commands
from vision_stack.commands import train
from vision_stack.commands.help import help_text
from vision_stack.commands.option_docs import OVERLAYS, choices, groups, introduction, known_options, option_docs

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_command_alone_lists_the_verbs(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(argv) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {verb} " in printed for verb in commands.VERBS)


@pytest.mark.parametrize("argv", [["--version"], ["train", "--version"], ["backbones", "--version"]])
def test_version_is_that_of_this_package(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(argv) == 0
    assert capsys.readouterr().out == f"vision-stack {vision_stack.__version__}\n"


def test_command_unknown_verb_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISION_STACK_VERB", raising=False)
    for argv, expected in (
        (["trian", "data=coco"], "trian is not a command; did you mean train?"),
        (["fit"], "fit is not a command; did you mean train?"),
        (["val"], "val is not a command; did you mean eval?"),
        (["test"], "test is not a command; did you mean eval?"),
        (["infer"], "infer is not a command; did you mean predict?"),
        (["xyzzy"], f"xyzzy is not a command; choose one of: {', '.join(commands.VERBS)}"),
        (["data=my photos"], "data=my photos: no command was given; write vision-stack train 'data=my photos'"),
        (["--epochs", "3"], "--epochs: no command was given; write vision-stack train --epochs 3"),
    ):
        assert commands.main(argv) == 2
        assert capsys.readouterr().err == f"error: {expected}\n"


def test_every_verb_has_a_module_with_a_main() -> None:
    for verb in commands.VERBS:
        assert callable(importlib.import_module(f"vision_stack.commands.{verb.replace('-', '_')}").main)


def test_other_processes_of_a_run_find_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning starts them with the words after it."""
    seen: list[tuple[str, list[str]]] = []
    for verb in ("train", "eval"):
        module = importlib.import_module(f"vision_stack.commands.{verb}")
        monkeypatch.setattr(module, "main", lambda argv, verb=verb: seen.append((verb, argv)) or 0)
    monkeypatch.delenv("VISION_STACK_VERB", raising=False)
    commands.main(["train", "seed=1"])
    commands.main(["seed=1", "hydra.run.dir=x"])
    assert seen == [("train", ["seed=1"]), ("train", ["seed=1", "hydra.run.dir=x"])]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_a_command_is_imported_is_one_line(signum: signal.Signals) -> None:
    code = (
        "import importlib, os; from vision_stack import commands; "
        f"importlib.import_module = lambda *_: os.kill(os.getpid(), {int(signum)}); commands.main(['train'])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (128 + signum, f"stopped by {signum.name}\n")


def test_main_leaves_the_handlers_of_signals_as_they_were() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert commands.main(["--help"]) == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_installed_command_is_this_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"vision-stack": "vision_stack.commands:main"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vision-stack tr", "train"),
        ("vision-stack train neck=", "neck=simple_pyramid"),
        ("vision-stack train optim.l", "optim.lr="),
        ("vision-stack predict thr", "threshold="),
    ],
)
def test_completion_completes_verbs_and_their_options(line: str, expected: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "vision_stack", "-sc", "query=bash"],
        env={"COMP_LINE": line, "COMP_POINT": str(len(line)), "PYTHONPATH": str(ROOT), "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert expected in result.stdout.split(), result.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_explains_every_option_of_what_is_chosen() -> None:
    for verb in ("train", "eval", "predict"):
        rows = [line for line in help_text(verb, []).splitlines() if line.startswith("  ")]
        assert len(rows) > 10
    assert "head.num_queries=20 " in help_text("train", ["head=mask2former"])
    assert "head." not in help_text("predict", [])
    assert "optim." not in help_text("eval", [])


def test_help_on_a_word_explains_that_option_or_lists_that_group() -> None:
    experiments = help_text("train", [], ["experiment"])
    assert "finetune/small_data" in experiments
    assert "@package" not in experiments
    about = help_text("train", [], ["lr"])
    assert "learning rate (optim.lr)" in about
    assert "optim.lr " in about
    assert "optim.weight_decay" not in about
    assert "head.num_queries" in help_text("train", [], ["num_queries"])
    assert "seed of all random numbers" in help_text("train", [], ["seed"])
    assert "With data=DIR most are auto" in help_text("train", [])


def test_help_takes_seconds_at_most(tmp_path: Path) -> None:
    begin = time.monotonic()
    command = [sys.executable, "-m", "vision_stack", "train", "--help"]
    result = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, timeout=60)
    assert result.returncode == 0
    assert b"optim.lr=0.002" in result.stdout
    assert time.monotonic() - begin < 10  # 0.5 s on an idle machine
    assert list(tmp_path.iterdir()) == []


def test_every_option_in_the_yaml_files_has_a_comment() -> None:
    files = [path for path in (ROOT / "configs").rglob("*.yaml") if not {*OVERLAYS} & {*path.parts}]
    bare = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        for name, text in option_docs(file).items()
        if not text and name.rpartition(".")[2] not in ("type", "_target_")
    }
    assert bare == set()


def test_known_options_are_dotted_as_typed() -> None:
    train = known_options("train")
    assert {"optim.lr", "data.train_transform.flip", "head.loss.num_points", "seed"} <= train.keys()
    assert train["callbacks.early_stopping.patience"] == ["early_stopping"]
    assert "trainer.max_epochs" not in known_options("eval")
    assert "threshold" in known_options("predict")


@pytest.mark.parametrize(
    ("argv", "status", "printed"),
    [
        (["--help"], 0, ""),
        (["--cfg=job"], 1, "error: standard output was closed by the program that read it\n"),
    ],
)
def test_output_that_nobody_reads_gives_no_traceback(argv: list[str], status: int, printed: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(ROOT / "train.py"), *argv]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (result.returncode, result.stderr) == (status, printed)


def test_help_of_a_group_lists_its_choices_each_with_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--help", "head", "neck"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"head=mask2former +Mask2Former: ", printed)
    assert "neck=simple_pyramid" in printed
    for group in set(groups()) - {"backbone"}:
        assert all(introduction(group, choice) for choice in choices(group)), group
