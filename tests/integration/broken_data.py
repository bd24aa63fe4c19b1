"""Ways of breaking a data set: what is done to it, the field that the error must name, some words of its message."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 24, 32
Breaker = Callable[[dict[str, Any], Path], Any]


def good_dataset(root: Path) -> dict[str, Any]:
    """Three images with an object each, of two classes; the images are written, the json is returned."""
    (root / "train").mkdir(parents=True)
    (root / "annotations").mkdir()
    data: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
    }
    generator = np.random.default_rng(0)
    for n in range(1, 4):
        pixels = generator.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "train" / f"{n}.jpg")
        data["images"].append({"id": n, "file_name": f"{n}.jpg", "height": HEIGHT, "width": WIDTH})
        annotation = {"id": n, "image_id": n, "category_id": 9, "iscrowd": 0, "area": 64.0}
        annotation |= {"bbox": [4, 4, 8, 8], "segmentation": [[4, 4, 12, 4, 12, 12, 4, 12]]}
        data["annotations"].append(annotation)
    data["annotations"][0]["category_id"] = 3
    return data


def write(data: Any, root: Path) -> None:
    text = data if isinstance(data, str | bytes) else json.dumps(data)
    raw = text.encode() if isinstance(text, str) else text
    (root / "annotations/instances_train.json").write_bytes(raw)


def broken(root: Path, breaker: Breaker) -> None:
    secret = root.parent / "secret"
    secret.mkdir()
    data = good_dataset(root)
    Image.open(root / "train/2.jpg").save(secret / "2.jpg")  # a perfectly good image, where it must not be read
    result = breaker(data, root)
    write(result if isinstance(result, str | bytes) else data, root)


def annotation(**fields: Any) -> Breaker:
    return lambda data, root: data["annotations"][1].update(fields)


def image(**fields: Any) -> Breaker:
    return lambda data, root: data["images"][1].update(fields)


def without(kind: str, field: str) -> Breaker:
    def breaker(data: dict[str, Any], root: Path) -> None:
        del data[kind][1][field]

    return breaker


def file_content(change: Callable[[bytes], bytes], suffix: str = "jpg") -> Breaker:
    def breaker(data: dict[str, Any], root: Path) -> None:
        path = root / f"train/2.{suffix}"
        if suffix != "jpg":
            Image.open(root / "train/2.jpg").save(path)
            data["images"][1]["file_name"] = path.name
        path.write_bytes(change(path.read_bytes()))

    return breaker


def link_out(data: dict[str, Any], root: Path) -> None:
    (root / "train/2.jpg").unlink()
    (root / "train/2.jpg").symlink_to(root.parent / "secret/2.jpg")


def linked_folder(data: dict[str, Any], root: Path) -> None:
    (root / "train/more").symlink_to(root.parent / "secret")
    data["images"][1]["file_name"] = "more/2.jpg"


def fifo(data: dict[str, Any], root: Path) -> None:
    (root / "train/2.jpg").unlink()
    os.mkfifo(root / "train/2.jpg")


def bomb(data: dict[str, Any], root: Path) -> None:
    """A PNG whose header claims 10 gigapixels."""
    Image.new("L", (8, 8)).save(root / "train/2.png")
    raw = bytearray((root / "train/2.png").read_bytes())
    raw[16:24] = (100_000).to_bytes(4, "big") * 2
    raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, "big")
    (root / "train/2.png").write_bytes(bytes(raw))
    data["images"][1]["file_name"] = "2.png"


def text_file(data: dict[str, Any], root: Path) -> None:
    (root / "train/2.jpg").write_text("<html>404 not found</html>")


def annotations_file(change: Callable[[str], Any]) -> Breaker:
    """Breaks the json's text itself."""
    return lambda data, root: change(json.dumps(data))


NAN, INF = float("nan"), float("inf")
GOOD_RLE = {"size": [HEIGHT, WIDTH], "counts": [100, 20, HEIGHT * WIDTH - 120]}
GIGA = {"size": [100_000, 100_000], "counts": [0, 10**10]}
SQUARE = [4, 4, 12, 4, 12, 12, 4, 12]

