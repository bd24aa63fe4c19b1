"""The sampling of deformable attention: rows summed on the CPU against `grid_sample`, values and gradients."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vision_stack.layers.deformable import (
    DeformableAttention,
    cell_centers,
    on_each_map,
    padding_of,
    to_maps,
    to_tokens,
)
from vision_stack.ops.deformable_attention import deformable_attention, sample_by_grid
from vision_stack.structures import Features

SHAPES = {
    "three": ((3, 4), (6, 7), (11, 14)),
    "one cell": ((1, 1), (2, 3)),
    "one row": ((1, 5), (4, 1)),
    "fewer cells than points": ((1, 1), (1, 2)),
}


POINTS = (4, 3)  # by turns, of the maps


def make_case(shapes, *, dtype=torch.float32, spread=0.4):
    """Locations in and, at the borders, out of the maps; other numbers of them on each."""
    generator = torch.Generator().manual_seed(0)
    cells, levels = sum(h * w for h, w in shapes), len(shapes)
    value = torch.randn(2, cells, 3, 8, generator=generator, dtype=dtype)
    points = [POINTS[level % 2] for level in range(levels)]
    locations = 0.5 + spread * torch.randn(2, 5, 3, sum(points), 2, generator=generator, dtype=dtype)
    weights = torch.randn(2, 5, 3, sum(points), generator=generator, dtype=dtype)
    return [x.requires_grad_() for x in (value, locations, weights)], points


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_deformable_attention_values_and_gradients_equal_grid_sample(shapes):
    inputs, points = make_case(shapes)
    assert ((inputs[1] < 0) | (inputs[1] > 1)).any()
    results = []
    for function in (deformable_attention, sample_by_grid):
        value, locations, weights = inputs
        out = function(value, shapes, locations, weights, points)
        out_grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        results.append([out, *torch.autograd.grad(out, inputs, out_grad)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # float32, values of 1 to 100


def test_places_are_exact_whatever_the_type_of_the_values():
    """On a map of 160 cells, where neighbouring cells are alike to bfloat16."""
    shapes = ((160, 160),)
    ramp = torch.arange(160.0).expand(160, 160).reshape(1, -1, 1, 1)
    locations = torch.rand(1, 50, 1, 1, 2, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    weights = torch.ones(1, 50, 1, 1)
    expected = 160 * locations[0, :, 0, 0, :1] - 0.5
    for function in (deformable_attention, sample_by_grid):
        found = function(ramp.bfloat16(), shapes, locations, weights.bfloat16(), [1])
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found[0].float(), expected, rtol=2**-8, atol=0)  # only the result is rounded


def test_deformable_attention_gradients_equal_finite_differences():
    inputs, points = make_case(SHAPES["three"], dtype=torch.float64, spread=0.2)
    assert torch.autograd.gradcheck(lambda v, x, w: deformable_attention(v, SHAPES["three"], x, w, points), inputs)


def test_deformable_attention_at_cell_centres_reads_the_cells():
    value = torch.arange(12.0).view(1, 12, 1, 1)
    centres = torch.tensor([[0.5 / 4, 0.5 / 3], [3.5 / 4, 2.5 / 3]]).view(1, 1, 1, 2, 2)
    out = deformable_attention(value, [(3, 4)], centres, torch.tensor([1.0, 10.0]).view(1, 1, 1, 2), [2])
    assert out.item() == pytest.approx(0 + 10 * 11)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_deformable_attention_of_a_diverged_model_stays_within_memory(bad):
    inputs, points = make_case(SHAPES["three"])
    value, locations, weights = (x.detach() for x in inputs)
    locations[0, 0, 0, 0, 0] = bad
    out = deformable_attention(value, SHAPES["three"], locations, weights, points)
    assert out[0, 1:].isfinite().all()
    assert out[1].isfinite().all()


def test_deformable_attention_bfloat16_values_stay_near_float32():
    inputs, points = make_case(SHAPES["three"])
    value, locations, weights = (x.detach() for x in inputs)
    expected = deformable_attention(value, SHAPES["three"], locations, weights, points)
    out = deformable_attention(value.bfloat16(), SHAPES["three"], locations, weights.bfloat16(), points)
    assert out.dtype == torch.bfloat16
    # 8 bits each of value, weight and result; sums of 44 terms of size 1
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.05)


def test_deformable_attention_starts_as_rings_around_each_cell():
    attention = DeformableAttention(16, num_heads=4, num_levels=2, num_points=3)
    shapes = [(5, 6), (10, 12)]
    locations = attention._locations(torch.randn(1, 150, 16), shapes)[0]
    centre = torch.tensor([0.5 / 6, 0.5 / 5])  # of the first cell of the first map
    step = torch.tensor([1 / 12, 1 / 10])  # a cell of the second map
    expected = centre + step * torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])  # head 0 looks to the right
    torch.testing.assert_close(locations[0, 0, 3:], expected)
    torch.testing.assert_close(locations[0, 1, 3:], centre + step * torch.tensor([[0.0, 1], [0, 2], [0, 3]]))


def make_attention():
    torch.manual_seed(0)
    attention = DeformableAttention(16, num_heads=4, num_levels=2, num_points=3)
    torch.nn.init.normal_(attention.sampling_offsets.weight, std=0.5)
    return attention, torch.randn(2, 26, 16), [(2, 3), (4, 5)]


def test_deformable_attention_compiled_has_no_graph_break_and_equal_gradients():
    attention, x, shapes = make_attention()
    compiled = torch.compile(lambda x: attention(x, x, shapes), backend="aot_eager", fullgraph=True)
    expected = attention(x, x, shapes)
    gradients = torch.autograd.grad(expected.square().sum(), list(attention.parameters()))
    out = compiled(x)
    torch.testing.assert_close(out, expected)
    for got, want in zip(torch.autograd.grad(out.square().sum(), list(attention.parameters())), gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)  # float32, gradients of size 1 to 100


def test_deformable_attention_exported_is_made_of_pytorch_operations_alone():
    attention, x, shapes = make_attention()

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, x):
            return self.attention(x, x, shapes)

    program = torch.export.export(Module(), (x,), strict=False)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("vision_stack" in name for name in names)
    assert any("grid_sampler" in name for name in names)
    torch.testing.assert_close(
        program.module()(x), attention(x, x, shapes), rtol=1e-4, atol=1e-4
    )  # another order of sums


class _CopiesToDevice(TorchDispatchMode):
    """Counts tensors that are made of numbers of the host, each of which it would have to copy to an accelerator."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.lift_fresh.default
        return func(*args, **(kwargs or {}))


