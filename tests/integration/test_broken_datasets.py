"""Every way of breaking a data set gives one clear line, and nothing outside of its root is opened."""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vision_stack.data.coco import CocoSplit, read_coco
from vision_stack.data.layout import find_splits
from vision_stack.data.validation import DataError

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


def read(root: Path, **options: Any) -> CocoSplit:
    """Finds and reads the train split, and sees to it that nothing outside of the root is opened on the way."""
    opened: list[str] = []
    _watchers.append(opened)
    try:
        paths = find_splits(root, required=("train",)).train
        assert paths is not None
        return read_coco(**{"annotation_file": paths.annotation_file, "image_dir": paths.image_dir, **options})
    finally:
        _watchers.remove(opened)
        inside = (os.path.realpath(root) + os.sep, *_LIBRARIES)
        assert [path for path in opened if not path.startswith(inside)] == []


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
    "image is no mapping": (lambda d, r: d["images"].append([1, 2]), "images[3]", "mapping"),
    "annotation is no mapping": (lambda d, r: d["annotations"].append(None), "annotations[3]", "mapping"),
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


_watchers: list[list[str]] = []
_LIBRARIES = tuple(
    os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, Path(__file__).parents[2] / "vision_stack")
)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watchers and isinstance(arguments[0], str | bytes | os.PathLike):
        for watcher in _watchers:
            watcher.append(os.path.realpath(os.fsdecode(arguments[0])))


sys.addaudithook(_audit)  # cannot be removed, so it only looks while a test watches


def broken(root: Path, breaker: Breaker) -> None:
    secret = root.parent / "secret"
    secret.mkdir()
    data = good_dataset(root)
    Image.open(root / "train/2.jpg").save(secret / "2.jpg")  # a perfectly good image, where it must not be read
    result = breaker(data, root)
    write(result if isinstance(result, str | bytes) else data, root)


def assert_one_clear_line(error: DataError, root: Path, field: str, word: str) -> None:
    text = str(error)
    assert "\n" not in text
    assert len(text) < 600
    file, _, rest = text.partition(": ")
    assert root in Path(file).parents
    assert rest.startswith(f"{field}: ")
    assert word in rest
    assert len(rest.rsplit("; ", 1)[1]) > 5  # the remedy


def test_watch_over_opened_files_sees_one_outside(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write(good_dataset(root), root)
    (tmp_path / "outside.json").write_text("{}")
    with pytest.raises(AssertionError, match=r"outside\.json"):
        read(root, annotation_file=tmp_path / "outside.json")


def test_good_dataset_passes_without_problem_or_note(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write(good_dataset(root), root)
    split = read(root)
    assert len(split.records) == 3
    assert not split.report()
    assert [c.id for c in split.categories] == [3, 9]


@pytest.mark.parametrize("name", BROKEN_RECORDS)
def test_broken_record_raises_one_clear_line(name: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    breaker, field, word = BROKEN_RECORDS[name]
    broken(root, breaker)
    with pytest.raises(DataError) as caught:
        read(root)
    assert_one_clear_line(caught.value, root, field, word)
    assert "data.on_error=skip" in str(caught.value)


@pytest.mark.parametrize("name", BROKEN_RECORDS)
def test_broken_record_is_skipped_and_the_rest_kept(name: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    broken(root, BROKEN_RECORDS[name][0])
    split = read(root, on_error="skip")
    objects = {record.image_id: len(record.annotations) for record in split.records}
    assert objects.get(1) == 1
    assert objects.get(3) == 1
    assert sum(objects.values()) == 2 or name in ADDED
    assert len(split.problems) == 1
    assert "broken records skipped: 1" in split.report()


ADDED = (
    "image id duplicate",
    "image id is text",
    "image is no mapping",
    "annotation is no mapping",
)  # beside the three good ones


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("name", BROKEN_FILES)
def test_broken_file_raises_one_clear_line_in_any_case(name: str, on_error: Any, tmp_path: Path) -> None:
    root = tmp_path / "data"
    breaker, field, word = BROKEN_FILES[name]
    broken(root, breaker)
    with pytest.raises(DataError) as caught:
        read(root, on_error=on_error)
    assert_one_clear_line(caught.value, root, field, word)


def test_many_problems_are_listed_one_a_line_and_counted(tmp_path: Path) -> None:
    root = tmp_path / "data"
    data = good_dataset(root)
    data["annotations"] = [{**data["annotations"][0], "id": n, "bbox": [0, 0, 0, 0]} for n in range(1, 101)]
    write(data, root)
    with pytest.raises(DataError) as caught:
        read(root)
    lines = str(caught.value).splitlines()
    assert "100 problems" in lines[0]
    assert lines[-1] == "... and 80 more"
    assert len(lines) == 22


def test_nothing_good_left_raises_in_skip_mode(tmp_path: Path) -> None:
    root = tmp_path / "data"
    data = good_dataset(root)
    for entry in data["annotations"]:
        entry["bbox"] = [0, 0, 0, 0]
    write(data, root)
    with pytest.raises(DataError, match="no good annotation is left"):
        read(root, on_error="skip")


def test_image_folder_that_leads_out_of_the_root_is_refused_unless_named(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write(good_dataset(root), root)
    (root / "train").rename(tmp_path / "elsewhere")
    (root / "train").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"leads out of the data root.*data\.train_images="):
        read(root)
    paths = find_splits(root, train_images=tmp_path / "elsewhere", required=("train",)).train
    assert paths is not None
    assert len(read_coco(*paths).records) == 3


def test_root_that_is_a_link_is_read(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write(good_dataset(root), root)
    (tmp_path / "link").symlink_to(root)
    assert len(read(tmp_path / "link").records) == 3


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a json a value could be replaced."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


JUNK = (
    None,
    True,
    -1,
    0,
    1.5,
    10**400,
    NAN,
    -INF,
    "",
    "x",
    "\x1b[2J\n",
    [],
    [[]],
    [None],
    {},
    {"size": 3, "counts": {}},
)


def test_junk_anywhere_in_the_json_is_read_or_refused_in_words(tmp_path: Path) -> None:
    root = tmp_path / "data"
    data = good_dataset(root)
    data["annotations"][2]["segmentation"] = GOOD_RLE
    data["annotations"] = data["annotations"][1:]  # one with a polygon, one with an RLE
    chosen = [place for place in places(data)[1:] if place[:2] not in (("images", 0), ("categories", 0))]
    refusals: list[str] = []
    for n, (place, junk) in enumerate((place, junk) for place in chosen for junk in JUNK):
        changed = json.loads(json.dumps(data))
        node = changed
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = junk
        write(changed, root)
        try:
            split = read(root, on_error=("raise", "skip")[n % 2], check_images=False)
            json.dumps([a["bbox"] for a in split.ground_truth()["annotations"]], allow_nan=False)
        except DataError as error:
            refusals.append(str(error))
    assert len(refusals) > 200
    assert all(line.isprintable() for text in refusals for line in text.splitlines())
