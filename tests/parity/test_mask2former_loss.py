"""Mask2Former's matching and losses: against transformers', and the shortcuts against the plain formulation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

transformers = pytest.importorskip("transformers")
from test_maskformer_loss import CHANNELS, LAYERS, NUM_CLASSES, QUERIES, layer_outputs, make_case  # noqa: E402
from transformers.models.mask2former import modeling_mask2former as hf  # noqa: E402

import vision_stack.losses.matcher as matcher  # noqa: E402
from vision_stack.heads.mask2former import Mask2FormerHeadConfig  # noqa: E402
from vision_stack.losses import MaskCriterionConfig  # noqa: E402
from vision_stack.losses.functional import point_mask_costs  # noqa: E402
from vision_stack.ops.point_sampling import pixel_centers, sample_maps  # noqa: E402
from vision_stack.outputs import MaskOutputs  # noqa: E402
from vision_stack.structures import FeatureSpec  # noqa: E402

WEIGHTS = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}


def criterion(num_points):
    config = MaskCriterionConfig(class_weight=2, mask_weight=5, dice_weight=5, mask_loss="point", num_points=num_points)
    return config.build(NUM_CLASSES)


def their_total(outputs, targets, num_points):
    """Of all layers, as transformers sums them."""
    config = transformers.Mask2FormerConfig(num_labels=NUM_CLASSES, train_num_points=num_points)
    loss = hf.Mask2FormerLoss(config=config, weight_dict=WEIGHTS)
    total = 0.0
    for _, logits, masks in layer_outputs(outputs):
        parts = loss(masks, logits, [t["masks"].float() for t in targets], [t["labels"] for t in targets])
        total += sum(WEIGHTS[name] * float(value) for name, value in parts.items())
    return total


def test_point_costs_equal_transformers_at_the_same_points():
    outputs, targets = make_case((5, 1))
    points = torch.rand(1, 200, 2, generator=torch.Generator().manual_seed(2))
    masks = targets[0]["masks"].float()[:, None]
    inside = hf.sample_point(masks, points.expand(5, -1, -1), align_corners=False)[:, 0]
    logits = hf.sample_point(outputs.pred_masks[0][:, None], points.expand(QUERIES, -1, -1), align_corners=False)[:, 0]
    features = sample_maps(outputs.mask_features[:1], points)[0]  # features are sampled instead of masks
    cross_entropy, dice = point_mask_costs(outputs.mask_embed[0], features, inside)
    # float32 sums over 200 points in another order
    torch.testing.assert_close(
        cross_entropy, hf.pair_wise_sigmoid_cross_entropy_loss(logits, inside), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(dice, hf.pair_wise_dice_loss(logits, inside), rtol=1e-5, atol=1e-5)


def test_cost_matrices_of_every_layer_and_image_equal_transformers_with_the_same_points(monkeypatch):
    outputs, targets = make_case((4, 2))
    height, width = outputs.mask_features.shape[-2:]
    points = pixel_centers(height, width, torch.device("cpu"))  # what ours takes where they are no more than asked for
    seen = {"theirs": [], "ours": []}

    def spy(module, name):
        solve = module.linear_sum_assignment
        monkeypatch.setattr(module, "linear_sum_assignment", lambda c: seen[name].append(np.array(c)) or solve(c))

    spy(hf, "theirs")
    spy(matcher, "ours")
    criterion(len(points))(outputs, targets)
    monkeypatch.setattr(torch, "rand", lambda *size, **_: points.expand(size[0], -1, -1))
    theirs = hf.Mask2FormerHungarianMatcher(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=len(points))
    for _, logits, masks in layer_outputs(outputs):
        theirs(masks, logits, [t["masks"].float() for t in targets], [t["labels"] for t in targets])
    assert len(seen["theirs"]) == len(seen["ours"]) == 2 * (LAYERS + 1)
    by_layer = [seen["ours"][layer + image * (LAYERS + 1)] for layer in range(LAYERS + 1) for image in range(2)]
    for want, got in zip(seen["theirs"], by_layer, strict=True):
        assert want.std() > 1
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)  # float32, costs of 1 to 50


def test_losses_of_all_layers_equal_transformers_with_the_same_points(monkeypatch):
    """Those of the matching, the candidates and the uniform ones are told apart by how many they are."""
    outputs, targets = make_case((3, 1))
    outputs = MaskOutputs(*(x.detach() for x in outputs))
    num_points, draw, drawn = 300, torch.rand, set()

    def rand(*size, **_):
        *masks, count, two = size
        drawn.add(count)
        return draw(count, two, generator=torch.Generator().manual_seed(count)).expand(*masks, -1, -1).clone()

    monkeypatch.setattr(torch, "rand", rand)
    ours = float(sum(criterion(num_points)(outputs, targets).values()))
    assert drawn == {300, 900, 75}
    # float32; of 900 candidates the last that is kept and the first that is not may change places
    assert ours == pytest.approx(their_total(outputs, targets, num_points), rel=1e-4)
    assert drawn == {300, 900, 75}
    assert float(sum(criterion(301)(outputs, targets).values())) != pytest.approx(ours, rel=1e-3)  # other points


def test_total_loss_equals_transformers_in_expectation_over_seeds():
    """There, points are drawn again for every layer, shared here; the map has more pixels than points."""
    outputs, targets = make_case((3, 1))
    outputs = MaskOutputs(*(x.detach() for x in outputs))
    num_points, samples = 300, {"ours": [], "theirs": []}
    assert outputs.mask_features[0, 0].numel() > num_points
    loss = criterion(num_points)
    for seed in range(60):
        torch.manual_seed(seed)
        samples["ours"].append(float(sum(loss(outputs, targets).values())))
        samples["theirs"].append(their_total(outputs, targets, num_points))
    ours, theirs = (np.array(samples[name]) for name in ("ours", "theirs"))
    error = np.hypot(ours.std(), theirs.std()) / np.sqrt(len(ours))
    assert error / theirs.mean() < 0.005  # sharp enough to see a wrong ratio of points
    assert abs(ours.mean() - theirs.mean()) < 4 * error


@pytest.mark.parametrize("fault", ["oversample_ratio", "importance_sample_ratio"])
def test_total_loss_in_expectation_tells_another_choice_of_points(fault):
    outputs, targets = make_case((3, 1))
    outputs = MaskOutputs(*(x.detach() for x in outputs))
    config = MaskCriterionConfig(
        class_weight=2,
        mask_weight=5,
        dice_weight=5,
        mask_loss="point",
        num_points=300,
        **{fault: {"oversample_ratio": 1.5, "importance_sample_ratio": 0.4}[fault]},
    )
    losses = config.build(NUM_CLASSES), criterion(300)
    means, errors = [], []
    for loss in losses:
        values = []
        for seed in range(90):
            torch.manual_seed(seed)
            values.append(float(sum(loss(outputs, targets).values())))
        means.append(np.mean(values))
        errors.append(np.std(values) / np.sqrt(len(values)))
    assert abs(means[0] - means[1]) > 4 * np.hypot(*errors)


def make_head():
    torch.manual_seed(0)
    specs = (FeatureSpec("mask_features", 16, 4), *(FeatureSpec(f"p{s}", 16, 2**s) for s in (3, 4, 5)))
    head = Mask2FormerHeadConfig(num_queries=QUERIES, hidden_dim=16, num_heads=2, ffn_dim=32, num_decoder_layers=3)
    return head.build(specs, NUM_CLASSES)


@torch.no_grad()
def test_attention_masks_from_resized_features_equal_resized_masks():
    head = make_head()
    features, hidden = torch.randn(2, 16, 24, 32), 20 * torch.randn(2, QUERIES, 16)
    for size in ((12, 16), (6, 8), (3, 4), (5, 7)):
        masks = torch.einsum("bqc,bchw->bqhw", head.mask_embed(hidden), features)
        plain = F.interpolate(masks, size=size, mode="bilinear").flatten(2)
        blocked = plain < 0
        blocked[blocked.all(2)] = False  # a query with an empty mask looks everywhere
        resized = F.interpolate(features, size=size, mode="bilinear").flatten(2)
        sure = plain.abs() > 1e-4  # rounding moves logits of size 10 by 1e-6; nearer to zero either may be right
        assert sure.float().mean() > 0.99
        assert torch.equal(head._attend(hidden, resized)[sure], ~blocked[sure])


class Largest(TorchDispatchMode):
    """The most elements that any result has, and how often values were asked for on the host."""

    def __init__(self):
        super().__init__()
        self.elements = self.syncs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.untyped_storage().nbytes() // each.element_size())
        self.syncs += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return out


def test_criterion_makes_matched_masks_alone_and_copies_to_the_host_once(monkeypatch):
    outputs, targets = make_case((1, 2))
    outputs = outputs._replace(mask_embed=torch.randn(2, 50, CHANNELS), pred_logits=torch.randn(2, 50, NUM_CLASSES + 1))
    outputs = outputs._replace(
        aux_mask_embed=torch.randn(9, 2, 50, CHANNELS), aux_logits=torch.randn(9, 2, 50, NUM_CLASSES + 1)
    )
    copies, to_host = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: copies.append(self.shape) or to_host(self))
    with Largest() as seen:
        criterion(64)(outputs, targets)
    every_mask = 10 * 2 * 50 * 24 * 32  # of ten layers
    assert seen.elements < every_mask / 10
    assert copies == [torch.Size([10 * 50 * 3])]  # three objects with all queries of all layers
    assert seen.syncs == 0
