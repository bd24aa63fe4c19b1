"""Mask losses at shared random points against the paper's, which draws points for every mask."""

import pytest
import torch

from vision_stack.losses.functional import point_cross_entropy_and_dice_loss
from vision_stack.losses.point_losses import uncertain_point_losses
from vision_stack.ops.point_sampling import sample_maps

POINTS, OVERSAMPLE, IMPORTANCE = 60, 3.0, 0.75


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make_case(objects=4, layers=3):
    return 2 * torch.randn(objects, layers, 6, 7), torch.rand(objects, 24, 28) > 0.6


def plain_losses(logits, masks, *, shared):
    """As the paper writes it, with full masks as floats; candidates of each mask's own, or `shared` by all."""
    flat, targets = logits.flatten(0, 1)[:, None], masks.float().repeat_interleave(logits.shape[1], 0)[:, None]
    rows = 1 if shared else len(flat)
    uncertain = int(IMPORTANCE * POINTS)
    candidates = torch.rand(rows, int(OVERSAMPLE * POINTS), 2).expand(len(flat), -1, -1)
    uniform = torch.rand(rows, POINTS - uncertain, 2).expand(len(flat), -1, -1)
    order = sample_maps(flat.detach(), candidates)[:, 0].abs().argsort(1)[:, :uncertain]
    points = torch.cat([candidates.gather(1, order[..., None].expand(-1, -1, 2)), uniform], 1)
    losses = point_cross_entropy_and_dice_loss(sample_maps(flat, points)[:, 0], sample_maps(targets, points)[:, 0])
    return tuple(loss.view(logits.shape[:2]) for loss in losses)


def our_losses(logits, masks):
    return uncertain_point_losses(logits, masks, POINTS, OVERSAMPLE, IMPORTANCE)


@pytest.mark.parametrize("tile", [1, 500, 10**6], ids=["mask by mask", "two masks", "all at once"])
def test_losses_and_gradients_equal_the_plain_formulas_at_the_same_points(tile, monkeypatch):
    monkeypatch.setattr("vision_stack.losses.point_losses.tile_elements", lambda *_: tile)
    logits, masks = make_case()
    logits.requires_grad_()
    upstream = torch.rand(2, *logits.shape[:2])
    results = []
    for losses in (our_losses, lambda *case: plain_losses(*case, shared=True)):
        torch.manual_seed(1)
        values = losses(logits, masks)
        results.append((*values, *torch.autograd.grad((torch.stack(values) * upstream).sum(), logits)))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)  # positions in float32


def test_expectation_of_losses_and_gradients_is_that_of_points_drawn_for_each_mask():
    logits, masks = make_case(objects=3, layers=2)
    logits.requires_grad_()
    means, errors = [], []
    for losses in (our_losses, lambda *case: plain_losses(*case, shared=False)):
        draws = []
        for _ in range(400):
            values = losses(logits, masks)
            (gradient,) = torch.autograd.grad(torch.stack(values).sum(), logits)
            draws.append(torch.cat([*(value.detach().flatten() for value in values), gradient.flatten()]))
        stacked = torch.stack(draws)
        means.append(stacked.mean(0))
        errors.append(stacked.var(0) / len(draws))
    deviations = (means[0] - means[1]) / (errors[0] + errors[1]).sqrt()  # 264 numbers, nearly standard normal each
    assert deviations.abs().max() < 4.5  # of 264 normal numbers one in 500 times above 4.5 or so
    assert 0.8 < deviations.square().mean() < 1.25  # a bias of half a standard error everywhere would be seen


def test_points_that_are_no_longer_the_nearest_to_zero_change_the_expectation(monkeypatch):
    logits, masks = make_case(objects=3, layers=2)
    expected = torch.stack([our_losses(logits, masks)[0] for _ in range(50)]).mean(0)
    monkeypatch.setattr(
        "vision_stack.losses.point_losses.nearest_to_zero",
        lambda values, count: torch.arange(count).expand(*values.shape[:-1], -1),
    )
    uniform = torch.stack([our_losses(logits, masks)[0] for _ in range(50)]).mean(0)
    assert ((uniform - expected).abs() / expected).min() > 0.02  # far beyond the error of 50 draws


@pytest.mark.parametrize("importance", [0.0, 1.0], ids=["all uniform", "all uncertain"])
def test_either_kind_of_points_alone_gives_finite_losses(importance):
    losses = uncertain_point_losses(*make_case(), POINTS, OVERSAMPLE, importance)
    assert torch.stack(losses).isfinite().all()


def test_without_objects_losses_are_empty_and_gradients_flow():
    logits = torch.zeros(0, 3, 6, 7, requires_grad=True)
    losses = our_losses(logits, torch.zeros(0, 24, 28, dtype=torch.bool))
    assert [tuple(loss.shape) for loss in losses] == [(0, 3)] * 2
    torch.stack(losses).sum().backward()
    assert logits.grad.shape == logits.shape


def test_uncertain_points_lie_where_the_logits_cross_zero():
    ramp = torch.linspace(-10, 10, 32).expand(1, 1, 32, 32)  # zero in the middle column
    middle = torch.zeros(1, 320, 320, dtype=torch.bool)
    middle[..., 160 - 32 : 160 + 32] = True  # the fifth of the width that is nearest to it
    # A dice loss of logits that are all but zero tells which share of the points was in the strip.
    _, all_uniform = uncertain_point_losses(1e-6 * ramp, middle, 4000, 4.0, 0.0)
    _, uncertain = uncertain_point_losses(1e-6 * ramp, middle, 4000, 4.0, 1.0)
    share = [1 - float(dice) for dice in (all_uniform, uncertain)]  # 2 * 0.5 * s / (0.5 + s) for a share s
    share = [0.5 * d / (1 - d) for d in share]
    assert abs(share[0] - 0.2) < 0.03  # 4000 points: standard error 0.006
    # a fifth of all candidates is four fifths of the nearest quarter, but for corners, which zeros outside draw to zero
    assert abs(share[1] - 0.8) < 0.05
