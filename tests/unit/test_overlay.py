"""Pictures: what is drawn where, and that labels can be read."""

import numpy as np
import pytest
import torch
from PIL import ImageFont

from vision_stack.structures import Category, Instances, PanopticSegmentation, SemanticSegmentation
from vision_stack.visualization import draw_image, draw_instances, draw_panoptic, draw_semantic, side_by_side
from vision_stack.visualization.colors import PALETTE, instance_color, luminance, text_color

CATEGORIES = (Category(id=1, name="cat"), Category(id=9, name="a very long name of a class, with an é"))


def scene(height=600, width=800, boxes=((100, 150, 300, 400), (500, 50, 700, 500)), scores=(0.9, 0.3)):
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for n, (x0, y0, x1, y1) in enumerate(boxes):
        masks[n, y0:y1, x0:x1] = True
    labels = torch.arange(len(boxes)) % 2
    instances = Instances(torch.tensor(boxes).float().reshape(-1, 4), labels, torch.tensor(scores), masks)
    return np.full((height, width, 3), 100, dtype=np.uint8), instances


def test_mask_is_blended_inside_and_outlined_and_nothing_else_is_touched():
    image, instances = scene()
    drawn = np.array(draw_instances(image, instances[:1], CATEGORIES))
    assert drawn[350, 200].tolist() == [(100 + c) // 2 for c in PALETTE[0]]
    assert drawn[399, 200].tolist() == list(PALETTE[0])
    changed = np.argwhere((drawn != image).any(-1))
    assert changed[:, 0].min() > 100  # the label is one line above the box at 150
    assert changed[:, 0].max() == 399
    assert changed[:, 1].min() == 100
    assert changed[:, 1].max() == 299
    assert (image == 100).all()


def test_threshold_hides_lower_scores():
    image, instances = scene()
    drawn = np.array(draw_instances(image, instances, CATEGORIES, threshold=0.5))
    assert np.array_equal(drawn, np.array(draw_instances(image, instances[:1], CATEGORIES)))
    assert (drawn[:, 450:] == 100).all()


def test_small_object_inside_a_large_one_stays_visible_whatever_the_order():
    boxes = ((300, 300, 330, 330), (50, 50, 700, 500))
    image, instances = scene(boxes=boxes)
    for order in ([0, 1], [1, 0]):
        shown = instances[torch.tensor(order)]
        drawn = np.array(draw_instances(image, shown, CATEGORIES))
        assert drawn[329, 315].tolist() == list(PALETTE[int(instances.labels[0])])


def test_small_image_is_enlarged_and_its_masks_with_it():
    image, instances = scene(100, 128, boxes=((10, 40, 50, 90),), scores=(0.9,))
    drawn = draw_instances(image, instances, CATEGORIES)
    assert drawn.size == (512, 400)
    assert np.array(drawn)[4 * 80, 4 * 30].tolist() == [(100 + c) // 2 for c in PALETTE[0]]


def test_no_instances_gives_the_image():
    image, instances = scene()
    assert np.array_equal(np.array(draw_instances(image, instances[:0], CATEGORIES)), image)


@pytest.mark.parametrize("name", ["person\n", "traffic\r\nlight", "a\u2028b", "\n"])
def test_name_with_line_breaks_is_drawn_in_one_line(name):
    image, instances = scene()
    broken, plain = (
        np.array(draw_instances(image, instances[:1], (Category(id=1, name=text),)))
        for text in (name, " ".join(name.split()))
    )
    assert np.array_equal(broken, plain)


def test_name_of_twenty_thousand_letters_is_cut_before_it_is_measured(monkeypatch):
    measured = []
    getbbox = ImageFont.FreeTypeFont.getbbox

    def watched(font, text, *args, **kwargs):
        measured.append(len(text))
        return getbbox(font, text, *args, **kwargs)

    monkeypatch.setattr(ImageFont.FreeTypeFont, "getbbox", watched)
    image, instances = scene()
    long, short = (
        np.array(draw_instances(image, instances[:1], (Category(id=1, name=name),)))
        for name in ("a" * 20_000, "a" * 39 + "\N{HORIZONTAL ELLIPSIS}")
    )
    assert np.array_equal(long, short)
    assert max(measured) < 50


def test_name_with_a_lone_surrogate_is_drawn_escaped():
    image, instances = scene()
    odd, escaped = (
        np.array(draw_instances(image, instances[:1], (Category(id=1, name=name),))) for name in ("a\ud800", "a\\ud800")
    )
    assert np.array_equal(odd, escaped)


def test_colors_of_ten_instances_of_a_class_all_differ_and_the_first_is_the_class_color():
    for label in range(12):
        assert len({instance_color(label, n) for n in range(10)}) == 10
        assert instance_color(label, 0) == PALETTE[label % len(PALETTE)]


def test_text_on_any_color_has_contrast_for_reading():
    for color in PALETTE:
        light, dark = sorted([luminance(color), luminance(text_color(color))], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2.1, level AA


@pytest.mark.parametrize(("size", "expected"), [((600, 800), (3 * 800 + 16, 600)), ((300, 900), (900, 3 * 300))])
def test_side_by_side_puts_three_panels_across_or_below(size, expected):
    image, instances = scene(*size, boxes=((20, 60, 100, 200),), scores=(0.9,))
    pictures = [draw_image(image), *(draw_instances(image, instances, CATEGORIES) for _ in range(2))]
    grid = side_by_side(dict(zip(("image", "ground truth", "prediction"), pictures, strict=True)))
    assert grid.width == expected[0]
    assert expected[1] < grid.height < expected[1] + 3 * 60


def test_image_of_another_kind_is_an_error():
    image, instances = scene()
    with pytest.raises(ValueError, match=r"\[height, width, 3\] of uint8"):
        draw_instances(image.astype(np.float32), instances, CATEGORIES)
    with pytest.raises(ValueError, match="masks are"):
        draw_instances(image[:100], instances, CATEGORIES)


def test_captions_stand_over_the_panels():
    image, instances = scene()
    panel = draw_instances(image, instances, CATEGORIES)
    short, long = (
        np.array(side_by_side({"image": panel, "a": panel, caption: panel})) for caption in ("b", "nothing " * 11)
    )
    assert np.array_equal(short[-600:], long[-600:])
    dark = np.argwhere(long[: len(long) - 600].sum(-1) < 100)
    assert 2 * 808 + 700 < dark[:, 1].max() < 3 * 808 - 8  # a long caption has smaller letters


def test_names_of_segments_and_classes_are_written_inside_of_their_masks():
    image = np.full((600, 800, 3), 100, np.uint8)
    segment_map = torch.zeros(600, 800, dtype=torch.int32)
    segment_map[:, 400:] = 1  # the left half is nothing, or class 1
    panoptic = PanopticSegmentation(segment_map, torch.tensor([0]), torch.ones(1))
    drawn = np.array(draw_panoptic(image, panoptic, CATEGORIES))
    assert (drawn[:, :400] == 100).all()
    solid = (drawn[3:597, 403:797] == PALETTE[0]).all(-1)
    assert solid.any()
    semantic = np.array(draw_semantic(image, SemanticSegmentation(1 - segment_map), CATEGORIES))
    assert (semantic[3:597, 403:797] == PALETTE[0]).all(-1).any()
    assert (semantic[3:597, 3:397] == PALETTE[1]).all(-1).any()
