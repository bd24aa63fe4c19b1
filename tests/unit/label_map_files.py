"""Small COCO panoptic and semantic data sets for tests: writers, readers, and what a refusal says."""

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vision_stack.data.augment.transforms import EvalTransformConfig, TrainTransformConfig
from vision_stack.data.checks.issues import DataError
from vision_stack.data.configs import CocoPanopticDataConfig, SemanticDataConfig
from vision_stack.data.datamodule import build_datamodule
from vision_stack.ops.label_maps import class_png, segment_png

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


def png_file(*chunks):
    """Of pairs of a chunk's name and content."""
    framed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


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
