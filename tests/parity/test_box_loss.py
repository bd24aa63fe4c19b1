"""Matching and losses of boxes against transformers' Deformable DETR, RT-DETR, LW-DETR and DEIMv2, in float64."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, box_iou
from transformers.loss.loss_deformable_detr import (
    DeformableDetrForObjectDetectionLoss,
    DeformableDetrHungarianMatcher,
)
from transformers.loss.loss_deimv2 import Deimv2Loss
from transformers.loss.loss_lw_detr import LwDetrForObjectDetectionLoss
from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss
from transformers.models.rt_detr.modeling_rt_detr import get_contrastive_denoising_training_group

from vision_stack.losses import BoxCriterionConfig
from vision_stack.losses.box_matcher import BoxCosts, BoxObjects, LayerStack, match_boxes
from vision_stack.outputs import BoxOutputs
from vision_stack.structures import Target

NUM_CLASSES, LAYERS, QUERIES, NUM_DENOISING = 5, 3, 12, 20
SIZES = torch.tensor([[640.0, 480.0], [333.0, 512.0], [64.0, 64.0]], dtype=torch.float64)  # (width, height)
COUNTS = (4, 0, 7)
EXACT = {"rtol": 1e-9, "atol": 1e-9}  # of float64
PLAIN = {"class_weight": 1.0, "bbox_weight": 1.0, "giou_weight": 1.0}  # the oracles name unweighted losses
COSTS = {"class_cost": 2, "bbox_cost": 5, "giou_cost": 2}


def boxes_of(*shape: int) -> Tensor:
    centers, sizes = 0.2 + 0.6 * torch.rand(*shape, 2), 0.05 + 0.3 * torch.rand(*shape, 2)
    return torch.cat([centers, sizes], -1).double()


def outputs_of(queries: int = QUERIES, proposals: int | None = None, classes: int = NUM_CLASSES) -> BoxOutputs:
    torch.manual_seed(0)
    logits = 2 * torch.randn(
        LAYERS, 3, queries, NUM_CLASSES, dtype=torch.float64
    )  # moderate: LW-DETR's log(p) is exact
    boxes = boxes_of(LAYERS, 3, queries)
    encoder = ()
    if proposals:
        encoder = (2 * torch.randn(3, proposals, classes, dtype=torch.float64), boxes_of(3, proposals))
    return BoxOutputs(logits[-1], boxes[-1], logits[:-1], boxes[:-1], SIZES, *encoder)


def targets_of() -> tuple[list[Target], list[dict[str, Tensor]]]:
    """As ours, and as transformers has them."""
    torch.manual_seed(1)
    ours: list[Target] = []
    theirs = []
    for count, size in zip(COUNTS, SIZES, strict=True):
        labels, boxes = torch.randint(NUM_CLASSES, (count,)), boxes_of(count)
        theirs.append({"class_labels": labels, "boxes": boxes})
        ours.append({"labels": labels, "boxes": box_convert(boxes, "cxcywh", "xyxy") * size.repeat(2)})
    return ours, theirs


def stacked(outputs: BoxOutputs, dim: int = 0) -> tuple[Tensor, Tensor]:
    logits = torch.cat([outputs.aux_logits, outputs.pred_logits[None]]).movedim(0, dim)
    return logits, torch.cat([outputs.aux_boxes, outputs.pred_boxes[None]]).movedim(0, dim)


def deformable_detr(
    outputs: BoxOutputs, labels: list[dict[str, Tensor]], classes: int = NUM_CLASSES
) -> dict[str, Tensor]:
    config = SimpleNamespace(
        **COSTS, num_labels=classes, focal_alpha=0.25, auxiliary_loss=True, decoder_layers=LAYERS,
        bbox_loss_coefficient=1, giou_loss_coefficient=1,
    )  # fmt: skip
    logits, boxes = stacked(outputs)
    device = torch.device("cpu")
    arguments = (outputs.pred_logits, labels, device, outputs.pred_boxes, config, logits, boxes)
    found: dict[str, Tensor] = DeformableDetrForObjectDetectionLoss(*arguments)[1]
    return {k.replace("_ce", "_class"): v for k, v in found.items() if "cardinality" not in k}


def rt_detr(outputs: BoxOutputs, labels: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    config = SimpleNamespace(
        **{f"matcher_{name}": value for name, value in COSTS.items()}, matcher_alpha=0.25, matcher_gamma=2.0,
        use_focal_loss=True, num_labels=NUM_CLASSES, weight_loss_vfl=1, weight_loss_bbox=1, weight_loss_giou=1,
        eos_coefficient=0.1, focal_loss_alpha=0.75, focal_loss_gamma=2.0, auxiliary_loss=True,
    )  # fmt: skip
    logits, boxes = stacked(outputs, dim=1)
    denoising = None
    if outputs.denoising_logits is not None and outputs.denoising_boxes is not None:
        *_, denoising = get_contrastive_denoising_training_group(
            labels, NUM_CLASSES, QUERIES, torch.nn.Identity(), num_denoising_queries=NUM_DENOISING
        )
        logits = torch.cat([outputs.denoising_logits.transpose(0, 1), logits], 2)
        boxes = torch.cat([outputs.denoising_boxes.transpose(0, 1), boxes], 2)
    found: dict[str, Tensor] = RTDetrForObjectDetectionLoss(
        logits[:, -1], labels, torch.device("cpu"), boxes[:, -1], config, logits, boxes,
        enc_topk_logits=outputs.encoder_logits, enc_topk_bboxes=outputs.encoder_boxes, denoising_meta_values=denoising,
    )[1]  # fmt: skip
    last = {f"_aux_{LAYERS - 1}": "_encoder", f"_dn_{LAYERS - 1}": "_denoising"}
    renamed = {}
    for name, loss in found.items():
        for theirs, ours in {"_vfl": "_class", **last, "_aux": "", "_dn": "_denoising"}.items():
            name = name.replace(theirs, ours)
        renamed[name] = loss
    return renamed


def lw_detr(outputs: BoxOutputs, labels: list[dict[str, Tensor]], groups: int) -> dict[str, Tensor]:
    config = SimpleNamespace(
        **COSTS, num_labels=NUM_CLASSES, focal_alpha=0.25, group_detr=groups, auxiliary_loss=True,
        decoder_layers=LAYERS, class_loss_coefficient=1, bbox_loss_coefficient=1, giou_loss_coefficient=1,
    )  # fmt: skip
    found: dict[str, Tensor] = LwDetrForObjectDetectionLoss(
        outputs.pred_logits, labels, torch.device("cpu"), outputs.pred_boxes, config, *stacked(outputs),
        enc_outputs_class=outputs.encoder_logits, enc_outputs_coord=outputs.encoder_boxes,
    )[1]  # fmt: skip
    renamed = {k.replace("_ce", "_class").replace("_enc", "_encoder"): v for k, v in found.items()}
    return {k: v for k, v in renamed.items() if "cardinality" not in k}


def losses_of(outputs: BoxOutputs, class_loss: Any, groups: int = 1) -> dict[str, Tensor]:
    criterion = BoxCriterionConfig(class_loss=class_loss, **PLAIN, **COSTS).build()
    return criterion(outputs, targets_of()[0], groups)


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, loss in theirs.items():
        assert loss > 0.01
        torch.testing.assert_close(ours[name], loss, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


def test_focal_losses_of_all_layers_equal_deformable_detrs() -> None:
    outputs = outputs_of()
    assert_equal(losses_of(outputs, "focal"), deformable_detr(outputs, targets_of()[1]))


def test_proposals_of_any_class_are_supervised_as_deformable_detr_with_one_class() -> None:
    outputs = outputs_of(proposals=40, classes=1)
    ours = losses_of(outputs, "focal")
    labels = [{**each, "class_labels": torch.zeros_like(each["class_labels"])} for each in targets_of()[1]]
    assert outputs.encoder_logits is not None
    assert outputs.encoder_boxes is not None
    alone = outputs._replace(pred_logits=outputs.encoder_logits, pred_boxes=outputs.encoder_boxes)
    alone = alone._replace(aux_logits=alone.pred_logits[None][:0], aux_boxes=alone.pred_boxes[None][:0])
    theirs = deformable_detr(alone, labels, classes=1)
    assert_equal({k: ours[f"{k}_encoder"] for k in theirs}, theirs)


def test_varifocal_losses_equal_rt_detrs() -> None:
    outputs = outputs_of(proposals=QUERIES)
    assert_equal(losses_of(outputs, "varifocal"), rt_detr(outputs, targets_of()[1]))


def test_losses_of_noised_objects_equal_rt_detrs() -> None:
    queries = 2 * max(COUNTS) * (NUM_DENOISING // max(COUNTS))
    noised = outputs_of(queries)
    logits, boxes = stacked(noised)
    outputs = outputs_of(proposals=QUERIES)._replace(denoising_logits=logits.flip(0), denoising_boxes=boxes.flip(0))
    losses = losses_of(outputs, "varifocal")
    assert "loss_giou_denoising_1" in losses
    assert_equal(losses, rt_detr(outputs, targets_of()[1]))


@pytest.mark.parametrize("groups", [1, 3])
def test_ia_bce_losses_of_query_groups_equal_lw_detrs(groups: int) -> None:
    outputs = outputs_of(queries=QUERIES * groups, proposals=QUERIES * groups)
    assert_equal(losses_of(outputs, "ia_bce", groups), lw_detr(outputs, targets_of()[1], groups))


def test_mal_equals_deims() -> None:
    """With gamma 1.5 and no alpha, as in DEIM; the defaults of transformers' class differ."""
    outputs, (ours, theirs) = outputs_of(), targets_of()
    matcher = DeformableDetrHungarianMatcher(**COSTS)
    plain = {"logits": outputs.pred_logits, "pred_boxes": outputs.pred_boxes}
    indices = matcher(plain, theirs)
    oracle = SimpleNamespace(
        gamma=1.5, mal_alpha=None, num_classes=NUM_CLASSES,
        _get_source_permutation_idx=lambda pairs: Deimv2Loss._get_source_permutation_idx(None, pairs),
    )  # fmt: skip
    expected = Deimv2Loss.loss_labels_mal(oracle, plain, theirs, indices, sum(COUNTS))["loss_mal"]
    criterion = BoxCriterionConfig(class_loss="mal", **PLAIN, **COSTS).build()
    torch.testing.assert_close(criterion(outputs, ours)["loss_class"], expected, **EXACT)


