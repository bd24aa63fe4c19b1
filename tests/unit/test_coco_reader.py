"""The COCO reader on sound data: what it accepts, what it fixes, and what evaluation gets."""

from __future__ import annotations

import contextlib
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vision_stack.data.checks.issues import DataError
from vision_stack.data.images import read_image
from vision_stack.data.readers.coco import CocoSplit, read_coco
from vision_stack.data.readers.layout import find_splits
from vision_stack.ops import rle
from vision_stack.ops.masks import polygons_to_mask
from vision_stack.structures import Category

SIZE = (24, 32)
SQUARE = [4, 4, 12, 4, 12, 12, 4, 12]


def coco(*annotations: dict[str, Any], categories: Any = (("cat", 3), ("dog", 9)), images: int = 2) -> dict[str, Any]:
    base = {"image_id": 1, "category_id": 9, "segmentation": [SQUARE], "bbox": [4, 4, 8, 8], "area": 64, "iscrowd": 0}
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 24, "width": 32} for n in range(1, images + 1)],
        "annotations": [{"id": n, **base, **a} for n, a in enumerate(annotations, 1)],
        "categories": [{"id": i, "name": n} for n, i in categories],
    }


def read(folder: Path, data: Any, **options: Any) -> CocoSplit:
    file = folder / "a.json"
    file.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return read_coco(file, folder, **{"check_images": False, **options})


def mask_of(segmentation: Any) -> np.ndarray:
    return polygons_to_mask(segmentation, *SIZE) if isinstance(segmentation, list) else rle.decode(segmentation)


def test_sparse_ids_become_labels_in_order_of_ids(tmp_path: Path) -> None:
    split = read(tmp_path, coco({}, {"category_id": 70}, categories=(("zebra", 70), ("cat", 3), ("dog", 9))))
    assert split.categories == (Category(id=3, name="cat"), Category(id=9, name="dog"), Category(id=70, name="zebra"))
    assert [a.label for a in split.records[0].annotations] == [1, 2]
    assert [a["category_id"] for a in split.ground_truth()["annotations"]] == [9, 70]


def test_polygon_and_both_kinds_of_rle_give_the_same_mask_box_and_area(tmp_path: Path) -> None:
    code = rle.to_compressed([SQUARE], *SIZE)
    runs = {"size": list(SIZE), "counts": rle.check_rle(code).tolist()}
    missing = {"bbox": None, "area": float("inf")}
    forms = ([SQUARE], SQUARE, rle.to_json(code), runs)
    split = read(tmp_path, coco(*({"segmentation": form, **missing} for form in forms)))
    assert not split.report()
    annotations = split.records[0].annotations
    for annotation in annotations:
        np.testing.assert_array_equal(mask_of(annotation.segmentation), mask_of([SQUARE]))
        assert annotation.area == 64
        assert annotation.box == (4, 4, 12, 12)


def test_annotations_are_grouped_by_image_whatever_their_order(tmp_path: Path) -> None:
    split = read(
        tmp_path, coco({"image_id": 2}, {"image_id": 1}, {"image_id": 2, "segmentation": [SQUARE, SQUARE]}, images=3)
    )
    ids = {r.image_id: [a.annotation_id for a in r.annotations] for r in split.records}
    assert ids == {1: [2], 2: [1, 3], 3: []}
    assert [len(a.segmentation) for a in split.records[1].annotations] == [1, 2]


def test_degenerate_polygon_among_good_ones_is_dropped_with_a_note(tmp_path: Path) -> None:
    split = read(tmp_path, coco({"segmentation": [[1, 1, 2, 2], SQUARE, [5, 5, 9, 9, 7, 7]]}, {}))
    first, second = split.records[0].annotations
    assert [polygon.tolist() for polygon in first.segmentation] == [SQUARE]
    assert [polygon.tolist() for polygon in second.segmentation] == [SQUARE]
    assert "left out" in split.report()
    assert split.problems == ()


def test_box_that_sticks_out_is_clipped_but_evaluated_as_given(tmp_path: Path) -> None:
    split = read(tmp_path, coco({"bbox": [-2.5, 4, 50, 8]}))
    assert split.records[0].annotations[0].box == (0, 4, 32, 12)
    assert split.ground_truth()["annotations"][0]["bbox"] == [-2.5, 4, 50, 8]


def test_crowd_is_kept_as_crowd_also_as_a_polygon(tmp_path: Path) -> None:
    split = read(tmp_path, coco({"iscrowd": 1}, {}))
    assert [a.is_crowd for a in split.records[0].annotations] == [True, False]
    assert [a["iscrowd"] for a in split.ground_truth()["annotations"]] == [1, 0]


