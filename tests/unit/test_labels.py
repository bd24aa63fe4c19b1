"""Where names are written: on the canvas, over nothing that matters, or not at all."""

import numpy as np
import pytest
from PIL import Image

from vision_stack.visualization.colors import PALETTE
from vision_stack.visualization.labels import fitting_font, overlap, place, write_names

WHITE = (255, 255, 255)


def canvas(width: int = 800, height: int = 600) -> Image.Image:
    return Image.new("RGB", (width, height), WHITE)


def boxes(*each: tuple[float, ...]) -> np.ndarray:
    return np.array(each, float).reshape(-1, 4)


@pytest.mark.parametrize("box", [(0, 0, 20, 20), (780, 0, 800, 15), (790, 590, 800, 600), (0, 0, 800, 600)])
def test_name_of_a_box_at_the_border_stays_on_the_canvas(box: tuple[int, ...]) -> None:
    picture = canvas()
    assert write_names(picture, boxes(box), ["a name"], [PALETTE[2]]) == [0]
    colored = (np.array(picture) == PALETTE[2]).all(-1)
    # as large as in the middle of the canvas, so nothing of it is cut off
    middle = canvas()
    write_names(middle, boxes((300, 300, 320, 320)), ["a name"], [PALETTE[2]])
    assert colored.sum() == (np.array(middle) == PALETTE[2]).all(-1).sum()


def test_place_is_the_first_choice_that_hides_no_name_and_at_most_half_of_an_object() -> None:
    choices = [(0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (40.0, 0.0, 50.0, 10.0)]
    small = boxes((21, 1, 29, 9))
    assert place(iter(choices), (100, 100), [], boxes()) == choices[0]
    assert place(iter(choices), (100, 100), [(5.0, 5.0, 15.0, 15.0)], small) == choices[2]
    assert place(iter(choices[:2]), (100, 100), [(5.0, 5.0, 15.0, 15.0)], small) is None
    assert place(iter(choices[1:]), (100, 100), [], boxes((25, 0, 40, 10))) == choices[1]  # a third of it is hidden


def test_names_of_a_crowd_do_not_hide_each_other_and_those_without_room_are_left_out() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform((200, 200), (350, 300), (60, 2))
    crowd = np.hstack([corners, corners + 12])
    picture = canvas()
    colors = [(n, 0, 255 - n) for n in range(60)]
    written = write_names(picture, crowd, ["person 0.50"] * 60, colors)
    assert 3 <= len(written) < 40
    pixels = np.array(picture)
    sizes = [int((pixels == colors[n]).all(-1).sum()) for n in written]
    assert max(sizes) - min(sizes) < 5  # each is whole; an edge of a letter may have the color of another background
    for box in crowd:
        x0, y0, x1, y1 = box.astype(int)
        assert (pixels[y0:y1, x0:x1] == WHITE).all(-1).mean() > 0.2  # more than half of the box, but for names beside


def test_names_of_large_objects_that_overlap_are_all_written() -> None:
    """Five people behind each other: their boxes share the upper left corner, nearly."""
    crowd = boxes(*((200 + 5 * n, 150 + 5 * n, 380 + 10 * n, 500) for n in range(5)))
    assert write_names(canvas(), crowd, ["person"] * 5, list(PALETTE[:5])) == [0, 1, 2, 3, 4]


def test_points_are_where_the_middle_of_a_name_is() -> None:
    picture = canvas()
    around = boxes((0, 0, 800, 600), (0, 0, 800, 600))
    points = [[(100.0, 100.0)], [(100.0, 100.0), (500.0, 400.0)]]
    assert write_names(picture, around, ["sky", "sea"], list(PALETTE[:2]), points) == [0, 1]
    for color, middle in zip(PALETTE[:2], ((100, 100), (500, 400)), strict=True):
        rows, columns = np.nonzero((np.array(picture) == color).all(-1))
        assert (columns.min() + columns.max()) / 2 == pytest.approx(middle[0], abs=1)
        assert (rows.min() + rows.max()) / 2 == pytest.approx(middle[1], abs=1)


def test_name_wider_than_the_image_is_cut_not_drawn_beyond_it() -> None:
    picture = Image.new("RGB", (90, 60), (10, 10, 10))
    write_names(picture, boxes((5, 30, 80, 50)), ["a name that is far too long to fit"], [PALETTE[2]])
    label = np.array(picture)[:28]
    assert (label == PALETTE[2]).all(-1).any()  # drawn above the box, from the left edge on, within 90 pixels


def test_font_of_a_long_text_is_smaller_so_that_it_fits() -> None:
    short, long = fitting_font(["a"], 20, 300), fitting_font(["prediction: none with score >= 0.5"], 20, 300)
    assert short.getbbox("prediction: none with score >= 0.5")[2] > 300
    assert long.getbbox("prediction: none with score >= 0.5")[2] <= 300


def test_overlap_is_the_shared_area() -> None:
    assert overlap((0, 0, 10, 10), (5, 8, 20, 20)) == 10
    assert overlap((0, 0, 10, 10), (10, 0, 20, 10)) == 0
