"""What the detectors add to torchvision's: ignored regions, precise boxes, options of suppression, refusals."""

from typing import Any

import pytest
import torch

from vision_stack.config import ConfigError, from_dict
from vision_stack.heads.boxes import BoxHead, Candidates
from vision_stack.ops.boxes import covered
from vision_stack.structures import DecodeOptions, Features, FeatureSpec, ImageInfo
from vision_stack.training.auto import fitting

SPECS = tuple(FeatureSpec(f"p{i}", 32, 2**i) for i in range(2, 6))
TWO_STAGE = {"representation_size": 8, "rpn_post_nms_top_n": 10, "rpn_pre_nms_top_n": 50}
HEADS: dict[str, dict[str, Any]] = {
    "faster_rcnn": {"type": "faster_rcnn", **TWO_STAGE},
    "faster_rcnn_v2": {"type": "faster_rcnn", "version": "v2", **TWO_STAGE},
    "retinanet": {"type": "retinanet"},
    "retinanet_v2": {"type": "retinanet", "version": "v2"},
    "fcos": {"type": "fcos", "num_convs": 1},
}


def build(name: str, **options: Any) -> BoxHead[Any]:
    torch.manual_seed(0)
    head: BoxHead[Any] = from_dict({**HEADS[name], **options}, "head").build(SPECS, 2)
    return head


