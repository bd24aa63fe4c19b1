"""Thousands of classes: time and memory grow with their number, not with its square nor with that of images as well."""

import io
import pickle
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from rich.console import Console

from vision_stack.data.checks.categories import read_categories
from vision_stack.data.checks.issues import Findings
from vision_stack.metrics import CocoEvaluator, PanopticEvaluator, SemanticEvaluator, format_table
from vision_stack.metrics.base import class_names
from vision_stack.metrics.table import MAX_ROWS
from vision_stack.structures import Category, Instances, PanopticSegmentation, SemanticSegmentation
from vision_stack.training.start import describe_classes
from vision_stack.training.summary import describe_data
from vision_stack.weights.class_names import match_classes

COUNT = 16_000
CATEGORIES = tuple(Category(id=n, name=f"class {n}") for n in range(COUNT))
MIB = 2**20


def peak(work):
    """The result of `work`, and the bytes that it had allocated at most."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_average_precision_of_two_in_sixteen_thousand_classes_takes_little_memory():
    square = np.zeros((20, 20), np.uint8, order="F")
    square[5:15, 5:15] = 1
    rle = coco_mask.encode(square)
    annotations = [
        {"id": n, "image_id": n, "category_id": 7 * n, "segmentation": {**rle, "counts": rle["counts"].decode()}}
        for n in (1, 2)
    ]
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 20, "width": 20} for n in range(50)]
    truth = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": c.id, "name": c.name} for c in CATEGORIES],
    }
    evaluator = CocoEvaluator(truth, CATEGORIES)
    box = torch.tensor([[5.0, 5, 15, 15]])
    evaluator.update(1, Instances(box, torch.tensor([7]), torch.ones(1), [rle]))
    metrics, used = peak(evaluator.compute)  # pycocotools' own tables of all these classes take 6 GB
    assert used < 40 * MIB
    assert metrics["segm"]["AP"] == pytest.approx(0.5)
    assert metrics["per_class"]["class 7"]["segm"] == pytest.approx(1.0)
    assert metrics["per_class"]["class 8"]["segm"] is None
    assert len(metrics["per_class"]) == COUNT


def test_mean_iou_of_sixteen_thousand_classes_has_no_square_table():
    truth = {1: SemanticSegmentation(torch.tensor([[5, 5, 15_000]], dtype=torch.int32))}
    evaluator = SemanticEvaluator(truth, CATEGORIES)
    found = SemanticSegmentation(torch.tensor([[5, 7, 15_000]], dtype=torch.int32))
    metrics, used = peak(lambda: evaluator.update(1, found) or evaluator.compute())
    assert used < 20 * MIB
    assert metrics["mIoU"] == pytest.approx((1 / 2 + 1) / 2)


def test_panoptic_state_of_an_image_does_not_grow_with_the_classes():
    rows, labels = torch.tensor([[1, 1, 2]], dtype=torch.int32), torch.tensor([3, 12_000])
    truth = {
        1: type(
            "Truth",
            (),
            {"segmentation": PanopticSegmentation(rows, labels, torch.ones(2)), "is_crowd": np.zeros(2, bool)},
        )
    }
    evaluator = PanopticEvaluator(truth, CATEGORIES)
    evaluator.update(1, truth[1].segmentation)
    assert len(pickle.dumps(evaluator.state())) < 2000
    assert evaluator.compute()["all"] == {"PQ": 1.0, "SQ": 1.0, "RQ": 1.0, "classes": 2}


class CountedName(str):
    comparisons = 0

    def __eq__(self, other):
        CountedName.comparisons += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_names_are_told_apart_without_comparing_each_with_each():
    names = [CountedName(n // 2) for n in range(2000)]
    assert class_names(names, range(2000))[:3] == ["0 (0)", "0 (1)", "1 (2)"]
    assert CountedName.comparisons < 5 * len(names)


def test_categories_of_one_supercategory_are_read_in_linear_time():
    listed = [{"id": n, "name": f"name {n}", "supercategory": "all"} for n in range(COUNT)]
    listed[0] = {"id": 0, "name": "all", "supercategory": "none"}
    given = tuple(Category(id=n, name=f"other {n}") for n in range(COUNT))
    used = Counter(range(1, COUNT))
    start = time.process_time()
    classes, _ = read_categories(listed, used, Findings("a.json"))
    findings = Findings("a.json")
    read_categories(listed, used, findings, given)
    assert time.process_time() - start < 4  # 0.2 s; each with each takes a minute
    assert len(classes) == COUNT - 1
    (problem,) = findings.problems
    assert len(str(problem)) < 500


def test_table_of_very_many_classes_shows_the_best_and_the_worst():
    summary = dict.fromkeys(
        ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"), 0.5
    )
    per_class = {f"class {n}": {"segm": n / COUNT} for n in range(COUNT)}
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(format_table({"segm": summary, "per_class": per_class}))
    text = console.file.getvalue()
    assert len(text.splitlines()) < MAX_ROWS + 20
    assert f"{COUNT - MAX_ROWS:,} classes between the best and the worst left out here" in text
    assert f"class {COUNT - 1} " in text
    assert "class 0 " in text


def test_names_of_twenty_thousand_letters_keep_lines_short():
    names = [f"{n} {'a' * 20_000}" for n in range(3)]
    categories = [Category(id=n, name=name) for n, name in enumerate(names)]
    lines = [*describe_data(categories, 1, 1, 0), *describe_classes(match_classes(names, names[:2]), names[:2])]
    assert max(map(len, lines)) < 200
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(SemanticEvaluator({}, categories).table(SemanticEvaluator({}, categories).compute()))
    assert len(console.file.getvalue().splitlines()) < 12
