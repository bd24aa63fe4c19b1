"""Suppression against torchvision's, and the soft one against the paper's loop."""

import math

import pytest
import torch
from torchvision.ops import batched_nms, box_iou, nms

from vision_stack.postprocess.nms import Suppression, suppress


def boxes_of(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, generator=generator) * 60
    boxes = torch.cat([corners, corners + 10 + 30 * torch.rand(count, 2, generator=generator)], 1)
    return boxes, torch.randint(3, (count,), generator=generator), torch.rand(count, generator=generator)


def test_hard_is_torchvisions_by_class_or_over_all_classes() -> None:
    boxes, labels, scores = boxes_of(80)
    kept, kept_scores = suppress(boxes, labels, scores, Suppression(), limit=100)
    assert torch.equal(kept, batched_nms(boxes, scores, labels, 0.5))
    assert torch.equal(kept_scores, scores[kept])
    agnostic, _ = suppress(boxes, labels, scores, Suppression(class_agnostic=True, iou_threshold=0.3), limit=100)
    assert torch.equal(agnostic, nms(boxes, scores, 0.3))
    assert len(agnostic) < len(kept)


@pytest.mark.parametrize("agnostic", [False, True])
def test_soft_is_the_papers_loop(agnostic: bool) -> None:
    boxes, labels, scores = boxes_of(40)
    left, order, found = scores.tolist(), [], []
    overlap = box_iou(boxes, boxes).tolist()
    for _ in range(25):
        best = max((n for n in range(40) if n not in order), key=lambda n: left[n])
        order.append(best)
        found.append(left[best])
        for n in range(40):
            if agnostic or labels[n] == labels[best]:
                left[n] *= math.exp(-(overlap[best][n] ** 2) / 0.3)
    how = Suppression("soft", class_agnostic=agnostic, sigma=0.3)
    kept, kept_scores = suppress(boxes, labels, scores, how, limit=25)
    assert kept.tolist() == order
    torch.testing.assert_close(kept_scores, torch.tensor(found), rtol=1e-4, atol=1e-6)
    assert (kept_scores.diff() <= 0).all()


@pytest.mark.parametrize("method", ["hard", "soft"])
def test_limit_and_lowest_score_hold_and_no_boxes_are_fine(method: str) -> None:
    boxes, labels, scores = boxes_of(40)
    how = Suppression(method)  # type: ignore[arg-type]
    assert len(suppress(boxes, labels, scores, how, limit=5)[0]) == 5
    kept, kept_scores = suppress(boxes, labels, scores, how, limit=40, min_score=0.6)
    assert 0 < len(kept) < 40
    assert (kept_scores >= 0.6).all()
    kept, kept_scores = suppress(boxes[:0], labels[:0], scores[:0], how, limit=5)
    assert len(kept) == len(kept_scores) == 0


def test_soft_takes_boxes_without_area() -> None:
    boxes, labels, scores = boxes_of(20)
    boxes[3, 2:] = boxes[3, :2]
    kept, kept_scores = suppress(boxes, labels, scores, Suppression("soft"), limit=20)
    assert sorted(kept.tolist()) == list(range(20))
    assert kept_scores.isfinite().all()
