"""What training images are made of: where plans put images, and what of their objects can be seen there."""

import dataclasses

import numpy as np
import pytest
import torch

from vision_stack.data.augment.compose import compose
from vision_stack.data.augment.geometry import FILL, GeometricTransform
from vision_stack.data.augment.placing import place
from vision_stack.data.augment.plan import Mirror, Placement, Plan, iou_crop, limited, mosaic, pasted, random_crop
from vision_stack.data.augment.targets import Objects, make_target
from vision_stack.data.augment.transforms import TrainTransformConfig
from vision_stack.ops.masks import fill

STILL = Mirror(0.0, 0.0, 0.0, 0.0, 0.0)
BASE = TrainTransformConfig(short_edges=(100,), long_edge=200, flip=0.0)


@dataclasses.dataclass
class Scene:
    """An image of one colour with rectangles (x0, y0, x1, y1) of another."""

    height: int
    width: int
    rectangles: list
    labels: list = dataclasses.field(default_factory=list)
    masks: bool = True

    @property
    def num_objects(self):
        return len(self.rectangles)

    def object_boxes(self):
        return np.array(self.rectangles, float).reshape(-1, 4)

    def objects(self, transform, chosen=None, stride=1):
        chosen = range(self.num_objects) if chosen is None else chosen
        boxes = [self.rectangles[n] for n in chosen]
        polygons = [[np.array([x0, y0, x1, y0, x1, y1, x0, y1], float)] for x0, y0, x1, y1 in boxes]
        found = place(transform, polygons if self.masks else [()] * len(boxes), boxes, stride)
        return Objects([(self.labels or range(99))[n] for n in chosen], found.masks, found.boxes, pixels=found.pixels)

    def pixels(self, ground, colour):
        image = torch.full((3, self.height, self.width), ground, dtype=torch.uint8)
        for x0, y0, x1, y1 in self.rectangles:
            image[:, y0:y1, x0:x1] = colour
        return image


def whole(index, scene, how="over", **more):
    size = (scene.height, scene.width)
    return Placement(index, GeometricTransform((0, 0, size[1], size[0]), size), how=how, **more)


def pictures(*images):
    """The pixels of each scene under a transform, as `compose` asks for them."""
    return lambda index, transform: transform.image(images[index])


def areas(objects):
    return [np.count_nonzero(mask.cells) for mask in objects.masks]


# Plans


def test_mosaic_covers_the_canvas_without_gap_or_overlap():
    scenes = [Scene(80, 120, []), Scene(200, 50, []), Scene(64, 64, [])]
    for seed in range(50):
        placements = mosaic(scenes, 1, (90, 130), STILL, np.random.default_rng(seed), keep=False)
        covered = np.zeros((90, 130), int)
        for placement in placements:
            (x, y), (height, width) = placement.corner, placement.transform.size
            covered[y : y + height, x : x + width] += 1
            x0, y0, x1, y1 = placement.transform.box
            record = scenes[placement.source]
            assert 0 <= x0 < x1 <= record.width
            assert 0 <= y0 < y1 <= record.height
            assert width / (x1 - x0) == pytest.approx(height / (y1 - y0), rel=0.2)  # whole source pixels
        assert (covered == 1).all()
        assert len(placements) == 4
        assert 1 in [placement.source for placement in placements]


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2), (3, 1)])
def test_mosaic_on_the_smallest_canvas_still_covers_it(size):
    plan = Plan(size, tuple(mosaic([Scene(9, 9, [])], 0, size, STILL, np.random.default_rng(0), keep=True)))
    image, _ = compose(plan, [Scene(9, 9, [])], pictures(torch.zeros(9, 9, 3, dtype=torch.uint8).permute(2, 0, 1)))
    assert not image.any()


