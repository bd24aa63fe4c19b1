"""A clean data set, and ways of planting a fault in it: what is done, the kind of finding, words of its message."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vision_stack.ops import rle

HEIGHT, WIDTH = 96, 128
NUM = {"train": 12, "val": 6}
CLASSES = {3: "cat", 5: "traffic light", 9: "dog"}
Content = dict[str, dict[str, Any]]  # json by split
Fault = Callable[[Content, Path], Any]


def picture(seed: int) -> Image.Image:
    """A few soft blobs of colour, which no other seed gives."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def square(left: float, top: float, side: float) -> list[float]:
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def annotation(number: int, image: int, category: int, left: float, top: float, side: float = 20) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "iscrowd": 0,
        "bbox": [left, top, side, side],
        "area": side * side,
        "segmentation": [square(left, top, side)],
    }


def write_clean(root: Path) -> Content:
    """Images of three objects, one of each class; one object is an RLE, one annotation a crowd region."""
    content: Content = {}
    for split, count in NUM.items():
        (root / split).mkdir(parents=True)
        data: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": number, "name": name} for number, name in CLASSES.items()],
        }
        for n in range(1, count + 1):
            picture(n + (100 if split == "val" else 0)).save(root / split / f"{split}_{n}.jpg", quality=92)
            data["images"].append({"id": n, "file_name": f"{split}_{n}.jpg", "height": HEIGHT, "width": WIDTH})
            for place, category in enumerate(CLASSES):
                data["annotations"].append(annotation(10 * n + place, n, category, 5 + 40 * place, 5 + n))
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[50:70, 10:40] = True
        encoded = rle.to_json(rle.encode(mask))
        data["annotations"][0] |= {"segmentation": encoded, "bbox": [10, 50, 30, 20], "area": 600}
        crowd = annotation(900, 2, 3, 60, 60)
        data["annotations"].append(crowd | {"iscrowd": 1})
        content[split] = data
    return content


def write(content: Content, root: Path) -> None:
    (root / "annotations").mkdir(exist_ok=True)
    for split, data in content.items():
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(data))


def planted(root: Path, fault: Fault) -> Path:
    """The clean data set with a fault."""
    content = write_clean(root)
    fault(content, root)
    write(content, root)
    return root


def of_annotation(**fields: Any) -> Fault:
    return lambda content, root: content["train"]["annotations"][4].update(fields)


def of_image(**fields: Any) -> Fault:
    return lambda content, root: content["train"]["images"][4].update(fields)


def of_file(content_of: bytes | None) -> Fault:
    def change(_: Content, root: Path) -> None:
        path = root / "train" / "train_5.jpg"
        path.unlink() if content_of is None else path.write_bytes(content_of)

    return change


def added(split: str = "train", **fields: Any) -> Fault:
    """A copy of an annotation, changed."""

    def change(content: Content, _: Path) -> None:
        entry = copy.deepcopy(content[split]["annotations"][4])
        content[split]["annotations"].append(entry | {"id": 5000} | fields)

    return change


def truncated(_: Content, root: Path) -> None:
    path = root / "train" / "train_5.jpg"
    path.write_bytes(path.read_bytes()[:-400])


def damaged_png(content: Content, root: Path) -> None:
    path = root / "train" / "five.png"
    picture(5).save(path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(bytes(raw))
    content["train"]["images"][4]["file_name"] = "five.png"


def link_outside(_: Content, root: Path) -> None:
    outside = root.parent / "outside.jpg"
    picture(5).save(outside)
    path = root / "train" / "train_5.jpg"
    path.unlink()
    path.symlink_to(outside)


def same_image_id(content: Content, _: Path) -> None:
    content["train"]["images"][4]["id"] = 4


def copied(to: str, name: str, **saved: Any) -> Fault:
    """A training image's file under another name, as it is or saved again."""

    def change(content: Content, root: Path) -> None:
        source, target = root / "train" / "train_7.jpg", root / to / name
        size = (HEIGHT, WIDTH)
        if saved:
            with Image.open(source) as image:
                scale = saved.pop("scale", 1)
                changed = image.resize((WIDTH * scale, HEIGHT * scale)).point(
                    lambda v: min(v + saved.get("more", 0), 255)
                )
                changed.save(target, quality=saved.get("quality", 92))
            size = (HEIGHT * scale, WIDTH * scale)
        else:
            shutil.copy(source, target)
        content[to]["images"].append({"id": 777, "file_name": name, "height": size[0], "width": size[1]})
        content[to]["annotations"].append(annotation(5000, 777, 9, 30, 30))

    return change


def blank(content: Content, root: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT), (200, 10, 10)).save(root / "train" / "train_5.jpg")


