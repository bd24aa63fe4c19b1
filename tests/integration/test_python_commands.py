"""`vision_stack.train` and `vision_stack.evaluate`, in the words of the command line."""

import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_run

import vision_stack
from vision_stack.commands import main
from vision_stack.commands.run_folders import hold, new_run_dir, note_new, remove_unused

SHORT = ["logger=csv", "trainer.log_every_n_steps=20"]


def test_train_and_evaluate_from_python_leave_a_run_with_metrics_and_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = vision_stack.train(
        "shapes", backbone="tiny", overrides=[*tiny_run.TINY[:4], *tiny_run.TINY[5:], "steps=2", *SHORT]
    )
    lines = (run.run_dir / "metrics.csv").read_text().splitlines()
    assert len(lines) > 2  # a run shorter than log_every_n_steps has its curves, too
    assert run.run_dir.parts[0] == "outputs"
    assert set(run.metrics) >= {"segm", "bbox"}
    assert run.model().config.head.num_queries == 10
    evaluated = vision_stack.evaluate(run.run_dir / "checkpoints" / "best.ckpt", overrides=["num_pictures=0"])
    assert evaluated.run_dir != run.run_dir
    assert evaluated.metrics["segm"] == run.metrics["segm"]


def test_train_from_python_wrong_option_raises_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"experiment=nope: .*; choose one of: .*finetune/instance"):
        vision_stack.train(run_dir=tmp_path / "run", overrides=["experiment=nope"])
    with pytest.raises(ValueError, match="write backbone=VALUE"):
        vision_stack.train(run_dir=tmp_path / "run", overrides=["backbone"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"overrides": ["nope=3"]}, "nope: unknown option; `vision-stack train --help` lists them"),
        ({"overrides": ["optim.lrr=3"]}, r"optim\.lrr: unknown option; did you mean optim\.lr\?"),
        ({"overrides": ["stepps=2"]}, r"stepps: unknown option; did you mean steps\?"),
        (
            {"overrides": ["experiment=mask2former_r50"]},
            "did you mean ade20k_semantic/mask2former_r50 or coco_instance/",
        ),
        (
            {"overrides": ["backbone.width=3"]},
            r"backbone\.width: unknown option; `vision-stack train --help` lists them",
        ),
        ({"stepps": 2}, r"stepps: unknown option; did you mean steps\?"),
        ({"epochs": "many"}, "trainer.max_epochs"),
        ({"backbone": "resnet51"}, "unknown backbone 'resnet51'; did you mean 'resnet50'"),
        ({"overrides": ["seed={"]}, "."),
        ({"overrides": ["data.num_train=${nope}"]}, "is not an option"),
        ({"overrides": ["device=gpu"]}, "device: PyTorch finds no GPU here"),
        ({"overrides": ["head=maskformer", "head.num_points=3"]}, r"head\.num_points: "),
    ],
)
def test_what_has_to_be_fixed_is_a_value_error_of_one_line_in_python(
    options: Any, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=expected) as error:
        vision_stack.train(run_dir=tmp_path / "run", **options)
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is None
    with pytest.raises(ValueError, match=r"trainer\.nope: unknown option"):
        vision_stack.evaluate(tmp_path, run_dir=tmp_path / "eval", overrides=["trainer.nope=3"])


def test_options_are_keywords_as_they_are_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("vision_stack.commands.train.run", lambda config, *_: seen.append(config))
    vision_stack.train(
        run_dir=tmp_path / "run", epochs=3, precision="bf16", measure=False, **{"optim.betas": (0.8, 0.9)}
    )
    trainer = seen[0]["trainer"]
    assert (trainer["max_epochs"], trainer["precision"], seen[0]["measure"]) == (3, "bf16-mixed", False)
    assert seen[0]["optim"]["betas"] == [0.8, 0.9]


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    return tmp_path


REFUSED = [
    ["data=coco"],
    ["seed=x"],
    ["optim.lrr=1"],
    ["weights=nope"],
    ["run_dir=a/b", "seed=x"],
    ["run_dir=mine", "data=coco"],
    ["run_dir=empty", "data=coco"],
    ["-m", "seed=1,2", "data=coco"],
    ["-m", "seed=1,2", "data=coco", "run_dir=a/b"],
    ["resume=a/b/checkpoints/last.ckpt"],
    ["--cfg", "job", "--resolve"],
]


@pytest.mark.parametrize("argv", REFUSED, ids=" ".join)
def test_refused_run_leaves_nothing(argv: list[str], working_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(working_folder.rglob("*"))
    assert main(["train", *argv]) == (0 if "--cfg" in argv else 2)
    assert sorted(working_folder.rglob("*")) == before
    assert "Traceback" not in capsys.readouterr().err
    if not {"-m", "--cfg"} & set(argv):
        with pytest.raises(ValueError, match=r"."):
            vision_stack.train(overrides=argv)
        assert sorted(working_folder.rglob("*")) == before


@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_refused_evaluation_and_prediction_leave_nothing(verb: str, working_folder: Path) -> None:
    before = sorted(working_folder.rglob("*"))
    assert main([verb, "checkpoint=nope", *(["source=mine"] if verb == "predict" else [])]) == 2
    assert sorted(working_folder.rglob("*")) == before


def test_refused_run_leaves_the_folder_of_another_process(working_folder: Path) -> None:
    """Both are below the same parents, which one of them made."""
    note_new(working_folder / "outputs" / "day" / "a")
    hold(working_folder / "outputs" / "day" / "a")
    (working_folder / "outputs" / "day" / "b").mkdir()
    remove_unused()
    assert [path.name for path in (working_folder / "outputs" / "day").iterdir()] == ["b"]


def test_public_names_are_listed() -> None:
    assert {"train", "evaluate", "VisionModel", "AutoBackbone", "__version__"} <= set(dir(vision_stack))


def test_new_run_dir_same_second_gets_another_name(tmp_path: Path) -> None:
    wanted = tmp_path / "outputs" / "12-00-00"
    assert [new_run_dir(str(wanted)) for _ in range(3)] == [str(wanted), f"{wanted}-1", f"{wanted}-2"]


def test_hold_refuses_a_folder_that_another_process_runs_in(tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(ValueError, match="another process is running in"):
        hold(tmp_path / "run")
    hold(tmp_path / "run")
    hold(tmp_path / "run")  # the same process may continue


def test_hold_folder_that_cannot_be_made_names_it_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"run_dir: cannot write into .*file/run .*give another run_dir"):
        hold(tmp_path / "file" / "run")