def test_crop_that_keeps_objects_holds_a_centre_always_one_that_does_not_seldom():
    boxes = np.array([[180.0, 4, 190, 10]])
    held = {
        keep: [
            7 - crop.box[1] + 4 >= 4 and crop.box[0] <= 185 < crop.box[2] and crop.box[1] <= 7 < crop.box[3]
            for crop in (
                random_crop((0, 0, 200, 100), (100, 200), (40, 40), np.random.default_rng(i), boxes if keep else None)
                for i in range(200)
            )
        ]
        for keep in (True, False)
    }
    assert all(held[True])
    assert np.mean(held[False]) < 0.3
    crops = [random_crop((0, 0, 200, 100), (100, 200), (40, 40), np.random.default_rng(i), boxes) for i in range(200)]
    assert all(c.box[0] >= 0 and c.box[2] <= 200 and c.box[1] >= 0 and c.box[3] <= 100 for c in crops)
    assert len({c.box for c in crops}) > 50


def test_iou_crop_overlaps_an_object_or_is_the_whole_image():
    boxes = np.array([[10.0, 10, 60, 60], [150, 20, 170, 90]])
    windows = [iou_crop(100, 200, boxes, np.random.default_rng(i)) for i in range(300)]
    for x0, y0, x1, y1 in windows:
        assert 0 <= x0 < x1 <= 200
        assert 0 <= y0 < y1 <= 100
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        assert ((middles >= (x0, y0)) & (middles < (x1, y1))).all(1).any()
    assert len(set(windows)) > 100
    crops = [iou_crop(100, 200, None, np.random.default_rng(i)) for i in range(50)]
    assert (0, 0, 200, 100) not in crops  # without boxes any crop will do


def test_zoom_out_makes_the_image_smaller_on_a_canvas_of_its_size():
    config = dataclasses.replace(BASE, zoom_out=1.0, max_zoom_out=3.0)
    scene = Scene(100, 150, [[0, 0, 150, 100]])
    for seed in range(30):
        plan = config.plan([scene], 0, np.random.default_rng(seed))
        image, objects = compose(plan, [scene], pictures(scene.pixels(0, 255)))
        assert plan.size == (100, 150)
        (placement,) = plan.placements
        height, width = placement.transform.size
        assert 150 / 3 - 1 <= width <= 150
        mask = np.zeros((1, 100, 150), bool)
        fill(objects.masks, mask)
        (mask,) = mask
        assert np.count_nonzero(mask) == height * width
        assert (image[:, mask] == 255).all()
        assert (image[:, ~mask] == torch.tensor(FILL, dtype=torch.uint8)[:, None]).all()


def test_strengths_of_zero_draw_nothing():
    """So that a run without them is the same to the bit as before they were there."""
    a, b = np.random.default_rng(0), np.random.default_rng(0)
    scene = Scene(90, 120, [[1, 2, 30, 40]])
    plan = BASE.plan([scene], 0, a)
    assert plan == Plan((100, 133), (Placement(0, BASE.geometry(90, 120, b)),))
    assert a.bit_generator.state == b.bit_generator.state


def test_number_of_objects_is_limited_to_those_that_can_be_seen():
    scene = Scene(100, 100, [[10 * i, 0, 10 * i + 8, 8] for i in range(10)])
    left = Placement(0, GeometricTransform((0, 0, 50, 100), (100, 50)))
    for seed in range(20):
        plan = limited(Plan((100, 50), (left,)), [scene], 3, np.random.default_rng(seed))
        (placement,) = plan.placements
        assert len(placement.chosen) == 3
        assert set(placement.chosen) < {0, 1, 2, 3, 4}
    again = limited(Plan((100, 50), (left,)), [scene], 5, np.random.default_rng(0))
    assert again == Plan((100, 50), (left,))
    both = Plan((100, 50), (left, whole(0, scene, "objects", chosen=(1, 7))))
    counts = [
        tuple(len(p.chosen) for p in limited(both, [scene], 4, np.random.default_rng(i)).placements) for i in range(50)
    ]
    assert {sum(count) for count in counts} == {4}
    assert len(set(counts)) > 1


# Composition


