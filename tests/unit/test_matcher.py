"""The matcher against costs that are written out, and its behaviour at the edges."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from vision_stack.losses.functional import dense_mask_costs, point_mask_costs
from vision_stack.losses.matcher import Objects, Weights
from vision_stack.losses.matcher import match as match_groups
from vision_stack.outputs import LayerGroup

WEIGHTS = Weights(1.0, 20.0, 1.0)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make_inputs(layers=3, batch=2, queries=5, classes=3, size=(6, 7)):
    return (
        torch.randn(layers, batch, queries, classes + 1),
        torch.randn(layers, batch, queries, 8),
        torch.randn(batch, 8, *size),
    )


def match(logits, embed, features, objects, weights, **options):
    """Of a single group of layers."""
    (found,) = match_groups([LayerGroup(logits, embed, features, (0,))], objects, weights, **options)
    return found


def make_objects(*counts, size=(24, 28)):
    return Objects(torch.randint(3, (sum(counts),)), torch.rand(sum(counts), *size) > 0.5, counts)


def plain_cost(logits, masks, labels, target):
    """[Q, N] of one layer and image, pair by pair; masks [Q, h, w] logits, target [N, h, w] float."""
    cost = torch.empty(len(masks), len(target))
    for q, n in itertools.product(range(len(masks)), range(len(target))):
        prob, bce = masks[q].sigmoid(), F.binary_cross_entropy_with_logits(masks[q], target[n], reduction="none")
        p_t = prob * target[n] + (1 - prob) * (1 - target[n])
        focal = ((0.25 * target[n] + 0.75 * (1 - target[n])) * (1 - p_t) ** 2 * bce).mean()
        dice = 1 - (2 * (prob * target[n]).sum() + 1) / (prob.sum() + target[n].sum() + 1)
        cost[q, n] = 20 * focal + dice - logits[q].softmax(-1)[labels[n]]
    return cost


def test_dense_costs_equal_plain_formulas_in_every_tile(monkeypatch):
    monkeypatch.setattr("vision_stack.losses.functional.tile_elements", lambda *_: 1)  # tiles of 256 pixels
    embed, features, target = 2 * torch.randn(6, 8), torch.randn(8, 20, 33), (torch.rand(4, 20, 33) > 0.5).float()
    focal, dice = dense_mask_costs(embed, features.flatten(1), target.flatten(1))
    masks = torch.einsum("qc,chw->qhw", embed, features)
    expected = plain_cost(torch.full((6, 2), -1e9).index_fill(1, torch.tensor(1), 0.0), masks, [0] * 4, target)
    torch.testing.assert_close(20 * focal + dice, expected, rtol=1e-5, atol=1e-5)  # float32 sums of 660 pixels


def test_point_costs_equal_plain_formulas():
    embed, features, target = torch.randn(6, 8), torch.randn(8, 300), torch.rand(4, 300)
    logits = (embed @ features)[:, None].expand(6, 4, 300)
    bce = F.binary_cross_entropy_with_logits(logits, target.expand(6, 4, 300), reduction="none").mean(-1)
    prob = logits.sigmoid()
    dice = 1 - (2 * (prob * target).sum(-1) + 1) / (prob.sum(-1) + target.sum(-1) + 1)
    for ours, plain in zip(point_mask_costs(embed, features, target), (bce, dice), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)  # float32 sums of 300 points


def test_match_total_cost_equals_the_best_of_all_assignments():
    logits, embed, features = make_inputs()
    objects = make_objects(3, 2)
    found = match(logits, embed, features, objects, WEIGHTS)
    assert found.counts == (9, 6)
    small = F.interpolate(objects.masks[:, None].float(), size=(6, 7), mode="nearest")[:, 0]
    for layer, (image, mine) in itertools.product(range(3), enumerate((range(0, 3), range(3, 5)))):
        masks = torch.einsum("qc,chw->qhw", embed[layer, image], features[image])
        cost = plain_cost(logits[layer, image], masks, objects.labels[list(mine)], small[list(mine)])
        best = min(
            sum(float(cost[q, n]) for n, q in enumerate(queries))
            for queries in itertools.permutations(range(5), len(mine))
        )
        here = (found.layers == layer) & (found.images == image)
        assert sorted(found.objects[here].tolist()) == list(mine)
        ours = cost[found.queries[here], found.objects[here] - mine[0]].sum()
        assert float(ours) == pytest.approx(best, abs=1e-4)  # float32 costs of about 10


def test_match_at_points_finds_the_planted_queries():
    logits, embed, features = make_inputs(layers=2, batch=1, queries=5, size=(16, 16))
    planted = torch.tensor([4, 1, 3])
    masks = torch.einsum("qc,chw->qhw", embed[0, 0], features[0])
    objects = Objects(torch.zeros(3, dtype=torch.long), _upsampled(masks[planted]) > 0, (3,))
    embed[1] = embed[0]
    for num_points in (100, 12544):  # random points, and the map itself
        found = match(
            logits, embed, features, objects, Weights(0.0, 5.0, 5.0), mask_cost="point", num_points=num_points
        )
        for layer in range(2):
            here = found.layers == layer
            assert torch.equal(found.queries[here], planted[found.objects[here]])


def _upsampled(masks):
    return F.interpolate(masks[None], scale_factor=4, mode="bilinear")[0]


def test_match_with_more_objects_than_queries_keeps_the_cheapest_and_counts_the_rest():
    objects = make_objects(9, 2)
    found = match(*make_inputs(), objects, WEIGHTS)
    assert found.dropped == 4
    assert found.counts == (15, 6)
    first = found.objects[(found.images == 0) & (found.layers == 0)]
    assert len(first.unique()) == 5


def test_match_without_objects_gives_no_pairs():
    found = match(*make_inputs(), make_objects(0, 0), WEIGHTS)
    assert found.counts == (0, 0)
    assert found.queries.shape == (0,)
    assert found.queries.dtype == torch.int64


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_match_with_unusable_query_avoids_it_and_warns(bad):
    logits, embed, features = make_inputs()
    embed[0, 0, 2] = bad
    with pytest.warns(RuntimeWarning, match="learning rate"):
        found = match(logits, embed, features, make_objects(4, 1), WEIGHTS)
    assert 2 not in found.queries[(found.layers == 0) & (found.images == 0)]


def test_match_of_half_precision_inputs_equals_that_of_the_same_values_in_float32():
    inputs = [each.bfloat16() for each in make_inputs()]
    objects = make_objects(3, 2)
    half, full = (match(*each, objects, WEIGHTS) for each in (inputs, [x.float() for x in inputs]))
    assert torch.equal(half.queries, full.queries)


@pytest.mark.parametrize("counts", [(3, 2), (9, 0), (0, 0)])
def test_match_of_several_groups_is_that_of_each_alone_with_one_copy_to_the_host(counts, monkeypatch):
    sizes = [(2, (6, 7)), (1, (6, 7)), (3, (5, 9))]
    groups = [LayerGroup(*make_inputs(layers=layers, size=size), (0,)) for layers, size in sizes]
    objects = make_objects(*counts)
    alone = [match(*group[:3], objects, WEIGHTS) for group in groups]
    copies, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: copies.append(x.shape) or cpu(x))
    together = match_groups(groups, objects, WEIGHTS)
    assert len(copies) == bool(sum(counts))
    for one, other in zip(together, alone, strict=True):
        assert (one.counts, one.dropped) == (other.counts, other.dropped)
        assert all(torch.equal(x, y) for x, y in zip(one[:4], other[:4], strict=True))
        assert torch.equal(one.on_host, torch.stack(one[:4]))


class _CountReads(TorchDispatchMode):
    """Counts what would make a GPU wait for the host: reads of single values and copies between devices."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            self.waits.append(func)
        return func(*args, **(kwargs or {}))


def test_match_reads_no_single_value_from_the_device():
    with _CountReads() as reads:
        match(*make_inputs(layers=4, batch=3), make_objects(3, 0, 2), WEIGHTS)
    assert reads.waits == []
