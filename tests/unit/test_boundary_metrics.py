"""Boundary IoU against erosion step by step, and boundary AP beside mask AP."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from vision_stack.metrics import CocoEvaluator
from vision_stack.metrics.boundary import boundary
from vision_stack.structures import Category, Instances


def plain_boundary(mask, dilation=0.02):
    """The paper's code: pad by a row of nothing, erode by 3 x 3 so many times, subtract."""
    steps = max(1, round(dilation * np.hypot(*mask.shape)))
    padded = np.pad(mask, 1)
    eroded = padded.copy()
    for _ in range(steps):
        eroded = np.pad(eroded, 1)
        shifted = [eroded[y : y + padded.shape[0], x : x + padded.shape[1]] for y in range(3) for x in range(3)]
        eroded = np.logical_and.reduce(shifted)
    return mask & ~eroded[1:-1, 1:-1]


def disc(height, width, y, x, radius):
    rows, columns = np.mgrid[:height, :width]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


@pytest.mark.parametrize("size", [(120, 200), (31, 17)])
@pytest.mark.parametrize("kind", ["disc", "at the border", "noise", "full", "empty", "one pixel"])
def test_boundary_any_mask_equals_erosion_step_by_step(size, kind):
    height, width = size
    mask = {
        "disc": disc(height, width, height / 2, width / 2, height / 3),
        "at the border": disc(height, width, 2, width - 3, height / 2),
        "noise": np.random.default_rng(0).random(size) < 0.95,
        "full": np.ones(size, bool),
        "empty": np.zeros(size, bool),
        "one pixel": np.arange(height * width).reshape(size) == width + 3,
    }[kind]
    assert np.array_equal(boundary(mask), plain_boundary(mask))
    assert np.array_equal(boundary(mask, 0.1), plain_boundary(mask, 0.1))


def evaluator_of(true, found, kinds=("segm", "bbox", "boundary"), crowds=()):
    height, width = true[0].shape
    annotations = [
        {"id": n, "image_id": 1, "category_id": 4, "iscrowd": int(n > len(true)), "segmentation": encode(mask)}
        for n, mask in enumerate([*true, *crowds], 1)
    ]
    content = {
        "images": [{"id": 1, "height": height, "width": width}],
        "annotations": annotations,
        "categories": [{"id": 4, "name": "disc"}],
    }
    evaluator = CocoEvaluator(content, (Category(id=4, name="disc"),), kinds)
    rles = [encode(mask) for mask in found]
    count = len(found)
    evaluator.update(
        1, Instances(torch.zeros(count, 4), torch.zeros(count).long(), torch.linspace(0.9, 0.5, count), rles)
    )
    return evaluator


def encode(mask):
    return coco_mask.encode(np.asfortranarray(mask).view(np.uint8))


def test_boundary_ap_counts_the_lesser_of_both_ious():
    """A large disc two pixels off: its mask IoU is above 0.95, its outline's IoU is not."""
    true, found = disc(200, 200, 100, 100, 80), disc(200, 200, 100, 102, 80)

    def iou(a, b):
        return (a & b).sum() / (a | b).sum()

    expected_mask = iou(true, found)
    expected_boundary = min(expected_mask, iou(plain_boundary(true), plain_boundary(found)))
    assert expected_mask > 0.95 > expected_boundary + 0.2
    metrics = evaluator_of([true], [found]).compute()
    thresholds = np.arange(0.5, 1.0, 0.05)
    assert metrics["segm"]["AP"] == pytest.approx((expected_mask >= thresholds).mean())
    assert metrics["boundary"]["AP"] == pytest.approx((expected_boundary >= thresholds).mean())
    assert metrics["per_class"]["disc"]["boundary"] == metrics["boundary"]["AP"]


def test_boundary_ap_of_several_objects_in_any_order_is_one_where_all_are_met():
    true = [disc(100, 100, y, x, r) for y, x, r in ((25, 25, 20), (70, 70, 25), (30, 75, 10))]
    metrics = evaluator_of(true, [true[2], true[0], true[1]]).compute()
    assert metrics["boundary"]["AP"] == metrics["segm"]["AP"] == pytest.approx(1.0)


def test_boundary_ap_leaves_mask_and_box_ap_alone_and_is_logged():
    true, found = [disc(100, 100, 50, 50, 30)], [disc(100, 100, 53, 50, 30)]
    plain, evaluator = evaluator_of(true, found, ("segm", "bbox")), evaluator_of(true, found)
    metrics = evaluator.compute()
    assert {kind: metrics[kind] for kind in ("segm", "bbox")} == {
        kind: plain.compute()[kind] for kind in ("segm", "bbox")
    }
    assert evaluator.scalars(metrics)["boundary_AP"] == metrics["boundary"]["AP"]
    assert next(iter(evaluator.scalars(metrics))) == "segm_AP"  # the score stays mask AP
    assert "boundary AP" in evaluator.one_line(metrics)


def test_boundary_ap_crowd_regions_absorb_detections_by_their_masks():
    """boundary-iou-api gives 1.0: the two discs inside the crowd are ignored, whatever their outlines."""
    crowd = np.zeros((200, 200), bool)
    crowd[:100] = True
    inside, alone = [disc(200, 200, 50, x, 30) for x in (50, 140)], disc(200, 200, 150, 100, 30)
    metrics = evaluator_of([alone], [*inside, alone], crowds=[crowd]).compute()
    assert metrics["boundary"]["AP"] == metrics["segm"]["AP"] == pytest.approx(1.0)
    partly = disc(200, 200, 110, 100, 30)  # less than half of it in the crowd: a false detection, ahead of the true one
    assert evaluator_of([alone], [partly, alone], crowds=[crowd]).compute()["boundary"]["AP"] == pytest.approx(0.5)
    crowds = [crowd, disc(200, 200, 150, 100, 33)]  # around an object: only the object asks for its outline
    assert evaluator_of([alone], [alone], crowds=crowds).compute()["boundary"]["AP"] == pytest.approx(1.0)
