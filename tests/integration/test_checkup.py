"""The doctor in short, before each training: lines that need attention, and nothing done twice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from doctor_data import FAULTS, planted
from tiny_run import TINY, train_composed

from vision_stack.data import checkup as module
from vision_stack.data.checks.small_objects import View
from vision_stack.data.checkup import checkup
from vision_stack.data.configs import CocoDataConfig, ShapesDataConfig


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VISION_STACK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checkups"


def checked(root: Path, **fields: Any) -> list[str]:
    config = CocoDataConfig(root=str(root), on_error="skip", **fields)
    train = config.read("train", "instance")
    return checkup(config, {"train": train, "val": config.read("val", "instance", train.categories)}, View())


def test_clean_data_need_no_line(tmp_path: Path, cache: Path) -> None:
    assert checked(planted(tmp_path / "data", lambda content, root: None)) == []
    assert len(list(cache.iterdir())) == 1


def test_lines_name_kinds_small_objects_and_the_doctor(tmp_path: Path) -> None:
    def faults(content: dict[str, Any], root: Path) -> None:
        FAULTS["small objects"][0](content, root)
        FAULTS["annotation twice"][0](content, root)

    kinds, small, details = checked(planted(tmp_path / "my data", faults))
    assert kinds == "data check  duplicate annotations: 1"
    assert small.startswith("            37 of 37 objects (100%) are less than 8 pixels wide at 800 x 1333 pixels")
    assert details == f"            details: vision-stack doctor '{tmp_path / 'my data'}'"


def test_of_many_images_some_are_looked_at_and_the_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faults(content: dict[str, Any], root: Path) -> None:
        for n in range(1, 13):
            first = next(a for a in content["train"]["annotations"] if a["image_id"] == n and a["id"] != 10)
            content["train"]["annotations"].append(first | {"id": 7000 + n})

    monkeypatch.setattr(module, "_LOOKED_AT", 4)
    first, _ = checked(planted(tmp_path / "data", faults))
    assert first == "data check  duplicate annotations: 4 (in 4 images of a split)"


def test_details_name_the_files_that_were_named(tmp_path: Path) -> None:
    root = planted(tmp_path / "data", FAULTS["mask in a mask"][0])
    (root / "annotations/instances_train.json").rename(root / "mine.json")
    *_, details = checked(root, train_annotations="mine.json")
    words = f"data=coco data.root={root} data.train_annotations=mine.json"
    assert details == f"            details: vision-stack doctor {words}"


def test_second_start_examines_nothing_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = planted(tmp_path / "data", FAULTS["annotation twice"][0])
    first = checked(root)
    assert len(first) == 2
    calls = []
    examine = module._examine
    monkeypatch.setattr(module, "_examine", lambda *given: calls.append(1) or examine(*given))
    assert checked(root) == first
    assert calls == []
    os.utime(root / "train" / "train_3.jpg", (1, 1))
    assert checked(root) == first
    assert calls == [1]
    file = root / "annotations" / "instances_train.json"
    times = (file.stat().st_atime, file.stat().st_mtime)
    file.write_text(file.read_text().replace('"category_id": 9', '"category_id": 5', 1))
    os.utime(file, times)
    checked(root)
    assert calls == [1, 1]


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"lines": []}'])
def test_damaged_memory_is_examined_again(content: str, tmp_path: Path, cache: Path) -> None:
    root = planted(tmp_path / "data", FAULTS["annotation twice"][0])
    first = checked(root)
    (file,) = cache.iterdir()
    file.write_text(content)
    assert checked(root) == first
    assert file.read_text() != content


def test_without_a_place_for_the_cache_it_is_examined_each_time(tmp_path: Path, cache: Path) -> None:
    cache.parent.write_text("a file where the folder would be")
    assert len(checked(planted(tmp_path / "data", FAULTS["annotation twice"][0]))) == 2


def test_generated_data_are_not_examined(cache: Path) -> None:
    config = ShapesDataConfig(num_train=4, num_val=4, image_size=32)
    assert checkup(config, {"train": config.read("train", "instance")}, View()) == []
    assert not cache.exists()


def test_training_prints_the_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = planted(tmp_path / "data", FAULTS["annotation twice"][0])
    options = [option for option in TINY if not option.startswith(("data.image_size", "data.num_", "trainer.max_ep"))]
    sizes = ["data.train_transform.short_edges=[96]", "data.eval_transform.short_edge=96"]
    limits = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1"]
    train_composed(
        tmp_path / "run", [*options, "data=coco", f"data.root={root}", "data.num_workers=0", *sizes, *limits]
    )
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("data check  duplicate annotations: 1")
    assert lines[at + 1] == f"            details: vision-stack doctor {root} --image-size 128"
