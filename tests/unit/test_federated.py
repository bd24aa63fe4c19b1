"""LVIS' evaluation: a class counts in the images in which it was looked for."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from vision_stack.data.readers.coco import read_coco
from vision_stack.metrics.coco import CocoEvaluator
from vision_stack.ops import rle
from vision_stack.structures import Category, Instances

SQUARE, ELSEWHERE = (0, 0, 10, 10), (20, 20, 30, 30)
CATEGORIES = (Category(id=1, name="cat"), Category(id=2, name="dog"))


def mask(box: tuple[int, int, int, int]) -> np.ndarray:
    x0, y0, x1, y1 = box
    pixels = np.zeros((40, 40), bool)
    pixels[y0:y1, x0:x1] = True
    return pixels


def found(*objects: tuple[int, tuple[int, int, int, int], float]) -> Instances:
    """label, box, score."""
    labels, boxes, scores = (list(column) for column in zip(*objects, strict=True))
    masks = rle.encode(np.stack([mask(box) for box in boxes]))
    return Instances(torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels), torch.tensor(scores), masks)


def evaluate(**said: list[int]) -> dict[str, float | None]:
    """A cat that is there; in the second image, a cat and a dog are claimed that are not annotated."""
    truth = {
        "images": [
            {"id": 1, "height": 40, "width": 40, "neg_category_ids": [], "not_exhaustive_category_ids": []},
            {"id": 2, "height": 40, "width": 40, "neg_category_ids": [], "not_exhaustive_category_ids": [], **said},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": rle.encode(mask(SQUARE)), "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 2, "segmentation": rle.encode(mask(ELSEWHERE)), "iscrowd": 0},
        ],
        "categories": [{"id": c.id, "name": c.name} for c in CATEGORIES],
    }
    evaluator = CocoEvaluator(truth, CATEGORIES)
    evaluator.update(1, found((0, SQUARE, 0.5)))
    evaluator.update(2, found((0, SQUARE, 0.9), (1, SQUARE, 0.9), (1, ELSEWHERE, 0.5)))
    return {name: scores["segm"] for name, scores in evaluator.compute()["per_class"].items()}


def test_class_that_was_not_looked_for_in_an_image_does_not_count_there() -> None:
    assert evaluate() == pytest.approx({"cat": 1.0, "dog": 0.5})


def test_class_that_is_absent_by_annotation_counts_as_false() -> None:
    assert evaluate(neg_category_ids=[1]) == pytest.approx({"cat": 0.5, "dog": 0.5})


def test_class_that_is_not_annotated_exhaustively_has_no_false_detections() -> None:
    assert evaluate(not_exhaustive_category_ids=[2]) == pytest.approx({"cat": 1.0, "dog": 1.0})


def test_rare_common_and_frequent_classes_have_means_of_their_own() -> None:
    """Where the json says which these are, up to the table."""
    names = {1: "f", 2: "r", 3: "c", 4: "r"}
    truth = {
        "images": [{"id": 1, "height": 40, "width": 40}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": n, "segmentation": rle.encode(mask(SQUARE)), "iscrowd": 0}
            for n in (1, 2, 4)
        ],
        "categories": [{"id": n, "name": f"class {n}", "frequency": letter} for n, letter in names.items()],
    }
    evaluator = CocoEvaluator(truth, [Category(id=n, name=f"class {n}") for n in names])
    evaluator.update(1, found((0, SQUARE, 0.9), (1, SQUARE, 0.9), (3, ELSEWHERE, 0.9)))
    metrics = evaluator.compute()
    assert {name: metrics["segm"][name] for name in ("AP", "APr", "APc", "APf")} == {
        "AP": pytest.approx(2 / 3),
        "APr": pytest.approx(0.5),  # one found, one not
        "APc": None,  # there is no object of it
        "APf": pytest.approx(1.0),
    }
    console = Console(width=80)
    with console.capture() as captured:
        console.print(evaluator.table(metrics))
    assert re.search(r"^APr +50\.0 +50\.0 *$", captured.get(), re.MULTILINE)
    for category in truth["categories"]:
        del category["frequency"]
    assert "APr" not in CocoEvaluator(truth, evaluator.categories).compute()["segm"]


def test_frequencies_of_an_lvis_json_reach_the_evaluation(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.jpg")
    annotation = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 9, 9], "segmentation": [[0, 0, 9, 0, 9, 9]]}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 40, "width": 40}],
        "annotations": [annotation],
        "categories": [{"id": 7, "name": "cat", "frequency": "c"}, {"id": 9, "name": "dog"}],
    }
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    truth = read_coco(tmp_path / "lvis.json", tmp_path).ground_truth()
    assert truth["categories"] == [{"id": 7, "name": "cat", "frequency": "c"}, {"id": 9, "name": "dog"}]
