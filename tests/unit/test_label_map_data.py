"""COCO panoptic files and semantic label maps: what is read, what is refused and how, and what becomes of it."""

import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from vision_stack.config import ConfigError
from vision_stack.data.configs import CocoPanopticDataConfig, SemanticDataConfig, ShapesDataConfig
from vision_stack.data.datamodule import build_datamodule
from vision_stack.data.dataset import collate
from vision_stack.data.images import read_image
from vision_stack.data.label_files import read_class_map
from vision_stack.data.transforms import Affine, EvalTransformConfig, TrainTransformConfig
from vision_stack.data.validation import DataError
from vision_stack.ops.label_maps import class_png, ids_to_rgb, rgb_to_ids, segment_png
from vision_stack.structures import Category

SIZE = (20, 30)
EVAL = EvalTransformConfig(short_edge=20, long_edge=30)
CROP = TrainTransformConfig(mode="large_scale_jitter", crop_size=16, scale_range=(1.0, 4.0))
CATEGORIES = [
    {"id": 9, "name": "dog", "isthing": 1},
    {"id": 4, "name": "cat", "isthing": 1},
    {"id": 50, "name": "sky", "isthing": 0},
]  # by id: cat, dog, sky


def segment_map():
    ids = np.zeros(SIZE, np.int32)
    ids[:8] = 70_000  # sky
    ids[10:18, 2:12] = 300  # cat
    ids[10:18, 14:20] = 5  # dog
    ids[10:18, 22:28] = 6  # a crowd of dogs
    return ids


SEGMENTS = [
    {"id": 70_000, "category_id": 50, "iscrowd": 0},
    {"id": 300, "category_id": 4, "iscrowd": 0},
    {"id": 5, "category_id": 9, "iscrowd": 0},
    {"id": 6, "category_id": 9, "iscrowd": 1},
]


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_panoptic(root, change=lambda content: None, png=None):
    """Two splits of two images; `change` spoils the training json, `png` replaces its first label map."""
    for split in ("train", "val"):
        annotations = []
        labels = root / "annotations" / f"panoptic_{split}2017"
        labels.mkdir(parents=True)
        for n in range(2):
            image(root / f"{split}2017" / f"{n}.jpg")
            (labels / f"{n}.png").write_bytes(segment_png(segment_map()))
            segments = json.loads(json.dumps(SEGMENTS))
            annotations.append({"image_id": n + 1, "file_name": f"{n}.png", "segments_info": segments})
        images = [{"id": n + 1, "file_name": f"{n}.jpg", "height": SIZE[0], "width": SIZE[1]} for n in range(2)]
        content = {"images": images, "annotations": annotations, "categories": json.loads(json.dumps(CATEGORIES))}
        if split == "train":
            change(content)
            if png is not None:
                (labels / "0.png").write_bytes(png)
        (root / "annotations" / f"panoptic_{split}2017.json").write_text(json.dumps(content))
    return root


def write_semantic(root, value=lambda split, n: {}, table=True):
    """Two splits of two images: class 7 above, 2 below, a stripe to be ignored between them."""
    for split in ("training", "validation"):
        for n in range(2):
            image(root / "images" / split / "town" / f"{n}.jpg")
            labels = np.full(SIZE, 7, np.uint8)
            labels[12:] = 2
            labels[10:12] = 255
            for where, what in value(split, n).items():
                labels[where] = what
            path = root / "annotations" / split / "town" / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(class_png(labels))
    if table:
        classes = [{"id": 2, "name": "road"}, {"id": 7, "name": "sky"}, {"id": 8, "name": "car"}]
        (root / "classes.json").write_text(json.dumps(classes))
    return root


def panoptic(root, **options):
    defaults = {"batch_size": 2, "num_workers": 0, "eval_transform": EVAL, "train_transform": CROP}
    return build_datamodule(CocoPanopticDataConfig(root=str(root), **{**defaults, **options}), task="panoptic")


