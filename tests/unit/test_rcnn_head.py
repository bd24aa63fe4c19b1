"""What the detectors add to torchvision's: ignored regions; and recipes that set values of another head."""

from typing import Any

import pytest
import torch

from vision_stack.heads.rcnn import FasterRCNNHead, FasterRCNNHeadConfig, covered
from vision_stack.structures import Features, FeatureSpec
from vision_stack.training.auto import fitting

SPECS = tuple(FeatureSpec(f"p{i}", 8, 2**i) for i in range(2, 6))


def test_covered_is_the_largest_share_of_a_box_in_one_region() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    regions = torch.tensor([[5.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 2.0]])
    assert covered(boxes, regions).tolist() == [0.5, 0.0]


def small(version: Any) -> FasterRCNNHead:
    options = {"representation_size": 8, "rpn_post_nms_top_n": 10, "rpn_pre_nms_top_n": 50}
    return FasterRCNNHeadConfig(version=version, **options).build(SPECS, 2)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_ignored_region_over_the_whole_image_leaves_no_background_to_learn(version: str) -> None:
    head = small(version).train()
    maps = tuple(torch.randn(1, 8, 64 // s.stride, 64 // s.stride) for s in SPECS)
    features = Features(maps, (64, 64), ((64, 64),))
    empty = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    everything = torch.tensor([[-1000.0, -1000.0, 1000.0, 1000.0]])
    plain = head.compute_loss(head(features, [empty]), [empty])
    ignoring = head.compute_loss(head(features, [{**empty, "ignored": everything}]), [empty])
    assert plain["loss_objectness"] > 0.1
    assert plain["loss_classifier"] > 0.1
    assert ignoring.keys() == plain.keys()
    assert [loss.item() for loss in ignoring.values()] == [0.0] * len(plain)  # not the mean over no anchors at all
    total = sum(ignoring.values())
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize("counts", [(0, 0), (0, 1), (500, 0)])
def test_any_number_of_objects_has_finite_losses_and_gradients(counts: tuple[int, int]) -> None:
    head = small("v2").train()
    maps = tuple(torch.randn(2, 8, 64 // s.stride, 64 // s.stride) for s in SPECS)
    targets = []
    for count in counts:
        corners = torch.rand(count, 2) * 40
        boxes = torch.cat([corners, corners + 1 + 20 * torch.rand(count, 2)], dim=1)
        targets.append({"labels": torch.arange(count) % 2, "boxes": boxes})
    total = sum(head.compute_loss(head(Features(maps, (64, 64), ((64, 64),) * 2), targets), targets).values())
    total.backward()
    assert total.isfinite()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)
    assert all(torch.isfinite(b).all() for b in head.buffers())


def test_values_of_the_datas_recipe_for_another_head_are_left_out_unless_typed() -> None:
    options = {"neck": {"type": "fpn", "channels": 64}, "head": {"type": "faster_rcnn", "num_queries": 20}}
    assert fitting(options, ["head=faster_rcnn"])["head"] == {"type": "faster_rcnn"}
    assert fitting(options, ["head=faster_rcnn"])["neck"] == options["neck"]
    assert fitting(options, ["head.num_queries=20"]) == options
    assert fitting(options, ["experiment=mine"]) == options
