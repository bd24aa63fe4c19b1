"""No test runs the benchmarks, so that a renamed function would break them unnoticed: these import every one."""

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FILES = sorted(BENCHMARKS.glob("*.py"))
WITH_OPTIONS = [file for file in FILES if "argparse" in file.read_text(encoding="utf-8")]


@pytest.fixture(autouse=True)
def _path_of_a_script(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The benchmarks' folder comes first; modules with names such as `data` do not outlive the test."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    before = set(sys.modules)
    yield
    for name in {file.stem for file in FILES} - before:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_benchmark_is_imported_without_running(file: Path) -> None:
    runpy.run_path(str(file), run_name=file.stem)


@pytest.mark.parametrize("file", WITH_OPTIONS, ids=lambda file: file.stem)
def test_benchmark_asked_for_help_gives_it(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(file), "--help"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(file), run_name="__main__")
    assert exit_.value.code == 0
    assert f"usage: {file.name}" in capsys.readouterr().out