def semantic(root, **options):
    defaults = {"batch_size": 2, "num_workers": 0, "eval_transform": EVAL, "train_transform": CROP}
    return build_datamodule(SemanticDataConfig(root=str(root), **{**defaults, **options}), task="semantic")


def refusal(read):
    with pytest.raises(DataError) as error:
        read()
    return str(error.value)


# What is read


def test_segment_ids_survive_their_colors():
    ids = np.array([[0, 1, 255, 256, 65_536, 256**3 - 1]])
    assert np.array_equal(rgb_to_ids(ids_to_rgb(ids)), ids)


def test_panoptic_segments_become_masks_of_things_and_stuff_without_crowds(tmp_path):
    data = panoptic(write_panoptic(tmp_path))
    assert data.categories == (
        Category(id=4, name="cat"),
        Category(id=9, name="dog"),
        Category(id=50, name="sky", is_thing=False),
    )
    target = next(iter(data.val_dataloader())).targets[0]
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
    batch = next(iter(data.val_dataloader()))
    target = batch.targets[0]
    assert batch.infos[0].file_name == "town/0.jpg"
    assert target["labels"].tolist() == [0, 1]  # no mask for the car that is not there
    assert target["boxes"].tolist() == [[0, 12, 30, 20], [0, 0, 30, 10]]
    label_map = data.val_ground_truth()[1].label_map
    assert label_map[:, 0].tolist() == [1] * 10 + [-1] * 2 + [0] * 8


@pytest.mark.parametrize(
    "text", ["2 road\n7 blue sky\n8 car\n", "\n".join(["a", "b", "road", *"cdef", "blue sky", "car"])]
)
def test_class_table_as_text_with_and_without_ids(tmp_path, text):
    write_semantic(tmp_path, table=False)
    (tmp_path / "classes.txt").write_text(text)
    names = [c.name for c in semantic(tmp_path).categories]
    assert {"road", "blue sky", "car"} <= set(names)
    assert semantic(tmp_path).val_ground_truth()[1].label_map[0, 0] == names.index("blue sky")


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
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    framed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


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
    affine = Affine(box, size, flip)
    x0, y0, x1, y1 = box
    crop = torch.from_numpy(labels[y0:y1, x0:x1])[None, None].float()
    expected = torch.nn.functional.interpolate(crop, size=size, mode="nearest-exact")[0, 0].numpy()
    assert np.array_equal(affine.label_map(labels), expected[:, ::-1] if flip else expected)


def test_shapes_have_all_three_annotations_of_the_same_scenes(tmp_path):
    size = EvalTransformConfig(short_edge=64, long_edge=64)
    config = ShapesDataConfig(root=str(tmp_path), image_size=64, num_train=8, num_val=4, eval_transform=size)
    batches = {
        task: next(iter(build_datamodule(config, task=task).val_dataloader()))
        for task in ("instance", "panoptic", "semantic")
    }
    for n in range(4):
        instance, segments, classes = (batches[task].targets[n] for task in ("instance", "panoptic", "semantic"))
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
    data = semantic(write_semantic(tmp_path, lambda split, n: {} if n else {...: 255}))
    batch = collate([data.train_dataloader().dataset[0, n] for n in range(2)])
    assert [len(target["labels"]) > 0 for target in batch.targets] == [False, True]


# What is refused


def spoil(path, value):
    """A change of the training json at `path`."""

    def change(content):
        *parents, last = path
        for key in parents:
            content = content[key]
        content[last] = value

    return change


