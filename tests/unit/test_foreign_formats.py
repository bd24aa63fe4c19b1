"""Data sets in other formats are recognised, and layouts that are not known say what is there and what to name."""

import json
from pathlib import Path

import pytest
from PIL import Image

from vision_stack.data.checks.issues import DataError
from vision_stack.data.readers.foreign import describe, list_files
from vision_stack.data.readers.layout import find_splits

YOLO = {"data.yaml": "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n", "images/train/a.jpg": ""}
VOC = "<annotation><object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object></annotation>"
FORMATS = {  # files -> what it is, what to do
    "yolo polygons": (
        {**YOLO, "labels/train/a.txt": "0 0.1 0.2 0.3 0.4 0.5 0.6\n"},
        "a YOLO data set (polygons in 1 .txt files)",
        "--task instance-segmentation --input-format yolov8 --input-file {root}/data.yaml --input-split train",
    ),
    "yolo boxes": ({**YOLO, "labels/train/a.txt": "3 0.1 0.2 1 1e-3"}, "boxes in 1 .txt", "--task object-detection"),
    "yolo without data.yaml": ({"labels/a.txt": "0 0.1 0.2 0.3 0.4"}, "a YOLO data set", "docs/label_formats.md"),
    "pascal voc": ({"Annotations/a.xml": VOC}, "Pascal VOC", "and the same for val; then give task=detection"),
    "labelme": ({"a.json": json.dumps({"flags": {}, "shapes": []})}, "LabelMe", "export it as COCO json"),
    "via": ({"a.json": json.dumps({"_via_settings": {}})}, "VGG Image Annotator", "export it as COCO json"),
    "label studio": ({"a.json": json.dumps([{"annotations": [{"result": []}]}])}, "Label Studio", "export it as COCO"),
    "coco panoptic": (
        {"a.json": json.dumps({"annotations": [{"segments_info": []}]})},
        "COCO panoptic json",
        "data=coco_panoptic data.root={root}",
    ),
    "cvat": ({"annotations.xml": "<annotations><meta/><image id='0'/>"}, "CVAT", "export it as COCO json"),
    "kaggle": ({"train.csv": "ImageId,EncodedPixels\n"}, "run lengths", "docs/label_formats.md"),
    "label maps": ({"images/a.jpg": "", "masks/a.png": ""}, "images and label maps", "data=semantic data.root={root}"),
}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("name", FORMATS)
def test_format_of_others_is_named_with_the_way_to_convert_it(name: str, tmp_path: Path) -> None:
    files, expected, remedy = FORMATS[name]
    found = describe(list_files(write(tmp_path, files)))
    assert found is not None
    assert expected in found[0]
    assert remedy.format(root=tmp_path) in found[1]


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"a.jpg": "", "notes.txt": "3 cats and 4 dogs"},
        {"requirements.txt": "1 2\n", "data.yaml": "names: x"},
        {"a.json": json.dumps({"images": [], "annotations": [], "categories": []}), "masks/a.png": "", "a.jpg": ""},
        {".git/labels/a.txt": "0 0.1 0.2 0.3 0.4"},
    ],
)
def test_other_folders_are_not_taken_for_one(files: dict[str, str], tmp_path: Path) -> None:
    assert describe(list_files(write(tmp_path, files))) is None


def test_coco_in_a_folder_of_another_format_says_which(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found a YOLO data set .* instead of COCO json: no annotation file"):
        find_splits(write(tmp_path, FORMATS["yolo boxes"][0]))


def test_layout_that_is_not_known_names_the_files_and_all_options_at_once(tmp_path: Path) -> None:
    write(tmp_path, {"labels/export_1.json": "{}", "labels/export_2.json": "{}", "a.jpg": ""})
    with pytest.raises(DataError) as error:
        find_splits(tmp_path)
    assert "there are labels/export_1.json, labels/export_2.json" in str(error.value)
    assert "relative to this folder: data.train_annotations=FILE data.train_images=DIR " in str(error.value)
    assert "data.val_annotations=FILE data.val_images=DIR" in str(error.value)


def test_missing_validation_split_says_how_to_train_without(tmp_path: Path) -> None:
    write(tmp_path, {"train.json": "{}", "train/a.jpg": ""})
    with pytest.raises(
        DataError, match=r"data\.val_annotations=FILE .*name those of the training with trainer\.limit_val"
    ):
        find_splits(tmp_path)


@pytest.mark.parametrize("folder", ["train", "images/train", "train/images", "images"])
def test_images_are_looked_for_where_the_first_one_is(folder: str, tmp_path: Path) -> None:
    for other in ("train", "images/train", "train/images"):
        (tmp_path / other).mkdir(parents=True)
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(tmp_path / folder / "a.png")
    write(tmp_path, {"annotations/instances_train.json": json.dumps({"images": [{"id": 1, "file_name": "a.png"}]})})
    found = find_splits(tmp_path, required=("train",)).train
    assert found is not None
    assert found.image_dir == tmp_path / folder
