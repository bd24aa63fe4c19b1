"""Pictures: what is drawn where, and that labels can be read."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from vision_stack.structures import Category, Instances
from vision_stack.visualization import draw_image, draw_instances, side_by_side
from vision_stack.visualization.colors import PALETTE, instance_color, luminance, text_color
from vision_stack.visualization.curves import plot_curves
from vision_stack.visualization.overlay import _overlap, _place, _write_names

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


@pytest.mark.parametrize("box", [(0, 0, 20, 20), (780, 0, 800, 15), (790, 590, 800, 600), (0, 0, 800, 600)])
def test_label_of_a_box_at_the_border_stays_on_the_canvas(box):
    for placed in ([], [(0, 0, 200, 30)]):
        x0, y0, x1, y1 = _place(box, 150, 20, (800, 600), placed)
        assert (x0 >= 0, y0 >= 0, x1 <= 799, y1 <= 599) == (True,) * 4


def test_labels_of_coinciding_boxes_do_not_hide_each_other():
    placed = []
    for _ in range(8):
        placed.append(_place((300, 300, 340, 340), 120, 20, (800, 600), placed))
    assert sum(_overlap(a, b) for i, a in enumerate(placed) for b in placed[:i]) == 0


def test_name_wider_than_the_image_is_cut_not_drawn_beyond_it():
    canvas = Image.new("RGB", (90, 60), (10, 10, 10))
    _write_names(canvas, [(5, 30, 80, 50)], ["a name that is far too long to fit"], [PALETTE[2]])
    label = np.array(canvas)[:28]
    assert (label == PALETTE[2]).all(-1).any()  # drawn above the box, from the left edge on, within 90 pixels


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


def test_curves_sparse_csv_writes_a_picture(tmp_path):
    rows = ["epoch,step,train/loss,train/loss_mask,val/segm_AP,lr"]
    rows += [f"0,{step},{3 - step / 50},{2 - step / 50},,0.1" for step in range(0, 100, 10)]
    rows += ["0,49,,,0.1,", "1,99,,,0.3,", "1,100,nan,,,"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows))
    plot_curves(tmp_path / "metrics.csv", tmp_path / "pictures" / "curves.png")
    with Image.open(tmp_path / "pictures" / "curves.png") as picture:
        assert picture.width > 1.5 * picture.height  # two panels
        assert np.array(picture.convert("L")).std() > 5


def test_curves_of_a_short_run_have_the_learning_rate_in_a_panel_of_its_own(tmp_path):
    rows = ["epoch,step,train/loss,train/lr", *(f"0,{step},{3 - step / 10},{step / 1000}" for step in range(10))]
    (tmp_path / "metrics.csv").write_text("\n".join(rows))
    plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 2.5 * picture.height  # loss and learning rate


def test_curves_without_columns_to_draw_say_so(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,lr\n0,1,0.1\n")
    with pytest.raises(ValueError, match="no column with values is named after a loss, AP, PQ, mIoU; found: lr"):
        plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    (tmp_path / "metrics.csv").write_text("a,b\n0,1\n")
    with pytest.raises(ValueError, match="no column 'step'"):
        plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