FIRST = ("annotations", 0)
SEGMENT = (*FIRST, "segments_info", 1)
BROKEN_JSON = {
    "unknown category": ((*SEGMENT, "category_id"), 77, r"segments_info\[1\].category_id: there is no category 77"),
    "repeated id": ((*SEGMENT, "id"), 5, r"segments_info\[2\].id: segment 5 is listed before"),
    "id of nothing": ((*SEGMENT, "id"), 0, r"segments_info\[1\].id: expected a whole number from 1"),
    "crowd flag": ((*SEGMENT, "iscrowd"), 3, r"iscrowd: expected 0 or 1, got 3"),
    "no segment": (SEGMENT, 3, r"segments_info\[1\]: expected a mapping"),
    "no list": ((*FIRST, "segments_info"), {}, r"annotations\[0\].segments_info: expected a list"),
    "parent folder": ((*FIRST, "file_name"), "../0.png", r"annotations\[0\].file_name: .* leads out of its folder"),
    "absolute": ((*FIRST, "file_name"), "/etc/passwd", r"file_name: .* is an absolute path"),
    "two annotations": ((*FIRST, "image_id"), 2, r"annotations\[1\].image_id: image 2 has an annotation already"),
    "image folder": (("images", 0, "file_name"), "../0.jpg", r"images\[0\].file_name: .* leads out"),
    "image size": (("images", 0, "width"), 31, r"images\[0\].width: .* is 30 x 20, the json says width 31"),
    "missing map": ((*FIRST, "file_name"), "absent.png", r"absent.png: pixels: there is no such file"),
}


@pytest.mark.parametrize("case", BROKEN_JSON)
def test_broken_panoptic_json_is_one_line_with_file_field_and_remedy_or_skipped(tmp_path, case):
    path, value, expected = BROKEN_JSON[case]
    write_panoptic(tmp_path, spoil(path, value))
    with pytest.raises(DataError, match=expected) as error:
        panoptic(tmp_path).train_split  # noqa: B018
    lines = [line for line in str(error.value).splitlines() if "problems; mend" not in line]
    assert all(line.count("; ") >= 1 for line in lines)  # a remedy in each
    split = panoptic(tmp_path, on_error="skip").train_split
    assert len(split.records) == 1
    assert split.problems
    assert "skipped" in split.report()


def encoded(save, array):
    import io

    stream = io.BytesIO()
    Image.fromarray(array).save(stream, save)
    return stream.getvalue()


GREY = segment_map().astype(np.uint8)
BROKEN_PNG = {
    "another size": (segment_png(segment_map()[:10]), "pixels: is 30 x 10, its image is 30 x 20"),
    "id not listed": (segment_png(segment_map() + (segment_map() == 300)), "holds segment 301, which the json"),
    "id not there": (segment_png(np.where(segment_map() == 300, 0, segment_map())), "has no pixel of segment 300"),
    "one channel": (encoded("PNG", GREY), "pixels of kind L; segment ids take three channels"),
    "JPEG": (encoded("JPEG", ids_to_rgb(segment_map())), "is a JPEG, which changes pixels"),
    "cut off": (segment_png(segment_map())[:60], "pixels: "),
    "empty": (b"", "the file is empty"),
    "text": (b"no picture at all", "not an image of a format that can be read"),
}


@pytest.mark.parametrize("case", BROKEN_PNG)
def test_broken_panoptic_png_is_one_line_that_names_it_or_skipped(tmp_path, case):
    png, expected = BROKEN_PNG[case]
    write_panoptic(tmp_path, png=png)
    line = refusal(lambda: panoptic(tmp_path).train_split)
    assert "\n" not in line
    assert line.startswith(str(tmp_path / "annotations" / "panoptic_train2017" / "0.png"))
    assert expected in line
    assert "to JPEG" not in line  # of all remedies the one that changes ids
    split = panoptic(tmp_path, on_error="skip").train_split
    assert [record.image_id for record in split.records] == [2]


def test_panoptic_map_that_changes_during_training_is_refused_by_name(tmp_path):
    dataset = panoptic(write_panoptic(tmp_path)).train_dataloader().dataset
    path = tmp_path / "annotations" / "panoptic_train2017" / "0.png"
    path.write_bytes(segment_png(segment_map() + (segment_map() == 5)))  # 6 is a crowd, so the ids are known
    dataset[0, 0]
    path.write_bytes(segment_png(segment_map() + 1000))
    line = refusal(lambda: dataset[0, 0])
    assert line.startswith(str(path))


