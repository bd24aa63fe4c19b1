"""One small data set in every format that is read: the same images and objects, and what they are as COCO json.

Every writer takes a folder and writes `TRAIN` and `VAL` (or what its format has of these), in the layout that its tool
exports.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vision_stack.ops.masks import polygons_to_mask

HEIGHT, WIDTH = 48, 64
CLASSES = ("cat", "dog")


class Thing(NamedTuple):
    label: int
    polygon: tuple[float, ...]  # x0, y0, x1, y1, ...

    @property
    def mask(self) -> np.ndarray:
        return polygons_to_mask([np.array(self.polygon)], HEIGHT, WIDTH)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x, y, width, height."""
        x, y = self.polygon[0::2], self.polygon[1::2]
        return (min(x), min(y), max(x) - min(x), max(y) - min(y))


CAT = Thing(0, (8, 6, 24, 6, 24, 18, 8, 18))
DOG = Thing(1, (32, 12, 56, 12, 44, 36))
SMALL_DOG = Thing(1, (4, 24, 16, 24, 16, 42, 4, 42))
TRAIN: dict[str, list[Thing]] = {"a": [CAT, DOG], "b": [SMALL_DOG], "c": []}
VAL: dict[str, list[Thing]] = {"d": [CAT, SMALL_DOG]}
SPLITS = {"train": TRAIN, "val": VAL}


