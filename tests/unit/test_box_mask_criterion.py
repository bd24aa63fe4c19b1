"""Masks in the matching and in the losses of detectors with queries."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vision_stack.losses import BoxCriterionConfig, EdgeCriterionConfig, box_mask_criterion
from vision_stack.losses.box_mask_criterion import BoxMaskCriterion
from vision_stack.outputs import BoxOutputs, MaskFactors
from vision_stack.structures import Target

SIZE = 32  # of the image, its masks are a quarter
LAYERS, BATCH = 2, 2


def targets(count: int) -> list[Target]:
    """Equal boxes and classes, so that masks alone tell objects apart; the second image has none."""
    masks = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
    for number, mask in enumerate(masks):
        mask[:, 8 * number : 8 * number + 8] = True
    boxes = torch.tensor([[0.0, 0.0, SIZE, SIZE]])
    full: Target = {"labels": torch.zeros(count, dtype=torch.int64), "boxes": boxes.repeat(count, 1), "masks": masks}
    empty: Target = {"labels": full["labels"][:0], "boxes": boxes[:0], "masks": masks[:0]}
    return [full, empty]


def outputs(columns: list[int], groups: int = 1) -> BoxOutputs:
    """Query n of each group covers stripe `columns[n]` of the image, in all layers: one channel for each stripe."""
    queries = len(columns) * groups
    logits, boxes = torch.zeros(LAYERS, BATCH, queries, 3), torch.full((LAYERS, BATCH, queries, 4), 0.5)
    boxes[..., 2:] = 1.0
    sizes = torch.full((BATCH, 2), float(SIZE))
    found = BoxOutputs(logits[-1], boxes[-1], logits[:-1], boxes[:-1], sizes)
    stripes = torch.full((4, 8, 8), -20.0)
    for number, stripe in enumerate(stripes):
        stripe[:, 2 * number : 2 * number + 2] = 20.0
    embed = torch.eye(4)[torch.tensor(columns * groups)].expand(LAYERS, BATCH, -1, -1).clone().requires_grad_()
    features = stripes.expand(LAYERS, BATCH, -1, -1, -1).clone().requires_grad_()
    return found._replace(masks=MaskFactors(embed, features))


def losses(found: BoxOutputs, wanted: list[Target], groups: int = 1, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return BoxMaskCriterion(BoxCriterionConfig(cells_per_point=1, **options).build())(found, wanted, groups)


@pytest.mark.parametrize("groups", [1, 3])
def test_masks_decide_where_boxes_and_classes_are_equal(groups: int) -> None:
    found = losses(outputs([2, 3, 0, 1], groups), targets(4), groups)
    blind = losses(outputs([2, 3, 0, 1], groups), targets(4), groups, mask_cost=0, dice_cost=0)
    for layer in ("", "_0"):
        for name in ("loss_mask", "loss_dice"):  # not zero: at borders masks are read bilinearly
            assert found[f"{name}{layer}"] < 0.2 * blind[f"{name}{layer}"]


def test_losses_are_means_over_objects_and_groups() -> None:
    one, three = (losses(outputs([1, 1], groups), targets(1), groups) for groups in (1, 3))
    for name, loss in one.items():
        torch.testing.assert_close(three[name], loss, rtol=1e-5, atol=1e-6)


def test_only_matched_queries_learn_their_masks() -> None:
    found = outputs([0, 1, 2])
    given = losses(found, targets(1))
    torch.stack([given["loss_mask"], given["loss_dice"]]).sum().backward()
    learn = found.masks.embed.grad[-1].abs().sum(2) > 0  # type: ignore[index]
    assert learn.tolist() == [[True, False, False], [False, False, False]]


def test_more_objects_than_queries_in_a_group_are_left_out() -> None:
    with pytest.warns(UserWarning, match="more objects than the head has queries"):
        given = losses(outputs([1, 0]), targets(4))
    assert given["loss_dice"] < 0.5  # of the two that are left


def test_a_batch_without_objects_has_gradients_and_no_mask_loss() -> None:
    found = outputs([0, 1])
    given = losses(found, [targets(1)[1]] * 2)
    assert given["loss_mask"] == given["loss_dice"] == 0
    torch.stack(list(given.values())).sum().backward()
    assert found.masks.embed.grad is not None
    assert found.masks.features.grad is not None


def test_zeros_for_the_gradients_are_finite_where_float16_sums_are_not() -> None:
    found = outputs([0, 1])
    assert found.masks is not None
    found = found._replace(masks=found.masks._replace(features=found.masks.features.detach().half().fill_(6e4)))
    assert losses(found, [targets(1)[1]] * 2)["loss_mask"] == 0


@pytest.mark.parametrize("groups", [1, 3])
def test_logits_that_are_made_again_in_the_backward_give_the_same(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients() -> list[Tensor]:
        found = outputs([2, 3, 0, 1], groups)
        given = losses(found, [targets(4)[0], targets(3)[0]], groups)
        torch.stack(list(given.values())).sum().backward()
        assert found.masks is not None
        return [*given.values(), found.masks.embed.grad, found.masks.features.grad]  # type: ignore[list-item]

    kept = gradients()
    products: list[int] = []
    losses_at = box_mask_criterion.losses_at
    monkeypatch.setattr(box_mask_criterion, "MOST_KEPT", 0)
    monkeypatch.setattr(box_mask_criterion, "tile_elements", lambda *_: 2 * groups * 208)  # two objects at its points
    monkeypatch.setattr(
        box_mask_criterion, "losses_at", lambda points, *x: products.append(len(x[0])) or losses_at(points, *x)
    )
    made_again = gradients()
    assert sorted(products) == [1] * 4 + [2] * 12  # of two layers, in the forward and again: 4 and 3 objects
    for one, other in zip(kept, made_again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_bfloat16_features_are_widened_where_they_are_read() -> None:
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        found = outputs([2, 3, 0, 1])
        assert found.masks is not None
        features = found.masks.features.detach().to(dtype).requires_grad_()  # 20 and -20: exact in both
        given = losses(found._replace(masks=found.masks._replace(features=features)), targets(4))
        torch.stack(list(given.values())).sum().backward()
        assert {loss.dtype for loss in given.values()} == {torch.float32}
        assert features.grad is not None
        assert features.grad.dtype == dtype
        results.append([*given.values(), features.grad.float()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=2**-8, atol=1e-6)


def test_first_box_of_a_query_is_matched_by_the_masks_of_the_first_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """D-FINE's first layer predicts a box before its edges are distributions: one prediction more than masks."""
    found = outputs([2, 3, 0, 1])
    assert found.masks is not None
    last = torch.eye(4).expand(1, BATCH, -1, -1)  # the other order than in the first layer
    masks = found.masks._replace(embed=torch.cat([found.masks.embed[:1], last]))
    aux = [x[:1].expand(2, -1, -1, -1) for x in (found.aux_logits, found.aux_boxes)]
    criterion = BoxMaskCriterion(BoxCriterionConfig(cells_per_point=1).build())
    matched, matches = criterion.boxes.matched, []
    monkeypatch.setattr(
        criterion.boxes, "matched", lambda *args: (lambda pair: matches.extend(pair[1]) or pair)(matched(*args))
    )
    given = criterion(found._replace(aux_logits=aux[0], aux_boxes=aux[1], masks=masks), targets(4))
    queries = [matches[0].queries[matches[0].layers == layer].tolist() for layer in range(3)]
    assert queries == [[2, 3, 0, 1], [2, 3, 0, 1], [0, 1, 2, 3]]
    assert {name for name in given if "mask" in name} == {"loss_mask", "loss_mask_1"}
    for name in ("loss_mask", "loss_mask_1"):
        assert given[name] < 3  # 20 at every pixel of a wrong mask; at borders masks are read bilinearly


def test_edges_are_learnt_beside_masks_and_noised_objects_have_no_mask() -> None:
    found, wanted = outputs([2, 3, 0, 1]), targets(4)
    criterion = EdgeCriterionConfig(cells_per_point=1).build()
    torch.manual_seed(0)
    given = BoxMaskCriterion(criterion)(found, wanted)
    blind = criterion(found._replace(masks=None), wanted)
    assert given.keys() - blind.keys() == {"loss_mask", "loss_mask_0", "loss_dice", "loss_dice_0"}
    for name in ("loss_bbox", "loss_giou", "loss_class"):  # all boxes are equal, so that other matches change nothing
        torch.testing.assert_close(given[name], blind[name])
    noised = {
        "denoising_logits": torch.zeros(LAYERS, BATCH, 8, 3),
        "denoising_boxes": torch.full((LAYERS, BATCH, 8, 4), 0.5),
    }
    torch.manual_seed(0)
    more = BoxMaskCriterion(criterion)(found._replace(**noised), wanted)
    assert {name for name in more if name.endswith("_denoising")} == {
        "loss_class_denoising", "loss_bbox_denoising", "loss_giou_denoising"
    }  # fmt: skip
    torch.testing.assert_close(more["loss_mask"], given["loss_mask"])