# name: (how to break it, the field that is named, some words of the message)
BROKEN_RECORDS: dict[str, tuple[Breaker, str, str]] = {
    "image file missing": (lambda d, r: (r / "train/2.jpg").unlink(), "images[1].file_name", "is not in"),
    "jpeg truncated": (file_content(lambda b: b[:-200]), "pixels", "truncated"),
    "jpeg cut off in its header": (file_content(lambda b: b[:300]), "pixels", "cannot be decoded"),
    "png truncated": (file_content(lambda b: b[: len(b) // 2], "png"), "pixels", "cannot be decoded"),
    "bmp truncated": (file_content(lambda b: b[: len(b) // 2], "bmp"), "pixels", "cannot be decoded"),
    "webp truncated": (file_content(lambda b: b[: len(b) // 2], "webp"), "pixels", "cannot be decoded"),
    "image file empty": (file_content(lambda b: b""), "pixels", "empty"),
    "image file is text": (text_file, "pixels", "not an image"),
    "image is a folder": (image(file_name="."), "images[1].file_name", "is not in"),
    "image is a pipe": (fifo, "images[1].file_name", "is not in"),
    "image of ten gigapixels": (bomb, "pixels", "decompression bomb"),
    "image size in json wrong": (image(width=WIDTH * 2), "images[1].width", "32 x 24"),
    "image size in json swapped": (image(width=HEIGHT, height=WIDTH), "images[1].width", "swapped"),
    "image size in json of ten gigapixels": (image(width=100_000, height=100_000), "images[1].width", "pixels"),
    "image size is text": (image(width="wide"), "images[1].width", "'wide'"),
    "image size negative": (image(height=-24), "images[1].height", "-24"),
    "image size infinite": (image(height=INF), "images[1].height", "inf"),
    "file name absolute": (image(file_name="/etc/passwd"), "images[1].file_name", "absolute"),
    "file name absolute on windows": (image(file_name="C:\\2.jpg"), "images[1].file_name", "absolute"),
    "file name with dots": (image(file_name="../../secret/2.jpg"), "images[1].file_name", "'..'"),
    "file name with dots on windows": (image(file_name="..\\..\\secret\\2.jpg"), "images[1].file_name", "'..'"),
    "file is a link out of the root": (link_out, "images[1].file_name", "leads out of"),
    "folder is a link out of the root": (linked_folder, "images[1].file_name", "leads out of"),
    "file name is a number": (image(file_name=7), "images[1].file_name", "got 7"),
    "file name is a list": (image(file_name=["2.jpg"]), "images[1].file_name", "file name"),
    "file name missing": (without("images", "file_name"), "images[1].file_name", "got None"),
    "file name with a null byte": (image(file_name="2.jpg\0"), "images[1].file_name", "file name"),
    "file name with a line break": (image(file_name="2\n.jpg"), "images[1].file_name", "is not in"),
    "file name with half a character": (image(file_name="\ud800/2.jpg"), "images[1].file_name", "file name"),
    "file name very long": (image(file_name="x" * 100_000), "images[1].file_name", "is not in"),
    "image id duplicate": (lambda d, r: d["images"].append(d["images"][0]), "images[3].id", "used before"),
    "image id is text": (lambda d, r: d["images"].append({**d["images"][1], "id": "two"}), "images[3].id", "'two'"),
    "image is not a mapping": (lambda d, r: d["images"].append([1, 2]), "images[3]", "mapping"),
    "annotation is not a mapping": (lambda d, r: d["annotations"].append(None), "annotations[3]", "mapping"),
    "annotation of unknown image": (annotation(image_id=77), "annotations[1].image_id", "77"),
    "annotation with a list as image": (annotation(image_id=[2]), "annotations[1].image_id", "whole number"),
    "category unknown": (annotation(category_id=77), "annotations[1].category_id", "77"),
    "category is text": (annotation(category_id="dog"), "annotations[1].category_id", "'dog'"),
    "category missing": (without("annotations", "category_id"), "annotations[1].category_id", "None"),
    "crowd is text": (annotation(iscrowd="no"), "annotations[1].iscrowd", "'no'"),
    "box without area": (annotation(bbox=[4, 4, 8, 0]), "annotations[1].bbox", "no area"),
    "box negative": (annotation(bbox=[4, 4, -8, 8]), "annotations[1].bbox", "no area"),
    "box nan": (annotation(bbox=[4, NAN, 8, 8]), "annotations[1].bbox", "not finite"),
    "box infinite": (annotation(bbox=[4, 4, INF, 8]), "annotations[1].bbox", "not finite"),
    "box huge": (annotation(bbox=[4, 4, 1e300, 8]), "annotations[1].bbox", "beyond"),
    "box outside": (annotation(bbox=[40, 4, 8, 8]), "annotations[1].bbox", "outside"),
    "box of three numbers": (annotation(bbox=[4, 4, 8]), "annotations[1].bbox", "four numbers"),
    "box of text": (annotation(bbox=["4", 4, 8, 8]), "annotations[1].bbox", "four numbers"),
    "box of a digit too many": (annotation(bbox=[4, 10**400, 8, 8]), "annotations[1].bbox", "four numbers"),
    "mask missing": (without("annotations", "segmentation"), "annotations[1].segmentation", "only a box"),
    "mask empty": (annotation(segmentation=[]), "annotations[1].segmentation", "only a box"),
    "mask is text": (annotation(segmentation="4 4"), "annotations[1].segmentation", "'4 4'"),
    "polygon of two points": (annotation(segmentation=[[4, 4, 12, 12]]), "annotations[1].segmentation", "2 points"),
    "polygon empty": (annotation(segmentation=[[]]), "annotations[1].segmentation", "0 points"),
    "polygon with half a point": (annotation(segmentation=[[*SQUARE, 5]]), "annotations[1].segmentation", "odd"),
    "polygon on a line": (annotation(segmentation=[[1, 1, 5, 5, 9, 9]]), "annotations[1].segmentation", "line"),
    "polygon nan": (annotation(segmentation=[[NAN, *SQUARE[1:]]]), "annotations[1].segmentation", "not finite"),
    "polygon infinite": (
        annotation(segmentation=[SQUARE, [INF, *SQUARE[1:]]]),
        "annotations[1].segmentation",
        "not finite",
    ),
    "polygon huge": (annotation(segmentation=[[1e9, *SQUARE[1:]]]), "annotations[1].segmentation", "beyond"),
    "polygon outside": (annotation(segmentation=[[n + 99 for n in SQUARE]]), "annotations[1].segmentation", "outside"),
    "polygon of pairs": (
        annotation(segmentation=[[[4, 4], [12, 4], [12, 12]]]),
        "annotations[1].segmentation",
        "x0, y0",
    ),
    "polygon of text": (annotation(segmentation=[["4", "4", "12", "4"]]), "annotations[1].segmentation", "x0, y0"),
    "polygon of null": (annotation(segmentation=[None]), "annotations[1].segmentation", "x0, y0"),
    "rle of the wrong size": (
        annotation(segmentation={**GOOD_RLE, "size": [10, 10]}),
        "annotations[1].segmentation",
        "10 x 10",
    ),
    "rle with swapped size": (
        annotation(segmentation={**GOOD_RLE, "size": [WIDTH, HEIGHT]}),
        "annotations[1].segmentation",
        "swapped",
    ),
    "rle of ten gigapixels": (annotation(segmentation=GIGA), "annotations[1].segmentation", "100000"),
    "rle counts of ten gigapixels": (
        annotation(segmentation={**GOOD_RLE, "counts": [0, 10**10]}),
        "annotations[1].segmentation",
        "10000000000 pixels",
    ),
    "rle counts too short": (
        annotation(segmentation={**GOOD_RLE, "counts": [9]}),
        "annotations[1].segmentation",
        "sum to 9",
    ),
    "rle counts negative": (
        annotation(segmentation={**GOOD_RLE, "counts": [-1, 769]}),
        "annotations[1].segmentation",
        "negative",
    ),
    "rle counts are floats": (
        annotation(segmentation={**GOOD_RLE, "counts": [0.5, 767.5]}),
        "annotations[1].segmentation",
        "whole numbers",
    ),
    "rle text malformed": (
        annotation(segmentation={**GOOD_RLE, "counts": "oooooooo"}),
        "annotations[1].segmentation",
        "cut off",
    ),
    "rle text of other characters": (
        annotation(segmentation={**GOOD_RLE, "counts": "é!"}),
        "annotations[1].segmentation",
        "characters",
    ),
    "rle without object": (
        annotation(segmentation={**GOOD_RLE, "counts": [768]}),
        "annotations[1].segmentation",
        "no object",
    ),
    "rle without counts": (annotation(segmentation={"size": [24, 32]}), "annotations[1].segmentation", "'counts'"),
}

BROKEN_FILES: dict[str, tuple[Breaker, str, str]] = {
    "not json": (annotations_file(lambda text: "images: 3"), "file", "line 1"),
    "json cut off": (annotations_file(lambda text: text[:200]), "file", "not valid json"),
    "json empty": (annotations_file(lambda text: ""), "file", "empty"),
    "json in utf-16": (annotations_file(lambda text: text.encode("utf-16")), "file", "UTF-8"),
    "json nested deeply": (annotations_file(lambda text: "[" * 200_000), "file", "deep"),
    "json with an endless number": (annotations_file(lambda text: "[" + "1" * 10_000 + "]"), "file", "digits"),
    "json is a list": (annotations_file(lambda text: "[]"), "top level", "mapping"),
    "images key missing": (lambda d, r: d.pop("images") and None, "images", "missing"),
    "images is a mapping": (lambda d, r: d.update(images={}), "images", "list"),
    "no images": (lambda d, r: d.update(images=[]), "images", "no images"),
    "no annotations": (lambda d, r: d.update(annotations=[]), "annotations", "no annotations"),
    "no categories": (lambda d, r: d.update(categories=[]), "categories", "no categories"),
    "category id duplicate": (lambda d, r: d["categories"][1].update(id=3), "categories[1].id", "both"),
    "category name duplicate": (lambda d, r: d["categories"][1].update(name="cat"), "categories[1].name", "two ids"),
    "category id is text": (lambda d, r: d["categories"][1].update(id="9"), "categories[1].id", "'9'"),
    "category without name": (without("categories", "name"), "categories[1].name", "None"),
    "category is text": (lambda d, r: d.update(categories=["cat", "dog"][:1]), "categories[0]", "'cat'"),
    "every image missing": (
        lambda d, r: [p.unlink() for p in (r / "train").iterdir()],
        "images[].file_name",
        "none of the 3",
    ),
}
