"""The losses and their shortcuts against the plain formulations."""

import pytest
import torch
import torch.nn.functional as F
from torchvision import tv_tensors

import vision_stack.losses.criterion
from vision_stack.config import ConfigError, from_dict
from vision_stack.losses import MaskCriterionConfig
from vision_stack.losses.functional import (
    classification_loss,
    focal_and_dice_loss,
    point_cross_entropy_and_dice_loss,
    semantic_loss,
    softplus,
)
from vision_stack.ops.point_sampling import pixel_centers, sample_maps, sample_masks
from vision_stack.outputs import LayeredMaskOutputs, MaskLayer, MaskOutputs

NUM_CLASSES = 3


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make_outputs(seed=0, layers=2, batch=2, queries=6, size=(6, 7), scale=1.0, requires_grad=False):
    """Head outputs whose mask logits have a spread of a few units."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return (scale * torch.randn(*shape, generator=generator)).requires_grad_(requires_grad)

    return MaskOutputs(
        pred_logits=normal(batch, queries, NUM_CLASSES + 1),
        mask_embed=normal(batch, queries, 8),
        mask_features=normal(batch, 8, *size),
        aux_logits=normal(layers, batch, queries, NUM_CLASSES + 1),
        aux_mask_embed=normal(layers, batch, queries, 8),
    )


def make_target(count, seed=0, size=(24, 28)):
    generator = torch.Generator().manual_seed(seed)
    return {
        "labels": torch.randint(NUM_CLASSES, (count,), generator=generator),
        "masks": tv_tensors.Mask(torch.rand(count, *size, generator=generator) > 0.6),
        "boxes": torch.zeros(count, 4),
    }


def plain_focal_and_dice(logits, masks):
    target = masks[:, None].to(logits.dtype).expand(-1, logits.shape[1], -1, -1)
    upsampled = F.interpolate(logits, size=masks.shape[-2:], mode="bilinear", align_corners=False)
    prob = upsampled.sigmoid()
    p_t = prob * target + (1 - prob) * (1 - target)
    alpha_t = 0.25 * target + 0.75 * (1 - target)
    focal = alpha_t * (1 - p_t) ** 2 * F.binary_cross_entropy_with_logits(upsampled, target, reduction="none")
    total = prob.sum((2, 3)) + target.sum((2, 3))
    return focal.mean((2, 3)), 1 - (2 * (prob * target).sum((2, 3)) + 1) / (total + 1)


@pytest.mark.parametrize("tile", [1, 1500, 10**6], ids=["mask by mask", "several masks", "all at once"])
@pytest.mark.parametrize("size", [(24, 28), (23, 26), (6, 7)], ids=["times four", "odd", "same size"])
def test_focal_and_dice_equal_plain_formulas_in_value_and_gradient(size, tile, monkeypatch):
    monkeypatch.setattr("vision_stack.losses.functional.tile_elements", lambda *_: tile)
    logits, masks = (4 * torch.randn(5, 3, 6, 7, dtype=torch.float64)).requires_grad_(), torch.rand(5, *size) > 0.5
    upstream = torch.rand(2, 5, 3, dtype=torch.float64)
    results = []
    for function in (focal_and_dice_loss, plain_focal_and_dice):
        losses = function(logits, masks)
        results.append((*losses, *torch.autograd.grad((torch.stack(losses) * upstream).sum(), logits)))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)  # the same sums in float64


def test_focal_and_dice_of_extreme_logits_stay_finite():
    logits = torch.tensor([-1e4, -90.0, 0.0, 90.0, 1e4]).view(1, 5, 1, 1).expand(1, 5, 2, 2).clone().requires_grad_()
    losses = focal_and_dice_loss(logits, torch.ones(1, 8, 8, dtype=torch.bool))
    torch.stack(losses).sum().backward()
    assert torch.stack(losses).isfinite().all()
    assert logits.grad.isfinite().all()
    focal = losses[0][0]
    assert focal[0] > focal[1] > focal[2] > focal[4]


def test_focal_and_dice_without_gradient_equal_those_with():
    logits, masks = torch.randn(3, 2, 4, 4), torch.rand(3, 16, 16) > 0.5
    with torch.no_grad():
        quiet = focal_and_dice_loss(logits.requires_grad_(), masks)
    for one, other in zip(quiet, focal_and_dice_loss(logits, masks), strict=True):
        assert torch.equal(one, other)


def test_softplus_equals_torch():
    x = torch.linspace(-100, 100, 4001)
    torch.testing.assert_close(softplus(x), F.softplus(x), rtol=1e-6, atol=1e-6)  # float32 rounding


def test_classification_loss_equals_weighted_cross_entropy_of_each_layer():
    logits, labels = torch.randn(3, 2, 5, NUM_CLASSES + 1), torch.randint(NUM_CLASSES + 1, (3, 2, 5))
    weight = torch.tensor([1.0, 1.0, 1.0, 0.1])
    plain = [F.cross_entropy(x.transpose(1, 2), y, weight) for x, y in zip(logits, labels, strict=True)]
    loss, weights = classification_loss(logits, labels, 0.1)
    torch.testing.assert_close(loss / weights, torch.stack(plain))


@pytest.mark.parametrize("mask_loss", ["focal", "point"])
@pytest.mark.parametrize("counts", [(3, 2), (0, 4), (0, 0), (9, 1)], ids=["usual", "one empty", "empty", "crowded"])
@pytest.mark.filterwarnings("ignore:some images have more objects")
def test_criterion_gives_named_finite_losses_and_gradients(mask_loss, counts):
    outputs = make_outputs(requires_grad=True)
    targets = [make_target(count, seed) for seed, count in enumerate(counts)]
    criterion = MaskCriterionConfig(mask_loss=mask_loss, num_points=50).build(NUM_CLASSES)
    losses = criterion(outputs, targets)
    names = [f"loss_{part}{layer}" for layer in ("", "_0", "_1") for part in ("class", "mask", "dice")]
    assert sorted(losses) == sorted(names)
    sum(losses.values()).backward()
    for name, tensor in outputs._asdict().items():
        assert tensor.grad.isfinite().all(), name
    assert criterion.objects_without_query == max(0, counts[0] - 6)


def test_criterion_layers_equal_each_layer_alone():
    outputs, targets = make_outputs(), [make_target(3, 1), make_target(2, 2)]
    criterion = MaskCriterionConfig().build(NUM_CLASSES)
    together = criterion(outputs, targets)
    for layer in range(3):
        alone = MaskOutputs(
            outputs.all_logits[layer], outputs.all_mask_embed[layer], outputs.mask_features,
            outputs.aux_logits[:0], outputs.aux_mask_embed[:0],
        )  # fmt: skip
        for name, value in criterion(alone, targets).items():
            torch.testing.assert_close(together[name if layer == 2 else f"{name}_{layer}"], value)


def test_criterion_layers_with_features_of_their_own_equal_each_layer_alone_and_keep_their_order():
    outputs, targets = make_outputs(), [make_target(3, 1), make_target(2, 2)]
    shared, other = outputs.mask_features, outputs.mask_features.flip(1)
    features = (shared, other, shared)  # a group of two layers, and one between them
    layers = tuple(MaskLayer(outputs.all_logits[i], outputs.all_mask_embed[i], own) for i, own in enumerate(features))
    together = LayeredMaskOutputs(layers)
    assert [group.layers for group in together.groups] == [(0, 2), (1,)]
    criterion = MaskCriterionConfig().build(NUM_CLASSES)
    losses = criterion(together, targets)
    for number, layer in enumerate(layers):
        for name, value in criterion(LayeredMaskOutputs((layer,)), targets).items():
            torch.testing.assert_close(losses[name if number == 2 else f"{name}_{number}"], value)


def test_criterion_copies_the_costs_of_all_layers_to_the_host_once(monkeypatch):
    outputs, targets = make_outputs(), [make_target(3, 1), make_target(2, 2)]
    layers = [MaskLayer(outputs.all_logits[i], outputs.all_mask_embed[i], outputs.mask_features + i) for i in range(3)]
    copies, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: copies.append(len(x)) or cpu(x))
    MaskCriterionConfig().build(NUM_CLASSES)(LayeredMaskOutputs(tuple(layers)), targets)
    assert copies == [3 * 6 * (3 + 2)]  # layers, queries, objects


def test_criterion_layers_that_share_features_are_matched_in_one_product(monkeypatch):
    outputs, targets = make_outputs(), [make_target(3, 1), make_target(2, 2)]
    layers = [MaskLayer(outputs.all_logits[i], outputs.all_mask_embed[i], outputs.mask_features) for i in range(3)]
    calls = []
    match = vision_stack.losses.criterion.match
    monkeypatch.setattr("vision_stack.losses.criterion.match", lambda *a, **k: calls.append(1) or match(*a, **k))
    criterion = MaskCriterionConfig().build(NUM_CLASSES)
    layered, stacked = criterion(LayeredMaskOutputs(tuple(layers)), targets), criterion(outputs, targets)
    assert len(calls) == 2
    assert {k: v.item() for k, v in layered.items()} == {k: v.item() for k, v in stacked.items()}


def test_criterion_under_autocast_computes_in_float32():
    outputs, targets = make_outputs(), [make_target(3, 1), make_target(2, 2)]
    criterion = MaskCriterionConfig().build(NUM_CLASSES)
    expected = criterion(outputs, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for name, value in criterion(outputs, targets).items():
            assert value.dtype == torch.float32
            assert torch.equal(value, expected[name])


def test_criterion_at_points_is_nearly_the_dense_average_over_uniform_points():
    outputs, targets = make_outputs(layers=0, scale=0.5), [make_target(3, 1), make_target(2, 2)]
    config = MaskCriterionConfig(mask_loss="point", num_points=20_000, importance_sample_ratio=0.0)
    sampled = config.build(NUM_CLASSES)(outputs, targets)
    # every pixel of a 24 x 28 grid as often as any other: the same integral by the midpoint rule
    points = pixel_centers(240, 280, torch.device("cpu"))
    masks = torch.cat([target["masks"].as_subclass(torch.Tensor) for target in targets])
    inside = sample_masks(masks, points)
    best = []
    for image, rows in ((0, slice(0, 3)), (1, slice(3, 5))):
        logits = sample_maps(outputs.pred_masks[image : image + 1], points[None])[0]  # [Q, P]
        pairs = [
            point_cross_entropy_and_dice_loss(logits, inside[rows][i].expand(6, -1)) for i in range(len(inside[rows]))
        ]
        best.append(torch.stack([torch.stack(pair) for pair in pairs]).min(-1).values.sum(0))
    lower_bound = sum(best) / 5  # each object with its best query: what an assignment can at most reach
    assert sampled["loss_mask"] / 20 >= lower_bound[0] - 0.02  # 20,000 points: standard error about 0.005
    assert sampled["loss_dice"] >= lower_bound[1] - 0.02


@pytest.mark.gpu
@pytest.mark.parametrize("mask_loss", ["focal", "point"])
def test_criterion_on_a_gpu_equals_that_on_the_cpu(mask_loss):
    outputs, targets = make_outputs(size=(16, 20)), [make_target(3, 1, (64, 80)), make_target(2, 2, (64, 80))]
    # all pixels as matching points, so that nothing but the mask loss's points is random
    config = MaskCriterionConfig(mask_loss=mask_loss, num_points=12544)
    on_cpu = config.build(NUM_CLASSES)(outputs, targets)
    there = [{name: value.cuda() for name, value in target.items()} for target in targets]
    on_gpu = config.build(NUM_CLASSES)(MaskOutputs(*(x.cuda() for x in outputs)), there)
    for name, value in on_cpu.items():
        tolerance = 0.05 if mask_loss == "point" and "class" not in name else 1e-4  # other points; float32 sums
        torch.testing.assert_close(on_gpu[name].cpu(), value, rtol=tolerance, atol=tolerance)


def test_criterion_with_nan_outputs_gives_nan_and_does_not_crash():
    outputs = make_outputs()
    outputs.mask_embed[0, 0] = float("nan")
    with pytest.warns(RuntimeWarning, match="NaN or infinity"):
        losses = MaskCriterionConfig().build(NUM_CLASSES)(outputs, [make_target(6, 1), make_target(0)])
    assert losses["loss_mask"].isnan()
    assert losses["loss_mask_0"].isfinite()


def test_config_with_all_costs_zero_names_the_fields():
    with pytest.raises(ConfigError, match=r"criterion.*matching costs are 0"):
        from_dict({"class_cost": 0, "mask_cost": 0, "dice_cost": 0}, cls=MaskCriterionConfig, path="criterion")


def test_config_costs_default_to_the_loss_weights():
    assert tuple(MaskCriterionConfig(mask_weight=5, dice_cost=2.0).costs) == (1.0, 5.0, 2.0)


def test_semantic_loss_equals_pixel_by_pixel_cross_entropy():
    """Two images of 2 x 3 pixels at half the masks' size; where two objects meet the smaller one is in front."""
    logits = torch.randn(2, NUM_CLASSES + 1, 2, 3)
    large, small = torch.zeros(2, 4, 6, dtype=torch.bool)
    large[:, :4] = True
    small[2:, 2:4] = True
    loss, divisor = semantic_loss(
        logits, torch.tensor([0, 2]), torch.stack([large, small]), (2, 0), no_object_weight=0.25
    )
    none = NUM_CLASSES
    labels = [[[0, 0, none], [0, 2, none]], [[none] * 3] * 2]
    total = weights = 0.0
    for image, rows in enumerate(labels):
        for y, row in enumerate(rows):
            for x, label in enumerate(row):
                weight = 0.25 if label == none else 1.0
                total -= weight * float(logits[image, :, y, x].log_softmax(0)[label])
                weights += weight
    assert float(loss / divisor) == pytest.approx(total / weights, rel=1e-5)  # float32


def test_criterion_with_pixel_logits_adds_the_weighted_semantic_loss_alone():
    outputs, targets = make_outputs(), [make_target(3, 1), make_target(0)]
    criterion = MaskCriterionConfig(pixel_ce_weight=3.0).build(NUM_CLASSES)
    pixel_logits = torch.randn(2, NUM_CLASSES + 1, 6, 7, requires_grad=True)
    losses, without = criterion(outputs, targets, pixel_logits), criterion(outputs, targets)
    labels, masks = targets[0]["labels"], targets[0]["masks"].as_subclass(torch.Tensor)
    loss, weight = semantic_loss(pixel_logits, labels, masks, (3, 0), 0.1)
    expected = 3 * loss / weight
    torch.testing.assert_close(losses.pop("loss_semantic"), expected)
    assert losses.keys() == without.keys()
    expected.backward()
    assert pixel_logits.grad.abs().sum() > 0
