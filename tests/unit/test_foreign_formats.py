"""Folders that are not read say what is in them, and layouts that are not known what to name."""

import json
from pathlib import Path

import pytest
from PIL import Image

from vision_stack.data.checks.issues import DataError
from vision_stack.data.readers.auto import recognise
from vision_stack.data.readers.layout import find_splits

FORMATS = {  # files -> what it is
    "via": ({"a.json": json.dumps({"_via_settings": {}})}, "json of the VGG Image Annotator"),
    "label studio": ({"a.json": json.dumps([{"annotations": [{"result": []}]}])}, "Label Studio's own json"),
    "cvat": ({"annotations.xml": "<annotations><meta/><image id='0'/>"}, "CVAT's own xml"),
}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as error:
        recognise(root)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", FORMATS)
def test_format_that_is_not_read_is_named_with_the_way_to_convert_it(name: str, tmp_path: Path) -> None:
    files, expected = FORMATS[name]
    line = refusal(write(tmp_path, files))
    assert f"found {expected}, which is not read; export it as COCO json" in line


@pytest.mark.parametrize(
    ("files", "counts"),
    [
        ({}, "there are no files"),
        ({"a.jpg": "", "notes.txt": "3 cats and 4 dogs"}, "there are 1 .jpg and 1 .txt files"),
        ({"requirements.txt": "1 2\n", "data.yaml": "names: x"}, "there are 1 .txt and 1 .yaml files"),
        ({"a.json": json.dumps({"images": []}), "masks/a.png": ""}, "there are 1 .json and 1 .png files"),
        ({".git/labels/a.txt": "0 0.1 0.2 0.3 0.4"}, "there are no files"),
    ],
)
def test_folder_in_no_format_says_what_there_is(files: dict[str, str], counts: str, tmp_path: Path) -> None:
    line = refusal(write(tmp_path, files))
    assert f"is in none of the formats that are read; {counts}" in line
    assert "data.train_annotations=FILE" in line


def test_folder_in_two_formats_lists_both_and_the_choices(tmp_path: Path) -> None:
    write(tmp_path, {"labels/a.txt": "0 0.1 0.2 0.3 0.4 0.5 0.6\n", "images/a.jpg": ""})
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": []}
    write(tmp_path, {"train.json": json.dumps(content)})
    line = refusal(tmp_path)
    assert "may be read in 2 ways: COCO json (" in line
    assert "YOLO polygons (" in line
    assert line.endswith("choose one with data.format=coco or data.format=yolo")
    assert recognise(tmp_path, name="yolo").format == "yolo"


def test_format_that_the_folder_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not in the format voc; there are no files"):
        recognise(tmp_path, name="voc")
    with pytest.raises(DataError, match=r"there is no format 'vok'; choose one of: .*coco, "):
        recognise(tmp_path, name="vok")


def test_links_that_lead_out_are_said_and_not_followed(tmp_path: Path) -> None:
    other = write(tmp_path / "other", {"labels/a.txt": "0 0.1 0.2 0.3 0.4\n", "images/a.jpg": ""})
    root = tmp_path / "root"
    root.mkdir()
    for name in ("images", "labels"):
        (root / name).symlink_to(other / name)
    assert "links that lead out of it (images, ...), which are not followed" in refusal(root)


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
        DataError, match=r"data\.val_annotations=FILE .*data=auto holds out some of the training images"
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
