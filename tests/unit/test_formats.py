"""Every format of a folder is recognised and read to what its COCO twin says."""

from collections.abc import Callable
from pathlib import Path

import format_files as ff
import numpy as np
import pytest
from label_map_files import write_panoptic

from vision_stack.data.checks.issues import DataError
from vision_stack.data.configs import AutoDataConfig
from vision_stack.data.datamodule import build_datamodule
from vision_stack.data.readers.auto import recognise
from vision_stack.data.readers.coco import CocoSplit, ImageRecord
from vision_stack.ops import rle
from vision_stack.structures import Task

LABEL_FORMATS = Path(__file__).parents[2] / "docs" / "label_formats.md"
Objects = list[tuple[str, np.ndarray | None, list[float]]]  # class, mask, box x0 y0 x1 y1

WITH_MASKS: dict[str, Callable[[Path], None]] = {
    "coco 2017": ff.coco_2017,
    "roboflow": ff.roboflow,
    "cvat": ff.cvat,
    "label studio": ff.label_studio,
    "fiftyone": ff.fiftyone,
    "supervisely": ff.supervisely,
    "single json": ff.single_json,
    "lvis": ff.lvis,
    "yolo": ff.yolo,
    "yolo of roboflow": ff.yolo_roboflow,
    "voc": ff.voc,
    "labelme": ff.labelme,
    "numbered masks": ff.numbered_masks,
    "single masks": ff.single_masks,
    "run lengths": ff.run_lengths,
    "imagefolder": ff.imagefolder,
}
BOXES_ALONE: dict[str, Callable[[Path], None]] = {
    "yolo": ff.yolo_boxes,
    "voc": ff.voc_boxes,
    "imagefolder": ff.imagefolder_boxes,
}
WITHOUT_VAL = {"cvat", "label studio", "fiftyone", "supervisely", "single json", "numbered masks", "run lengths"}
WITHOUT_CLASSES = {"numbered masks", "single masks"}
WITHOUT_EMPTY = {"single masks"}  # no file says that an image shows nothing
OF_PIXELS = {"voc", "numbered masks", "single masks", "run lengths"}  # whose boxes are those around the pixels


def read(root: Path, task: Task = "instance", **options: object) -> dict[str, CocoSplit]:
    config = AutoDataConfig(root=str(root), **options)  # type: ignore[arg-type]
    train = config.read("train", task)
    return {"train": train, "val": config.read("val", task, train.categories)}  # type: ignore[dict-item]


def objects(record: ImageRecord, split: CocoSplit) -> Objects:
    found: Objects = []
    for each in record.annotations:
        mask = each.segmentation and rle.decode(rle.to_compressed(each.segmentation, record.height, record.width))
        found.append((split.categories[each.label].name, mask if mask is not None else None, list(each.box)))
    return found


def by_stem(splits: dict[str, CocoSplit], *names: str) -> dict[str, Objects]:
    return {
        Path(record.file_name.replace("\\", "/")).stem: objects(record, splits[name])
        for name in names
        for record in splits[name].records
    }


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CocoSplit]:
    root = tmp_path_factory.mktemp("twin")
    ff.coco_2017(root)
    return read(root)


@pytest.mark.parametrize("name", WITH_MASKS)
def test_folder_is_read_as_its_coco_twin_to_the_pixel(name: str, tmp_path: Path, twin: dict[str, CocoSplit]) -> None:
    WITH_MASKS[name](tmp_path)
    splits = read(tmp_path)
    if name in WITHOUT_VAL:
        found, expected = by_stem(splits, "train", "val"), by_stem(twin, "train")
        assert len(splits["val"].records) == 1
    else:
        found, expected = by_stem(splits, "train"), by_stem(twin, "train")
        assert_same(by_stem(splits, "val"), by_stem(twin, "val"), name)
    if name in WITHOUT_EMPTY:
        expected = {stem: each for stem, each in expected.items() if each}
    assert_same(found, expected, name)


def assert_same(found: dict[str, Objects], expected: dict[str, Objects], name: str) -> None:
    assert found.keys() == expected.keys()
    for stem, wanted in expected.items():
        assert len(found[stem]) == len(wanted)
        for (label, mask, box), (wanted_label, wanted_mask, wanted_box) in zip(found[stem], wanted, strict=True):
            assert label == ("object" if name in WITHOUT_CLASSES else wanted_label)
            assert wanted_mask is not None
            np.testing.assert_array_equal(mask, wanted_mask)
            np.testing.assert_allclose(box, wanted_box, atol=1.0 if name in OF_PIXELS else 1e-6)


@pytest.mark.parametrize("name", BOXES_ALONE)
def test_boxes_are_those_of_the_coco_twin(name: str, tmp_path: Path, twin: dict[str, CocoSplit]) -> None:
    BOXES_ALONE[name](tmp_path)
    splits = read(tmp_path, "detection")
    for split in ("train", "val"):
        found, expected = by_stem(splits, split), by_stem(twin, split)
        assert found.keys() == expected.keys()
        for stem, wanted in expected.items():
            for (label, mask, box), (wanted_label, _, wanted_box) in zip(found[stem], wanted, strict=True):
                assert label == wanted_label
                assert mask is None or mask == []
                np.testing.assert_allclose(box, wanted_box, atol=1.0 if name == "voc" else 1e-6)


