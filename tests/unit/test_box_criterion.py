"""The loss of boxes that queries find, at its edges: no objects, too many, ignored regions, several ranks."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import box_convert, generalized_box_iou

from vision_stack.config import ConfigError
from vision_stack.losses import BoxCriterionConfig
from vision_stack.losses.class_losses import CLASS_LOSSES
from vision_stack.ops.boxes import inverse_sigmoid, iou_and_giou
from vision_stack.outputs import BoxOutputs
from vision_stack.structures import Target

SIZE = 100  # pixels of the square images


def outputs_of(batch: int = 2, queries: int = 6, layers: int = 2, proposals: int = 9) -> BoxOutputs:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    logits, boxes = random(layers, batch, queries, 3), random(layers, batch, queries, 4).sigmoid()
    parts = (logits[-1], boxes[-1], logits[:-1], boxes[:-1])
    encoder = (random(batch, proposals, 1), random(batch, proposals, 4).sigmoid())
    for part in (*parts, *encoder):
        part.requires_grad_()
    return BoxOutputs(*parts, torch.full((batch, 2), float(SIZE)), *encoder)


def targets_of(*counts: int, **more: Tensor) -> list[Target]:
    generator = torch.Generator().manual_seed(1)
    corners = [60 * torch.rand(n, 2, generator=generator) for n in counts]
    boxes = [torch.cat([c, c + 5 + 30 * torch.rand(len(c), 2, generator=generator)], 1) for c in corners]
    return [{"labels": torch.arange(len(b)) % 3, "boxes": b, **more} for b in boxes]  # type: ignore[typeddict-item]


def backward(losses: dict[str, Tensor]) -> Tensor:
    total = torch.stack(list(losses.values())).sum()
    total.backward()  # type: ignore[no-untyped-call]
    return total.detach()


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_class_loss_is_exact_and_has_finite_gradients_where_probabilities_are_rounded(name: Any) -> None:
    logits = torch.tensor([-200.0, -30.0, 0.0, 30.0, 200.0], requires_grad=True)
    for iou in (torch.zeros(5), torch.ones(5)):
        loss = CLASS_LOSSES[name].positive(logits, iou) + CLASS_LOSSES[name].negative(logits)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()


def test_class_losses_equal_their_formulas() -> None:
    torch.manual_seed(0)
    x, q = torch.randn(50, dtype=torch.float64), torch.rand(50, dtype=torch.float64)
    p = x.sigmoid()

    def bce(target: Tensor) -> Tensor:
        return -target * p.log() - (1 - target) * (1 - p).log()

    t = p**0.25 * q**0.75
    formulas = {
        "focal": (-0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log()),
        "varifocal": (q * bce(q), -0.75 * p**2 * (1 - p).log()),
        "mal": (bce(q**1.5), -(p**1.5) * (1 - p).log()),
        "ia_bce": (bce(t.clamp(min=0.01)), -(p**2) * (1 - p).log()),
    }
    assert formulas.keys() == CLASS_LOSSES.keys()
    for name, loss in CLASS_LOSSES.items():
        for ours, plain in zip((loss.positive(x, q), loss.negative(x)), formulas[name], strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CLASS_LOSSES)
@pytest.mark.parametrize("counts", [(0, 0), (0, 1), (3, 30)])
@pytest.mark.filterwarnings("ignore:some images have more objects")
def test_any_number_of_objects_has_finite_losses_and_gradients_of_all_outputs(counts: Any, name: Any) -> None:
    outputs = outputs_of()
    losses = BoxCriterionConfig(class_loss=name).build()(outputs, targets_of(*counts))
    names = {"loss_class", "loss_bbox", "loss_giou"}
    assert losses.keys() == {f"{n}{layer}" for n in names for layer in ("", "_0", "_encoder")}
    assert backward(losses).isfinite()
    for part in outputs:
        if part is not None and part is not outputs.image_sizes:
            assert part.grad is not None
            assert part.grad.isfinite().all()
    if not any(counts):
        assert sum(float(v.detach()) for k, v in losses.items() if "class" not in k) == 0


def test_more_objects_than_queries_are_said_and_the_cheapest_are_learnt() -> None:
    with pytest.warns(UserWarning, match=r"more objects than the head has queries \(6\); .* raise head.num_queries"):
        BoxCriterionConfig().build()(outputs_of(), targets_of(3, 30))


def test_unmatched_query_in_an_ignored_region_has_no_class_loss_and_a_matched_one_has() -> None:
    outputs, everything = outputs_of(), torch.tensor([[-100.0, -100.0, 300.0, 300.0]])
    criterion = BoxCriterionConfig().build()
    assert float(criterion(outputs, targets_of(0, 0, ignored=everything))["loss_class"].detach()) == 0
    losses = criterion(outputs, targets_of(1, 0, ignored=everything))
    backward({"loss": losses["loss_class"]})
    assert outputs.pred_logits.grad is not None
    assert (outputs.pred_logits.grad.abs().sum(2) > 0).sum() == 1
    elsewhere = torch.tensor([[200.0, 200.0, 300.0, 300.0]])
    plain, ignoring = (criterion(outputs, targets_of(2, 1, **more)) for more in ({}, {"ignored": elsewhere}))
    assert torch.equal(plain["loss_class"], ignoring["loss_class"])


def test_each_group_of_queries_is_matched_on_its_own_and_the_mean_is_taken() -> None:
    outputs, targets = outputs_of(queries=4, proposals=4), targets_of(2, 1)
    criterion = BoxCriterionConfig(class_loss="ia_bce").build()
    twice = BoxOutputs(
        *(torch.cat([x, x], dim=-2) for x in outputs[:4]),
        outputs.image_sizes,
        *(torch.cat([x, x], dim=-2) for x in outputs[5:] if x is not None),
    )
    alone, grouped = criterion(outputs, targets), criterion(twice, targets, num_groups=2)
    for name, loss in alone.items():
        torch.testing.assert_close(grouped[name], loss)
    assert not torch.allclose(criterion(twice, targets)["loss_bbox"], alone["loss_bbox"])


class Copies(TorchDispatchMode):
    """Counts what is read from the device: `.cpu()` of a CPU tensor is no copy, so the call itself is counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count = 0
        plain = Tensor.cpu

        def counting(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.count += 1
            return plain(tensor, *args, **kwargs)

        monkeypatch.setattr(Tensor, "cpu", counting)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "_local_scalar_dense" not in str(func), "a value is read by the host"
        assert "nonzero" not in str(func), "a count is read by the host"
        return func(*args, **(kwargs or {}))


def test_one_copy_to_the_host_for_all_layers_groups_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, targets = outputs_of(queries=6, layers=3), targets_of(2, 3)
    with Copies(monkeypatch) as copies:
        BoxCriterionConfig().build()(outputs._replace(encoder_logits=None, encoder_boxes=None), targets, num_groups=2)
    assert copies.count == 1
    with Copies(monkeypatch) as copies:
        BoxCriterionConfig().build()(outputs, targets)
    assert copies.count == 1


def test_losses_in_tiles_of_images_equal_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, targets = outputs_of(batch=4), targets_of(2, 0, 5, 1)
    expected = BoxCriterionConfig().build()(outputs, targets)
    monkeypatch.setattr("vision_stack.losses.box_matcher.tile_elements", lambda *_: 1)
    found = BoxCriterionConfig().build()(outputs, targets)
    assert all(torch.equal(found[name], loss) for name, loss in expected.items())


@pytest.mark.parametrize("counts", [(3, 1), (0, 2), (0, 0)])
def test_mean_gradient_of_two_ranks_equals_that_of_one_process(counts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    targets, criterion = targets_of(*counts), BoxCriterionConfig().build()
    together = outputs_of()
    backward(criterion(together, targets))
    for rank in (0, 1):
        outputs = outputs_of()
        mine = BoxOutputs(*(x if i in (2, 3) else x[rank : rank + 1] for i, x in enumerate(outputs) if x is not None))
        mine = mine._replace(
            aux_logits=mine.aux_logits[:, rank : rank + 1], aux_boxes=mine.aux_boxes[:, rank : rank + 1]
        )
        with monkeypatch.context() as patch:
            patch.setattr(torch.distributed, "is_initialized", lambda: True)
            patch.setattr(torch.distributed, "get_world_size", lambda: 2)
            patch.setattr(torch.distributed, "all_reduce", lambda total: total.fill_(sum(counts)))
            backward(criterion(mine, targets[rank : rank + 1]))
        for name in ("pred_logits", "pred_boxes"):
            one, all_of_it = getattr(outputs, name).grad[rank], getattr(together, name).grad[rank]
            torch.testing.assert_close(one / 2, all_of_it, rtol=1e-5, atol=1e-7)  # float32, other orders of sums


def test_bfloat16_outputs_have_float32_losses() -> None:
    outputs = BoxOutputs(*(x.detach().bfloat16() for x in outputs_of() if x is not None))
    losses = BoxCriterionConfig().build()(outputs, targets_of(2, 1))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_giou_of_pairs_equals_torchvisions_and_boxes_without_area_have_none() -> None:
    torch.manual_seed(0)
    one, other = (box_convert(torch.rand(n, 4, dtype=torch.float64), "cxcywh", "xyxy") for n in (5, 7))
    _, found = iou_and_giou(one[:, None], other)
    torch.testing.assert_close(found, generalized_box_iou(one, other), rtol=1e-12, atol=1e-12)
    point = torch.zeros(1, 4)
    assert [x.item() for x in iou_and_giou(point, point)] == [0.0, 0.0]


@pytest.mark.parametrize("sides", [(-0.2, -0.2), (-0.2, 0.2), (0.2, -0.2)])
def test_giou_of_boxes_that_are_turned_inside_out_is_none_or_less(sides: tuple[float, float]) -> None:
    one = box_convert(torch.tensor([[0.5, 0.5, *sides]]), "cxcywh", "xyxy").requires_grad_()
    iou, giou = iou_and_giou(one, box_convert(torch.tensor([[0.5, 0.5, 0.01, 0.01]]), "cxcywh", "xyxy"))
    assert iou.item() == 0
    assert -1 <= giou.item() <= 0
    assert torch.autograd.grad(giou, one)[0].isfinite().all()


def test_inverse_sigmoid_is_finite_and_undoes_sigmoid() -> None:
    x = torch.linspace(-8, 8, 50, dtype=torch.float64)
    torch.testing.assert_close(inverse_sigmoid(x.sigmoid()), x)
    assert inverse_sigmoid(torch.tensor([0.0, 1.0])).isfinite().all()


def test_without_any_cost_there_is_nothing_to_match_by() -> None:
    with pytest.raises(ConfigError, match="all matching costs are 0; at least one of class, bbox, giou must count"):
        BoxCriterionConfig(class_cost=0.0, bbox_cost=0.0, giou_cost=0.0)


def test_l1_and_giou_are_those_of_normalised_boxes() -> None:
    target: Target = {"labels": torch.tensor([1]), "boxes": torch.tensor([[10.0, 20.0, 50.0, 80.0]])}
    box = torch.tensor([[[0.4, 0.5, 0.3, 0.5]]])
    outputs = BoxOutputs(
        torch.zeros(1, 1, 3), box, torch.zeros(0, 1, 1, 3), torch.zeros(0, 1, 1, 4), torch.tensor([[SIZE, SIZE]])
    )
    losses = BoxCriterionConfig().build()(outputs, [target])
    wanted = torch.tensor([[0.3, 0.5, 0.4, 0.6]])
    assert losses["loss_bbox"] == 5 * F.l1_loss(box[0], wanted, reduction="sum")
