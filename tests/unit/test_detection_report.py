"""Operating point, curves and confusion of detections, by hand."""

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vision_stack.metrics.detection_report import (
    Matches,
    best_f1,
    class_matches,
    interpolated,
    object_confusion,
    precision_recall,
    together,
)


def matches(scores: list[float], correct: list[bool], num_objects: int) -> Matches:
    return Matches(np.array(scores, float), np.array(correct, bool), num_objects)


def test_precision_recall_equal_scores_are_kept_or_dropped_together() -> None:
    thresholds, precision, recall = precision_recall(matches([0.9, 0.5, 0.5, 0.1], [True, False, True, False], 4))
    assert thresholds.tolist() == [0.9, 0.5, 0.1]
    assert precision.tolist() == [1.0, 2 / 3, 0.5]
    assert recall.tolist() == [0.25, 0.5, 0.5]


def test_best_f1_is_the_threshold_with_the_best_balance() -> None:
    point = best_f1(matches([0.9, 0.8, 0.7, 0.6], [True, True, False, False], 3))
    assert point is not None
    assert point.threshold == 0.8
    assert (point.precision, point.recall) == (1.0, 2 / 3)
    assert point.f1 == pytest.approx(0.8)


def test_best_f1_model_that_finds_nothing_keeps_as_many_as_there_are_objects() -> None:
    point = best_f1(matches([0.04, 0.03, 0.02, 0.01], [False] * 4, 2))
    assert point is not None
    assert (point.threshold, point.f1) == (0.03, 0.0)


@pytest.mark.parametrize("nothing", [matches([], [], 3), matches([0.5], [False], 0)])
def test_best_f1_without_objects_or_detections_there_is_none(nothing: Matches) -> None:
    assert best_f1(nothing) is None


def test_together_takes_all_classes_as_one() -> None:
    both = together([matches([0.9], [True], 1), matches([0.8], [False], 2)])
    assert (both.scores.tolist(), both.correct.tolist(), both.num_objects) == ([0.9, 0.8], [True, False], 3)
    assert together([]).num_objects == 0


def box(x: float, category: int = 1, **more: object) -> dict:
    return {"image_id": 1, "category_id": category, "bbox": [x, 0.0, 10.0, 10.0], "area": 100.0, **more}


def test_class_matches_are_those_of_pycocotools_without_crowds() -> None:
    truth, results = COCO(), COCO()
    images, categories = [{"id": 1, "height": 20, "width": 100}], [{"id": 1, "name": "a"}]
    objects = [box(0, id=1, iscrowd=0), box(30, id=2, iscrowd=0), box(60, id=3, iscrowd=1)]
    found = [box(1, id=1, score=0.9), box(50, id=2, score=0.8), box(61, id=3, score=0.7)]
    truth.dataset = {"images": images, "categories": categories, "annotations": objects}
    results.dataset = {"images": images, "categories": categories, "annotations": [{**r, "iscrowd": 0} for r in found]}
    truth.createIndex()
    results.createIndex()
    evaluation = COCOeval(truth, results, "bbox")
    evaluation.evaluate()
    result = class_matches(evaluation)
    assert result.num_objects == 2
    assert sorted(zip(result.scores.tolist(), result.correct.tolist(), strict=True)) == [(0.8, False), (0.9, True)]


def test_interpolated_is_what_coco_averages() -> None:
    """Three of four objects, with false ones between: the best precision at a recall or a higher one."""
    precision = interpolated(matches([0.9, 0.8, 0.7, 0.6, 0.5], [True, False, True, True, False], 4))
    assert precision[:26].tolist() == [1.0] * 26  # up to a recall of 1/4
    assert precision[26:76].tolist() == [0.75] * 50  # three of the first four
    assert precision[76:].tolist() == [0.0] * 25
    assert interpolated(matches([], [], 3)).tolist() == [0.0] * 101


def test_object_confusion_by_true_and_found_class_where_two_is_nothing() -> None:
    truth = {1: [box(0, 1), box(30, 2), box(60, 1, iscrowd=1)], 2: [box(0, 2)]}
    found = {
        1: [box(0, 2, score=0.9), box(30, 2, score=0.8), box(61, 1, score=0.7), box(85, 1, score=0.6)],
        3: [box(0, 1, score=0.9), box(0, 1, score=0.1)],
    }
    confusion = object_confusion(truth, found, {1: 0, 2: 1}, 0.5, boxes=True)
    assert list(zip(*(column.tolist() for column in confusion), strict=True)) == [
        (0, 1, 1),  # the first object of class 1 is taken for class 2
        (1, 1, 1),  # one of class 2 is found, the one in image 2 is missed
        (1, 2, 1),
        (2, 0, 2),  # false detections, of image 1 and 3; the one in the crowd does not count
    ]
    assert confusion.to_csv(["a cat", "b, or c"], [7, 9]).splitlines() == [
        "true_id,true,found_id,found,count",
        '7,a cat,9,"b, or c",1',
        '9,"b, or c",9,"b, or c",1',
        '9,"b, or c",,,1',
        ",,7,a cat,2",
    ]


def test_object_confusion_of_nothing_has_no_cells() -> None:
    assert [len(column) for column in object_confusion({}, {}, {1: 0}, 0.5)] == [0, 0, 0]
