"""COCO panoptic files and semantic label maps: what is read, and what becomes of it."""

import json
import struct
import zlib

import numpy as np
import pytest
import torch
from label_map_files import (
    SIZE,
    panoptic,
    png_file,
    segment_map,
    semantic,
    write_panoptic,
    write_semantic,
)
from PIL import Image

from vision_stack.data.augment.geometry import GeometricTransform
from vision_stack.data.augment.transforms import EvalTransformConfig
from vision_stack.data.checks.label_files import read_class_map
from vision_stack.data.configs import ShapesDataConfig
from vision_stack.data.datamodule import build_datamodule
from vision_stack.data.dataset import SegmentationDataset, collate
from vision_stack.data.images import read_image
from vision_stack.data.readers.semantic import read_class_table
from vision_stack.ops.label_maps import class_png, ids_to_rgb, rgb_to_ids, segment_png
from vision_stack.structures import Category

# What is read


def test_segment_ids_survive_their_colors():
    ids = np.array([[0, 1, 255, 256, 65_536, 256**3 - 1]])
    assert np.array_equal(rgb_to_ids(ids_to_rgb(ids)), ids)


def targets_of_validation(data):
    """Of the images that the model is validated on, which come without."""
    dataset = SegmentationDataset(data.val_records, data.config.eval_transform)
    return collate([dataset[n] for n in range(len(dataset))], data.config.size_divisor).targets


def test_panoptic_segments_become_masks_of_things_and_stuff_without_crowds(tmp_path):
    data = panoptic(write_panoptic(tmp_path))
    assert data.categories == (
        Category(id=4, name="cat"),
        Category(id=9, name="dog"),
        Category(id=50, name="sky", is_thing=False),
    )
    target = targets_of_validation(data)[0]
    assert target["labels"].tolist() == [2, 0, 1]
    masks = target["masks"][:, : SIZE[0], : SIZE[1]]
    for mask, segment in zip(masks, (70_000, 300, 5), strict=True):
        assert np.array_equal(mask.numpy(), segment_map() == segment)
    assert target["boxes"].tolist()[1] == [2, 10, 12, 18]
    assert not data.problems


def test_panoptic_truth_has_the_crowd_and_numbers_in_order(tmp_path):
    truth = panoptic(write_panoptic(tmp_path)).val_ground_truth()
    assert sorted(truth) == [1, 2]
    segmentation, is_crowd = truth[1]
    assert is_crowd.tolist() == [False, False, False, True]
    assert segmentation.labels.tolist() == [2, 0, 1, 1]
    for number, segment in enumerate((70_000, 300, 5, 6), start=1):
        assert np.array_equal(segmentation.segment_map.numpy() == number, segment_map() == segment)


def test_semantic_classes_become_one_mask_each_and_ignored_pixels_none(tmp_path):
    data = semantic(write_semantic(tmp_path))
    assert [category.name for category in data.categories] == ["road", "sky", "car"]
    target = targets_of_validation(data)[0]
    assert next(iter(data.val_dataloader())).infos[0].file_name == "town/0.jpg"
    assert target["labels"].tolist() == [0, 1]  # no mask for the car that is not there
    assert target["boxes"].tolist() == [[0, 12, 30, 20], [0, 0, 30, 10]]
    label_map = data.val_ground_truth()[1].label_map
    assert label_map[:, 0].tolist() == [1] * 10 + [-1] * 2 + [0] * 8


@pytest.mark.parametrize(
    "text",
    [
        "2 road\n7 blue sky\n8 car\n",
        "blue sky 7\nroad\t 2\ncar 8",
        "blue sky: 7\nroad: 2\ncar: 8",
        "\n".join(["a", "b", "road", *"cdef", "blue sky", "car"]),
    ],
)
def test_class_table_as_text_with_and_without_ids(tmp_path, text):
    write_semantic(tmp_path, table=False)
    (tmp_path / "classes.txt").write_text(text)
    names = [c.name for c in semantic(tmp_path).categories]
    assert {"road", "blue sky", "car"} <= set(names)
    assert semantic(tmp_path).val_ground_truth()[1].label_map[0, 0] == names.index("blue sky")


@pytest.mark.parametrize("names", [["lane 2", "lane 0", "lane 1"], ["road", "route 66"], ["a 1", "b 1", "c"]])
def test_class_names_that_end_in_numbers_are_names_where_these_are_no_ids(tmp_path, names):
    (tmp_path / "classes.txt").write_text("\n".join(names))
    table = read_class_table(str(tmp_path / "classes.txt"))
    assert table == [{"id": n, "name": name} for n, name in enumerate(names)]


def test_class_table_in_json_is_known_by_a_suffix_in_capitals(tmp_path):
    write_semantic(tmp_path)
    (tmp_path / "classes.json").rename(tmp_path / "C.JSON")
    assert [c.name for c in semantic(tmp_path, classes="C.JSON").categories] == ["road", "sky", "car"]


