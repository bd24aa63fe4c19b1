"""`AutoImageProcessor` against transformers' own, from the files that those write."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")
import transformers

from vision_stack import AutoImageProcessor, ConfigError

ROUNDING = 1e-5  # float32; the resizing is the same arithmetic in 8 bits
LEVEL = 1 / 255 / 0.224  # one level of 8 bits, normalised: what resizing in floats, or by Pillow, differs by at most
MEAN_STD = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.35, 0.45]}

CASES = {
    "vit": (lambda: transformers.ViTImageProcessor(**MEAN_STD), ROUNDING),
    "vit, bicubic": (lambda: transformers.ViTImageProcessor(resample=3, size={"height": 96, "width": 128}), ROUNDING),
    "vit, not rescaled": (lambda: transformers.ViTImageProcessor(do_rescale=False, **MEAN_STD), ROUNDING * 255),
    "vit, not normalised": (lambda: transformers.ViTImageProcessor(do_normalize=False), ROUNDING),
    "vit, not resized": (lambda: transformers.ViTImageProcessor(do_resize=False), ROUNDING),
    "convnext": (lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875), ROUNDING),
    "convnext, 384": (lambda: transformers.ConvNextImageProcessor(), ROUNDING),
    "bit": (
        lambda: transformers.BitImageProcessor(size={"shortest_edge": 96}, crop_size={"height": 80, "width": 64}),
        ROUNDING,
    ),
    "bit, larger crop": (
        lambda: transformers.BitImageProcessor(size={"shortest_edge": 60}, crop_size={"height": 71, "width": 64}),
        ROUNDING,
    ),
    "dinov3": (lambda: transformers.DINOv3ViTImageProcessor(), LEVEL),
    "maskformer": (
        lambda: transformers.MaskFormerImageProcessor(size={"shortest_edge": 160, "longest_edge": 200}),
        ROUNDING,
    ),
    "maskformer, any size": (
        lambda: transformers.MaskFormerImageProcessor(
            size={"shortest_edge": 75, "longest_edge": 133}, size_divisor=0, resample=3
        ),
        ROUNDING,
    ),
}


def picture(height, width, seed=0):
    """Smooth shapes with sharp edges, so that a wrong filter or a shifted grid shows."""
    y, x = np.mgrid[:height, :width] / 16
    waves = np.stack([np.sin(x + seed), np.cos(y * 1.3), np.sin(x * y / 9)], axis=2)
    waves[height // 3 : height // 2, width // 4 :] = 0.9
    return Image.fromarray(np.uint8(127 + 120 * waves))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [(120, 161), (97, 64)], ids=["landscape", "portrait"])
def test_processor_pixels_equal_those_of_transformers(tmp_path, name, size):
    make, tolerance = CASES[name]
    theirs = make()
    theirs.save_pretrained(tmp_path)
    expected = theirs(picture(*size), return_tensors="pt")
    found = AutoImageProcessor.from_pretrained(tmp_path)(picture(*size), return_tensors="pt")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key].to(value.dtype), value, rtol=0, atol=tolerance)
    assert expected["pixel_values"].std() > 0.1
    assert found["pixel_values"].dtype == torch.float32


def test_processor_images_of_different_sizes_are_padded_as_by_transformers(tmp_path):
    theirs = transformers.MaskFormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 133})
    theirs.save_pretrained(tmp_path)
    images = [picture(120, 161), picture(97, 64, seed=1)]
    expected = theirs(images, return_tensors="pt")
    found = AutoImageProcessor.from_pretrained(tmp_path)(images)
    torch.testing.assert_close(found.pixel_values, expected["pixel_values"], rtol=0, atol=ROUNDING)
    assert torch.equal(found.pixel_mask, expected["pixel_mask"])
    assert 0 < found.pixel_mask.float().mean() < 1


@pytest.mark.parametrize(
    "file",
    [
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 96, "resample": 3, "do_normalize": True, **MEAN_STD},
        {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 96, "crop_pct": 0.9, "resample": 3, **MEAN_STD},
    ],
    ids=["vit", "convnext"],
)
def test_processor_files_of_older_versions_mean_the_same(tmp_path, file):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(file))
    name = file["feature_extractor_type"].replace("FeatureExtractor", "ImageProcessor")
    expected = getattr(transformers, name).from_pretrained(tmp_path)(picture(120, 161), return_tensors="pt")
    found = AutoImageProcessor.from_pretrained(tmp_path)(picture(120, 161))
    torch.testing.assert_close(found.pixel_values, expected["pixel_values"], rtol=0, atol=ROUNDING)


def test_processor_other_filter_is_told_apart(tmp_path):
    transformers.ViTImageProcessor(resample=3).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    wrong = AutoImageProcessor.from_pretrained(tmp_path, interpolation="bilinear")
    difference = processor(picture(120, 161)).pixel_values - wrong(picture(120, 161)).pixel_values
    assert difference.abs().max() > 5 * LEVEL


def test_processor_without_a_file_takes_mean_and_std_of_the_weights_and_keeps_the_size():
    processor = AutoImageProcessor.from_pretrained("efficientnet_lite0")
    assert (processor.image_mean, processor.image_std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    pixels = np.full((20, 30, 3), 255, np.uint8)
    inputs = processor(pixels)
    assert torch.equal(inputs.pixel_values, torch.ones(1, 3, 20, 30))
    assert torch.equal(processor(torch.from_numpy(pixels).permute(2, 0, 1)).pixel_values, inputs.pixel_values)
    assert inputs.to(torch.float64).pixel_values.dtype == torch.float64


@pytest.mark.parametrize(
    ("images", "line"),
    [
        (
            [picture(20, 30), picture(30, 20)],
            r"images: of different sizes after resizing, \[\(20, 30\), \(30, 20\)\]; give",
        ),
        (np.zeros((20, 30, 3)), r"images: expected PIL images, uint8 arrays .*, got float64 \[20, 30, 3\]"),
        ("picture.jpg", "images: expected PIL images, .*, got str"),
    ],
)
def test_processor_images_it_cannot_take_give_one_line(images, line):
    with pytest.raises(ValueError, match=line):
        AutoImageProcessor.from_pretrained("swin_tiny")(images)
    with pytest.raises(ValueError, match="return_tensors: 'np' is not supported; leave it at 'pt'"):
        AutoImageProcessor.from_pretrained("swin_tiny")(picture(8, 8), return_tensors="np")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"size": 224},
            "options: ['size'] is not an option of an image processor; there are ['exact_size', 'short_edge'",
        ),
        ({"exact_size": (8, 8), "short_edge": 8}, "short_edge: given as well as exact_size; make one of them None"),
        ({"crop_size": 8}, "crop_size: expected a list, got 8"),
    ],
)
def test_processor_options_that_cannot_be_give_one_line(options, line):
    with pytest.raises(ConfigError) as caught:
        AutoImageProcessor.from_pretrained("swin_tiny", **options)
    assert str(caught.value).startswith(line)