BROKEN_MAPS = {
    "unknown value": (class_png(np.full(SIZE, 9)), "holds the value 9, which no class has; add the class"),
    "more than 16 bits": (encoded("TIFF", np.full(SIZE, 2**16 + 7, np.int32)), "holds values from 65543 to 65543"),
    "negative": (encoded("TIFF", np.full(SIZE, -1, np.int32)), "holds values from -1 to -1; class ids are 0 to 65535"),
    "colours": (encoded("PNG", np.zeros((*SIZE, 3), np.uint8)), "class ids take one channel"),
    "another size": (class_png(np.full((5, 5), 7)), "is 5 x 5, its image is 30 x 20"),
    "missing": (None, "there is no such file"),
}


@pytest.mark.parametrize("case", BROKEN_MAPS)
def test_broken_semantic_map_is_one_line_that_names_it_or_skipped(tmp_path, case):
    content, expected = BROKEN_MAPS[case]
    write_semantic(tmp_path)
    path = tmp_path / "annotations" / "training" / "town" / "1.png"
    path.unlink() if content is None else path.write_bytes(content)
    line = refusal(lambda: semantic(tmp_path).train_split)
    assert "\n" not in line
    assert line.startswith(f"{path}: pixels: ")
    assert expected in line
    assert len(semantic(tmp_path, on_error="skip").train_split.records) == 1


def test_semantic_links_that_lead_out_are_refused(tmp_path):
    write_semantic(tmp_path / "data")
    outside = tmp_path / "secret.png"
    outside.write_bytes(class_png(np.full(SIZE, 7)))
    path = tmp_path / "data" / "annotations" / "training" / "town" / "1.png"
    path.unlink()
    path.symlink_to(outside)
    assert "is a link that leads out of" in refusal(lambda: semantic(tmp_path / "data").train_split)


@pytest.mark.parametrize("rest", [True, False])
def test_semantic_linked_folder_that_leads_out_is_a_problem_that_names_it(tmp_path, rest):
    write_semantic(tmp_path / "data")
    images = tmp_path / "data" / "images" / "training"
    (images / "city").symlink_to(tmp_path / "data" / "images" / "validation")
    if not rest:
        (images / "town").rename(tmp_path / "elsewhere")
    line = refusal(lambda: semantic(tmp_path / "data").train_split)
    assert "\n" not in line
    assert line.startswith(f"{images}: city: is a link to a folder that leads out of")
    if rest:
        split = semantic(tmp_path / "data", on_error="skip").train_split
        assert [record.file_name for record in split.records] == ["town/0.jpg", "town/1.jpg"]
        assert "city: is a link" in split.report()


TABLES = {
    "no list": ("classes.json", "{}", "expected a list of classes"),
    "no json": ("classes.json", "[", "not valid json"),
    "same id": ("classes.json", '[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]', r"id 1 is both 'a' and 'b'"),
    "big id": ("classes.json", '[{"id": 70000, "name": "a"}]', "70000 is no pixel's value"),
    "ignored class": ("classes.json", '[{"id": 255, "name": "a"}]', "255 is a class and is to be ignored, too"),
    "empty text": ("classes.txt", "\n", "there are no classes"),
    "heading": ("classes.txt", "id name\n2 road\n7 sky", "line 1: 'id name' is not `id name`, as line 2 is; write"),
    "comment": ("classes.txt", "2 road\n7 sky\n\n# else\n8 car", "line 4: '# else' is not `id name`; write"),
    "comment above names": ("classes.txt", "# all\nroad\nsky", "line 1: '# all' is not `id name`; write"),
    "negative id": ("classes.txt", "-1 void\n2 road\n7 sky", "line 1: '-1 void' is not `id name`; write"),
    "commas": ("classes.txt", "2,road\n7,sky", "line 1: '2,road' is not `id name`; write"),
    "colon": ("classes.txt", "2 road\n7: sky", "line 2: '7: sky' is not `id name`; write"),
    "no id": ("classes.txt", "2 road\nsky\n8 car", "line 2: 'sky' is not `id name`, as line 1 is; write"),
    "no name": ("classes.txt", "2 road\n7\n8 car", "line 2: '7' is not `id name`; write"),
}


