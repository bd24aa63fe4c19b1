"""Changes of colour by name: which are known, what their arguments may be, whose random numbers they take."""

import importlib.util

import numpy as np
import pytest
import torch

from vision_stack.config import ConfigError, from_dict, to_dict
from vision_stack.data.augment import photometric
from vision_stack.data.augment.photometric import ALBUMENTATIONS, TORCHVISION, apply_changes
from vision_stack.data.augment.transforms import TrainTransformConfig

ARGUMENTS = {
    "ColorJitter": {"brightness": 0.5, "hue": 0.1},
    "GaussianBlur": {"kernel_size": 5, "sigma": [0.5, 2.0]},
    "JPEG": {"quality": [20, 60]},
    "RandomAdjustSharpness": {"sharpness_factor": 2.0},
    "RandomGrayscale": {"p": 0.5},
    "RandomPosterize": {"bits": 3},
    "RandomSolarize": {"threshold": 99},
}
IMAGE = torch.from_numpy(np.random.default_rng(0).integers(20, 200, (3, 40, 50), dtype=np.uint8))


def entry(name, **more):
    return {"name": name, **ARGUMENTS.get(name, {}), **more}


@pytest.mark.parametrize("name", TORCHVISION)
def test_every_listed_change_of_torchvision_gives_an_image_by_our_generator_alone(name):
    config = TrainTransformConfig(photometric=(entry(name),))
    assert from_dict(to_dict(config), cls=TrainTransformConfig) == config
    state = torch.get_rng_state()
    results = []
    for seed in (*range(8), 0):
        torch.manual_seed(len(results))
        before = torch.get_rng_state()
        results.append(config.photometric_changes(IMAGE, np.random.default_rng(seed)))
        assert torch.equal(torch.get_rng_state(), before)
    torch.set_rng_state(state)
    assert torch.equal(results[0], results[-1])
    assert any(not torch.equal(result, IMAGE) for result in results)
    assert {(result.shape, result.dtype) for result in results} == {(IMAGE.shape, torch.uint8)}


def test_probability_is_that_of_the_change_and_leaves_the_next_ones_draws_alone():
    inverted = [entry("RandomInvert", p=1.0, probability=0.3)]
    changed = [not torch.equal(apply_changes(IMAGE, inverted, np.random.default_rng(i)), IMAGE) for i in range(1000)]
    assert np.mean(changed) == pytest.approx(0.3, abs=0.05)
    noise = entry("GaussianBlur")
    for seed in range(20):
        alone = apply_changes(IMAGE, [{**inverted[0], "probability": 0.0}, noise], np.random.default_rng(seed))
        after = apply_changes(255 - IMAGE, [{**inverted[0], "probability": 1.0}, noise], np.random.default_rng(seed))
        assert torch.equal(alone, after)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"name": "GausianBlur"}, r"photometric\[0\]\.name: 'GausianBlur' is not .*; did you mean 'GaussianBlur'\?"),
        ({"kernel_size": 5}, r"photometric\[0\]\.name: missing"),
        ({"name": "RandomAffine", "degrees": 5}, r"photometric\[0\]\.name: 'RandomAffine' is not"),
        ({"name": "os.system"}, r"photometric\[0\]\.name: 'os\.system' is not"),
        ({"name": "albumentations.Lambda"}, r"photometric\[0\]\.name: 'albumentations\.Lambda' is not"),
        ({"name": "GaussianBlur"}, r"photometric\[0\]: GaussianBlur refuses its arguments: .*kernel_size"),
        ({"name": "GaussianBlur", "kernel_size": 4}, r"photometric\[0\]: GaussianBlur refuses its arguments: "),
        ({"name": "GaussianBlur", "kernel_size": 5, "sgma": 1}, r"refuses its arguments: .*sgma"),
        ({"name": "RandomInvert", "probability": 2}, r"photometric\[0\]\.probability: 2 is not a number from 0 to 1"),
        ("GaussianBlur", r"photometric\[0\]: expected a mapping"),
    ],
)
def test_what_cannot_be_applied_is_one_line(entry, expected):
    with pytest.raises(ConfigError, match=expected) as error:
        TrainTransformConfig(photometric=(entry,))
    assert "\n" not in str(error.value)


def test_albumentations_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr(photometric.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"albumentations\.CLAHE needs albumentations, which is not installed; pip"):
        TrainTransformConfig(photometric=({"name": "albumentations.CLAHE"},))


@pytest.mark.skipif(importlib.util.find_spec("albumentations") is None, reason="albumentations is not installed")
@pytest.mark.parametrize("name", ALBUMENTATIONS)
def test_every_listed_change_of_albumentations_gives_an_image_by_our_generator_alone(name):
    config = TrainTransformConfig(photometric=({"name": f"albumentations.{name}"},))
    first, again = (config.photometric_changes(IMAGE, np.random.default_rng(0)) for _ in range(2))
    assert torch.equal(first, again)
    assert (first.shape, first.dtype) == (IMAGE.shape, torch.uint8)