def test_class_names_with_line_breaks_become_one_line(tmp_path):
    write_semantic(tmp_path)
    classes = [{"id": 2, "name": " road\n"}, {"id": 7, "name": "blue\r\n \u2028sky"}]
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    assert [c.name for c in semantic(tmp_path).categories] == ["road", "blue sky"]


def packed(ids, bits):
    """Rows of pixels of 1, 2, 4 or 8 bits, each row filled up to whole bytes."""
    ones = np.unpackbits(ids.astype(np.uint8)[:, :, None], axis=2)[:, :, 8 - bits :]
    return np.packbits(ones.reshape(len(ids), -1), axis=1)


def grey_png(ids, bits):
    rows = b"".join(b"\0" + row.tobytes() for row in packed(ids, bits))
    header = struct.pack(">2I5B", ids.shape[1], ids.shape[0], bits, 0, 0, 0, 0)
    return png_file((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))


def grey_tiff(ids, bits):
    pixels = packed(ids, bits).tobytes()
    entries = {256: ids.shape[1], 257: ids.shape[0], 258: bits, 259: 1, 262: 1}  # width, height, bits, raw, 0 is black
    entries |= {273: 8, 277: 1, 278: ids.shape[0], 279: len(pixels)}  # where the only strip is, and its length
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    return (
        b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(entries)) + directory + b"\0" * 4
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("write", [grey_png, grey_tiff])
def test_class_ids_of_few_bits_are_read_as_stored(tmp_path, write, bits):
    ids = np.arange(5 * 7).reshape(5, 7) % 2**bits  # 7 pixels end within a byte
    (tmp_path / "map").write_bytes(write(ids, bits))
    read = read_class_map(str(tmp_path / "map"), 5, 7)
    assert np.array_equal(read, ids)
    assert read.dtype == np.uint8


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA"])
def test_grey_class_map_that_is_stored_in_more_channels_is_read(tmp_path, mode):
    ids = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7)
    Image.fromarray(ids).convert(mode).save(tmp_path / "map.png")
    assert np.array_equal(read_class_map(str(tmp_path / "map.png"), 5, 7), ids)


