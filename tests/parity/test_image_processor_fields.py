"""Every field of preprocessor_config.json, drawn at random, beside transformers' own processors.

Where transformers gives pixels, ours gives the same or says in one line that it does not; where transformers fails,
ours refuses in one line.
"""

import json
import random

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
import transformers
from PIL import Image

from vision_stack import AutoImageProcessor, ConfigError
from vision_stack.data.processor_file import _KIND_OF_MODEL, _KINDS, decode_processor

ROUNDING = 1e-5  # of float32, as a part of the largest value

SIDES = [7, 16, 24, 31, 40]
SIZES = [
    *({"height": a, "width": b} for a in SIDES for b in SIDES[::2]),
    *({"shortest_edge": a} for a in SIDES),
    *({"shortest_edge": a, "longest_edge": b} for a in SIDES for b in (24, 40, 90)),
    *({"max_height": a, "max_width": b} for a in SIDES for b in SIDES[::2]),
    *SIDES,
    [16, 24],
    {"longest_edge": 40},
    {"min_pixels": 64, "max_pixels": 900},
]
FIELDS = {
    "do_resize": [True, True, True, False],
    "size": SIZES,
    "max_size": [40, 90],
    "crop_pct": [0.5, 0.9, 1.0, 1.2],
    "do_center_crop": [True, False],
    "crop_size": [{"height": 20, "width": 13}, {"height": 40, "width": 31}, 24, [9, 33]],
    "do_rescale": [True, True, False],
    "rescale_factor": [1 / 255, 0.5],
    "do_normalize": [True, True, False],
    "image_mean": [0.5, [0.5, 0.4, 0.3], [0.1, 0.2, 0.3]],
    "image_std": [0.25, [0.25, 0.35, 0.45], [0.3, 0.2, 0.5]],
    "do_pad": [True, False],
    "pad_size": [{"height": 90, "width": 100}, {"height": 64, "width": 64}, 96],
    "size_divisor": [0, 8, 32],
    "size_divisibility": [16],
    "resample": [0, 1, 2, 3, 4, 5],
    "ignore_index": [255, 0],
    "do_reduce_labels": [True, False],
    "num_labels": [7],
    "keep_aspect_ratio": [True, False],
    "ensure_multiple_of": [1, 4, 14],
    "default_to_square": [True, False],
    "do_convert_rgb": [True],
}
# The default sizes of most make large images, slowly; each is compared once, below.
SEEDS = 60
EXTENTS = [(30, 41), (41, 30), (24, 24), (16, 50), (7, 9)]