@pytest.mark.parametrize("class_loss", ["focal", "varifocal", "ia_bce"])
def test_gradients_equal_the_oracles(class_loss: str) -> None:
    labels = targets_of()[1]
    oracle: dict[str, Callable[[BoxOutputs], dict[str, Tensor]]] = {
        "focal": lambda outputs: deformable_detr(outputs, labels),
        "varifocal": lambda outputs: rt_detr(outputs, labels),
        "ia_bce": lambda outputs: lw_detr(outputs, labels, 1),
    }

    def gradients(losses: Callable[[BoxOutputs], dict[str, Tensor]]) -> tuple[Tensor, ...]:
        outputs = outputs_of(proposals=None if class_loss == "focal" else QUERIES)
        inputs = [x.requires_grad_() for x in outputs if x is not None and x is not SIZES]
        return torch.autograd.grad(torch.stack(list(losses(outputs).values())).sum(), inputs)

    ours = gradients(lambda outputs: losses_of(outputs, class_loss))
    for one, other in zip(ours, gradients(oracle[class_loss]), strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_assignments_equal_deformable_detrs() -> None:
    outputs, (_, theirs) = outputs_of(), targets_of()
    logits, boxes = stacked(outputs)
    objects = BoxObjects(
        torch.cat([t["class_labels"] for t in theirs]), torch.cat([t["boxes"] for t in theirs]), COUNTS
    )
    (matches,) = match_boxes([LayerStack(logits, boxes)], objects, BoxCosts(2.0, 5.0, 2.0))
    found = set(zip(*(x.tolist() for x in matches[:4]), strict=True))
    matcher, expected = DeformableDetrHungarianMatcher(**COSTS), set()
    first = (0, COUNTS[0], sum(COUNTS[:2]))
    for layer in range(LAYERS):
        pairs = matcher({"logits": logits[layer], "pred_boxes": boxes[layer]}, theirs)
        expected |= {
            (layer, image, int(q), first[image] + int(n))
            for image, pair in enumerate(pairs)
            for q, n in zip(*pair, strict=True)
        }
    assert found == expected


def test_swapped_axes_of_an_image_are_noticed() -> None:
    outputs = outputs_of()
    faulty = outputs._replace(pred_boxes=outputs.pred_boxes.clone())
    faulty.pred_boxes[2] = faulty.pred_boxes[2][:, [1, 0, 3, 2]]
    with pytest.raises(AssertionError, match="loss_"):
        assert_equal(losses_of(faulty, "focal"), deformable_detr(outputs, targets_of()[1]))


def test_late_assignments_are_those_of_deimv2s_cost() -> None:
    """Probability times IoU^4, as DEIMv2's matcher has it from some epoch on; transformers' does not."""
    outputs, (_, theirs) = outputs_of(), targets_of()
    config = BoxCriterionConfig(quality_cost_from=0.75)
    logits, boxes = stacked(outputs)
    objects = BoxObjects(
        torch.cat([t["class_labels"] for t in theirs]), torch.cat([t["boxes"] for t in theirs]), COUNTS
    )
    early, late = (match_boxes([LayerStack(logits, boxes)], objects, config.costs_at(p))[0] for p in (0.74, 0.75))
    expected = set()
    for layer in range(LAYERS):
        for image, (target, first) in enumerate(zip(theirs, (0, COUNTS[0], sum(COUNTS[:2])), strict=True)):
            iou = box_iou(*(box_convert(x, "cxcywh", "xyxy") for x in (boxes[layer, image], target["boxes"])))
            quality = logits[layer, image].sigmoid()[:, target["class_labels"]] * iou**4
            pairs = zip(*linear_sum_assignment(-quality.numpy()), strict=True)
            expected |= {(layer, image, int(q), first + int(n)) for q, n in pairs}
    found = [set(zip(*(x.tolist() for x in matches[:4]), strict=True)) for matches in (early, late)]
    assert found[1] == expected
    assert found[0] != expected