def test_missing_zero_and_repeated_annotation_ids_are_numbered_anew(tmp_path: Path) -> None:
    split = read(tmp_path, coco({"id": 5}, {"id": 5}, {"id": None}, {"id": 0}, {"id": "x"}, {"id": 6}))
    ids = [a.annotation_id for a in split.records[0].annotations]
    assert ids[0] == 5
    assert ids[5] == 6
    assert len(set(ids)) == 6
    assert min(ids) > 0
    assert "id 5 is used before" in split.report()


@pytest.mark.parametrize("check_images", [True, False])
def test_image_id_of_two_files_takes_both_and_all_of_its_annotations_with_it(
    check_images: bool, tmp_path: Path
) -> None:
    data = coco({}, {}, {"image_id": 2}, images=2)  # of the two of image 1, nobody knows whose they are
    for n in range(1, 4):
        Image.new("RGB", (32, 24)).save(tmp_path / f"{n}.png")
    data["images"] += [{**data["images"][0], "file_name": "3.png"}, dict(data["images"][1])]
    split = read(tmp_path, data, on_error="skip", check_images=check_images)
    assert [(r.file_name, len(r.annotations)) for r in split.records] == [("2.png", 1)]
    first, second = map(str, split.problems)
    assert "images[2].id: id 1 is used before (image '3.png'), by '1.png'; neither can own the annotations" in first
    assert "images[3].id: id 2 is used before (image '2.png'); give" in second
    with pytest.raises(DataError, match="neither can own"):
        read(tmp_path, data)


def test_file_under_two_ids_is_noted_once(tmp_path: Path) -> None:
    data = coco({}, {"image_id": 2}, images=4)
    for image in data["images"][1:3]:
        image["file_name"] = "./1.png"
    split = read(tmp_path, data)
    assert [len(record.annotations) for record in split.records] == [1, 1, 0, 0]
    assert len(split.notes) == 1
    assert "'./1.png' is image 1 and image 2, and 1 more files have two ids; each" in split.report()


