"""Broken data sets on train.py's command line: one clear line and exit status 2, no traceback, nothing read outside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from broken_data import BROKEN_FILES, BROKEN_RECORDS, broken, good_dataset, write

BROKEN = [
    *("image file missing", "jpeg truncated", "png truncated", "image file empty", "image file is text"),
    *("image is a pipe", "image of ten gigapixels", "image size in json wrong", "file name absolute"),
    *("file name with dots", "file is a link out of the root", "folder is a link out of the root"),
    *("file name with half a character", "image id duplicate", "annotation of unknown image", "category unknown"),
    *("box without area", "box nan", "box outside", "polygon of two points", "polygon nan", "rle of the wrong size"),
    *("rle of ten gigapixels", "rle counts of ten gigapixels", "rle text malformed", "mask missing"),
    *("not json", "json empty", "json nested deeply", "no images", "no annotations", "category name duplicate"),
]
BREAKERS = BROKEN_RECORDS | BROKEN_FILES


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folders = {name: tmp_path_factory.mktemp(f"broken{n}") / "data" for n, name in enumerate([*BROKEN, "good"])}
    for name, root in folders.items():
        if name == "good":
            write(good_dataset(root), root)
        else:
            broken(root, BREAKERS[name][0])
    command = [sys.executable, str(Path(__file__).with_name("broken_commands.py")), *map(str, folders.values())]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return dict(zip(folders, map(json.loads, run.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", BROKEN)
def test_broken_data_set_on_the_command_line_gives_one_line(name: str, results: dict[str, Any]) -> None:
    result = results[name]
    _, field, word = BREAKERS[name]
    assert result["status"] == 2
    lines = result["errors"].splitlines()
    assert len(lines) == 1, result["errors"]
    assert lines[0].startswith("error: ")
    assert f"{field}: " in lines[0]
    assert word in lines[0]


@pytest.mark.parametrize("name", [*BROKEN, "good"])
def test_command_opens_nothing_outside_the_data_root(name: str, results: dict[str, Any]) -> None:
    outside = [path for path in results[name]["opened"] if Path(path).parts[-2:] == ("secret", "2.jpg")]
    assert outside == []
    assert "/etc/passwd" not in results[name]["opened"]


def test_good_data_set_is_read_to_its_missing_split(results: dict[str, Any]) -> None:
    """What is broken on purpose is the one thing wrong: the good one only has no validation images."""
    assert "val" in results["good"]["errors"]
    assert any(path.endswith("annotations/instances_train.json") for path in results["good"]["opened"])  # it watches