def duplicate_as_rle(content: Content, root: Path) -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    first = content["train"]["annotations"][4]
    x, y, w, h = (int(value) for value in first["bbox"])
    mask[y : y + h, x : x + w] = True
    added(segmentation=rle.to_json(rle.encode(mask)))(content, root)


def all_boxes(change: Callable[[list[float]], list[float]], field: str = "bbox") -> Fault:
    def apply(content: Content, _: Path) -> None:
        for entry in content["train"]["annotations"]:
            if field == "bbox":
                entry["bbox"] = change(entry["bbox"])
            elif isinstance(entry["segmentation"], list):
                entry["segmentation"] = [change(polygon) for polygon in entry["segmentation"]]

    return apply


def crowded(content: Content, _: Path) -> None:
    places = [(x, y) for x in range(2, 124, 8) for y in range(2, 92, 8)][:110]
    content["val"]["annotations"] += [annotation(6000 + n, 3, 9, x, y, 6) for n, (x, y) in enumerate(places)]
    del content["val"]["annotations"][6:9]


def small(content: Content, _: Path) -> None:
    for n, entry in enumerate(content["train"]["annotations"]):
        if not entry["iscrowd"]:
            entry.update(annotation(entry["id"], entry["image_id"], entry["category_id"], 5 + 40 * (n % 3), 9, 0.9))


def renamed(split: str, name: str, number: int = 9) -> Fault:
    def change(content: Content, _: Path) -> None:
        for category in content[split]["categories"]:
            if category["id"] == number:
                category["name"] = name

    return change


def another_class(name: str, used: bool = True) -> Fault:
    def change(content: Content, _: Path) -> None:
        for data in content.values():
            data["categories"].append({"id": 20, "name": name})
            for entry in data["annotations"][:3] if used else []:
                entry["category_id"] = 20

    return change


def no_objects(content: Content, _: Path) -> None:
    content["train"]["annotations"] = [a for a in content["train"]["annotations"] if a["image_id"] != 6]


def no_val(content: Content, root: Path) -> None:
    del content["val"]
    shutil.rmtree(root / "val")


def val_twice_one_class(content: Content, _: Path) -> None:
    content["val"]["categories"].append({"id": 77, "name": "dog"})


