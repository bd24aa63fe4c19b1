"""D-FINE's losses in float64: against transformers' `Deimv2Loss`, and against the formulas written plainly.

transformers' `DFineLoss` has no union of the assignments, and what calls either pairs the edges of a layer with boxes
of the one before: the layer before the last has no loss of its boxes, the last none of its edges. `Deimv2Loss` is right
if it is given the layers as the authors do, but for two things: its targets of edges are float32 only, and it balances
the distillation of noised objects by their own numbers, not by those of the other queries. A factor of 8 / B, which it
lacks, cancels.
"""

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou
from transformers.loss import loss_d_fine
from transformers.loss.loss_deimv2 import Deimv2Loss
from transformers.models.d_fine.modeling_d_fine import get_contrastive_denoising_training_group

from vision_stack.losses import EdgeCriterionConfig
from vision_stack.losses.edge_criterion import union_of
from vision_stack.losses.matcher import Matches
from vision_stack.ops.box_edges import NUM_BINS, bin_values
from vision_stack.outputs import BoxOutputs, EdgeDistributions
from vision_stack.structures import Target

NUM_CLASSES, LAYERS, QUERIES, NUM_DENOISING, SCALE = 5, 3, 12, 20, 4.0
COUNTS = (4, 0, 7)
SIZES = torch.tensor([[640.0, 480.0], [333.0, 512.0], [64.0, 64.0]], dtype=torch.float64)  # (width, height)
WEIGHTS = {"class_weight": 1.0, "bbox_weight": 5.0, "giou_weight": 2.0, "fgl_weight": 0.15, "ddf_weight": 1.5}
EXACT = {"rtol": 1e-9, "atol": 1e-9}  # of float64


@pytest.fixture(autouse=True)
def _float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """transformers makes the bins in the default type, and targets of edges in float32 alone. Which of two objects that
    a query has equally often it keeps is up to a sort that is not stable; ours keeps the first."""
    monkeypatch.setattr(torch, "argsort", partial(torch.argsort, stable=True))
    targets = loss_d_fine.bbox2distance
    monkeypatch.setattr(
        loss_d_fine,
        "bbox2distance",
        lambda points, boxes, bins, scale, up: targets(points.float(), boxes.float(), bins, scale, up.float()),
    )
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def boxes_of(*shape: int) -> Tensor:
    return torch.cat([0.3 + 0.4 * torch.rand(*shape, 2), 0.2 + 0.3 * torch.rand(*shape, 2)], -1)


def edges_of(queries: int) -> EdgeDistributions:
    boxes = boxes_of(3, queries)
    return EdgeDistributions(2 * torch.randn(LAYERS, 3, queries, 4, NUM_BINS), boxes, bin_values(SCALE, boxes))