def test_pasted_object_hides_what_is_below_and_what_is_hidden_whole_leaves():
    below = Scene(60, 80, [[0, 0, 20, 20], [30, 30, 40, 40]])
    above = Scene(60, 80, [[10, 0, 30, 20], [25, 25, 45, 45], [60, 0, 80, 60]])
    plan = Plan((60, 80), (whole(0, below), whole(1, above, "objects", chosen=(0, 1))))
    pixels = [below.pixels(50, 100), above.pixels(150, 250)]
    image, objects = compose(plan, [below, above], pictures(*pixels))
    assert list(objects.labels) == [0, 0, 1]
    assert areas(objects) == [10 * 20, 20 * 20, 20 * 20]
    target, _ = make_target(objects, (60, 80))
    assert target["boxes"].tolist() == [[0, 0, 10, 20], [10, 0, 30, 20], [25, 25, 45, 45]]
    assert image[0, 10, 20] == 250  # pasted
    assert image[0, 10, 3] == 100
    assert image[0, 30, 70] == 50  # the third was not chosen
    assert image[0, 35, 35] == 250


def test_border_of_a_pasted_object_is_blended():
    below, above = Scene(40, 40, []), Scene(40, 40, [[10, 10, 30, 30]])
    plan = Plan((40, 40), (whole(0, below), whole(1, above, "objects", chosen=(0,))))
    image, _ = compose(plan, [below, above], pictures(below.pixels(0, 0), above.pixels(200, 200)))
    row = image[0, 20].int()
    assert row[:8].tolist() == [0] * 8
    assert row[12:28].tolist() == [200] * 16
    assert (row[7:13].diff() >= 0).all()
    assert 0 < row[9] < 100 < row[10] < 200  # half of the way lies on the border


def test_pasted_objects_are_half_of_anothers_on_average():
    scenes = [Scene(50, 50, [[i, i, i + 5, i + 5] for i in range(10)])]
    rngs = map(np.random.default_rng, range(200))
    chosen = [pasted(scenes, (50, 50), (0.5, 1.5), STILL, rng).chosen for rng in rngs]
    assert np.mean([len(each) for each in chosen]) == pytest.approx(5, abs=0.4)
    assert {position for each in chosen for position in each} == set(range(10))


def test_mixture_has_the_objects_of_both_and_the_share_of_each():
    one, two = Scene(40, 40, [[0, 0, 10, 10]]), Scene(20, 30, [[5, 5, 15, 15]], masks=False)
    plan = Plan((40, 40), (whole(0, one), whole(1, two, "mix", share=0.5, corner=(10, 20))))
    image, objects = compose(plan, [one, two], pictures(one.pixels(100, 100), two.pixels(200, 200)))
    assert image[0, 30, 20] == 150
    assert image[0, 5, 5] == 100
    target, _ = make_target(objects, (40, 40), stride=None)
    assert target["boxes"].tolist() == [[0, 0, 10, 10], [15, 25, 25, 35]]


def test_objects_of_a_mosaic_stay_within_its_parts_and_those_cut_to_nothing_leave():
    scene = Scene(40, 40, [[0, 0, 40, 40], [0, 0, 4, 4]])
    left = Placement(0, GeometricTransform((10, 10, 30, 30), (20, 20)))
    right = Placement(0, GeometricTransform((0, 0, 20, 20), (20, 20)), corner=(20, 0))
    image, objects = compose(Plan((20, 40), (left, right)), [scene], pictures(scene.pixels(0, 255)))
    assert list(objects.labels) == [0, 0, 1]
    assert areas(objects) == [400, 400, 16]
    boxes = make_target(objects, (20, 40)).target["boxes"].tolist()
    assert boxes == [[0, 0, 20, 20], [20, 0, 40, 20], [20, 0, 24, 4]]
    assert (image == 255).all()


def test_masks_of_merged_labels_become_one():
    scene = Scene(20, 20, [[0, 0, 10, 20], [10, 0, 20, 20]], labels=[3, 5])
    second = Placement(0, GeometricTransform((0, 0, 20, 20), (20, 20)), corner=(20, 0))
    plan = Plan((20, 40), (whole(0, scene), second))
    _, objects = compose(plan, [scene], pictures(scene.pixels(0, 1)), merged={5})
    assert list(objects.labels) == [3, 5, 3]
    assert areas(objects) == [200, 400, 200]
    pasted_too = Plan((20, 20), (whole(0, scene), whole(0, scene, "objects", chosen=(1,))))
    _, objects = compose(pasted_too, [scene], pictures(scene.pixels(0, 1)), merged={5})
    assert list(objects.labels) == [3, 5]  # stuff is not pasted
