"""Which detections the pictures of validation images show, and what their captions say."""

import pytest
import torch

from vision_stack.structures import Instances, PanopticSegmentation, SemanticSegmentation
from vision_stack.training.tasks import TASKS

POINT = {"threshold": 0.31, "precision": 0.5, "recall": 0.5, "f1": 0.5}
NOTHING = {"threshold": 0.03, "precision": 0.0, "recall": 0.0, "f1": 0.0}
TASK = TASKS["instance"]


def instances(*scores: float) -> Instances:
    count = len(scores)
    return Instances(torch.zeros(count, 4), torch.zeros(count, dtype=torch.int64), torch.tensor(scores), [{}] * count)


@pytest.mark.parametrize(
    ("scores", "num_objects", "point", "shown", "caption"),
    [
        ((0.9, 0.4, 0.1), 2, POINT, [0.9, 0.4], "prediction: 2 with score >= 0.31, best F1"),
        ((0.9, 0.4, 0.1), 2, None, [0.9], "prediction: 1 with score >= 0.5"),
        ((0.1, 0.2), 0, POINT, [], "prediction: 0 with score >= 0.31, best F1"),  # rightly none
        ((0.1, 0.2), 1, POINT, [0.2, 0.1], "prediction: none with score >= 0.31, best F1\nthe 2 best of 2 shown"),
        (
            (0.01, 0.06, 0.02, 0.05, 0.03, 0.04), 1, NOTHING, [0.06, 0.05, 0.04, 0.03, 0.02],
            "prediction: no correct detection in any image\nthe 5 best of 6 shown",
        ),
        ((), 1, NOTHING, [], "prediction: no correct detection in any image\nno detections"),
        ((), 1, POINT, [], "prediction: none with score >= 0.31, best F1\nno detections"),
    ],
)  # fmt: skip
def test_detections_from_the_best_f1_on_or_else_the_best_few_and_the_caption_says_which(
    scores: tuple[float, ...], num_objects: int, point: dict[str, float] | None, shown: list[float], caption: str
) -> None:
    found, text = TASK.chosen(instances(*scores), instances(*[1.0] * num_objects), point)
    assert found.scores.tolist() == pytest.approx(shown)
    assert text == caption


def test_segmentations_without_scores_to_choose_by_are_shown_whole() -> None:
    found = SemanticSegmentation(torch.zeros(2, 2, dtype=torch.int32))
    assert TASKS["semantic"].chosen(found, found, None) == (found, "prediction")


@pytest.mark.parametrize(
    ("count", "caption"), [(2, "prediction: 2 segments"), (0, "prediction: no segments above panoptic.score_threshold")]
)
def test_segments_are_shown_whole_and_the_caption_says_where_there_are_none(count: int, caption: str) -> None:
    labels = torch.zeros(count, dtype=torch.int64)
    found = PanopticSegmentation(torch.zeros(2, 2, dtype=torch.int32), labels, torch.ones(count))
    assert TASKS["panoptic"].chosen(found, found, None) == (found, caption)
