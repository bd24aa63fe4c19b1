"""One affine for image, polygons and RLE: held against the image's own pixels."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from vision_stack.config import ConfigError
from vision_stack.data.augment.geometry import GeometricTransform
from vision_stack.data.augment.photometric import color_jitter
from vision_stack.data.augment.placing import place
from vision_stack.data.augment.targets import Objects, make_target
from vision_stack.data.augment.transforms import EvalTransformConfig, TrainTransformConfig
from vision_stack.ops import rle
from vision_stack.ops.image import to_tensor
from vision_stack.ops.masks import fill, placed

HEIGHT, WIDTH = 150, 210
# Lop-sided, so that a missing flip shows, with a slit, so that half a pixel does.
POLYGON = [20.5, 30.25, 120.0, 12.75, 180.25, 60.0, 110.5, 56.0, 108.0, 63.5, 190.0, 70.25, 160.75, 130.5, 45.25, 118.0]
LSJ = TrainTransformConfig(mode="large_scale_jitter", crop_size=128, scale_range=(0.4, 2.0))
RESIZE = TrainTransformConfig(short_edges=(96, 120, 200), long_edge=260)
CROP = TrainTransformConfig(short_edges=(120, 200), long_edge=400, crop_size=100)


def picture(supersampling: int = 8) -> torch.Tensor:
    """A white polygon on black, antialiased as a camera would, drawn by Pillow: uint8 [3, H, W]."""
    canvas = Image.new("L", (WIDTH * supersampling, HEIGHT * supersampling))
    # Pillow's integer coordinates are pixel centres.
    points = [coordinate * supersampling - 0.5 for coordinate in POLYGON]
    ImageDraw.Draw(canvas).polygon(points, fill=255)
    grey = np.asarray(canvas.reduce(supersampling))
    return to_tensor(np.repeat(grey[:, :, None], 3, axis=2))


def moved_masks(transform, *segmentations):
    """Masks [N, H, W] of polygons and RLEs that a transform has moved."""
    boxes = [[0, 0, WIDTH, HEIGHT]] * len(segmentations)
    given = [[np.array(p) for p in each] if isinstance(each, list) else each for each in segmentations]
    return dense(place(transform, given, boxes).masks, transform.size)


def dense(masks, size):
    whole = np.zeros((len(masks), *size), bool)
    fill(masks, whole)
    return whole


def iou(a, b):
    return np.count_nonzero(a & b) / max(1, np.count_nonzero(a | b))


def centroid(mask):
    return np.argwhere(mask).mean(0) if mask.any() else np.full(2, np.inf)


def compare(affines, other=lambda affine: affine):
    """How the polygon's and the RLE's masks fit the moved image's own shape, over affines.

    Returns the lowest IoU and the mean distance of centroids in pixels, each as [polygon, RLE].
    """
    image = picture()
    encoded = rle.encode((image[0] >= 128).numpy())
    overlaps, distances = [], []
    for affine in affines:
        shape = (affine.image(image)[0] >= 128).numpy()
        if np.count_nonzero(shape) < 200:  # a sliver at the border: one pixel decides
            continue
        masks = moved_masks(other(affine), [POLYGON], encoded)
        overlaps.append([iou(shape, mask) for mask in masks])
        distances.append([np.abs(centroid(shape) - centroid(mask)).max() for mask in masks])
    return np.min(overlaps, axis=0), np.mean(distances, axis=0)


def drawn(config, count=60):
    return [config.geometry(HEIGHT, WIDTH, np.random.default_rng(i)) for i in range(count)]


@pytest.mark.parametrize("config", [RESIZE, LSJ, CROP], ids=["resize", "large_scale_jitter", "crop"])
def test_image_polygon_and_rle_under_drawn_affines_move_together(config):
    affines = drawn(config)
    assert {affine.flip for affine in affines} == {True, False}
    lowest_iou, distance = compare(affines)
    assert min(lowest_iou) >= 0.97  # pycocotools rounds a polygon's points to 1/5 pixel, and the slit is thin
    assert max(distance) <= 0.1  # half a pixel's shift is five times that


class HalfPixel(GeometricTransform):
    """Planted fault: polygons half an output pixel to the right, RLE resampled without the half-pixel centres."""

    def polygons(self, polygons):
        return [points + np.tile([0.5, 0.0], len(points) // 2) for points in super().polygons(polygons)]

    def mask(self, mask):
        x0, y0, x1, y1 = self.box
        rows = y0 + np.arange(self.size[0]) * (y1 - y0) // self.size[0]
        columns = x0 + np.arange(self.size[1]) * (x1 - x0) // self.size[1]
        moved = mask[rows[:, None], columns]
        return moved[:, ::-1] if self.flip else moved


@pytest.mark.parametrize("config", [RESIZE, LSJ, CROP], ids=["resize", "large_scale_jitter", "crop"])
def test_planted_faults_fail_the_same_comparison(config):
    affines = drawn(config)
    lowest_iou, _ = compare(affines, lambda affine: dataclasses.replace(affine, flip=False))
    assert max(lowest_iou) < 0.97
    _, distance = compare(affines, lambda affine: HalfPixel(affine.box, affine.size, affine.flip))
    assert min(distance) > 0.1


def test_flip_twice_gives_the_picture_back():
    affine = GeometricTransform((0, 0, WIDTH, HEIGHT), (HEIGHT, WIDTH), flip=True)
    image = picture()
    assert torch.equal(affine.image(affine.image(image)), image)
    assert np.allclose(affine.polygons(affine.polygons([POLYGON]))[0], POLYGON)


def test_polygon_of_a_crop_at_twice_the_size_is_shifted_and_scaled():
    affine = GeometricTransform((10, 20, 60, 70), (100, 100))
    assert affine.polygons([[10, 20, 60, 20, 60, 70]])[0].tolist() == [0, 0, 100, 0, 100, 100]
    mirrored = dataclasses.replace(affine, flip=True)
    assert mirrored.polygons([[10, 20, 60, 20, 60, 70]])[0].tolist() == [100, 0, 0, 0, 0, 100]


def test_large_scale_jitter_draws_the_whole_range_within_the_square():
    config = TrainTransformConfig(mode="large_scale_jitter", crop_size=640)
    affines = [config.geometry(480, 640, np.random.default_rng(i)) for i in range(400)]
    scales = np.array([affine.size[1] / (affine.box[2] - affine.box[0]) for affine in affines])
    vertical = np.array([affine.size[0] / (affine.box[3] - affine.box[1]) for affine in affines])
    assert 0.1 <= scales.min() < 0.13
    assert 1.95 < scales.max() <= 2.01
    assert np.abs(scales / vertical - 1).max() < 0.02  # sizes are whole pixels, the smallest 48 x 64
    assert max(max(affine.size) for affine in affines) == 640
    assert len({affine.box[:2] for affine in affines}) > 100  # random corners wherever the square is the smaller


def test_resize_with_a_crop_larger_than_the_image_keeps_it_whole():
    config = TrainTransformConfig(short_edges=(64,), long_edge=128, crop_size=512, flip=0.0)
    assert config.geometry(100, 150, np.random.default_rng(0)) == GeometricTransform((0, 0, 150, 100), (64, 96))


def test_extreme_aspect_ratio_and_scale_keep_at_least_a_pixel():
    config = TrainTransformConfig(mode="large_scale_jitter", crop_size=32, scale_range=(0.01, 4.0))
    for i in range(100):
        affine = config.geometry(3, 900, np.random.default_rng(i))
        x0, y0, x1, y1 = affine.box
        assert 0 <= x0 < x1 <= 900
        assert 0 <= y0 < y1 <= 3
        assert min(affine.size) >= 1
        assert max(affine.size) <= 32


def test_eval_transform_draws_nothing():
    config = EvalTransformConfig(short_edge=800, long_edge=1333)
    rng = np.random.default_rng(0)
    state = rng.bit_generator.state
    assert config.geometry(480, 640, rng) == GeometricTransform((0, 0, 640, 480), (800, 1067))
    assert rng.bit_generator.state == state


def test_target_leaves_out_objects_with_too_few_pixels():
    masks = np.zeros((4, 20, 30), bool)
    masks[0, 2:5, 3:9] = True
    masks[2, 7, 7:10] = True
    masks[3, :, :] = True
    objects = Objects([4, 5, 6, 7], [placed(mask) for mask in masks])
    target, kept = make_target(objects, (20, 30), min_pixels=4)
    assert target["labels"].tolist() == [4, 7]
    assert np.array_equal(dense(kept, (20, 30)), masks[[0, 3]])
    assert target["boxes"].tolist() == [[3, 2, 9, 5], [0, 0, 30, 20]]
    assert make_target(objects, (20, 30)).target["labels"].tolist() == [4, 6, 7]


def test_target_of_no_objects_is_empty_with_all_shapes():
    target, masks = make_target(Objects([], []), (20, 30))
    assert [list(target[key].shape) for key in ("labels", "boxes")] == [[0], [0, 4]]
    assert masks == ()
    assert target["labels"].dtype == torch.int64


@pytest.mark.parametrize("config", [LSJ, RESIZE, CROP], ids=["jitter", "resize", "crop"])
def test_boxes_follow_the_geometry_as_the_mask_of_a_rectangle_does(config):
    rectangle, box = [30.0, 20, 150, 20, 150, 110, 30, 110], (30.0, 20.0, 150.0, 110.0)
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(60):
        affine = config.geometry(HEIGHT, WIDTH, rng)
        (mask,) = moved_masks(affine, [rectangle])
        (moved,) = affine.boxes([box])
        masked = make_target(Objects([0], [placed(mask)]), affine.size).target["boxes"].numpy()
        alone = Objects([0], [None], affine.boxes([box]))
        bare = make_target(alone, affine.size, stride=None).target["boxes"].numpy()
        assert len(bare) == len(masked) or (mask.any() and (moved[2:] - moved[:2]).min() < 1)  # a sliver at the border
        differences += np.abs(bare - masked).max(1).tolist() if len(bare) == len(masked) else []
    assert len(differences) > 40
    assert max(differences) <= 1.0  # masks are of whole pixels


def test_target_takes_boxes_of_masks_where_there_are_masks_and_drops_boxes_below_a_pixel():
    mask = np.zeros((20, 30), bool)
    mask[2:5, 3:9] = True
    boxes = np.array([[0, 0, 30, 20], [1, 2, 3.5, 4], [5, 5, 5.5, 9], [30, 0, 30, 9], [1, 1, 3, 2]], float)
    ignored = np.array([[0, 0, 4, 4], [30, 5, 30, 9]], float)
    objects = Objects([1, 2, 3, 4, 5], [placed(mask), *[None] * 4], boxes, ignored)
    target, masks = make_target(objects, (20, 30), 3, stride=None)
    assert target["labels"].tolist() == [1, 2]
    assert target["boxes"].tolist() == [[3, 2, 9, 5], [1, 2, 3.5, 4]]
    assert target["ignored"].tolist() == [[0, 0, 4, 4]]  # the other was cropped away
    assert masks is None


def test_color_jitter_depends_on_its_generator_alone():
    image = picture()[:, :40, :50] // 2 + torch.arange(50, dtype=torch.uint8)
    results = []
    for seed in (1, 1, 2, 3, 4):
        torch.manual_seed(len(results))
        state = torch.get_rng_state()
        results.append(color_jitter(image, np.random.default_rng(seed)))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(results[0], results[1])
    assert any(not torch.equal(results[0], other) for other in results[2:])
    assert all(result.dtype == torch.uint8 and result.shape == image.shape for result in results)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"mode": "large_scale_jitter"}, "crop_size"),
        ({"scale_range": (2.0, 0.1)}, "scale_range"),
        ({"scale_range": (0.0, 0.1)}, "scale_range"),
        ({"short_edges": ()}, "short_edges"),
    ],
)
def test_contradicting_options_name_the_field(options, field):
    with pytest.raises(ConfigError, match=f"^{field}: "):
        TrainTransformConfig(**options)


@pytest.mark.parametrize(
    ("box", "size", "rotation", "expected"),
    [
        ((0, 0, 64, 48), (12, 16), 0.0, 2),
        ((0, 0, 64, 48), (13, 16), 0.0, 1),
        ((0, 0, 64, 48), (3, 4), 0.0, 8),
        ((0, 0, 60, 48), (3, 4), 0.0, 1),  # a crop
        ((0, 0, 64, 48), (3, 4), 5.0, 1),
    ],
)
def test_source_may_be_reduced_to_twice_the_output(box, size, rotation, expected):
    assert GeometricTransform(box, size, rotation=rotation).reduction(48, 64) == expected
    assert GeometricTransform((0, 0, 63, 48), (3, 4)).reduction(48, 63) == 1
