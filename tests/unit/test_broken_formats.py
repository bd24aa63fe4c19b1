"""What is wrong with a folder of labels is one line: file, place in the words of its format, what to do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import format_files as ff
import numpy as np
import pytest
from PIL import Image

from vision_stack.data.checks.issues import DataError
from vision_stack.data.configs import AutoDataConfig
from vision_stack.structures import Task

Spoil = Callable[[Path], Any]


class Case(NamedTuple):
    write: Callable[[Path], None]
    spoil: Spoil
    line: str  # what the error must contain, DIR for the root
    task: Task = "instance"


def replaced(name: str, old: str, new: str) -> Spoil:
    """One file with a part of its text replaced, which must be there."""

    def spoil(root: Path) -> None:
        content = (root / name).read_text()
        assert old in content
        (root / name).write_text(content.replace(old, new, 1))

    return spoil


def written(name: str, content: str | bytes) -> Spoil:
    def spoil(root: Path) -> None:
        data = content if isinstance(content, bytes) else content.encode()
        (root / name).write_bytes(data)

    return spoil


def removed(name: str) -> Spoil:
    return lambda root: (root / name).unlink()


def png(name: str, values: np.ndarray) -> Spoil:
    return lambda root: ff.png(root / name, values)


def shapes(**fields: Any) -> Spoil:
    """The first shape of LabelMe's train/a.json with other fields."""

    def spoil(root: Path) -> None:
        content = json.loads((root / "train/a.json").read_text())
        content["shapes"][0] |= fields
        ff.text(root / "train/a.json", content)

    return spoil


