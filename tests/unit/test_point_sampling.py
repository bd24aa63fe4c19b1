"""Values of maps and masks at points: the sparse matrix against `grid_sample`."""

import pytest
import torch

from vision_stack.ops.point_sampling import (
    interpolation_matrix,
    nearest_to_zero,
    pixel_centers,
    sample_maps,
    sample_masks,
)

BORDER = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.0]])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def points_and_border(count):
    return torch.cat([BORDER, torch.rand(count, 2)])


@pytest.mark.parametrize("size", [(9, 5), (1, 1), (1, 7)])
def test_interpolation_matrix_equals_grid_sample_up_to_the_border(size):
    maps, points = torch.randn(3, *size), points_and_border(200)
    expected = sample_maps(maps[None], points[None])[0]
    sampled = interpolation_matrix(points, *size).matmul(maps.flatten(1).T.contiguous()).T
    torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-5)  # positions in float32


def test_interpolation_matrix_transposed_takes_gradients_back_as_grid_sample_does():
    maps, points, slopes = torch.randn(3, 9, 5, requires_grad=True), points_and_border(20), torch.randn(3, 24)
    (expected,) = torch.autograd.grad(sample_maps(maps[None], points[None])[0], maps, slopes)
    ours = interpolation_matrix(points, 9, 5).transpose().matmul(slopes.T.contiguous()).T  # some pixels have no point
    torch.testing.assert_close(ours.view(3, 9, 5), expected, rtol=0, atol=1e-4)  # positions in float32


def test_sparse_matrix_transposed_twice_is_itself():
    matrix = interpolation_matrix(points_and_border(20), 4, 6)
    identity = torch.eye(24)
    assert torch.equal(matrix.transpose().matmul(torch.eye(24)).T, matrix.matmul(identity))
    assert torch.equal(matrix.transpose().transpose().matmul(identity), matrix.matmul(identity))


@pytest.mark.parametrize("tile", [1, 100, 10**6], ids=["mask by mask", "two masks", "all at once"])
def test_sample_masks_equals_grid_sample_of_float_masks_up_to_the_border(tile, monkeypatch):
    monkeypatch.setattr("vision_stack.ops.point_sampling.tile_elements", lambda *_: tile)
    masks, points = torch.rand(3, 9, 5) > 0.5, points_and_border(200)
    expected = sample_maps(masks[None].float(), points[None])[0]
    torch.testing.assert_close(sample_masks(masks, points), expected, rtol=0, atol=1e-5)  # positions in float32


def test_sample_masks_without_masks_is_empty():
    assert sample_masks(torch.zeros(0, 4, 4, dtype=torch.bool), BORDER).shape == (0, 4)


def test_pixel_centers_sample_the_map_itself():
    maps = torch.randn(1, 2, 5, 3)
    at_centers = sample_maps(maps, pixel_centers(5, 3, maps.device)[None])
    torch.testing.assert_close(at_centers, maps.flatten(2), rtol=0, atol=1e-5)  # positions in float32


@pytest.mark.parametrize("count", [0, 1, 7, 50])
def test_nearest_to_zero_finds_the_smallest_magnitudes_of_each_row(count):
    values = torch.randn(3, 2, 50)
    found = values.gather(-1, nearest_to_zero(values, count)).abs().sort(-1).values
    assert torch.equal(found, values.abs().sort(-1).values[..., :count])


def test_interpolation_matrix_of_more_pixels_than_float32_counts_names_the_right_ones():
    size = 4200  # 17.6 million pixels
    matrix = interpolation_matrix(torch.tensor([[(size - 0.5) / size, (size - 0.5) / size]]), size, size)
    assert matrix.columns[matrix.values > 0.5].tolist() == [size * size - 1]
