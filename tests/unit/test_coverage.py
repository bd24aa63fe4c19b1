"""Exact area coverage of polygons against counting points, and what is made of it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.path import Path

from vision_stack.config import ConfigError, from_dict
from vision_stack.data.augment.geometry import GeometricTransform
from vision_stack.data.augment.placing import place
from vision_stack.data.augment.targets import Objects, make_target
from vision_stack.data.datamodule import build_datamodule
from vision_stack.data.dataset import collate
from vision_stack.heads.dense import RetinaNetHeadConfig
from vision_stack.heads.maskformer import MaskFormerHeadConfig
from vision_stack.heads.rcnn import MaskRCNNHeadConfig
from vision_stack.ops import rle
from vision_stack.ops.coverage import polygon_coverage, visible_boxes
from vision_stack.ops.masks import coarser, fill, placed, placed_polygons, polygons_to_mask
from vision_stack.structures import Features, FeatureSpec

HEIGHT, WIDTH, STRIDE = 37, 42, 4  # the last row and column of cells are cut
FINE = 16  # points along a pixel's edge
CELLS = (10, 11)


def stars(count, middle=(-10, 50)):
    """Simple polygons, some partly or wholly outside of the image, some of whole pixels, in either direction."""
    rng = np.random.default_rng(0)
    for number in range(count):
        angles = np.arange(7) / 7 * 2 * np.pi + rng.uniform(0, 0.8, 7)
        radius, centre = rng.uniform(3, 40, 7), rng.uniform(*middle, 2)
        points = np.stack([centre[0] + radius * np.cos(angles), centre[1] + radius * np.sin(angles)], axis=1)
        points = np.round(points) if number % 5 == 0 else points
        yield points[:: -1 if number % 2 else 1].ravel()


def counted(polygon):
    """Share of each cell [10, 11] by counting points, and the box of those inside."""
    y = (np.arange(CELLS[0] * STRIDE * FINE) + 0.5) / FINE
    x = (np.arange(CELLS[1] * STRIDE * FINE) + 0.5) / FINE
    points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    inside = Path(polygon.reshape(-1, 2)).contains_points(points).reshape(len(y), len(x))
    inside &= (y[:, None] < HEIGHT) & (x < WIDTH)
    rows, columns = np.nonzero(inside)
    box = None
    if len(rows):
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / FINE
    return inside.reshape(CELLS[0], STRIDE * FINE, CELLS[1], STRIDE * FINE).mean(axis=(1, 3)), box


def test_coverage_and_visible_box_are_those_of_counted_points():
    polygons = list(stars(30))
    boxes = visible_boxes(polygons, HEIGHT, WIDTH)
    wrong, off = [], []
    for polygon, patch, box in zip(polygons, polygon_coverage(polygons, HEIGHT, WIDTH, STRIDE), boxes, strict=True):
        found = np.zeros(CELLS)
        if patch is not None:
            height, width = patch.cover.shape
            found[patch.top : patch.top + height, patch.left : patch.left + width] = patch.cover
        expected, around = counted(polygon)
        wrong.append(np.abs(found - expected).max())
        if around is not None:
            off.append(np.abs(box - around).max())
    assert max(wrong) < 0.01  # 4,096 points a cell
    assert np.median(off) < 0.1
    assert max(off) < 1.0  # points miss the tip of a star


def test_shifted_by_a_tenth_of_a_pixel_the_comparison_fails():
    polygon = next(stars(1, middle=(15, 20)))
    (patch,) = polygon_coverage([polygon + 0.1], HEIGHT, WIDTH, STRIDE)
    found = np.zeros(CELLS)
    found[patch.top : patch.top + len(patch.cover), patch.left : patch.left + patch.cover.shape[1]] = patch.cover
    assert np.abs(found - counted(polygon)[0]).max() > 0.015


def test_polygon_around_the_image_covers_all_of_it_and_nothing_beyond():
    around = np.array([-50.0, -50, 100, -50, 100, 100, -50, 100])
    (patch,) = polygon_coverage([around], HEIGHT, WIDTH, STRIDE)
    assert patch.cover.sum() * STRIDE**2 == pytest.approx(HEIGHT * WIDTH)
    assert patch.cover[:9, :10].min() == pytest.approx(1)
    assert visible_boxes([around], HEIGHT, WIDTH).tolist() == [[0, 0, WIDTH, HEIGHT]]
    outside = around + 300
    assert polygon_coverage([outside], HEIGHT, WIDTH, STRIDE) == [None]
    (box,) = visible_boxes([outside], HEIGHT, WIDTH)
    assert (box[2:] <= box[:2]).any()


def test_polygon_that_winds_twice_has_a_hole_as_in_pycocotools():
    ring = np.array([4.0, 4, 36, 4, 36, 32, 4, 32, 4, 4, 12, 12, 12, 24, 28, 24, 28, 12, 12, 12, 12, 12])
    (patch,) = polygon_coverage([ring], HEIGHT, WIDTH, STRIDE)
    full = polygons_to_mask([ring], 40, 44).reshape(10, 4, 11, 4).mean(axis=(1, 3))
    found = np.zeros(CELLS)
    found[patch.top : patch.top + len(patch.cover), patch.left : patch.left + patch.cover.shape[1]] = patch.cover
    assert np.array_equal(found >= 0.5, full >= 0.5)
    assert not (found >= 0.5)[4, 5]


def test_placed_polygons_are_the_whole_mask_in_a_window():
    for polygon in stars(20):
        whole = np.zeros((1, HEIGHT, WIDTH), bool)
        fill([placed_polygons([polygon, polygon / 2], HEIGHT, WIDTH)], whole)
        assert np.array_equal(whole[0], polygons_to_mask([polygon, polygon / 2], HEIGHT, WIDTH))


def test_coarser_mask_has_the_cells_of_which_half_is_covered():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[3:21, 6:29] = True
    padded = np.zeros((40, 44), bool)
    padded[:HEIGHT, :WIDTH] = mask
    found = np.zeros((1, *CELLS), bool)
    fill([coarser(placed(mask), STRIDE)], found)
    assert np.array_equal(found[0], padded.reshape(10, 4, 11, 4).mean(axis=(1, 3)) >= 0.5)


def test_thin_object_keeps_the_cells_that_it_covers_most():
    thin = np.array([2.0, 9, 30, 9, 30, 9.6, 2, 9.6])
    target, masks = make_target(objects([[thin]], 4), (HEIGHT, WIDTH), stride=4)
    assert target["boxes"].numpy() == pytest.approx(np.array([[2, 9, 30, 9.6]]))
    assert (masks[0].top, masks[0].left, masks[0].cells.shape) == (2, 1, (1, 6))


def objects(segmentations, stride, affine=None):
    affine = affine or GeometricTransform((0, 0, WIDTH, HEIGHT), (HEIGHT, WIDTH))
    moved = place(affine, segmentations, [[0, 0, WIDTH, HEIGHT]] * len(segmentations), stride)
    return Objects(list(range(len(segmentations))), moved.masks, moved.boxes, pixels=moved.pixels)


def test_coarse_targets_have_the_objects_boxes_and_areas_of_full_ones():
    affine = GeometricTransform((5, 3, 42, 35), (96, 111), flip=True)
    polygons = list(stars(12, middle=(10, 30)))
    encoded = rle.encode(polygons_to_mask([polygons[0]], HEIGHT, WIDTH))
    segmentations = [*([polygon, polygon / 3] for polygon in polygons), encoded]
    fine, full = make_target(objects(segmentations, 1, affine), affine.size)
    target, coarse = make_target(objects(segmentations, 4, affine), affine.size, stride=4)
    assert target["labels"].tolist() == fine["labels"].tolist()
    assert len(full) > 8
    assert (target["boxes"] - fine["boxes"]).abs().max() <= 1.5  # pycocotools rounds to fifths, then to whole pixels
    common = union = 0
    for one, other in zip(full, coarse, strict=True):
        grids = np.zeros((2, 24, 28), bool)
        fill([coarser(one, 4), other], grids)
        common, union = common + np.count_nonzero(grids.all(0)), union + np.count_nonzero(grids.any(0))
    assert common / union > 0.97


def test_only_boxes_are_around_what_can_be_seen_of_the_polygons():
    corner = np.array([-20.0, -20, 10, -20, -20, 10])  # wholly outside, though its box is not
    triangle = np.array([30.0, 10, 60, 10, 60, 30])
    placed_objects = objects([[corner, triangle], [corner]], None)
    assert placed_objects.masks == [None, None]
    assert placed_objects.boxes[0] == pytest.approx([30, 10, 42, 18])
    assert make_target(placed_objects, (HEIGHT, WIDTH), stride=None).target["labels"].tolist() == [0]


def test_heads_that_cannot_read_coarse_masks_say_so_in_a_line():
    MaskFormerHeadConfig().check_mask_stride(4)
    MaskRCNNHeadConfig().check_mask_stride(1)
    with pytest.raises(ConfigError, match=r"^data\.mask_stride: head=mask_rcnn .* data\.mask_stride=1$"):
        MaskRCNNHeadConfig().check_mask_stride(4)
    with pytest.raises(ConfigError, match=r"^data\.mask_stride: head=retinanet learns from boxes.*leave it out$"):
        RetinaNetHeadConfig().check_mask_stride(4)


@pytest.mark.parametrize("head", ["maskformer", "mask2former", "d_fine"])
def test_losses_with_coarse_targets_are_near_those_with_full_ones(head):
    """The same images, predictions and points: what masks of stride 4 leave out is a few percent of the losses."""
    options = {"image_size": 128, "num_train": 8, "num_val": 1, "train_transform": {"flip": 0.0, "short_edges": [256]}}
    plain = {"type": head, "hidden_dim": 32, "num_heads": 2, "ffn_dim": 32, "num_queries": 12, "num_decoder_layers": 2}
    if head == "d_fine":
        plain["masks"] = True
    specs = tuple(FeatureSpec(f"p{n}", 32, 2**n) for n in (2, 3, 4, 5))
    torch.manual_seed(0)
    built = from_dict(plain, "head").build(specs, 4).train()
    losses = []
    for stride in (1, 4):
        config = from_dict({"type": "shapes", **options, "mask_stride": stride}, "data")
        data = build_datamodule(config).train_dataset()
        batch = collate([data[0, index] for index in range(4)], 32, mask_stride=stride)
        size = (batch.images.shape[-2], batch.images.shape[-1])
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(4, 32, 8, 8, generator=generator)  # smooth maps, as those of a network
        sizes = [tuple(edge // spec.stride for edge in size) for spec in specs]
        features = Features(tuple(F.interpolate(noise, shape, mode="bicubic") for shape in sizes), size, None)
        torch.manual_seed(2)
        losses.append(built.compute_loss(built(features, batch.targets), batch.targets))
    fine, coarse = losses
    for name in (name for name in fine if "mask" in name or "dice" in name):
        assert coarse[name].item() == pytest.approx(fine[name].item(), rel=0.05), name