NOISE = np.random.default_rng(0).integers(0, 2**8, (ff.HEIGHT, ff.WIDTH, 3), dtype=np.uint8)
SMALL = np.ones((8, 8), np.uint8)
JPEG = "pixels: not an image of a format that can be read"
YOLO, VOC, CITY = "labels/train/a.txt", "VOC2012/Annotations/a.xml", "bonn_000097_000019"
LABELS = f"gtFine/train/bonn/{CITY}_gtFine_labelIds.png"
INSTANCES = f"gtFine/train/bonn/{CITY}_gtFine_instanceIds.png"
ADE = "ADEChallengeData2016"
CASES = {
    # YOLO
    "yolo class": Case(ff.yolo, written(YOLO, "2 .1 .1 .5 .1 .5 .5\n"), f"DIR/{YOLO}: line 1: there is no class 2; "),
    "yolo words": Case(ff.yolo, replaced(YOLO, "0 0.125", "0 x"), f"DIR/{YOLO}: line 1: expected numbers, got '0 x"),
    "yolo pixels": Case(ff.yolo, written(YOLO, "0 8 6 24 6 24 18\n"), f"DIR/{YOLO}: line 1: 8 is not a fraction"),
    "yolo odd": Case(
        ff.yolo, written(YOLO, "1 .1 .1 .5 .1 .5 .5 .2\n"), f"DIR/{YOLO}: line 1: expected 4 numbers of a box or pairs"
    ),
    "yolo line": Case(
        ff.yolo,
        written(YOLO, "1 .1 .1 .2 .2 .3 .3\n"),
        f"DIR/{YOLO}: line 1: a polygon without area: all points on one",
    ),
    "yolo names": Case(
        ff.yolo, replaced("data.yaml", "  0: cat\n  1: dog\n", "  x\n"), "DIR/data.yaml: names: expected the names of"
    ),
    "yolo syntax": Case(
        ff.yolo, replaced("data.yaml", "path: .", "path: ["), "DIR/data.yaml: file: cannot be read as yaml"
    ),
    "yolo folder": Case(
        ff.yolo,
        replaced("data.yaml", "images/train", "photos"),
        "DIR/data.yaml: train: no images at 'photos' (looked for",
    ),
    "yolo image": Case(ff.yolo, written("images/train/a.jpg", "x"), f"DIR/images/train/a.jpg: {JPEG}"),
    "yolo text": Case(ff.yolo, written(YOLO, b"\xff\xfe\x00"), f"DIR/{YOLO}: file: not text in UTF-8"),
    # Pascal VOC
    "voc syntax": Case(ff.voc, replaced(VOC, "</annotation>", ""), f"DIR/{VOC}: file: not valid xml"),
    "voc box": Case(ff.voc, replaced(VOC, "<xmin>9<", "<xmin>?<"), f"DIR/{VOC}: object 1: expected numbers xmin, ymin"),
    "voc order": Case(ff.voc, replaced(VOC, "<xmin>9<", "<xmin>60<"), f"DIR/{VOC}: object 1: box 60, 7, 24, 18 ends"),
    "voc name": Case(ff.voc, replaced(VOC, "<name>cat<", "<name><"), f"DIR/{VOC}: object 1: has no name"),
    "voc size": Case(
        ff.voc,
        replaced(VOC, "<width>64<", "<width>65<"),
        f"DIR/{VOC}: size: 'VOC2012/JPEGImages/a.jpg' is 64 x 48, its",
    ),
    "voc image": Case(ff.voc, removed("VOC2012/JPEGImages/a.jpg"), f"DIR/{VOC}: filename: there is no image 'a.jpg'"),
    "voc mask": Case(
        ff.voc,
        png("VOC2012/SegmentationObject/a.png", np.pad(SMALL, ((40, 0), (0, 56)))),
        "DIR/VOC2012/SegmentationObject/a.png: pixels: an object with the value 1 has the box of no object in the xml",
    ),
    # LabelMe
    "labelme points": Case(
        ff.labelme, shapes(points=[[1, 2], [3]]), "DIR/train/a.json: shapes[0].points: expected a list of x, y"
    ),
    "labelme label": Case(ff.labelme, shapes(label=7), "DIR/train/a.json: shapes[0].label: expected a name, got 7"),
    "labelme kind": Case(
        ff.labelme, shapes(shape_type="cuboid"), "DIR/train/a.json: shapes[0].shape_type: 'cuboid' is"
    ),
    "labelme polygon": Case(
        ff.labelme,
        shapes(points=[[1, 1], [2, 2]]),
        "DIR/train/a.json: shapes[0]: a polygon of 2 points; it takes three",
    ),
    "labelme mask": Case(
        ff.labelme, shapes(shape_type="mask", mask="!"), "DIR/train/a.json: shapes[0].mask: not a PNG in base64"
    ),
    "labelme size": Case(
        ff.labelme,
        replaced("train/a.json", '"imageWidth": 64', '"imageWidth": 48'),
        "DIR/train/a.json: imageWidth: 'train",
    ),
    "labelme image": Case(ff.labelme, removed("train/a.jpg"), "DIR/train/a.json: imagePath: there is no image 'a.jpg'"),
    "labelme syntax": Case(
        ff.labelme, replaced("train/a.json", '"imageWidth": 64}', ""), "DIR/train/a.json: file: not valid json"
    ),
    # Instance masks
    "mask size": Case(
        ff.numbered_masks,
        png("PedMasks/b_mask.png", SMALL),
        "DIR/PedMasks/b_mask.png: pixels: 'PNGImages/b.png' is 64 x 48",
    ),
    "mask jpeg": Case(
        ff.numbered_masks,
        lambda root: Image.fromarray(NOISE[..., 0]).save(root / "PedMasks/b_mask.png", format="JPEG"),
        "DIR/PedMasks/b_mask.png: pixels: is a JPEG, which changes pixels in storing them",
    ),
    "mask file": Case(ff.numbered_masks, written("PedMasks/b_mask.png", "x"), f"DIR/PedMasks/b_mask.png: {JPEG}"),
    "mask image": Case(ff.numbered_masks, written("PNGImages/a.png", "x"), f"DIR/PNGImages/a.png: {JPEG}"),
    "mask empty": Case(
        ff.single_masks,
        png("train/a/masks/0f.png", np.zeros((ff.HEIGHT, ff.WIDTH), np.uint8)),
        "DIR/train/a/masks/0f.png: pixels: holds no object: all of it is 0; remove the file",
    ),
    # Run lengths
    "runs odd": Case(
        ff.run_lengths,
        written("train.csv", "ImageId,EncodedPixels\na.jpg,1 3 7\n"),
        "DIR/train.csv: line 2: expected pairs",
    ),
    "runs beyond": Case(
        ff.run_lengths,
        written("train.csv", "ImageId,EncodedPixels\na.jpg,3070 9\n"),
        "line 2: a run is not within the 3,072",
    ),
    "runs overlap": Case(
        ff.run_lengths,
        written("train.csv", "ImageId,EncodedPixels\na.jpg,1 9 5 9\n"),
        "DIR/train.csv: line 2: runs overlap",
    ),
    "runs words": Case(
        ff.run_lengths,
        written("train.csv", "ImageId,EncodedPixels\na.jpg,x y\n"),
        "line 2: expected whole numbers, got 'x",
    ),
    "runs image": Case(ff.run_lengths, removed("train/a.jpg"), "DIR/train.csv: line 2: there is no image 'a.jpg'"),
    # imagefolder
    "jsonl syntax": Case(
        ff.imagefolder,
        replaced("train/metadata.jsonl", '{"file_name"', '{"file_name'),
        "DIR/train/metadata.jsonl: line 1: not",
    ),
    "jsonl box": Case(
        ff.imagefolder,
        replaced("train/metadata.jsonl", "[8, 6, 16, 12]", '[8, 6, "x"]'),
        "DIR/train/metadata.jsonl: line 1, object 1: expected x, y, width, height, got [8, 6, 'x']",
    ),
    "jsonl count": Case(
        ff.imagefolder,
        replaced("train/metadata.jsonl", '["cat", "dog"]', '["cat"]'),
        "DIR/train/metadata.jsonl: line 1: category does not list one value for each of 2 objects",
    ),
    "jsonl class": Case(
        ff.imagefolder,
        replaced("train/metadata.jsonl", '["cat", "dog"]', '["cat", null]'),
        "DIR/train/metadata.jsonl: line 1, object 2: there is no class None",
    ),
    "jsonl image": Case(
        ff.imagefolder, removed("train/a.png"), "DIR/train/metadata.jsonl: line 1: there is no image 'a.png'"
    ),
    # Cityscapes
    "city value": Case(
        ff.cityscapes,
        png(LABELS, np.full((ff.HEIGHT, ff.WIDTH), 300, np.uint16)),
        f"DIR/{LABELS}: pixels: holds the value 300, which no class has",
        "semantic",
    ),
    "city size": Case(
        ff.cityscapes, png(LABELS, SMALL), f"DIR/{LABELS}: pixels: is 8 x 8, its image is 64 x 48", "semantic"
    ),
    "city map": Case(
        ff.cityscapes,
        removed(LABELS),
        f"DIR: label map of leftImg8bit/train/bonn/{CITY}_leftImg8bit.png: there is none; unpack gtFine",
        "semantic",
    ),
    "city instances": Case(
        ff.cityscapes, removed(INSTANCES), f"DIR/{INSTANCES}: file: there is no such map of instances; unpack gtFine"
    ),
    "city instance size": Case(
        ff.cityscapes, png(INSTANCES, SMALL * 26), f"DIR/{INSTANCES}: value 26: RLE size is 8 x 8"
    ),
    # ADE20K
    "ade table": Case(
        ff.ade20k,
        replaced(f"{ADE}/objectInfo150.txt", "1\t0.2", "one\t0.2"),
        "objectInfo150.txt: line 2: expected an",
        "semantic",
    ),
    "ade value": Case(
        ff.ade20k,
        png(f"{ADE}/annotations/training/a.png", np.full((ff.HEIGHT, ff.WIDTH), 9, np.uint8)),
        f"DIR/{ADE}/annotations/training/a.png: pixels: holds the value 9, which no class has",
        "semantic",
    ),
    "ade map": Case(
        ff.ade20k,
        removed(f"{ADE}/annotations/training/a.png"),
        f"there is no {ADE}/annotations/training/a.png",
        "semantic",
    ),
    "ade colours": Case(
        ff.ade20k,
        png(f"{ADE}/annotations/training/a.png", NOISE),
        "a.png: pixels: has pixels of kind RGB; class",
        "semantic",
    ),
    "ade image": Case(
        ff.ade20k, written(f"{ADE}/images/training/a.jpg", "x"), f"DIR/{ADE}/images/training/a.jpg: {JPEG}", "semantic"
    ),
    # Colours
    "colour": Case(
        ff.camvid, png("train_labels/a_L.png", NOISE), "DIR/train_labels/a_L.png: pixels: holds the colour", "semantic"
    ),
    "colours smoothed": Case(
        ff.colours_without_table,
        png("train_labels/a_L.png", NOISE),
        "pixels: more than 256 colours, too many",
        "semantic",
    ),
    "colours of a table": Case(
        ff.camvid,
        replaced("label_colors.txt", "64 128 64\tcat", "64 128\tcat"),
        "label_colors.txt: line 2: expected a",
        "semantic",
    ),
    "colours twice": Case(
        ff.camvid,
        replaced("label_colors.txt", "192 0 128", "64 128 64"),
        "'dog' has the colour of another class",
        "semantic",
    ),
    "colours of another size": Case(
        ff.camvid,
        png("train_labels/a_L.png", NOISE[:8]),
        "DIR/train_labels/a_L.png: pixels: is 64 x 8, its image",
        "semantic",
    ),
    # COCO json in other layouts, LVIS among them
    "coco images": Case(
        ff.fiftyone,
        replaced("labels.json", '"a.jpg"', '"z.jpg"'),
        "DIR/labels.json: images[0].file_name: 'z.jpg' is not in",
    ),
    "coco class": Case(
        ff.cvat,
        replaced("annotations/instances_default.json", '"category_id": 1', '"category_id": 7'),
        "DIR/annotations/instances_default.json: annotations[0].category_id: no category has the id 7",
    ),
    "coco without images": Case(
        ff.single_json,
        lambda root: [image.unlink() for image in root.glob("*.jpg")],
        "DIR/my labels.json: images[].file_name: none of its images is in the data set, such as a.jpg",
    ),
    "supervisely": Case(
        ff.supervisely,
        replaced("project/ds1/annotations/instances.json", "[[4, 24, 16, 24", "[[4, 24, 16, 24, 5"),
        "DIR/project/ds1/annotations/instances.json: annotations[0].segmentation: a polygon with an odd number",
    ),
    "lvis": Case(
        ff.lvis,
        removed("train2017/a.jpg"),
        "DIR/annotations/lvis_v1_train.json: images[0].file_name: 'train2017/a.jpg' is",
    ),
}


def read(root: Path, task: Task, **options: Any) -> Any:
    config = AutoDataConfig(root=str(root), **options)
    return [config.read(split, task) for split in ("train", "val")]


@pytest.mark.parametrize("name", CASES)
def test_what_is_broken_is_one_line_in_the_words_of_the_format(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    case.write(tmp_path)
    read(tmp_path, case.task)  # good as it is
    case.spoil(tmp_path)
    with pytest.raises(DataError) as error:
        read(tmp_path, case.task)
    line = str(error.value).replace(str(tmp_path), "DIR")
    assert case.line in line
    assert "; " in line, "no remedy"
    assert "\n" not in line


LEFT_OUT = [
    "yolo class",
    "yolo image",
    "voc syntax",
    "voc box",
    "labelme points",
    "runs image",
    "jsonl box",
    "city map",
]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_broken_can_be_left_out_and_is_counted(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    case.write(tmp_path)
    case.spoil(tmp_path)
    train = AutoDataConfig(root=str(tmp_path), on_error="skip").read("train", case.task)
    assert len(train.problems) == 1
    assert case.line in str(train.problems[0]).replace(str(tmp_path), "DIR")
    assert train.records