FAULTS: dict[str, tuple[Fault, str, str]] = {
    "truncated jpeg": (truncated, "broken_image", "train_5.jpg"),
    "empty file": (of_file(b""), "broken_image", "the file is empty"),
    "text as image": (of_file(b"not an image"), "broken_image", "not an image"),
    "missing file": (of_file(None), "broken_image", "'train_5.jpg' is not in"),
    "damaged png": (damaged_png, "broken_image", "cannot be decoded"),
    "wrong size": (of_image(width=200, height=100), "broken_image", "is 128 x 96"),
    "swapped size": (of_image(width=HEIGHT, height=WIDTH), "broken_image", "swapped"),
    "no size": (of_image(width=-1), "broken_image", "expected pixels"),
    "name leads out": (of_image(file_name="../x.jpg"), "broken_image", "leads out of its folder"),
    "absolute name": (of_image(file_name="/etc/passwd"), "broken_image", "absolute path"),
    "link leads out": (link_outside, "broken_image", "link that leads out"),
    "image id twice": (same_image_id, "broken_image", "id 4 is used before"),
    "image id is text": (of_image(id="five"), "broken_image", "expected a whole number"),
    "image is no mapping": (lambda c, _: c["train"]["images"].append(7), "broken_image", "expected a mapping"),
    "box without area": (of_annotation(bbox=[5, 5, 0, 9]), "broken_annotation", "has no area"),
    "box outside": (of_annotation(bbox=[500, 5, 9, 9]), "broken_annotation", "outside of the image"),
    "box of three numbers": (of_annotation(bbox=[1, 2, 3]), "broken_annotation", "expected four numbers"),
    "box not finite": (of_annotation(bbox=[float("nan"), 2, 3, 4]), "broken_annotation", "is not finite"),
    "neither box nor mask": (of_annotation(bbox=[], segmentation=[]), "broken_annotation", "neither a box nor a mask"),
    "polygon of two points": (of_annotation(segmentation=[[1, 2, 30, 40]]), "broken_annotation", "it takes three"),
    "half a point": (of_annotation(segmentation=[[1, 2, 30, 40, 5, 60, 7]]), "broken_annotation", "odd number"),
    "flat polygon": (of_annotation(segmentation=[[1, 1, 5, 5, 9, 9]]), "broken_annotation", "without area"),
    "polygon outside": (of_annotation(segmentation=[square(500, 5, 9)]), "broken_annotation", "wholly outside"),
    "RLE of another size": (
        of_annotation(segmentation={"size": [9, 9], "counts": [40, 41]}), "broken_annotation", "RLE size is 9 x 9",
    ),
    "RLE too short": (
        of_annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": [4, 5]}), "broken_annotation", "sum to 9",
    ),
    "unknown image": (of_annotation(image_id=99), "broken_annotation", "no image has the id 99"),
    "unknown category": (of_annotation(category_id=99), "broken_annotation", "no category has the id 99"),
    "crowd is neither": (of_annotation(iscrowd=2), "broken_annotation", "expected 0 or 1"),
    "annotation is text": (lambda c, _: c["train"]["annotations"].append("x"), "broken_annotation", "a mapping"),
    "polygons are fractions": (
        all_boxes(lambda p: [v / 128 for v in p], "segmentation"), "broken_annotation", "fractions of the image",
    ),
    "boxes are corners": (
        all_boxes(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]), "odd_annotation", "seem to be x0, y0, x1, y1",
    ),
    "area far off": (of_annotation(area=9000), "odd_annotation", "areas are less than half or more than twice"),
    "a hole": (
        of_annotation(segmentation=[square(5, 5, 40), square(15, 15, 9)], bbox=[5, 5, 40, 40], area=1600),
        "odd_annotation", "looks like a hole",
    ),
    "a degenerate polygon among good ones": (
        of_annotation(segmentation=[square(45, 7, 20), [1, 1, 5, 5, 9, 9]]), "odd_annotation", "without area",
    ),
    "covers no pixel": (
        of_annotation(segmentation=[square(45.1, 7.1, 0.2)], bbox=[45, 7, 1, 1], area=1), "odd_annotation", "no pixel",
    ),
    "annotation id twice": (of_annotation(id=10), "reading", "id 10 is used before"),
    "some without mask": (of_annotation(segmentation=[]), "missing_mask", "1 of 36 objects have only a box"),
    "same file in both splits": (copied("val", "again.jpg"), "leak", "'again.jpg' of val is 'train_7.jpg' of train"),
    "saved again in the other split": (copied("val", "again.jpg", quality=50), "similar_in_splits", "'again.jpg'"),
    "enlarged in the other split": (copied("val", "again.jpg", scale=2), "similar_in_splits", "'again.jpg'"),
    "same file twice": (copied("train", "again.jpg"), "duplicate_image", "'again.jpg' is the same file"),
    "brighter copy": (copied("train", "again.jpg", more=3), "similar_image", "'again.jpg' looks like"),
    "blank image": (blank, "blank_image", "'train_5.jpg' is of one colour"),
    "annotation twice": (added(), "duplicate_annotation", "id 21 and id 5000"),
    "polygon again as RLE": (duplicate_as_rle, "duplicate_annotation", "id 21 and id 5000"),
    "box twice": (added(segmentation=[]), "duplicate_annotation", "id 21 and id 5000"),
    "annotation nearly twice": (added(segmentation=[square(46, 7, 20)]), "near_duplicate", "id 21 and id 5000"),
    "two classes for one": (added(category_id=9), "two_classes", "'traffic light' and 'dog'"),
    "mask in a mask": (
        added(segmentation=[square(50, 10, 9)], bbox=[50, 10, 9, 9], area=81), "overlap", "of the smaller mask",
    ),
    "small objects": (small, "small_object", "36 of 36 objects"),
    "crowded image": (crowded, "crowded_image", "'val_3.jpg' has 110 objects"),
    "one class in two spellings": (another_class("Traffic_Light"), "class_name", "look like one"),
    "other case in val": (renamed("val", "Dog"), "class_name", "'Dog' is 'dog' in the training split"),
    "other spelling in val": (renamed("val", "traffic-light", 5), "broken_class", "is 'traffic light' in the training"),
    "unknown class in val": (renamed("val", "wolf"), "broken_class", "'wolf' is not a class of the training split"),
    "class without objects": (another_class("bird", used=False), "class_without_objects", "'bird'"),
    "rare class": (another_class("bird"), "rare_class", "fewer than 10 training objects: 'bird' (3)"),
    "object as large as the image": (
        of_annotation(segmentation=[[0, 0, 128, 0, 128, 96, 0, 96]], bbox=[0, 0, 128, 96], area=12288),
        "whole_image", "1 of 36 objects",
    ),
    "image without objects": (no_objects, "empty_image", "1 of 12 images have no object ('train_6.jpg'"),
    "no validation split": (no_val, "missing_split", "no annotation file of the val split"),
    "one name for two classes": (val_twice_one_class, "unreadable_split", "'dog' has two ids"),
}  # fmt: skip
