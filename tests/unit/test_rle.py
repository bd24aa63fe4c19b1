"""COCO RLE and polygons: equal to pycocotools where that is safe to ask, and checked where it is not."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from vision_stack.ops import rle
from vision_stack.ops.masks import masks_to_boxes, polygons_to_mask


def random_masks(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    noise = torch.rand(count, 1, height, width, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2)
    return (smooth > smooth.flatten(1).median(dim=1).values[:, None, None, None])[:, 0]


def test_encode_then_decode_gives_the_masks_back() -> None:
    masks = random_masks(6, 23, 31)
    masks[0], masks[1] = False, True
    rles = rle.encode(masks)
    assert len(rles) == 6
    for mask, code in zip(masks, rles, strict=True):
        assert code["size"] == [23, 31]
        np.testing.assert_array_equal(rle.decode(code), mask.numpy())
        np.testing.assert_array_equal(rle.decode(rle.to_json(code)), mask.numpy())
        assert rle.encode(mask) == code == rle.encode(mask.numpy())


def test_area_and_box_equal_pycocotools_and_mask() -> None:
    masks = random_masks(20, 17, 40)
    masks[3:, :, 20:] = False
    masks[9:, :5] = False
    masks[19] = False
    boxes = masks_to_boxes(masks)
    for mask, box, code in zip(masks, boxes, rle.encode(masks), strict=True):
        assert rle.area(code) == int(coco_mask.area(code)) == int(mask.sum())
        x, y, w, h = coco_mask.toBbox(code).tolist()
        assert rle.box(code) == tuple(box.tolist()) == (x, y, x + w, y + h)


def test_check_rle_reads_the_runs_of_compressed_and_uncompressed_counts() -> None:
    runs = [3, 5, 0, 2, 40, 1, 49]
    listed = {"size": [10, 10], "counts": runs}
    code = rle.to_compressed(listed, 10, 10)
    assert rle.check_rle(listed).tolist() == rle.check_rle(code).tolist() == runs
    np.testing.assert_array_equal(rle.decode(listed), coco_mask.decode(code).astype(bool))


def test_long_runs_of_compressed_counts_are_read_right() -> None:
    runs = [0, 1, 100_000, 70_000, 1, 2_999_999, 5_000_000 - 3_170_001]
    code = rle.to_compressed({"size": [2000, 2500], "counts": runs}, 2000, 2500)
    assert rle.check_rle(code).tolist() == runs


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "'size' and 'counts'"),
        ({"size": [4, 4]}, "'size' and 'counts'"),
        ({"size": [4, 0], "counts": [0]}, "whole pixels"),
        ({"size": [4.0, 4], "counts": [16]}, "whole pixels"),
        ({"size": [True, 4], "counts": [4]}, "whole pixels"),
        ({"size": "44", "counts": [16]}, "whole pixels"),
        ({"size": [4, 4], "counts": 16}, "text or a list"),
        ({"size": [4, 4], "counts": [15]}, "sum to 15"),
        ({"size": [4, 4], "counts": []}, "sum to 0"),
        ({"size": [4, 4], "counts": ""}, "sum to 0"),
        ({"size": [4, 4], "counts": [-4, 20]}, "negative"),
        ({"size": [4, 4], "counts": [16.0]}, "whole numbers"),
        ({"size": [4, 4], "counts": [None]}, "whole numbers"),
        ({"size": [4, 4], "counts": [2**64]}, "whole numbers"),
        ({"size": [4, 4], "counts": [2**62, 2**62, 2**62, 2**62, 16]}, "sum to"),  # 16 in 64-bit arithmetic
        ({"size": [4, 4], "counts": "ooo"}, "cut off"),
        ({"size": [4, 4], "counts": "o" * 50 + "0"}, "too long"),
        ({"size": [4, 4], "counts": b"\xff0"}, "characters"),
        ({"size": [4, 4], "counts": "0 0"}, "characters"),
        ({"size": [100_000, 100_000], "counts": [10**10]}, "more than"),
        ({"size": [100_000, 100_000], "counts": "PPPl40"}, "more than"),
    ],
)
def test_malformed_rle_raises_one_line(code: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        rle.check_rle(code)
    assert "\n" not in str(caught.value)


def test_random_text_never_passes_with_a_wrong_sum() -> None:
    generator = np.random.default_rng(0)
    passed = 0
    for _ in range(3000):
        text = bytes(generator.integers(46, 66, generator.integers(1, 5)).tolist())
        try:
            runs = rle.check_rle({"size": [4, 4], "counts": text})
        except ValueError:
            continue
        passed += 1
        assert runs.sum() == 16
        assert runs.min() >= 0
        decoded = rle.decode({"size": [4, 4], "counts": text})
        np.testing.assert_array_equal(decoded, coco_mask.decode({"size": [4, 4], "counts": text}))
    assert passed > 3  # the comparison did take place


def test_gigapixel_rle_is_refused_without_allocating() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            rle.decode({"size": [100_000, 100_000], "counts": [0, 10**10]})
        with pytest.raises(ValueError):
            rle.decode({"size": [10, 10], "counts": [0, 10**10]})
        assert tracemalloc.get_traced_memory()[1] < 1_000_000  # bytes; the mask would have taken 10^10
    finally:
        tracemalloc.stop()


def test_size_that_is_not_the_images_is_refused_and_a_swap_named() -> None:
    code = {"size": [4, 6], "counts": [24]}
    assert rle.check_rle(code, 4, 6).tolist() == [24]
    with pytest.raises(ValueError, match="swapped"):
        rle.check_rle(code, 6, 4)


@pytest.mark.parametrize("decimals", [0, 1, 2, 6])
def test_polygons_to_mask_equals_pycocotools_also_outside_of_the_image(decimals: int) -> None:
    generator = np.random.default_rng(decimals)
    covered = 0
    for _ in range(150):
        height, width = (int(n) for n in generator.integers(5, 80, 2))
        polygons = [generator.uniform(-30, 110, 2 * n).round(decimals) for n in generator.integers(3, 9, 2)]
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
        mask = polygons_to_mask(polygons, height, width)
        np.testing.assert_array_equal(mask, expected.astype(bool))
        covered += int(mask.sum())
        assert rle.area(rle.to_compressed([p.tolist() for p in polygons], height, width)) == int(mask.sum())
    assert covered > 10_000


def test_polygon_wholly_outside_gives_an_empty_mask() -> None:
    assert not polygons_to_mask([[50, 50, 60, 50, 60, 60]], 20, 30).any()
    assert not polygons_to_mask([[-9, -9, -2, -9, -2, -2]], 20, 30).any()
    assert not polygons_to_mask([], 20, 30).any()


@pytest.mark.parametrize(
    "polygon",
    [[0, 0, 4, 4], [0, 0, 4, 4, 0, 4, 1], [[0, 0], [4, 4], [0, 4]], [0, 0, np.nan, 4, 0, 4], [0, 0, 1e9, 4, 0, 4]],
)
def test_polygon_that_cannot_be_rasterised_raises(polygon: list[float]) -> None:
    with pytest.raises(ValueError, match="polygon"):
        polygons_to_mask([polygon], 10, 10)


def test_masks_to_boxes_has_exclusive_edges_and_zeros_for_empty_masks() -> None:
    masks = torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[0, 2, 3] = True
    masks[1, 0, 7] = masks[1, 5, 1] = True
    assert masks_to_boxes(masks).tolist() == [[3, 2, 4, 3], [1, 0, 8, 6], [0, 0, 0, 0]]
    assert masks_to_boxes(masks[:0]).shape == (0, 4)
    assert masks_to_boxes(torch.zeros(2, 0, 5, dtype=torch.bool)).shape == (2, 4)
