"""Folders of label maps are read to the same class for every pixel, whatever says what the values mean."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import format_files as ff
import numpy as np
import pytest
from label_map_files import write_panoptic

from vision_stack.data.checks.issues import DataError
from vision_stack.data.configs import AutoDataConfig

FOLDERS: dict[str, tuple[Callable[[Path], None], tuple[str | None, str, str]]] = {  # names of 0, 1 and 2; None: ignored
    "classes.txt": (ff.semantic, ("nothing", "cat", "dog")),
    "values": (ff.values_without_table, ("0", "1", "2")),
    "colours of a table": (ff.camvid, ("nothing", "cat", "dog")),
    "colours": (ff.colours_without_table, ("0,0,0", "64,128,64", "192,0,128")),
    "cityscapes": (ff.cityscapes, ("road", "car", "person")),
    "ade20k": (ff.ade20k, (None, "cat", "dog")),
    "voc": (ff.voc, ("background", "cat", "dog")),
}


def read(root: Path, **options: Any) -> dict[str, Any]:
    config = AutoDataConfig(root=str(root), **options)
    train = config.read("train", "semantic")
    return {"train": train, "val": config.read("val", "semantic", train.categories)}


@pytest.mark.parametrize("name", FOLDERS)
def test_every_pixel_has_the_class_that_was_written(name: str, tmp_path: Path) -> None:
    write, names = FOLDERS[name]
    write(tmp_path)
    for split, images in ff.SPLITS.items():
        found = read(tmp_path)[split]
        assert len(found.records) == len(images)
        for record, image in zip(found.records, sorted(images), strict=True):
            classes = [category.name for category in found.categories]
            labels = np.array([-1 if each is None else classes.index(each) for each in names])
            expected = labels[ff.class_map(image)]
            if name == "cityscapes":
                expected[-1] = -1
            np.testing.assert_array_equal(record.truth().label_map.numpy(), expected)


def test_instances_of_cityscapes_are_those_of_the_coco_twin_and_groups_are_crowds(tmp_path: Path) -> None:
    ff.cityscapes(tmp_path)
    file = tmp_path / "gtFine/train/bonn/bonn_000098_000019_gtFine_instanceIds.png"
    group = np.full((ff.HEIGHT, ff.WIDTH), 7, np.uint16)
    group[:9] = 26
    group[ff.SMALL_DOG.mask] = 24_000
    ff.png(file, group)
    train = AutoDataConfig(root=str(tmp_path)).read("train", "instance")
    names = [train.categories[each.label].name for each in train.records[0].annotations]
    assert names == ["person", "car"]
    crowds = [(train.categories[each.label].name, each.is_crowd) for each in train.records[1].annotations]
    assert crowds == [("car", True), ("person", False)]
    assert train.categories[0].id == 24


def test_panoptic_json_is_recognised(tmp_path: Path) -> None:
    write_panoptic(tmp_path)
    config = AutoDataConfig(root=str(tmp_path))
    assert [len(config.read(split, "panoptic").records) for split in ("train", "val")] == [2, 2]
    assert config.recognised("panoptic").format == "coco_panoptic"


def test_masks_of_0_and_255_are_two_classes(tmp_path: Path) -> None:
    ff.values_without_table(tmp_path)
    for file in tmp_path.glob("*/masks/*.png"):
        ff.png(file, (ff.class_map(file.stem) > 0).astype(np.uint8) * 255)
    assert [category.name for category in read(tmp_path)["train"].categories] == ["0", "255"]


def test_255_is_ignored_among_more_values(tmp_path: Path) -> None:
    ff.values_without_table(tmp_path)
    values = ff.class_map("a")
    values[0] = 255
    ff.png(tmp_path / "train/masks/a.png", values)
    train = read(tmp_path)["train"]
    assert [category.name for category in train.categories] == ["0", "1", "2"]
    assert (train.records[0].truth().label_map.numpy()[0] == -1).all()


def test_table_of_the_users_names_the_values(tmp_path: Path) -> None:
    ff.values_without_table(tmp_path)
    (tmp_path / "names.txt").write_text("0 sky\n1 cat\n2 dog\n")
    assert [category.name for category in read(tmp_path, classes="names.txt")["val"].categories] == [
        "sky",
        "cat",
        "dog",
    ]
    with pytest.raises(DataError, match=r"data\.classes: there is no such file"):
        read(tmp_path, classes="gone.txt")


@pytest.mark.parametrize(
    "table",
    [
        "# label:color_rgb:parts:actions\nnothing:0,0,0::\ncat:64,128,64::\ndog:192,0,128::\n",
        "name,r,g,b\nnothing,0,0,0\ncat,64,128,64\ndog,192,0,128\n",
        "0 0 0 nothing\n64 128 64 cat\n192 0 128 dog\n",
    ],
)
def test_tables_of_colours_are_read_as_tools_write_them(table: str, tmp_path: Path) -> None:
    ff.colours_without_table(tmp_path)
    (tmp_path / "labelmap.txt").write_text(table)
    train = read(tmp_path)["train"]
    assert {category.name for category in train.categories} == {"nothing", "cat", "dog"}