def turned_image(path):
    """Pixels as stored of an image of that size on its side, which EXIF turns upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(1).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    return pixels


def test_semantic_map_of_the_stored_size_keeps_exif_from_turning_the_image(tmp_path):
    write_semantic(tmp_path)
    folder, labels = (tmp_path / name / "training" / "town" for name in ("images", "annotations"))
    for n in range(2):
        (folder / f"{n}.jpg").unlink()
        pixels = turned_image(folder / f"{n}.png")
    upright = np.full(SIZE[::-1], 2)
    (labels / "1.png").write_bytes(class_png(upright))
    stored, turned = semantic(tmp_path).train_split.records
    assert [(r.apply_exif, r.height, r.width) for r in (stored, turned)] == [(False, *SIZE), (True, *SIZE[::-1])]
    assert np.array_equal(read_image(stored.path, apply_exif=stored.apply_exif), pixels)
    batch = collate([semantic(tmp_path, filter_empty=False).train_dataloader().dataset[0, n] for n in range(2)])
    assert [info.size for info in batch.infos] == [SIZE, SIZE[::-1]]


@pytest.mark.parametrize("size", [None, SIZE, SIZE[::-1]])
def test_panoptic_map_of_the_stored_size_keeps_exif_from_turning_the_image(tmp_path, size):
    def change(content):
        image = content["images"][0]
        image["file_name"] = "0.png"
        image["height"], image["width"] = size or (None, None)

    write_panoptic(tmp_path, change)
    turned_image(tmp_path / "train2017" / "0.png")
    record = panoptic(tmp_path).train_split.records[0]
    assert (record.apply_exif, record.height, record.width) == (False, *SIZE)


def test_semantic_hidden_files_and_folders_are_left_out(tmp_path):
    write_semantic(tmp_path)
    images = tmp_path / "images" / "training"
    (images / "town" / "._0.jpg").write_bytes(b"of macOS")
    (images / ".ipynb_checkpoints").mkdir()
    (images / ".ipynb_checkpoints" / "0-checkpoint.jpg").write_bytes(b"of jupyter")
    for options in ({}, {"image_suffix": ".jpg"}):
        names = [record.file_name for record in semantic(tmp_path, **options).train_split.records]
        assert names == ["town/0.jpg", "town/1.jpg"]


def test_semantic_linked_folder_inside_is_read_and_cycles_end(tmp_path):
    write_semantic(tmp_path)
    for kind in ("images", "annotations"):
        folder = tmp_path / kind / "training"
        (folder / "town").rename(folder / ".store")
        (folder / "town").symlink_to(".store")
        (folder / ".store" / "back").symlink_to("..")
        (folder / ".store" / "itself").symlink_to("../town")
    assert [r.file_name for r in semantic(tmp_path).train_split.records] == ["town/0.jpg", "town/1.jpg"]


def test_semantic_names_with_suffixes_of_their_own(tmp_path):
    write_semantic(tmp_path / "plain")
    for split in ("train", "val"):
        for kind, ending in (("img", "_left.jpg"), ("gt", "_ids.png")):
            (tmp_path / kind / split).mkdir(parents=True)
            source = "images" if kind == "img" else "annotations"
            old = tmp_path / "plain" / source / "training" / "town" / f"0{ending[-4:]}"
            (tmp_path / kind / split / f"a{ending}").write_bytes(old.read_bytes())
        (tmp_path / "img" / split / "a_right.jpg").write_bytes(b"not one of them")
    images = {f"{split}_images": f"img/{split}" for split in ("train", "val")}
    labels = {f"{split}_labels": f"gt/{split}" for split in ("train", "val")}
    names = {"classes": "plain/classes.json", "image_suffix": "_left.jpg", "label_suffix": "_ids.png"}
    data = semantic(tmp_path, **images, **labels, **names)
    assert [record.file_name for record in data.val_records] == ["a_left.jpg"]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("box", "size"), [((0, 0, 30, 20), (20, 30)), ((3, 2, 27, 20), (9, 48)), ((5, 5, 6, 6), (4, 4))]
)
def test_label_map_takes_the_nearest_source_pixel(box, size, flip):
    labels = segment_map() % 251
    transform = GeometricTransform(box, size, flip)
    x0, y0, x1, y1 = box
    crop = torch.from_numpy(labels[y0:y1, x0:x1])[None, None].float()
    expected = torch.nn.functional.interpolate(crop, size=size, mode="nearest-exact")[0, 0].numpy()
    assert np.array_equal(transform.label_map(labels), expected[:, ::-1] if flip else expected)


def test_shapes_have_all_three_annotations_of_the_same_scenes(tmp_path):
    size = EvalTransformConfig(short_edge=64, long_edge=64)
    config = ShapesDataConfig(root=str(tmp_path), image_size=64, num_train=8, num_val=4, eval_transform=size)
    tasks = ("instance", "panoptic", "semantic")
    targets = {task: targets_of_validation(build_datamodule(config, task=task)) for task in tasks}
    for n in range(4):
        instance, segments, classes = (targets[task][n] for task in tasks)
        count = len(instance["labels"])
        assert torch.equal(segments["labels"][:count], instance["labels"])
        assert torch.equal(segments["masks"][:count], instance["masks"])
        assert (segments["masks"].sum(0) == 1).all()  # the background fills the rest
        assert segments["labels"][count] >= 4
        for label, mask in zip(classes["labels"], classes["masks"], strict=True):
            assert torch.equal(mask, segments["masks"][segments["labels"] == label].any(0))
    assert build_datamodule(config, task="panoptic").train_split.report() == ""


# What cropping leaves, images with too many objects and with none


def test_segments_that_cropping_removed_leave_the_target(tmp_path):
    dataset = panoptic(write_panoptic(tmp_path)).train_dataloader().dataset
    counts = set()
    for epoch in range(20):
        batch = collate([dataset[epoch, 0]])
        (target,) = batch.targets
        assert target["masks"].flatten(1).any(1).all()
        assert len(target["labels"]) == len(target["masks"]) == len(target["boxes"])
        counts.add(len(target["labels"]))
    assert len(counts) > 1


def test_images_with_more_segments_or_classes_than_queries_are_counted(tmp_path):
    data = panoptic(write_panoptic(tmp_path / "p"))
    assert [data.num_train_images_with_more_objects_than(n) for n in (1, 2, 3)] == [2, 2, 0]  # the crowd is none
    data = semantic(write_semantic(tmp_path / "s", lambda split, n: {(0, 0): 8} if n else {}))
    assert [data.num_train_images_with_more_objects_than(n) for n in (1, 2, 3)] == [2, 1, 0]


def test_images_without_segments_train_or_are_left_out_as_asked(tmp_path):
    def empty(content):
        content["annotations"][0]["segments_info"] = []

    write_panoptic(tmp_path, empty, segment_png(np.zeros(SIZE, np.int32)))
    assert len(panoptic(tmp_path).train_records) == 1
    data = panoptic(tmp_path, filter_empty=False)
    batch = collate([data.train_dataloader().dataset[0, n] for n in range(2)])
    assert [len(target["labels"]) > 0 for target in batch.targets] == [False, True]
    assert batch.targets[0]["masks"].shape[0] == 0


def test_semantic_image_that_is_ignored_altogether_has_an_empty_target(tmp_path):
    data = semantic(write_semantic(tmp_path, lambda split, n: {(0, 0): 8} if n else {...: 255}))
    batch = collate([data.train_dataloader().dataset[0, n] for n in range(2)])
    assert [len(target["labels"]) > 0 for target in batch.targets] == [False, True]
