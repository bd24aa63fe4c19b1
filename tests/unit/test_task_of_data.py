"""The task that nobody has chosen is one that the data has annotations for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import format_files as ff
import pytest
from label_map_files import write_panoptic

from vision_stack.training.auto import task_of_data


def options(root: Path, **data: Any) -> dict[str, Any]:
    return {"task": "instance", "data": {"type": "auto", "root": str(root), **data}}


@pytest.mark.parametrize(
    ("write", "task"),
    [(ff.ade20k, "semantic"), (write_panoptic, "panoptic"), (ff.cityscapes, "instance"), (ff.yolo_boxes, "instance")],
)
def test_data_with_one_task_for_mask_heads_chooses_it(write: Callable[[Path], None], task: str, tmp_path: Path) -> None:
    write(tmp_path)
    config, notes = task_of_data(options(tmp_path), [])
    assert config["task"] == task
    assert bool(notes) == (task != "instance")


def test_task_that_is_typed_stays(tmp_path: Path) -> None:
    ff.ade20k(tmp_path)
    assert task_of_data(options(tmp_path), ["task=instance"])[0]["task"] == "instance"
    assert task_of_data(options(tmp_path, type="semantic"), [])[0]["task"] == "instance"
