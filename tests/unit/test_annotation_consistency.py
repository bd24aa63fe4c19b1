"""What of COCO annotations does not fit together: noted in one line for each kind, with a count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vision_stack.data.checks.issues import DataError
from vision_stack.data.readers.coco import CocoSplit, read_coco
from vision_stack.ops import rle
from vision_stack.ops.masks import covers_a_pixel, polygons_to_mask

HEIGHT, WIDTH = 60, 80


def ring(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def fitting(x0: float, y0: float, x1: float, y1: float, **fields: Any) -> dict[str, Any]:
    """An annotation whose box and area fit its polygon."""
    box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
    return {"segmentation": [ring(x0, y0, x1, y1)], **box, **fields}


def polygon(*rings: list[float]) -> dict[str, Any]:
    return {"segmentation": list(rings)}


def read(folder: Path, *annotations: dict[str, Any], **options: Any) -> CocoSplit:
    data = {
        "images": [{"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": [{"id": 10 + n, "image_id": 7, "category_id": 1, **a} for n, a in enumerate(annotations)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "a.json").write_text(json.dumps(data))
    return read_coco(folder / "a.json", folder, check_images=False, **options)


def note(split: CocoSplit, field: str) -> str:
    """The only one, of that field."""
    (found,) = split.notes
    assert f": annotations[].{field}: " in str(found)
    return str(found)


GOOD = (fitting(5, 5, 30, 40), fitting(20, 10, 21, 11), fitting(0, 0, WIDTH, HEIGHT), fitting(70, 50, 95, 75))


def test_annotations_that_fit_together_are_read_without_a_word(tmp_path: Path) -> None:
    mask = rle.to_json(rle.encode(polygons_to_mask([ring(30, 5, 50, 45)], HEIGHT, WIDTH)))
    as_rle = {"segmentation": mask, "bbox": [30, 5, 20, 40], "area": 800}
    clipped = {**GOOD[3], "bbox": [70, 50, 10, 10]}
    sloppy = {**fitting(40, 30, 60, 50), "bbox": [38, 28, 24, 24], "area": 500}
    assert not read(tmp_path, *GOOD, as_rle, clipped, sloppy).report()


# Objects that cover no pixel


def fraction(x0: float, y0: float, x1: float, y1: float) -> dict[str, Any]:
    return polygon(ring(x0 / WIDTH, y0 / HEIGHT, x1 / WIDTH, y1 / HEIGHT))


@pytest.mark.parametrize("large", [0, 2, 3])
def test_coordinates_that_are_fractions_of_the_image_are_a_problem_whatever_they_cover(
    large: int, tmp_path: Path
) -> None:
    objects = [fraction(0, 0, WIDTH, HEIGHT)] * large + [fraction(8, 6, 24, 30)] * (3 - large)  # the former cover one
    with pytest.raises(DataError, match=r"3 of 3 polygon objects cover at most one pixel: .* all in 0\.\.1") as error:
        read(tmp_path, *objects)
    assert "fractions of the image" in str(error.value)
    assert "(id 10 in 'a.png', id 11 in 'a.png', id 12 in 'a.png'); multiply x by the image's width" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"no good annotation is left; .*fractions of the image"):
        read(tmp_path, *objects, on_error="skip")


def test_few_fractions_among_pixels_are_noted(tmp_path: Path) -> None:
    line = note(read(tmp_path, *GOOD, fraction(8, 6, 24, 30)), "segmentation")
    assert "1 of 5 polygon objects cover at most one pixel" in line
    assert "fractions of the image" in line


def test_object_in_the_first_pixel_is_no_fraction_of_the_image(tmp_path: Path) -> None:
    assert not read(tmp_path, *GOOD, fitting(0, 0, 1, 1)).report()


NO_PIXEL = {
    "thin": ring(10.1, 10, 10.3, 30),
    "tiny": ring(10.1, 10.1, 10.3, 10.3),
    "slanted sliver": [10, 10, 40, 40, 40.1, 40.05],
    "beside the image": [WIDTH - 1, -30, WIDTH + 30, -30, WIDTH + 30, 1],
}


@pytest.mark.parametrize("case", NO_PIXEL)
def test_polygon_that_covers_no_pixel_is_noted_and_kept_for_evaluation(case: str, tmp_path: Path) -> None:
    assert not covers_a_pixel([NO_PIXEL[case]], HEIGHT, WIDTH)
    split = read(tmp_path, *GOOD, polygon(NO_PIXEL[case]), polygon(NO_PIXEL[case], ring(5, 5, 9, 9)))
    line = note(split, "segmentation")
    assert "1 of 6 polygon objects cover no pixel of their image (id 14 in 'a.png'); annotate them again" in line
    assert len(split.records[0].annotations) == 6
    with pytest.raises(DataError, match="2 of 3 polygon objects cover no pixel of their image"):
        read(tmp_path, polygon(NO_PIXEL[case]), polygon(NO_PIXEL[case]), GOOD[0])
    assert len(read(tmp_path, *[polygon(NO_PIXEL[case])] * 2, GOOD[0], on_error="skip").records[0].annotations) == 1


def test_whether_polygons_cover_a_pixel_is_what_their_mask_says(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    shapes = [generator.uniform(-1, 5, 6) * generator.uniform(0.05, 1) for _ in range(300)]
    expected = [polygons_to_mask([shape], 4, 5).any() for shape in shapes]
    assert 50 < sum(expected) < 250
    assert [covers_a_pixel([shape], 4, 5) for shape in shapes] == expected
    annotations = [{"segmentation": [shape.tolist()]} for shape in shapes]
    split = read(tmp_path, *GOOD * 200, *({**a, "bbox": [0, 0, 5, 5]} for a in annotations), on_error="skip")
    masks = [a.segmentation for a in split.records[0].annotations]
    empty = [not polygons_to_mask(polygons, HEIGHT, WIDTH).any() for polygons in masks]
    counts = [str(n) for n in split.notes if " cover " in str(n)]
    assert sum(int(line.split("segmentation: ")[1].split()[0]) for line in counts) == sum(empty)


# Crowds


def test_crowds_are_counted(tmp_path: Path) -> None:
    crowds = [{**annotation, "iscrowd": 1} for annotation in GOOD[:2]]
    line = note(read(tmp_path, *crowds, *GOOD), "iscrowd")
    assert "2 of 6 annotations are crowd regions (iscrowd=1); not trained on" in line


# Boxes, areas and rings


@pytest.mark.parametrize(
    ("box", "reading"),
    [
        ([30, 20, 45, 50], "2 of them seem to be x0, y0, x1, y1"),
        ([37.5, 35, 15, 30], "2 of them seem to be the centre, width and height"),
        ([30 / WIDTH, 20 / HEIGHT, 15 / WIDTH, 0.5], "2 of them seem to be fractions of the image"),
        ([60, 1, 15, 30], ""),
    ],
)
def test_boxes_that_do_not_surround_their_masks_are_noted_with_what_they_seem_to_be(
    box: list[float], reading: str, tmp_path: Path
) -> None:
    wrong = {**fitting(30, 20, 45, 50), "bbox": box}
    mask = rle.to_json(rle.encode(polygons_to_mask(wrong["segmentation"], HEIGHT, WIDTH)))
    line = note(read(tmp_path, *GOOD, wrong, {**wrong, "segmentation": mask}), "bbox")
    assert "2 boxes do not surround their masks, as x, y, width, height" in line
    assert reading in line
    assert ("seem" in line) == bool(reading)
    assert "(id 14 in 'a.png', id 15 in 'a.png'); training takes boxes from the masks" in line


def test_areas_that_are_far_from_the_masks_are_noted(tmp_path: Path) -> None:
    thin = {"segmentation": [[5, 5, 45, 45, 45, 50]], "bbox": [5, 5, 40, 45]}  # 100 pixels
    split = read(tmp_path, *GOOD, {**thin, "area": 1800}, {**thin, "area": 30}, {**thin, "area": 190}, thin)
    line = note(split, "area")
    assert "2 areas are less than half or more than twice the mask's; 1 of them are those of the boxes (id 14" in line
    assert [a.area for a in split.records[0].annotations][4:] == [1800, 30, 190, 100]


def test_polygon_inside_of_another_is_noted_as_a_hole(tmp_path: Path) -> None:
    outer, inner = ring(5, 5, 45, 45), ring(15, 15, 30, 30)
    beside = ring(50, 5, 60, 15)
    corner = [5, 5, 45, 5, 45, 45]  # a triangle, whose box holds what lies beside it
    holes = ([outer, inner], [inner, outer], [beside, outer, inner])
    rings = (*holes, [outer, beside], [outer, outer], [corner, ring(8, 30, 12, 40)])
    line = note(read(tmp_path, *(polygon(*each) for each in rings)), "segmentation")
    assert "3 objects have a polygon inside of another, which looks like a hole (id 10" in line
    assert "id 12 in 'a.png'); filled" in line


def test_degenerate_polygons_among_good_ones_are_one_note(tmp_path: Path) -> None:
    split = read(tmp_path, *[polygon([1, 1, 2, 2], ring(5, 5, 9, 9), [5, 5, 9, 9, 7, 7])] * 2)
    (found,) = split.notes
    assert "annotations[0].segmentation: a polygon of 2 points; it takes three" in str(found)
    assert "(image 'a.png'), and 3 more such; left out" in str(found)