def test_deformable_attention_compiled_for_an_accelerator_copies_nothing_to_it(monkeypatch):
    attention, x, shapes = make_attention()
    monkeypatch.setattr("vision_stack.layers.deformable.deformable_attention", sample_by_grid)
    expected = attention(x, x, shapes)
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)  # nothing comes out of the cache
    with _CopiesToDevice() as copies:
        torch.tensor([1.0])
        assert copies.count == 1
        torch.testing.assert_close(attention(x, x, shapes), expected, rtol=0, atol=0)  # the same operations
    assert copies.count == 1


def test_cells_that_are_given_as_reference_points_equal_those_of_self_attention():
    attention, x, shapes = make_attention()
    centers = cell_centers(shapes, None, x).expand(2, -1, -1)
    reference = on_each_map(centers, None, num_levels=2)
    torch.testing.assert_close(attention(x, x, shapes, reference), attention(x, x, shapes))


def test_offsets_from_boxes_are_in_halves_of_their_sides_by_the_points():
    attention, x, shapes = make_attention()
    query, boxes = x[:, :7], torch.rand(2, 7, 1, 4).expand(-1, -1, 2, -1)
    offsets = attention.sampling_offsets(query).view(2, 7, 4, 2, 3, 2)
    places = boxes[:, :, None, :, None]
    expected = places[..., :2] + offsets / 3 * places[..., 2:] / 2
    torch.testing.assert_close(attention._locations(query, shapes, boxes), expected.flatten(3, 4))


def padded_features(dtype=torch.float32):
    maps = (torch.randn(2, 16, 4, 5, dtype=dtype), torch.randn(2, 16, 2, 3, dtype=dtype))
    return Features(maps, (32, 40), ((32, 40), (20, 17))), [(4, 5), (2, 3)]


def test_padding_covers_the_cells_whose_corner_lies_beyond_the_image():
    features, shapes = padded_features()
    padding = padding_of(features, shapes)
    first, second = (~cells for cells in padding.cells.split([20, 6], dim=1))
    assert first[0].all()
    assert second[0].all()
    assert first[1].view(4, 5).tolist() == [[True, True, True, False, False]] * 3 + [[False] * 5]
    assert second[1].view(2, 3).tolist() == [[True, True, False]] * 2
    torch.testing.assert_close(padding.valid[1], torch.tensor([[3 / 5, 3 / 4], [2 / 3, 1.0]]))
    assert padding_of(replace(features, unpadded_sizes=((32, 40),) * 2), shapes) is None
    assert padding_of(features.maps, shapes) is None


def test_padding_is_not_read():
    attention, _, _ = make_attention()
    features, shapes = padded_features()
    padding, (value, _) = padding_of(features, shapes), to_tokens(features.maps)
    reference = on_each_map(cell_centers(shapes, padding, value), padding, 2)
    other = torch.where(padding.cells[..., None], 100.0, value)
    query = torch.randn(2, 26, 16)
    expected = attention(query, value, shapes, reference, padding)
    torch.testing.assert_close(attention(query, other, shapes, reference, padding), expected)
    assert not torch.allclose(attention(query, other, shapes, reference), expected)


def test_maps_of_tokens_are_the_maps():
    features, shapes = padded_features()
    tokens, found = to_tokens(features.maps)
    assert found == shapes
    assert all(torch.equal(x, y) for x, y in zip(to_maps(tokens, shapes), features.maps, strict=True))