def photo(path: Path, seed: str = "") -> None:
    """An image of noise, another one for every name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list((path.stem + seed).encode()))
    Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)


def text(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def coco(images: dict[str, list[Thing]], suffix: str = ".jpg", prefix: str = "") -> dict[str, Any]:
    """The content of a COCO json."""
    annotations = [
        {"image_id": n, "category_id": thing.label + 1, "segmentation": [list(thing.polygon)], "iscrowd": 0}
        for n, things in enumerate(images.values(), start=1)
        for thing in things
    ]
    return {
        "info": {},
        "images": [
            {"id": n, "file_name": f"{prefix}{name}{suffix}", "height": HEIGHT, "width": WIDTH}
            for n, name in enumerate(images, start=1)
        ],
        "annotations": [{"id": n, **each} for n, each in enumerate(annotations, start=1)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES, start=1)],
    }


def coco_2017(root: Path) -> None:
    for split, images in SPLITS.items():
        text(root / f"annotations/instances_{split}2017.json", coco(images))
        for name in images:
            photo(root / f"{split}2017/{name}.jpg")


def roboflow(root: Path, below: str = "export") -> None:
    for split, images in (("train", TRAIN), ("valid", VAL), ("test", {"e": [DOG]})):
        text(root / below / split / "_annotations.coco.json", coco(images))
        for name in images:
            photo(root / below / split / f"{name}.jpg")


def cvat(root: Path) -> None:
    text(root / "annotations/instances_default.json", coco(TRAIN))
    for name in TRAIN:
        photo(root / f"images/default/{name}.jpg")


def label_studio(root: Path) -> None:
    text(root / "result.json", coco(TRAIN, prefix="images\\"))
    for name in TRAIN:
        photo(root / f"images/{name}.jpg")


def fiftyone(root: Path) -> None:
    text(root / "labels.json", coco(TRAIN))
    for name in TRAIN:
        photo(root / f"data/{name}.jpg")


def supervisely(root: Path) -> None:
    """Two data sets of one project: both are training data."""
    for folder, names in (("ds0", ["a"]), ("ds1", ["b", "c"])):
        text(root / f"project/{folder}/annotations/instances.json", coco({name: TRAIN[name] for name in names}))
        for name in names:
            photo(root / f"project/{folder}/images/{name}.jpg")


def single_json(root: Path) -> None:
    text(root / "my labels.json", coco(TRAIN))
    for name in TRAIN:
        photo(root / f"{name}.jpg")


def yolo_lines(things: list[Thing], boxes: bool = False) -> str:
    lines = []
    for thing in things:
        values: list[float] = list(thing.polygon)
        if boxes:
            x, y, w, h = thing.box
            values = [x + w / 2, y + h / 2, w, h]
        fractions = [value / (WIDTH, HEIGHT)[i % 2] for i, value in enumerate(values)]
        lines.append(f"{thing.label} {' '.join(f'{value:.9f}' for value in fractions)}\n")
    return "".join(lines)


def yolo(root: Path, boxes: bool = False) -> None:
    """As Ultralytics has it: no text file for an image without objects."""
    text(root / "data.yaml", "path: .\ntrain: images/train\nval: images/val\ntest:\nnames:\n  0: cat\n  1: dog\n")
    for split, images in SPLITS.items():
        for name, things in images.items():
            photo(root / f"images/{split}/{name}.jpg")
            if things:
                text(root / f"labels/{split}/{name}.txt", yolo_lines(things, boxes))


def yolo_boxes(root: Path) -> None:
    yolo(root, boxes=True)


def yolo_roboflow(root: Path) -> None:
    """Paths with a `../` too many, empty text files, names as a list."""
    text(root / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n")
    for split, images in (("train", TRAIN), ("valid", VAL)):
        for name, things in images.items():
            photo(root / f"{split}/images/{name}.jpg")
            text(root / f"{split}/labels/{name}.txt", yolo_lines(things))


def voc(root: Path, masks: bool = True) -> None:
    """Boxes count pixels from 1, both ends included."""
    for split, images in SPLITS.items():
        text(root / f"VOC2012/ImageSets/Segmentation/{split}.txt", "".join(f"{name}\n" for name in images))
        for name, things in images.items():
            photo(root / f"VOC2012/JPEGImages/{name}.jpg")
            numbers = np.zeros((HEIGHT, WIDTH), np.uint8)
            objects = ""
            for number, thing in enumerate(things, start=1):
                numbers[thing.mask] = number
                rows, columns = np.flatnonzero(thing.mask.any(1)), np.flatnonzero(thing.mask.any(0))
                sides = (columns[0] + 1, rows[0] + 1, columns[-1] + 1, rows[-1] + 1)
                box = "".join(
                    f"<{side}>{value}</{side}>"
                    for side, value in zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=True)
                )
                objects += f"<object><name>{CLASSES[thing.label]}</name><bndbox>{box}</bndbox></object>"
            size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
            xml = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
            text(root / f"VOC2012/Annotations/{name}.xml", xml)
            if masks:
                palette(root / f"VOC2012/SegmentationObject/{name}.png", numbers)
                palette(root / f"VOC2012/SegmentationClass/{name}.png", np.array([0, 8, 12], np.uint8)[class_map(name)])


def voc_boxes(root: Path) -> None:
    voc(root, masks=False)


def palette(path: Path, values: np.ndarray) -> None:
    """A PNG whose palette's indices are the values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values, mode="P")
    image.putpalette([value for n in range(256) for value in (n, 255 - n, n // 2)])
    image.save(path)


def png(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def labelme(root: Path) -> None:
    for split, images in SPLITS.items():
        for name, things in images.items():
            photo(root / f"{split}/{name}.jpg")
            shapes = [
                {
                    "label": CLASSES[thing.label],
                    "points": [list(point) for point in zip(thing.polygon[0::2], thing.polygon[1::2], strict=True)],
                    "group_id": None,
                    "shape_type": "polygon",
                    "flags": {},
                }
                for thing in things
            ]
            content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": f"{name}.jpg"}
            text(root / f"{split}/{name}.json", {**content, "imageHeight": HEIGHT, "imageWidth": WIDTH})


def numbered_masks(root: Path) -> None:
    """Penn-Fudan's layout: one PNG of object numbers for each image."""
    for name, things in TRAIN.items():
        photo(root / f"PNGImages/{name}.png")
        numbers = np.zeros((HEIGHT, WIDTH), np.uint8)
        for number, thing in enumerate(things, start=1):
            numbers[thing.mask] = number
        png(root / f"PedMasks/{name}_mask.png", numbers)


def single_masks(root: Path) -> None:
    """The layout of the Data Science Bowl 2018: a folder for each image, a PNG for each object."""
    for split, images in SPLITS.items():
        for name, things in images.items():
            if things:
                photo(root / f"{split}/{name}/images/{name}.png")
            for number, thing in enumerate(things):
                png(root / f"{split}/{name}/masks/{number}f.png", thing.mask.astype(np.uint8) * 255)


def class_map(name: str) -> np.ndarray:
    """Values 1 and 2 of two classes, and 0 for neither."""
    images = {**TRAIN, **VAL}
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    for thing in images[name]:
        values[thing.mask] = thing.label + 1
    return values


def semantic(root: Path) -> None:
    text(root / "classes.txt", "0 nothing\n1 cat\n2 dog\n")
    for split, images in SPLITS.items():
        for name in images:
            photo(root / f"images/{split}/{name}.jpg")
            png(root / f"labels/{split}/{name}.png", class_map(name))


def values_without_table(root: Path) -> None:
    for split, images in SPLITS.items():
        for name in images:
            photo(root / f"{split}/images/{name}.jpg")
            png(root / f"{split}/masks/{name}.png", class_map(name))


COLOURS = np.array([[0, 0, 0], [64, 128, 64], [192, 0, 128]], np.uint8)


def camvid(root: Path, table: bool = True) -> None:
    """Colours, and a table of them."""
    if table:
        lines = zip(COLOURS, ("nothing", *CLASSES), strict=True)
        text(root / "label_colors.txt", "".join(f"{r} {g} {b}\t{name}\n" for (r, g, b), name in lines))
    for split, images in SPLITS.items():
        for name in images:
            photo(root / f"{split}/{name}.png")
            png(root / f"{split}_labels/{name}_L.png", COLOURS[class_map(name)])


def colours_without_table(root: Path) -> None:
    camvid(root, table=False)


def cityscapes(root: Path) -> None:
    """cat: car (26), dog: person (24), nothing: road (7)."""
    for split, images in SPLITS.items():
        for name, things in images.items():
            stem = f"bonn_{ord(name):06d}_000019"
            photo(root / f"leftImg8bit/{split}/bonn/{stem}_leftImg8bit.png")
            ids = np.full((HEIGHT, WIDTH), 7, np.uint8)
            instances = ids.astype(np.int32)
            for number, thing in enumerate(things):
                value = (26, 24)[thing.label]
                ids[thing.mask] = value
                instances[thing.mask] = 1000 * value + number
            ids[-1] = instances[-1] = 3  # the car's own bonnet: ignored
            png(root / f"gtFine/{split}/bonn/{stem}_gtFine_labelIds.png", ids)
            png(root / f"gtFine/{split}/bonn/{stem}_gtFine_instanceIds.png", instances.astype(np.uint16))


def ade20k(root: Path) -> None:
    top = root / "ADEChallengeData2016"
    text(top / "objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tName\n1\t0.2\t3\t1\tcat, moggy\n2\t0.1\t3\t1\tdog\n")
    for split, images in (("training", TRAIN), ("validation", VAL)):
        for name in images:
            photo(top / f"images/{split}/{name}.jpg")
            png(top / f"annotations/{split}/{name}.png", class_map(name))


def run_lengths(root: Path) -> None:
    """Airbus' layout, with classes; an image without objects has an empty row."""
    rows = "ImageId,ClassId,EncodedPixels\n"
    for name, things in TRAIN.items():
        photo(root / f"train/{name}.jpg")
        for thing in things:
            pixels = np.flatnonzero(thing.mask.T) + 1  # down the columns, from 1
            starts = pixels[np.diff(pixels, prepend=-1) > 1]
            stops = pixels[np.diff(pixels, append=10**9) > 1] + 1
            runs = " ".join(f"{a} {b - a}" for a, b in zip(starts, stops, strict=True))
            rows += f"{name}.jpg,{CLASSES[thing.label]},{runs}\n"
        rows += "" if things else f"{name}.jpg,,\n"
    text(root / "train.csv", rows)
    text(root / "sample_submission.csv", "ImageId,EncodedPixels\nz.jpg,\n")


def imagefolder(root: Path, masks: bool = True) -> None:
    for split, images in SPLITS.items():
        lines = ""
        for name, things in images.items():
            photo(root / f"{split}/{name}.png")
            objects = {
                "bbox": [list(thing.box) for thing in things],
                "category": [CLASSES[thing.label] for thing in things],
            }
            if masks:
                objects["segmentation"] = [[list(thing.polygon)] for thing in things]
            lines += json.dumps({"file_name": f"{name}.png", "objects": objects}) + "\n"
        text(root / f"{split}/metadata.jsonl", lines)


def imagefolder_boxes(root: Path) -> None:
    imagefolder(root, masks=False)


def lvis(root: Path) -> None:
    """No file names but addresses, and what was not annotated."""
    for split, images in SPLITS.items():
        content = coco(images)
        for image in content["images"]:
            name = image.pop("file_name")
            image["coco_url"] = f"http://images.cocodataset.org/{split}2017/{name}"
            image |= {"neg_category_ids": [2], "not_exhaustive_category_ids": [1]}
        text(root / f"annotations/lvis_v1_{split}.json", content)
        for name in images:
            photo(root / f"{split}2017/{name}.jpg")
