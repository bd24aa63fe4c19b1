"""mIoU and accuracies by hand, and what the evaluator writes."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from vision_stack.metrics import SemanticEvaluator
from vision_stack.metrics.semantic import confusion
from vision_stack.structures import Category, SemanticSegmentation

CATEGORIES = (Category(id=7, name="road"), Category(id=300, name="sky"), Category(id=2, name="car"))


def label_map(rows):
    return SemanticSegmentation(torch.tensor(rows, dtype=torch.int32))


def evaluate(*pairs):
    evaluator = SemanticEvaluator({n: label_map(true) for n, (true, _) in enumerate(pairs)}, CATEGORIES)
    for n, (_, found) in enumerate(pairs):
        evaluator.update(n, label_map(found))
    return evaluator


def test_perfect_is_one_and_absent_classes_do_not_count():
    metrics = evaluate(([[0, 0, 1]], [[0, 0, 1]])).compute()
    assert (metrics["mIoU"], metrics["pixel_accuracy"], metrics["mean_accuracy"]) == (1.0, 1.0, 1.0)
    assert metrics["per_class"]["car"] == {"IoU": None, "accuracy": None}


def test_iou_and_accuracies_by_hand():
    """Road: 3 of 4 hit, 1 pixel of sky taken for road. Sky: 1 of 2. A car is found that is none."""
    metrics = evaluate(([[0, 0, 0, 0, 1, 1]], [[0, 0, 0, 2, 1, 0]])).compute()
    assert metrics["per_class"]["road"] == {"IoU": pytest.approx(3 / 5), "accuracy": 3 / 4}
    assert metrics["per_class"]["sky"] == {"IoU": 1 / 2, "accuracy": 1 / 2}
    assert metrics["mIoU"] == pytest.approx((3 / 5 + 1 / 2) / 2)
    assert metrics["mean_accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert metrics["pixel_accuracy"] == pytest.approx(4 / 6)


def test_ignored_pixels_count_neither_way():
    plain = evaluate(([[0, 0, 1]], [[0, 1, 1]])).compute()
    assert evaluate(([[0, 0, 1, -1, -1]], [[0, 1, 1, 0, 2]])).compute() == plain
    assert evaluate(([[-1]], [[0]])).compute()["mIoU"] is None


def test_images_accumulate_before_the_ratio():
    metrics = evaluate(([[0, 0, 0, 0]], [[0, 0, 0, 0]]), ([[0]], [[1]])).compute()
    assert metrics["per_class"]["road"]["IoU"] == pytest.approx(4 / 5)


def test_ranks_merge_and_what_is_kept_does_not_grow_with_the_classes():
    categories = tuple(Category(id=n, name=str(n)) for n in range(1000))
    truth = {n: label_map([[n, 500]]) for n in range(4)}
    ranks = [SemanticEvaluator(truth, categories) for _ in range(2)]
    for n in truth:
        ranks[n % 2].update(n, label_map([[n, n]]))
    assert len(pickle.dumps(ranks[0].state())) < 5000
    ranks[0].merge([ranks[1].state()])
    metrics = ranks[0].compute()
    assert [metrics["per_class"][str(n)]["IoU"] for n in (0, 3, 500)] == [1 / 2, 1 / 2, 0.0]
    assert metrics["pixel_accuracy"] == 1 / 2


@pytest.mark.parametrize("num_classes", [4, 20_000])  # counted in a table, and by sorting
def test_confusion_of_random_maps_equals_counting_pixels(num_classes):
    rng = np.random.default_rng(0)
    true, found = rng.integers(-1, 4, (30, 20)), rng.integers(0, 4, (30, 20))
    expected = {(i, j): int(((true == i) & (found == j)).sum()) for i in range(4) for j in range(4)}
    cells = zip(*(column.tolist() for column in confusion(true, found, num_classes)), strict=True)
    assert {(i, j): pixels for i, j, pixels in cells} == expected
    with pytest.raises(ValueError, match="size"):
        confusion(true, found[:5], num_classes)


def test_report_has_the_pixels_of_all_images_and_iou_by_class():
    pairs = (([[0, 0, 0, -1]], [[0, 1, 1, 1]]), ([[0, 1]], [[0, 1]]))
    evaluator = evaluate(*pairs)
    metrics = evaluator.compute()
    report = evaluator.report(metrics)
    assert list(zip(*(column.tolist() for column in report.confusion), strict=True)) == [
        (0, 0, 2),
        (0, 1, 2),
        (1, 1, 1),
    ]
    assert (report.unit, report.score_name) == ("pixels", "IoU")
    assert report.class_scores == {"road": 2 / 4, "sky": 1 / 3}


def test_label_maps_carry_original_ids_beyond_eight_bits():
    evaluator = evaluate(([[0, 1, 2]], [[2, 1, 0]]))
    (record,) = evaluator.results()["annotations"]
    png = np.asarray(Image.open(io.BytesIO(evaluator.files()[record["file_name"]])))
    assert png.tolist() == [[2, 300, 7]]


def test_category_id_that_no_label_map_can_hold_is_refused_at_once():
    with pytest.raises(ValueError, match="id 70000 is not a value of a label map"):
        SemanticEvaluator({}, (Category(id=70000, name="a"),))
