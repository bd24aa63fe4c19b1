"""`vision-stack models`: rows that match, names that are loaded here, lines that fit the terminal."""

import re

import pytest

from vision_stack import commands
from vision_stack.commands.models import MODELS
from vision_stack.weights.torchvision_detectors import DETECTORS
from vision_stack.weights.transformers_config import guess_task


def test_models_are_listed_once_with_names_that_weights_takes() -> None:
    names = [model.name for model in MODELS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", name) for name in names)
    assert {name.removeprefix("torchvision/") for name in names if name.startswith("torchvision/")} == set(DETECTORS)


def test_names_of_segmentation_models_tell_their_task() -> None:
    for model in MODELS:
        if model.name.startswith(("facebook/", "tue-mps/")):
            architecture = "maskformer" if "/maskformer-" in model.name else "other"
            assert guess_task(model.name, architecture) == model.task, model.name


def test_filter_by_name_pattern_or_task_gives_the_rows_that_match(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert commands.main(["models", "RTDETR_V2"]) == 0
    header, first, *rest = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["weights=", "task", "score"]
    assert first.split() == ["PekingU/rtdetr_v2_r101vd", "detection", "54.3", "76", "Apache", "2.0", "640"]
    assert rest[3] == "4 models"
    assert all(len(line) <= 80 for line in [header, first, *rest])
    assert commands.main(["models", "semantic"]) == 0
    assert capsys.readouterr().out.count(" semantic ") == sum(model.task == "semantic" for model in MODELS)
    assert commands.main(["models", "*eomt*1280"]) == 0
    assert "4 models" in capsys.readouterr().out


def test_no_match_is_said_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["models", "no_such_model"]) == 1
    assert capsys.readouterr().out == "0 models\n"


def test_help_has_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        commands.main(["models", "--help"])
    assert "vision-stack train weights=NAME task=TASK data=DIR" in capsys.readouterr().out