def picture(height, width, seed=0):
    """Smooth shapes with sharp edges, so that a wrong filter or a shifted grid shows."""
    y, x = np.mgrid[:height, :width] / 4
    waves = np.stack([np.sin(x + seed), np.cos(y * 1.3), np.sin(x * y / 9)], axis=2)
    waves[height // 3 : height // 2, width // 4 :] = 0.9
    return Image.fromarray(np.uint8(127 + 120 * waves))


def theirs(file, images):
    """What transformers makes of the file and the images, or the error on which it fails."""
    cls = getattr(transformers, file["image_processor_type"])
    try:
        found = cls.from_dict(file)(images, return_tensors="pt")
        return {key: torch.as_tensor(found[key]) for key in ("pixel_values", "pixel_mask") if key in found}
    except Exception as error:  # of any kind: it checks little
        return error


def ours(file, images):
    try:
        return dict(decode_processor(file)(images))
    except ValueError as error:
        return error


def assert_same(file, images, allowed=()):
    expected, found = theirs(file, images), ours(file, images)
    assert "\n" not in str(found) or isinstance(found, dict)
    if isinstance(expected, Exception):
        assert isinstance(found, ValueError), f"{file}: transformers fails with {expected!r}"
        return
    if isinstance(found, ValueError):
        assert str(found).startswith(allowed), f"{file}: {found}"
        return
    assert found.keys() == expected.keys(), file
    if "pixel_mask" in expected:
        assert torch.equal(found["pixel_mask"], expected["pixel_mask"].long()), file
    x, y = found["pixel_values"], expected["pixel_values"].float()
    assert x.shape == y.shape, file
    difference, scale = (x - y).abs(), max(1.0, float(y.abs().max()))
    assert float(difference.max()) <= ROUNDING * scale, f"{file}: {difference.max()}"


def drawn(kind, seed):
    """A file with some of the fields, and one or two images."""
    rng = random.Random(f"{kind} {seed}")
    names = rng.sample(sorted(FIELDS), rng.randint(2, 9))
    file = {name: rng.choice(FIELDS[name]) for name in names}
    if "size" not in file and file.get("do_resize", True):
        usable = [size for size in SIZES if isinstance(size, dict) and set(size) in _KINDS[kind].sizes]
        file["size"] = rng.choice(usable)
    images = [picture(*rng.choice(EXTENTS), seed=i) for i in range(rng.choice([1, 1, 2]))]
    return {"image_processor_type": f"{kind}ImageProcessor", **file}, images


@pytest.mark.parametrize("kind", _KINDS)
def test_processor_fields_drawn_at_random_mean_what_they_mean_to_transformers(kind):
    refused = ("do_center_crop: true as well as crop_pct", "resample: ")
    for seed in range(SEEDS):
        file, images = drawn(kind, seed)
        assert_same(file, images, allowed=refused)


@pytest.mark.parametrize("kind", _KINDS)
def test_processor_file_of_a_class_name_alone_has_the_defaults_of_transformers(kind):
    file = {"image_processor_type": f"{kind}ImageProcessor"}
    assert_same(file, [picture(57, 83)])
    assert_same({**file, "do_resize": False}, [picture(57, 83)])
    fast = {"image_processor_type": f"{kind}ImageProcessorFast"}
    assert decode_processor(fast) == decode_processor(file)


def test_processor_class_follows_from_the_model_where_the_file_names_none(tmp_path):
    for model_type, kind in _KIND_OF_MODEL.items():
        mapping = transformers.models.auto.image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES[model_type]
        assert mapping["torchvision"] == f"{kind}ImageProcessor"
    (tmp_path / "config.json").write_text('{"model_type": "convnext"}')
    (tmp_path / "preprocessor_config.json").write_text('{"size": 224, "resample": 2}')
    assert AutoImageProcessor.from_pretrained(tmp_path).short_edge == 256
    (tmp_path / "config.json").write_text('{"model_type": "unheard"}')
    with pytest.raises(ConfigError, match="image_processor_type: missing; give transformers' class"):
        AutoImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("MaskFormer", {"pad_size": {"height": 100, "width": 120}}),
        ("MaskFormer", {"do_pad": False, "size_divisor": 24}),
        ("Mask2Former", {"size": {"height": 33, "width": 50}, "size_divisor": 10}),
        ("DPT", {"keep_aspect_ratio": True, "ensure_multiple_of": 14}),
        ("ViT", {"resample": 0}),
        ("ViT", {"do_pad": True, "pad_size": 60}),
    ],
)
def test_processor_field_that_was_once_ignored_changes_the_pixels_as_in_transformers(kind, fields):
    plain = {"image_processor_type": f"{kind}ImageProcessor"}
    size = {"shortest_edge": 31, "longest_edge": 90} if "Former" in kind else {"height": 40, "width": 24}
    file = {**plain, "size": size, **fields}
    assert_same(file, [picture(30, 41)])
    for field in fields.keys() - {"size"}:
        without = ours({name: value for name, value in file.items() if name != field}, [picture(30, 41)])
        same = torch.equal(without["pixel_values"], ours(file, [picture(30, 41)])["pixel_values"])
        assert same == (kind == "MaskFormer" and field == "do_pad")  # which pads whatever `do_pad` says


def test_processor_unknown_class_gives_one_line():
    with pytest.raises(ConfigError, match=r"'VitImageProcessor' is not supported; did you mean 'ViTImageProcessor'\?"):
        decode_processor({"image_processor_type": "VitImageProcessor"})
    with pytest.raises(ConfigError, match="'TextNetImageProcessor' is not supported; known are Beit, Bit"):
        decode_processor(json.loads('{"image_processor_type": "TextNetImageProcessor"}'))
