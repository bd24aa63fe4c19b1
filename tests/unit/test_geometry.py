"""Rotation, shear and vertical flips: image, polygons, RLE, boxes and label maps move together."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from vision_stack.data.augment.geometry import FILL, GeometricTransform
from vision_stack.data.augment.transforms import TrainTransformConfig
from vision_stack.ops import rle
from vision_stack.ops.image import to_tensor
from vision_stack.ops.masks import masks_to_boxes

HEIGHT, WIDTH = 150, 210
# Lop-sided, so that a wrong sense of rotation shows, with a slit, so that half a pixel does.
POLYGON = [20.5, 30.25, 120.0, 12.75, 180.25, 60.0, 110.5, 56.0, 108.0, 63.5, 190.0, 70.25, 160.75, 130.5, 45.25, 118.0]
CONFIGS = {
    "rotation": TrainTransformConfig(short_edges=(120, 200), long_edge=300, warp=1.0, rotation=180, shear=0),
    "shear": TrainTransformConfig(short_edges=(120, 200), long_edge=300, warp=1.0, rotation=0, shear=40),
    "all": TrainTransformConfig(
        mode="large_scale_jitter", crop_size=128, scale_range=(0.5, 2.0), warp=1.0, rotation=30, vertical_flip=0.5
    ),
    "vertical": TrainTransformConfig(short_edges=(120, 200), long_edge=300, vertical_flip=1.0),
}


def picture():
    """A white polygon on black, antialiased as a camera would: uint8 [3, H, W]."""
    canvas = Image.new("L", (WIDTH * 8, HEIGHT * 8))
    ImageDraw.Draw(canvas).polygon([coordinate * 8 - 0.5 for coordinate in POLYGON], fill=255)
    return to_tensor(np.repeat(np.asarray(canvas.reduce(8))[:, :, None], 3, axis=2))


def lowest_iou(config, other=lambda transform: transform):
    """Of polygon's and RLE's masks with the moved image's own shape, over 40 drawn transforms."""
    image = picture()
    encoded = rle.encode((image[0] >= 128).numpy())
    lowest = [1.0, 1.0]
    for i in range(40):
        transform = config.geometry(HEIGHT, WIDTH, np.random.default_rng(i))
        shape = (transform.image(image)[0] >= 128).numpy()  # FILL is darker
        if np.count_nonzero(shape) < 200:  # a sliver at the border: one pixel decides
            continue
        for n, segmentation in enumerate(([POLYGON], encoded)):
            mask = other(transform).segmentation(segmentation)
            lowest[n] = min(lowest[n], np.count_nonzero(shape & mask) / np.count_nonzero(shape | mask))
    return lowest


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_image_polygon_and_rle_move_together(config):
    polygon, encoded = lowest_iou(config)
    assert polygon >= 0.96  # pycocotools rounds a polygon's points to 1/5 pixel, and the slit is thin
    assert encoded >= 0.97


FAULTS = {  # planted: each must fail the comparison above
    "rotation": lambda t: dataclasses.replace(t, rotation=-t.rotation),
    "shear": lambda t: dataclasses.replace(t, shear=-t.shear),
    "all": lambda t: dataclasses.replace(t, rotation=t.rotation + 3),
    "vertical": lambda t: dataclasses.replace(t, vertical_flip=False),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_planted_fault_fails_the_same_comparison(name):
    assert max(lowest_iou(CONFIGS[name], FAULTS[name])) < 0.95


def test_quarter_turn_is_that_of_numpy_to_the_pixel():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 40, 40), dtype=np.uint8)
    transform = GeometricTransform((0, 0, 40, 40), (40, 40), rotation=90.0)
    assert np.array_equal(transform.image(torch.from_numpy(pixels)).numpy(), np.rot90(pixels, axes=(1, 2)))
    assert np.array_equal(transform.mask(pixels[0] > 99), np.rot90(pixels[0] > 99))
    assert np.array_equal(transform.label_map(pixels[0]), np.rot90(pixels[0]))
    assert np.allclose(transform.polygons([[10, 0, 20, 0, 20, 5]])[0], [0, 30, 0, 20, 5, 20])
    assert np.allclose(transform.boxes([[10, 0, 20, 5]]), [[0, 20, 5, 30]])


