"""Resizing and padding against Pillow and by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from vision_stack.ops.image import pad_batch, padded_size, resample, resize_image, resized_size, to_tensor


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),  # shortest edge decides; 1066.67 rounds up
        ((640, 480), (1067, 800)),
        ((427, 640), (800, 1199)),  # 1199.06 rounds down
        ((375, 1000), (500, 1333)),  # longest edge decides; 499.9 rounds up
        ((800, 1333), (800, 1333)),
        ((3000, 2), (1333, 1)),  # never nothing: 0.89 rounds to 1
        ((5000, 1), (1333, 1)),  # 0.27 would round to 0
    ],
)
def test_resized_size_of_800_1333_rounds_to_nearest(size, expected):
    assert resized_size(*size, 800, 1333) == expected


def test_resized_size_with_equal_edges_sets_the_longest_edge():
    assert resized_size(480, 640, 384, 384) == (288, 384)
    assert resized_size(100, 50, 384, 384) == (384, 192)


def test_resample_of_uint8_equals_pillow():
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for height, width in [(30, 41), (90, 133), (60, 80), (7, 100)]:
        ours = resample(to_tensor(image), (height, width)).permute(1, 2, 0).numpy()
        pillow = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        # Two passes of fixed-point weights, each rounded to a level; a half-pixel shift differs by tens of levels.
        assert np.abs(ours.astype(int) - pillow.astype(int)).max() <= 2


def test_resize_image_of_read_only_and_mirrored_arrays_gives_contiguous_float():
    image = np.full((4, 6, 3), 255, np.uint8)
    image[:, 0] = 0
    image.setflags(write=False)
    for array, column in ((image, 0), (image[:, ::-1], 5)):
        tensor = resize_image(array, (4, 6))
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert tensor[:, :, column].eq(0).all()
        assert tensor.mean() == pytest.approx(5 / 6)


def test_pad_batch_of_two_sizes_marks_all_but_the_images():
    images, padding_mask = pad_batch([torch.ones(3, 5, 7), torch.ones(3, 6, 3)], size_divisor=4)
    assert images.shape == (2, 3, 8, 8)
    assert padding_mask.dtype == torch.bool
    assert (images.sum(1) == 3 * (~padding_mask)).all()
    assert (~padding_mask).sum((1, 2)).tolist() == [35, 18]
    assert not padding_mask[0, :5, :7].any()


def test_padded_size_respects_minimum_and_divisor():
    assert padded_size([(5, 7)], 1) == (5, 7)
    assert padded_size([(5, 7), (6, 3)], 32, (40, 10)) == (64, 32)