def features(count: int = 1, size: int = 64, dtype: torch.dtype = torch.float32) -> Features:
    generator = torch.Generator().manual_seed(0)
    maps = (torch.randn(count, 32, size // s.stride, size // s.stride, generator=generator) for s in SPECS)
    return Features(tuple(m.to(dtype) for m in maps), (size, size), ((size, size),) * count)


def test_covered_is_the_largest_share_of_a_box_in_one_region() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    regions = torch.tensor([[5.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 2.0]])
    assert covered(boxes, regions).tolist() == [0.5, 0.0]


@pytest.mark.parametrize("name", HEADS)
def test_ignored_region_over_the_whole_image_leaves_no_background_to_learn(name: str) -> None:
    head = build(name).train()
    empty = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    everything = torch.tensor([[-1000.0, -1000.0, 1000.0, 1000.0]])
    plain, ignoring = (
        head.compute_loss(head(features(), [target]), [target]) for target in (empty, {**empty, "ignored": everything})
    )
    assert sum(plain.values()) > 1e-4
    assert ignoring.keys() == plain.keys()
    assert [loss.item() for loss in ignoring.values()] == [0.0] * len(plain)  # not the mean over no anchors at all
    sum(ignoring.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", HEADS)
def test_object_in_an_ignored_region_is_still_learnt(name: str) -> None:
    head = build(name).train()
    target = {"labels": torch.tensor([1]), "boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]])}
    target["ignored"] = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
    losses = head.compute_loss(head(features(), [target]), [target])
    assert any(loss > 0.01 for key, loss in losses.items() if "class" in key or "objectness" in key)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("counts", [(0, 0), (0, 1), (500, 0)])
def test_any_number_of_objects_has_finite_losses_and_gradients(counts: tuple[int, int], name: str) -> None:
    head = build(name).train()
    targets = []
    for count in counts:
        corners = torch.rand(count, 2) * 40
        boxes = torch.cat([corners, corners + 1 + 20 * torch.rand(count, 2)], dim=1)
        targets.append({"labels": torch.arange(count) % 2, "boxes": boxes})
    total = sum(head.compute_loss(head(features(2), targets), targets).values())
    total.backward()
    assert total.isfinite()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)
    assert all(torch.isfinite(b).all() for b in head.buffers())


@pytest.mark.parametrize("name", HEADS)
def test_boxes_are_precise_in_bfloat16(name: str) -> None:
    """bfloat16 would round coordinates of an image of 1,024 pixels to multiples of 4 and 8."""
    head = build(name).eval()
    options = DecodeOptions(threshold=0.0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for parameter in head.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        for key, parameter in head.named_parameters():
            if key.endswith("cls_logits.bias"):
                parameter += 5  # from the prior probability of 0.01
        (found,) = head.detections(head(features(size=1024, dtype=torch.bfloat16)), options)
    assert len(found.boxes) > 5
    inner = found.boxes[(found.boxes > 512) & (found.boxes < 1023)]
    assert inner.dtype == torch.float32
    assert (inner % 1 > 0).float().mean() > 0.5


@pytest.mark.parametrize("name", HEADS)
def test_suppression_is_the_configs_until_it_is_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head = build(name, nms="soft", class_agnostic_nms=True).eval()
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 4], [50, 50, 60, 60]])
    fixed = [Candidates(boxes, torch.tensor([0, 0, 1, 1]), torch.tensor([0.9, 0.8, 0.7, 0.6]))]
    monkeypatch.setattr(head, "candidates", lambda outputs: fixed)

    def scores() -> list[float]:
        return [round(score, 3) for score in head.detections(None, DecodeOptions(threshold=0.0))[0].scores.tolist()]

    assert scores() == [0.9, 0.6, 0.508, 0.107]
    head.set_nms("hard", iou_threshold=0.3)
    assert scores() == [0.9, 0.6]
    head.set_nms(class_agnostic=False)
    assert scores() == [0.9, 0.7, 0.6]


def test_top_k_and_threshold_limit_detections_which_are_in_pixels_of_the_image() -> None:
    head = build("retinanet").eval()
    with torch.no_grad():
        head.head.classification_head.cls_logits.bias += 3
        outputs = head(features())
    info = ImageInfo(0, "", (128, 192), (64, 64))
    (many,) = head.predict(outputs, [info], "detection", DecodeOptions(threshold=0.0))
    (few,) = head.predict(outputs, [info], "detection", DecodeOptions(threshold=0.0, top_k=3))
    (good,) = head.predict(outputs, [info], "detection", DecodeOptions(threshold=float(many.scores[5])))
    assert len(many) > 6
    assert torch.equal(few.scores, many.scores[:3])
    assert len(good) >= 6
    assert good.scores.min() >= many.scores[5]
    assert many.boxes[:, 2].max() > 128


def test_group_norm_takes_channels_that_32_does_not_divide() -> None:
    narrow = tuple(spec._replace(channels=20) for spec in SPECS)
    for name in ("fcos", "retinanet_v2"):
        head = from_dict(HEADS[name], "head").build(narrow, 2)
        assert {m.num_groups for m in head.modules() if isinstance(m, torch.nn.GroupNorm)} == {4}


def test_map_that_is_missing_is_named_with_necks_that_have_it() -> None:
    with pytest.raises(ConfigError, match=r"head: retinanet needs maps .* at strides 8, 16, 32, .* use neck=fpn"):
        from_dict(HEADS["retinanet"], "head").build(SPECS[:2], 2)


def test_values_of_the_datas_recipe_for_another_head_are_left_out_unless_typed() -> None:
    options = {"neck": {"type": "fpn", "channels": 64}, "head": {"type": "faster_rcnn", "num_queries": 20}}
    assert fitting(options, ["head=faster_rcnn"])["head"] == {"type": "faster_rcnn"}
    assert fitting(options, ["head=faster_rcnn"])["neck"] == options["neck"]
    assert fitting(options, ["head.num_queries=20"]) == options
    assert fitting(options, ["experiment=mine"]) == options


def test_values_of_the_datas_recipe_for_another_loss_are_left_out_unless_typed() -> None:
    options = {
        "neck": {"type": "fpn"},
        "head": {"type": "deformable_detr", "loss": {"giou_weight": 1, "num_points": 9}},
    }
    assert fitting(options, ["head=deformable_detr"])["head"]["loss"] == {"giou_weight": 1}
    assert fitting(options, ["head.loss.num_points=9"]) == options
