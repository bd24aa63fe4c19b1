import errno
import json
import os

import pytest

from vision_stack.commands.errors import OneLineErrors, is_for_user, one_line
from vision_stack.config import ConfigError, from_dict


@pytest.fixture(autouse=True)
def _no_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HYDRA_FULL_ERROR", "VISION_STACK_DEBUG"):
        monkeypatch.setenv(name, "0")


def test_one_line_errors_config_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    errors = OneLineErrors()
    with errors:
        from_dict({}, kind="nothing")
    assert errors.exit_code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "nothing.type: missing" in lines[0]


def test_one_line_errors_error_of_a_library_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    errors = OneLineErrors()
    with errors:
        json.loads("{")
    assert errors.exit_code == 1
    assert "Traceback" in capsys.readouterr().err


def test_one_line_errors_debug_variable_shows_every_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISION_STACK_DEBUG", "1")
    errors = OneLineErrors()
    with errors:
        from_dict({}, kind="nothing")
    assert "Traceback" in capsys.readouterr().err


def test_is_for_user_own_error_types_are_and_python_errors_are_not() -> None:
    assert is_for_user(ConfigError("x"))
    assert not is_for_user(KeyError("x"))


@pytest.mark.parametrize("code", [errno.EEXIST, errno.ENOTDIR, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_one_line_errors_folder_that_cannot_be_written_is_for_the_user(
    code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = OneLineErrors()
    with errors:
        raise OSError(code, os.strerror(code), "/photos/run")
    assert errors.exit_code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "/photos/run" in line
    assert "run_dir" in line


def test_is_for_user_broken_hardware_is_not() -> None:
    assert not is_for_user(OSError(errno.EIO, "Input/output error"))


@pytest.mark.parametrize("full_key", ["", "\nfull_key: trainer"])
def test_one_line_error_of_lightning_names_the_trainer(full_key: str) -> None:
    class InstantiationException(Exception): ...

    call = "Error in call to target 'pytorch_lightning.trainer.trainer.Trainer':\n"
    assert (
        one_line(InstantiationException(f"""{call}ValueError("Precision 'foo'\\nis invalid (no)."){full_key}"""))
        == "trainer: Precision 'foo' is invalid (no)."
    )
    assert one_line(InstantiationException(f"{call}TypeError(){full_key}")) == "trainer: "


def test_one_line_error_device_without_a_gpu_says_what_to_give() -> None:
    class MisconfigurationException(Exception): ...

    call = "Error in call to target 'pytorch_lightning.trainer.trainer.Trainer':\n"
    for text in (
        "No supported gpu backend found!",
        f'{call}MisconfigurationException("No supported gpu backend found!")',
    ):
        assert one_line(MisconfigurationException(text)).startswith(
            "device: PyTorch finds no GPU here; give device=cpu"
        )


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("head/nope", "unknown head 'nope'; choose one of: a, b"),
        ("backbone/vit/x", "backbone=timm backbone.model_name=vit/x takes any of timm's"),
        ("hydra/launcher/x", "unknown hydra/launcher 'x'; choose one of: a, b"),
    ],
)
def test_one_line_error_of_a_choice_that_does_not_exist(choice: str, expected: str) -> None:
    message = f"In 'train': Could not find '{choice}'\n\nAvailable options in 'x':\n\ta\n\tb\nConfig search path:"
    assert expected in one_line(ValueError(message))