def test_category_name_with_a_lone_surrogate_is_refused_and_a_pair_is_a_character(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.json: categories\[1\]\.name: 'dog\\ud83d' holds a lone surrogate.*rename"):
        read(tmp_path, coco({}, categories=(("cat", 3), ("dog\ud83d", 9))))
    assert read(tmp_path, coco({}, categories=(("cat", 3), ("\ud83d\udc15", 9)))).categories[1].name == "\N{DOG}"


def test_category_names_with_line_breaks_become_one_line(tmp_path: Path) -> None:
    data = coco({}, {"category_id": 3}, categories=(("person\n", 9), ("traffic\r\n  light", 3)))
    split = read(tmp_path, data)
    assert [category.name for category in split.categories] == ["traffic light", "person"]
    given = (Category(id=1, name="person\n"), Category(id=2, name="Traffic\nlight"))  # of an older checkpoint
    assert [r.annotations[0].label for r in read(tmp_path, data, categories=given).records[:1]] == [0]
    with pytest.raises(DataError, match="'person' has two ids, 3 and 9"):
        read(tmp_path, coco({}, categories=(("person", 3), ("person\n", 9))))


@pytest.mark.parametrize("flag", [1, 1.0, True])
def test_crowd_flag_may_be_any_kind_of_one(flag: Any, tmp_path: Path) -> None:
    assert read(tmp_path, coco({"iscrowd": flag}, {})).records[0].num_objects == 1


def test_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    assert len(read(tmp_path, b"\xef\xbb\xbf" + json.dumps(coco({})).encode()).records) == 2


@pytest.mark.parametrize(("used", "names"), [(False, ["helmet", "vest"]), (True, ["gear", "helmet", "vest"])])
def test_placeholder_category_counts_only_if_used(used: bool, names: list[str], tmp_path: Path) -> None:
    data = coco({"category_id": 1}, {"category_id": 0 if used else 2})
    data["categories"] = [
        {"id": 0, "name": "gear", "supercategory": "none"},
        {"id": 1, "name": "helmet", "supercategory": "gear"},
        {"id": 2, "name": "vest", "supercategory": "gear"},
    ]
    split = read(tmp_path, data)
    assert [c.name for c in split.categories] == names
    note = (
        "categories[0]: 'gear' (id 0) has no annotation and is the supercategory of all others, as Roboflow writes it"
    )
    assert (note in split.report()) == (not used)


GIVEN = (Category(id=3, name="cat"), Category(id=9, name="dog"))


def test_given_classes_with_other_ids_are_matched_by_name_with_a_note(tmp_path: Path) -> None:
    data = coco({"category_id": 0}, {"category_id": 1}, categories=(("Dog", 0), ("cat", 1)))
    split = read(tmp_path, data, categories=GIVEN)
    assert split.categories == GIVEN
    assert [a.label for a in split.records[0].annotations] == [1, 0]
    assert [a["category_id"] for a in split.ground_truth()["annotations"]] == [9, 3]
    assert "matched by name" in split.report()


def test_given_classes_lack_a_used_one_is_one_problem(tmp_path: Path) -> None:
    data = coco({}, {"category_id": 3}, {"category_id": 3}, categories=(("fox", 3), ("dog", 9), ("unused", 10)))
    with pytest.raises(
        DataError, match=r"categories\[0\]\.name: 'fox' \(id 3, 2 annotations\).*id 3 is 'cat'"
    ) as caught:
        read(tmp_path, data, categories=GIVEN)
    assert "\n" not in str(caught.value)
    split = read(tmp_path, data, categories=GIVEN, on_error="skip", check_images=False)
    assert len(split.records[0].annotations) == 1


def test_given_classes_lack_many_is_one_line_that_names_some_of_both(tmp_path: Path) -> None:
    names = [f"class {n}" for n in range(26)]
    data = coco(*({"category_id": n} for n in range(26)), categories=[(name, n) for n, name in enumerate(names)])
    with pytest.raises(DataError) as caught:
        read(tmp_path, data, categories=GIVEN)
    assert "\n" not in str(caught.value)
    for part in (
        "categories: 'class 0', 'class 1', 'class 2', 'class 3', 'class 4', 'class 5' and 20 more (26 annotations)",
        "not among the 2 classes of the training data, 'cat', 'dog'",
        "give them the names they have there",
    ):
        assert part in str(caught.value)


def test_exif_is_applied_unless_only_the_stored_size_fits(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.arange(24 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(24, 32, 3)
    for n in (1, 2):
        Image.fromarray(pixels).save(tmp_path / f"{n}.png", exif=exif)
    data = coco({}, {"image_id": 2})
    data["images"][0] |= {"height": 32, "width": 24}
    upright, stored = read(tmp_path, data, check_images=True).records
    assert (upright.apply_exif, stored.apply_exif) == (True, False)
    assert read_image(upright.path, apply_exif=upright.apply_exif).shape == (32, 24, 3)
    np.testing.assert_array_equal(read_image(stored.path, apply_exif=stored.apply_exif), pixels)


def test_size_that_the_json_lacks_is_taken_from_the_file(tmp_path: Path) -> None:
    data = coco({}, images=1)
    del data["images"][0]["height"], data["images"][0]["width"]
    Image.new("RGB", (32, 24)).save(tmp_path / "1.png")
    record = read(tmp_path, data, check_images=True).records[0]
    assert (record.height, record.width) == SIZE
    with pytest.raises(DataError, match="height: expected pixels"):
        read(tmp_path, data, check_images=False)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("train/1.png", "1.png"),
        ("train\\1.png", "1.png"),
        (".\\train\\1.png", "1.png"),
        ("images/train/1.png", "1.png"),
        ("images\\train\\sub/2.png", "sub/2.png"),
        ("sub\\2.png", "sub/2.png"),
        ("train\\sub\\2.png", "sub/2.png"),
        ("train/train/3.png", "train/3.png"),
        ("3\\3.png", "3\\3.png"),  # a name like any other on Linux
    ],
)
def test_file_name_as_seen_from_the_root_or_from_windows_is_found(name: str, file: str, tmp_path: Path) -> None:
    folder = tmp_path / "images/train"
    for place in ("1.png", "sub/2.png", "train/3.png", "3\\3.png"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 24)).save(folder / place)
    data = coco({}, images=1)
    data["images"][0]["file_name"] = name
    assert [Path(r.path) for r in read(folder, data, check_images=True).records] == [folder / file]