@pytest.mark.parametrize("name", BOXES_ALONE)
def test_boxes_without_masks_say_how_to_train_on_them(name: str, tmp_path: Path) -> None:
    BOXES_ALONE[name](tmp_path)
    with pytest.raises(DataError, match=r"nothing for task=instance: found .* data=.* task=detection, with head="):
        read(tmp_path)


def test_lvis_says_which_classes_were_looked_for(tmp_path: Path) -> None:
    ff.lvis(tmp_path)
    images = read(tmp_path)["val"].ground_truth()["images"]
    assert [(each["neg_category_ids"], each["not_exhaustive_category_ids"]) for each in images] == [([2], [1])]


def test_test_split_is_read_for_evaluation_when_asked_for(tmp_path: Path) -> None:
    ff.roboflow(tmp_path)
    config = AutoDataConfig(root=str(tmp_path), split="test")
    assert [record.file_name for record in config.read("val", "instance").records] == ["e.jpg"]
    ff.yolo(tmp_path / "other")
    with pytest.raises(DataError, match=r"there is no test split; there is train, val \(YOLO polygons: .*data\.split="):
        AutoDataConfig(root=str(tmp_path / "other"), split="test").read("val", "instance")


VARIANTS = ("yolo of roboflow", "imagefolder")  # of folders that are documented
DOCUMENTED = {name: write for name, write in WITH_MASKS.items() if name not in VARIANTS}
DOCUMENTED |= {"yolo boxes": ff.yolo_boxes, "voc boxes": ff.voc_boxes, "imagefolder": ff.imagefolder_boxes}
SEMANTIC = (ff.cityscapes, ff.ade20k, ff.semantic, ff.camvid, ff.values_without_table)


@pytest.mark.parametrize("write", [*DOCUMENTED.values(), *SEMANTIC, write_panoptic])
def test_documentation_has_what_is_printed_for_every_folder(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    task: Task = "semantic" if write in SEMANTIC else "panoptic" if write is write_panoptic else "detection"
    found = recognise(tmp_path, task)
    rows = [line for line in LABEL_FORMATS.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    row = next((row for row in rows if row.endswith(f"| {found.what}: {found.how} |")), "")
    assert row, f"{found.what}: {found.how}"
    assert set(row.split("|")[3].replace(",", " ").split()) >= set(found.tasks)


def test_what_was_found_is_printed_line_by_line(tmp_path: Path) -> None:
    ff.yolo(tmp_path)
    lines = build_datamodule(AutoDataConfig(root=str(tmp_path))).notes()
    shown = LABEL_FORMATS.read_text(encoding="utf-8").split("```")[1].strip()
    assert "\n".join(lines).replace(str(tmp_path), "DIR") == shown


def test_annotations_of_images_that_are_not_there_leave_the_other_split(tmp_path: Path) -> None:
    ff.lvis(tmp_path)
    for file in tmp_path.glob("train2017/*.jpg"):
        file.unlink()
    config = AutoDataConfig(root=str(tmp_path))
    assert len(config.read("val", "instance").records) == 1
    with pytest.raises(
        DataError, match=r"there is no train split; there is val .*lvis_v1_train\.json: none of its images"
    ):
        config.read("train", "instance")


def test_yolo_names_without_splits_are_those_of_the_classes(tmp_path: Path) -> None:
    """As supervision writes them: a yaml that names classes alone."""
    ff.yolo(tmp_path)
    ff.text(tmp_path / "data.yaml", "nc: 2\nnames: [cat, dog]\n")
    config = AutoDataConfig(root=str(tmp_path))
    assert config.recognised("instance").how.startswith("data.yaml names 2 classes")
    train, val = (config.read(name, "instance") for name in ("train", "val"))
    assert [category.name for category in train.categories] == ["cat", "dog"]
    assert not train.notes
    assert train.records
    assert val.records


@pytest.mark.parametrize("table", [True, False])
def test_yolo_labels_in_another_folder_are_found_by_their_names(table: bool, tmp_path: Path) -> None:
    """Where no image has labels in its place: images/train/a.jpg, but labels/a.txt."""
    ff.yolo(tmp_path)
    there = {part: AutoDataConfig(root=str(tmp_path)).read(part, "instance") for part in ("train", "val")}
    for file in sorted((tmp_path / "labels").rglob("*.txt")):
        file.rename(tmp_path / "labels" / file.name)
    if not table:
        (tmp_path / "data.yaml").unlink()
    for part, expected in there.items():
        found = AutoDataConfig(root=str(tmp_path)).read(part, "instance")
        counts = {record.file_name: record.num_objects for record in found.records}
        wanted = {record.file_name: record.num_objects for record in expected.records if table or record.num_objects}
        assert counts.items() >= wanted.items()