@pytest.mark.parametrize("case", TABLES)
def test_broken_class_table_is_one_line(tmp_path, case):
    name, text, expected = TABLES[case]
    write_semantic(tmp_path, table=False)
    (tmp_path / name).write_text(text)
    line = refusal(lambda: semantic(tmp_path).train_split)
    assert "\n" not in line
    assert line.startswith(str(tmp_path / name))
    assert expected in line


def test_missing_folders_say_what_was_looked_for_and_the_option(tmp_path):
    write_semantic(tmp_path, table=False)
    assert "name it with data.classes=PATH" in refusal(lambda: semantic(tmp_path).train_split)
    assert "data.train_labels: there is no such folder" in refusal(
        lambda: semantic(tmp_path, train_labels="x").train_split
    )
    (tmp_path / "empty").mkdir()
    assert "looked for images/train" in refusal(lambda: semantic(tmp_path / "empty").train_split)
    write_panoptic(tmp_path / "p")
    (tmp_path / "p" / "annotations" / "panoptic_train2017").rename(tmp_path / "p" / "elsewhere")
    assert "name their folder with data.train_labels=DIR" in refusal(lambda: panoptic(tmp_path / "p").train_split)
    assert len(panoptic(tmp_path / "p", train_labels="elsewhere").train_split.records) == 2


def test_instance_json_for_panoptic_data_is_told_apart_at_once(tmp_path):
    def as_instances(content):
        content["annotations"] = [{"id": 1, "image_id": 1, "category_id": 4, "segmentation": []}] * 100

    write_panoptic(tmp_path, as_instances)
    line = refusal(lambda: panoptic(tmp_path).train_split)
    assert "annotations[0]: has no segments_info; give a COCO panoptic json, or use data=coco" in line


def test_task_without_annotations_is_refused_with_the_choices(tmp_path):
    data = build_datamodule(SemanticDataConfig(root=str(write_semantic(tmp_path))), task="panoptic")
    with pytest.raises(ConfigError, match=r"no annotations for panoptic; say task=semantic, or use data=coco_panoptic"):
        data.train_split  # noqa: B018


def test_unknown_task_is_refused_with_the_three_there_are(tmp_path):
    with pytest.raises(ConfigError, match=r"^task: expected instance, semantic, panoptic, got 'detection'$"):
        SemanticDataConfig(root=str(tmp_path)).read("train", "detection")


# What is mended or assumed, and said


def test_panoptic_crowd_flags_may_be_any_kind_of_one(tmp_path):
    def change(content):
        for segment, flag in zip(content["annotations"][0]["segments_info"], (0.0, None, False, 1.0), strict=True):
            segment["iscrowd"] = flag

    record = panoptic(write_panoptic(tmp_path, change)).train_split.records[0]
    assert record.truth().is_crowd.tolist() == [False, False, False, True]


def test_panoptic_categories_without_isthing_are_things_with_a_note(tmp_path):
    def change(content):
        for category in content["categories"][1:]:
            del category["isthing"]

    split = panoptic(write_panoptic(tmp_path, change)).train_split
    assert all(category.is_thing for category in split.categories)
    assert "categories[1].isthing: 'cat' has none, nor have 1 others; taken for things" in split.report()
    assert not panoptic(tmp_path).val_split.report()


def test_panoptic_image_id_of_two_files_loses_both(tmp_path):
    def repeat(content):
        content["images"].append({**content["images"][0], "file_name": "1.jpg"})

    split = panoptic(write_panoptic(tmp_path, repeat), on_error="skip").train_split
    assert [record.image_id for record in split.records] == [2]