def test_file_name_from_windows_does_not_lead_out_of_the_image_folder(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    Image.new("RGB", (32, 24)).save(tmp_path / "secret.png")
    (tmp_path / "train/link").symlink_to(tmp_path)
    data = coco({}, images=1)
    for name in ("train\\..\\secret.png", "link\\secret.png", "train\\link\\secret.png", "\\train\\1.png"):
        data["images"][0]["file_name"] = name
        with pytest.raises(DataError, match=r"leads out of|absolute"):
            read(tmp_path / "train", data, check_images=True)


def test_ground_truth_evaluates_like_the_json_itself(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    annotations, results = [], []
    for n in range(60):
        x, y, w, h = generator.integers((0, 0, 3, 3), (12, 12, 15, 15))
        polygon = [int(v) for v in (x, y, x + w, y, x + w, y + h, x, y + h)]
        entry = {"image_id": n % 6 + 1, "category_id": (3, 9)[n % 2], "bbox": [int(v) for v in (x, y, w, h)]}
        annotations.append({**entry, "segmentation": [polygon], "area": int(w * h), "iscrowd": int(n % 15 == 7)})
        shifted = [polygon[i] + int(generator.integers(-1, 2)) for i in range(8)]
        code = rle.to_json(rle.to_compressed([shifted], *SIZE))
        results.append({**entry, "segmentation": code, "score": float(generator.random())})
    data = coco(*annotations, images=6)
    split = read(tmp_path, data)
    stats = []
    for truth in (data, json.loads(json.dumps(split.ground_truth()))):
        with contextlib.redirect_stdout(io.StringIO()):
            ground = COCO()
            ground.dataset = truth
            ground.createIndex()
            evaluation = COCOeval(ground, ground.loadRes([dict(r) for r in results]), "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        stats.append(evaluation.stats)
    assert 0.05 < stats[0][0] < 0.95  # neither trivially right nor wrong
    np.testing.assert_array_equal(stats[0], stats[1])


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (("annotations/instances_train2017.json", "train2017"), ("annotations/instances_val2017.json", "val2017")),
        (
            ("annotations/instances_train2014.json", "images/train2014"),
            ("annotations/instances_val2014.json", "images/val2014"),
        ),
        (("annotations/instances_train.json", "train"), ("annotations/instances_val.json", "val")),
        (("annotations/train.json", "images"), ("annotations/val.json", "images")),
        (("train/_annotations.coco.json", "train"), ("valid/_annotations.coco.json", "valid")),
        (("train.json", "train"), ("val.json", "val")),
    ],
)
def test_known_layout_is_found(train: tuple[str, str], val: tuple[str, str], tmp_path: Path) -> None:
    for file, folder in (train, val):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    layout = find_splits(tmp_path)
    assert layout.train == (tmp_path / train[0], tmp_path / train[1])
    assert layout.val == (tmp_path / val[0], tmp_path / val[1])


def test_explicit_paths_are_taken_relative_to_the_root_or_as_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "my, data=[é]"
    (root / "photos").mkdir(parents=True)
    (root / "labels.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    layout = find_splits(root, "labels.json", "photos", root / "labels.json", f"{root.name}/photos")
    assert layout.train == (root / "labels.json", root / "photos")
    assert layout.val == (root / "labels.json", Path(root.name) / "photos")


def test_layout_that_does_not_fit_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"instances_train2017\.json.*_annotations\.coco\.json.*data\.train_annotations=FILE"
    ):
        find_splits(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        find_splits(tmp_path / "missing")
    with pytest.raises(DataError, match="no such file"):
        find_splits(tmp_path, train_annotations="missing.json")
    (tmp_path / "train.json").write_text("{}")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="val split"):
        find_splits(tmp_path)
    assert find_splits(tmp_path, required=("train",)).val is None


def test_split_without_its_images_does_not_hinder_the_other(tmp_path: Path) -> None:
    for folder in ("annotations", "val"):
        (tmp_path / folder).mkdir()
    for name in ("train", "val"):
        (tmp_path / f"annotations/{name}.json").write_text("{}")
    assert find_splits(tmp_path, required=("val",)) == (None, (tmp_path / "annotations/val.json", tmp_path / "val"))
    with pytest.raises(DataError, match=r"no folder of train images.*data\.train_images=DIR"):
        find_splits(tmp_path, required=("train",))


def test_fifty_thousand_annotations_are_read_in_seconds(tmp_path: Path) -> None:

    data = coco(images=1000)
    base = {"category_id": 9, "segmentation": [SQUARE * 4], "bbox": [4, 4, 8, 8], "area": 64, "iscrowd": 0}
    data["annotations"] = [{"id": n, "image_id": n % 1000 + 1, **base} for n in range(1, 50_001)]
    start = time.process_time()
    split = read(tmp_path, data)
    assert time.process_time() - start < 15  # 1.5 s where this was written; quadratic code would take minutes
    assert len(split.records[999].annotations) == 50