def test_rotated_rectangle_keeps_its_area_and_lies_in_the_box_of_its_corners():
    transform = GeometricTransform((0, 0, 200, 200), (200, 200), rotation=30.0)
    rectangle, box = [60.0, 80, 140, 80, 140, 120, 60, 120], [60.0, 80, 140, 120]
    mask = transform.segmentation([rectangle])
    assert np.count_nonzero(mask) == pytest.approx(80 * 40, rel=0.01)
    (around,) = transform.boxes([box])
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    width, height = 80 * cos + 40 * sin, 80 * sin + 40 * cos
    assert np.allclose(around, [100 - width / 2, 100 - height / 2, 100 + width / 2, 100 + height / 2])
    tight = masks_to_boxes(torch.from_numpy(mask)[None])[0].numpy()
    assert np.abs(tight - around).max() <= 1.5  # masks are of whole pixels


def test_shear_moves_rows_and_keeps_areas():
    transform = GeometricTransform((0, 0, 100, 100), (100, 100), shear=45.0)
    (points,) = transform.polygons([[40.0, 50, 60, 50, 60, 60, 40, 60]])
    assert np.allclose(points, [40, 50, 60, 50, 70, 60, 50, 60])  # ten rows down, ten pixels to the right
    assert np.count_nonzero(transform.segmentation([[40.0, 50, 60, 50, 60, 60, 40, 60]])) == pytest.approx(200, abs=10)


def test_beyond_the_source_is_fill_no_object_and_the_label_outside():
    transform = GeometricTransform((0, 0, 60, 60), (60, 60), rotation=45.0)
    image = transform.image(torch.full((3, 60, 60), 255, dtype=torch.uint8))
    assert image[:, 0, 0].tolist() == list(FILL)
    assert image[:, 30, 30].tolist() == [255] * 3
    assert not transform.mask(np.ones((60, 60), bool))[0, 0]
    labels = transform.label_map(np.ones((60, 60), np.int16), outside=-1)
    assert (labels[0, 0], labels[30, 30]) == (-1, 1)
    assert np.count_nonzero(transform.mask(np.ones((60, 60), bool))) == pytest.approx((labels == 1).sum(), abs=60)


def test_crop_that_is_rotated_shows_what_is_around_it_in_the_source():
    source = torch.full((3, 90, 90), 200, dtype=torch.uint8)
    image = GeometricTransform((30, 30, 60, 60), (30, 30), rotation=45.0).image(source)
    assert (image == 200).all()  # the corners of the turned square are still in the source


@pytest.mark.parametrize("size", [(20, 30), (100, 150), (300, 450)])
def test_rotated_picture_at_any_scale_keeps_its_mean(size):
    """Antialiased where it is made smaller: a fine grid becomes grey, not a moire of black and white."""
    grid = torch.from_numpy(np.indices((100, 150)).sum(0) % 2 * 255).to(torch.uint8).expand(3, -1, -1)
    transform = GeometricTransform((0, 0, 150, 100), size, rotation=10.0)
    inner = transform.image(grid)[:, size[0] // 3 : 2 * size[0] // 3, size[1] // 3 : 2 * size[1] // 3].float()
    assert inner.mean() == pytest.approx(127.5, abs=3)
    if size[0] < 100:
        assert inner.std() < 20


def test_mask_far_outside_leaves_nothing():
    mask = np.zeros((100, 100), bool)
    mask[:5, :5] = True
    transform = GeometricTransform((60, 60, 100, 100), (40, 40), rotation=5.0)
    assert not transform.mask(mask).any()
    assert not transform.mask(np.zeros((100, 100), bool)).any()