def outputs_of() -> BoxOutputs:
    """As while training; the first of the layers has no distributions."""
    torch.manual_seed(0)
    copies = 2 * max(COUNTS) * (NUM_DENOISING // max(COUNTS))
    logits, boxes = 2 * torch.randn(LAYERS + 1, 3, QUERIES, NUM_CLASSES), boxes_of(LAYERS + 1, 3, QUERIES)
    noised_logits, noised_boxes = 2 * torch.randn(LAYERS + 1, 3, copies, NUM_CLASSES), boxes_of(LAYERS + 1, 3, copies)
    encoder = (2 * torch.randn(3, QUERIES, NUM_CLASSES), boxes_of(3, QUERIES))
    return BoxOutputs(
        logits[-1], boxes[-1], logits[:-1], boxes[:-1], SIZES, *encoder, noised_logits, noised_boxes,
        edges_of(QUERIES), edges_of(copies),
    )  # fmt: skip


def targets_of(counts: tuple[int, ...] = COUNTS) -> tuple[list[Target], list[dict[str, Tensor]]]:
    """As ours, and as transformers has them."""
    torch.manual_seed(1)
    ours: list[Target] = []
    theirs = []
    for count, size in zip(counts, SIZES, strict=True):
        labels, boxes = torch.randint(NUM_CLASSES, (count,)), boxes_of(count)
        theirs.append({"class_labels": labels, "boxes": boxes})
        ours.append({"labels": labels, "boxes": box_convert(boxes, "cxcywh", "xyxy") * size.repeat(2)})
    return ours, theirs


def layers_of(logits: Tensor, boxes: Tensor, edges: EdgeDistributions) -> list[dict[str, Any]]:
    """As the authors' criterion takes them: the first has a box only, the last is taught by itself."""
    layers: list[dict[str, Any]] = [
        {"logits": x, "pred_boxes": box} for x, box in zip(logits.unbind(0), boxes.unbind(0), strict=True)
    ]
    for layer, corners in zip(layers[1:], edges.logits.flatten(3), strict=True):
        layer |= {"pred_corners": corners, "ref_points": edges.boxes}
        layer |= {"teacher_corners": edges.logits[-1].flatten(2), "teacher_logits": logits[-1]}
    return layers


class Recorded(Deimv2Loss):  # type: ignore[misc]
    """Keeps the union of the assignments."""

    def _get_dense_o2o_indices(self, *arguments: Any) -> Any:
        self.union = super()._get_dense_o2o_indices(*arguments)
        return self.union


def oracle(outputs: BoxOutputs, labels: list[dict[str, Tensor]], class_loss: str = "vfl") -> tuple[Any, Any]:
    """Losses by our names, and the union."""
    config = SimpleNamespace(
        matcher_class_cost=2, matcher_bbox_cost=5, matcher_giou_cost=2, matcher_alpha=0.25, matcher_gamma=2.0,
        use_focal_loss=True, num_labels=NUM_CLASSES, weight_loss_vfl=1, weight_loss_mal=1, weight_loss_bbox=5,
        weight_loss_giou=2, weight_loss_fgl=0.15, weight_loss_ddf=1.5, eos_coefficient=0.1, focal_loss_alpha=0.75,
        focal_loss_gamma=2.0, max_num_bins=NUM_BINS - 1, reg_scale=SCALE, up=0.5, mal_alpha=None,
        use_dense_one_to_one=True,
    )  # fmt: skip
    criterion = Recorded(config)
    criterion.losses = [class_loss, "boxes", "local"]
    if class_loss == "vfl":
        criterion.weight_dict["loss_vfl"] = 1
    else:
        criterion.gamma = 1.5  # DEIM's
    *_, meta = get_contrastive_denoising_training_group(
        labels, NUM_CLASSES, QUERIES, torch.nn.Embedding(NUM_CLASSES + 1, 4), num_denoising_queries=NUM_DENOISING
    )
    assert outputs.edges is not None
    assert outputs.denoising_edges is not None
    assert outputs.denoising_logits is not None
    assert outputs.denoising_boxes is not None
    *aux, last = layers_of(
        torch.cat([outputs.aux_logits, outputs.pred_logits[None]]),
        torch.cat([outputs.aux_boxes, outputs.pred_boxes[None]]),
        outputs.edges,
    )
    encoder = {"logits": outputs.encoder_logits, "pred_boxes": outputs.encoder_boxes}
    noised = layers_of(outputs.denoising_logits, outputs.denoising_boxes, outputs.denoising_edges)
    found = criterion(
        {**last, "auxiliary_outputs": [*aux, encoder], "dn_auxiliary_outputs": noised, "denoising_meta_values": meta},
        labels,
    )
    renamed = {}
    for name, loss in found.items():
        for theirs, ours in {
            f"_{class_loss}": "_class", f"_aux_{LAYERS}": "_encoder", f"_dn_{LAYERS}": "_denoising",
            "_aux": "", "_dn": "_denoising",
        }.items():  # fmt: skip
            name = name.replace(theirs, ours)
        renamed[name] = loss
    taught_by_itself = ("loss_ddf", "loss_ddf_denoising")
    assert all(renamed.pop(name) == 0 for name in taught_by_itself)
    return renamed, criterion.union


def losses_of(outputs: BoxOutputs, **options: Any) -> dict[str, Tensor]:
    return EdgeCriterionConfig(**WEIGHTS, **options).build()(outputs, targets_of()[0])


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Edges of noised objects' distillation are left to the formula."""
    assert ours.keys() == theirs.keys()
    for name, loss in theirs.items():
        if not name.startswith("loss_ddf_denoising"):
            assert loss > 0.01
            tolerance = {"rtol": 1e-6, "atol": 1e-6} if "fgl" in name else EXACT
            torch.testing.assert_close(ours[name], loss, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("ours", "theirs"), [("varifocal", "vfl"), ("mal", "mal")])
def test_losses_of_all_layers_equal_deimv2s(ours: Any, theirs: str) -> None:
    outputs = outputs_of()
    expected, union = oracle(outputs, targets_of()[1], theirs)
    assert sum(len(queries) for queries, _ in union) > sum(COUNTS)  # more than any layer has
    assert_equal(losses_of(outputs, class_loss=ours), expected)


def test_losses_of_edges_equal_the_papers_formulas() -> None:
    outputs, (_, labels) = outputs_of(), targets_of()
    losses, (_, union) = losses_of(outputs), oracle(outputs, labels)
    copies = [
        (
            torch.cat([torch.arange(n) + group * 2 * max(COUNTS) for group in range(NUM_DENOISING // max(COUNTS))]),
            torch.arange(n).repeat(NUM_DENOISING // max(COUNTS)),
        )
        for n in COUNTS
    ]
    boxes = torch.cat([outputs.aux_boxes, outputs.pred_boxes[None]])
    found = sum(len(queries) for queries, _ in union)
    rest = len(COUNTS) * QUERIES - found
    assert outputs.edges is not None
    assert outputs.denoising_edges is not None
    assert outputs.denoising_boxes is not None
    assert outputs.denoising_logits is not None
    cases = (
        ("", outputs.edges, boxes, outputs.pred_logits, union),
        ("_denoising", outputs.denoising_edges, outputs.denoising_boxes, outputs.denoising_logits[-1], copies),
    )
    for suffix, edges, all_boxes, logits, pairs in cases:
        for number in range(LAYERS):
            fgl, ddf = plain_losses(edges, number, all_boxes[number + 1], logits, pairs, labels, (found, rest))
            name = suffix if number == LAYERS - 1 else f"{suffix}_{number + 1}"
            torch.testing.assert_close(losses[f"loss_fgl{name}"], 0.15 * fgl, **EXACT)
            if number < LAYERS - 1:
                torch.testing.assert_close(losses[f"loss_ddf{name}"], 1.5 * ddf, **EXACT)


def plain_losses(
    edges: EdgeDistributions, number: int, boxes: Tensor, logits: Tensor, pairs: Any, labels: Any, numbers: Any
) -> tuple[Tensor, Tensor]:
    """FGL and DDF of a layer, query by query and edge by edge (Sec. 4.2), with bins W(n) (Eq. 4, a = 1/2, c = 1/4)."""
    bins = [(-1.0 if n < 16 else 1.0) * 0.25 * (3.0 ** (abs(n - 16) / 15) - 1) for n in range(NUM_BINS)]
    bins[0], bins[-1] = -1.0, 1.0
    fgl, with_object, without, count = [], [], [], 0
    for image, (queries, objects) in enumerate(pairs):
        of_query = dict(zip(queries.tolist(), objects.tolist(), strict=True))
        count += len(of_query)
        for query in range(boxes.shape[1]):
            weight = logits[image, query].sigmoid().max()
            if query in of_query:
                wanted = box_convert(labels[image]["boxes"][of_query[query]], "cxcywh", "xyxy")
                weight = box_iou(box_convert(boxes[image, query], "cxcywh", "xyxy")[None], wanted[None])[0, 0]
                x, y, w, h = edges.boxes[image, query].tolist()
                left, top, right, bottom = wanted.tolist()
                moves = [(x - left) / w, (y - top) / h, (right - x) / w, (bottom - y) / h]
                for edge, move in enumerate(m - 0.5 for m in moves):
                    log_p = edges.logits[number, image, query, edge].log_softmax(0)
                    lower = max(0, min(NUM_BINS - 2, sum(value <= move for value in bins) - 1))
                    share = min(1.0, max(0.0, (move - bins[lower]) / (bins[lower + 1] - bins[lower])))
                    fgl.append(-weight * ((1 - share) * log_p[lower] + share * log_p[lower + 1]))
            for edge in range(4):
                teacher, student = ((edges.logits[n, image, query, edge] / 5).softmax(0) for n in (-1, number))
                divergence = 25 * weight * (teacher * (teacher / student).log()).sum()
                (with_object if query in of_query else without).append(divergence)
    found, rest = (n**0.5 for n in numbers)
    means = [torch.stack(each).mean() for each in (with_object, without)]
    return torch.stack(fgl).sum() / count, (found * means[0] + rest * means[1]) / (found + rest)


def test_union_keeps_the_object_that_a_query_has_most_often() -> None:
    def matches(*triples: tuple[int, int, int]) -> Matches:
        columns = torch.tensor([(0, *triple) for triple in triples]).T
        return Matches.found(columns, (), torch.device("cpu"))

    layers = [matches((0, 1, 0), (0, 2, 1)), matches((0, 1, 1), (0, 2, 1)), matches((0, 1, 1), (1, 0, 2))]
    union = union_of(layers, num_queries=3, num_objects=3)
    assert [column.tolist() for column in union] == [[0, 0, 0], [0, 0, 1], [1, 2, 0], [1, 1, 2]]


def test_batch_without_objects_has_losses_of_classes_and_distillation_and_finite_gradients() -> None:
    outputs = outputs_of()
    edges, copies = outputs.edges, 2  # of no object
    assert edges is not None
    assert outputs.denoising_logits is not None
    assert outputs.denoising_boxes is not None
    edges.logits.requires_grad_()
    outputs = outputs._replace(
        denoising_logits=outputs.denoising_logits[:, :, :copies],
        denoising_boxes=outputs.denoising_boxes[:, :, :copies],
        denoising_edges=edges._replace(logits=edges.logits[:, :, :copies].detach(), boxes=edges.boxes[:, :copies]),
    )
    losses = EdgeCriterionConfig().build()(outputs, targets_of((0, 0, 0))[0])
    assert {name for name, loss in losses.items() if loss == 0} == {
        name for name in losses if any(part in name for part in ("bbox", "giou", "fgl"))
    }
    (gradient,) = torch.autograd.grad(torch.stack(list(losses.values())).sum(), edges.logits)
    assert gradient.isfinite().all()
    assert gradient[:-1].any()
    assert not gradient[-1].any()  # the last layer only teaches


def test_objects_that_are_matched_layer_by_layer_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from vision_stack.losses import edge_criterion

    outputs, union = outputs_of(), edge_criterion.union_of
    monkeypatch.setattr(edge_criterion, "union_of", lambda matches, *sizes: union(matches[1:], *sizes))
    with pytest.raises(AssertionError, match="loss_bbox"):
        assert_equal(losses_of(outputs), oracle(outputs, targets_of()[1])[0])
