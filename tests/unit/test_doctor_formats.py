"""The doctor on folders in every format that is read: nothing is broken, and its copy holds the same objects."""

from pathlib import Path

import pytest
from test_formats import BOXES_ALONE, WITH_MASKS, WITHOUT_VAL

from vision_stack import commands
from vision_stack.data.checks.doctor import examine
from vision_stack.data.configs import AutoDataConfig
from vision_stack.data.repair import write_repaired

FORMATS = {**WITH_MASKS, **{f"{name} boxes": write for name, write in BOXES_ALONE.items()}}


@pytest.mark.parametrize("name", FORMATS)
def test_folder_is_clean_and_its_copy_has_the_same_objects(name: str, tmp_path: Path) -> None:
    FORMATS[name](tmp_path / "data")
    found = examine(AutoDataConfig(root=str(tmp_path / "data")))
    assert [str(each.problem) for each in found.diagnoses if each.severity == "error"] == []
    assert "odd_annotation" not in {each.kind for each in found.diagnoses}
    assert set(found.splits) - {"test"} == (
        {"train"} if name in WITHOUT_VAL else {"train", "val"}
    )  # nothing is held out
    write_repaired(found.splits, found.diagnoses, tmp_path / "copy", originals=[tmp_path / "data"])
    again = examine(AutoDataConfig(root=str(tmp_path / "copy")))
    assert [str(each.problem) for each in again.diagnoses if each.severity == "error"] == []
    for split, statistics in found.statistics.items():
        assert again.statistics[split].num_objects == statistics.num_objects
        assert again.statistics[split].num_without_mask == statistics.num_without_mask
        assert {name: count for name, count in again.statistics[split].classes.items() if count.objects} == {
            name: count for name, count in statistics.classes.items() if count.objects
        }


def test_test_split_is_examined_too(tmp_path: Path) -> None:
    WITH_MASKS["roboflow"](tmp_path / "data")
    test, *_ = (tmp_path / "data").rglob("test/*.jpg")
    val, *_ = (tmp_path / "data").rglob("valid/*.jpg")
    test.write_bytes(val.read_bytes())
    found = examine(AutoDataConfig(root=str(tmp_path / "data")))
    assert set(found.splits) == {"train", "val", "test"}
    assert [each.split for each in found.diagnoses if each.kind == "leak"] == ["val, test"]


def test_summary_says_what_the_folder_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    WITH_MASKS["yolo"](tmp_path / "data")
    assert commands.main(["doctor", str(tmp_path / "data"), "--no-html"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'data'}: YOLO polygons (")
