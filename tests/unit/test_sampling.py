"""How often images come in an epoch, by their classes."""

import numpy as np
import pytest

from vision_stack.config import ConfigError
from vision_stack.data.sampler import EpochSampler
from vision_stack.data.sampling import SamplingConfig, repeat_factors, systematic_sample
from vision_stack.structures import Category

CLASSES = [Category(id=n, name=name) for n, name in enumerate(("cat", "dog", "emu"))]
LABELS = [np.array(labels, np.int64) for labels in ([0, 0], [0], [0, 1], [0], [2, 2, 0], [], [0], [0])]


def test_repeat_factors_are_those_of_lvis():
    """r(c) = max(1, sqrt(t / f(c))), r(image) = max of its classes; cats are in 7, dogs and emus in 1 of 8 images."""
    factors = repeat_factors(LABELS, CLASSES, SamplingConfig(repeat_threshold=0.5))
    rare = np.sqrt(0.5 / (1 / 8))
    assert factors.tolist() == [1, 1, rare, 1, rare, 1, 1, 1]
    assert repeat_factors(LABELS, CLASSES, SamplingConfig(repeat_threshold=0.1)).tolist() == [1] * 8


def test_class_weights_multiply_and_images_without_objects_come_once():
    config = SamplingConfig(repeat_threshold=0.5, class_weights={"dog": 3.0, "cat": 0.5})
    factors = repeat_factors(LABELS, CLASSES, config)
    assert factors.tolist() == [0.5, 0.5, 3 * 2.0, 0.5, 2.0, 1.0, 0.5, 0.5]


def test_weight_of_a_class_that_is_not_there_is_one_line():
    with pytest.raises(ConfigError, match=r"^data\.sampling\.class_weights: there is no class 'dgo'; did you mean"):
        repeat_factors(LABELS, CLASSES, SamplingConfig(class_weights={"dgo": 2.0}))
    with pytest.raises(ConfigError, match=r"class_weights\.dog: 0 is outside"):
        SamplingConfig(class_weights={"dog": 0})


def test_each_image_comes_its_factor_rounded_up_or_down_and_on_average_exactly():
    factors = np.array([1.0, 1.0, 2.5, 0.25, 1.75, 1.0, 0.5])  # 8 in all
    counts = np.stack(
        [np.bincount(systematic_sample(factors, np.random.default_rng(i)), minlength=7) for i in range(2000)]
    )
    assert (counts.sum(1) == 8).all()
    assert (counts >= np.floor(factors)).all()
    assert (counts <= np.ceil(factors)).all()
    assert np.abs(counts.mean(0) - factors).max() < 0.04  # 3 standard deviations


def test_epochs_with_repeats_are_functions_of_seed_and_epoch_entered_anywhere():
    repeats = repeat_factors(LABELS, CLASSES, SamplingConfig(repeat_threshold=0.5))

    def sampler(**options):
        return EpochSampler(8, 2, seed=3, repeats=repeats, **options)

    whole = list(sampler())
    assert len(whole) == len(sampler()) == 5  # 6 images once, two 2 times
    assert whole == list(sampler())
    resumed = sampler()
    resumed.set_position(0, 2)
    assert list(resumed) == whole[2:]
    resumed.set_position(1)
    assert [index for batch in resumed for _, index in batch] != [index for batch in whole for _, index in batch]
    ranks = [list(EpochSampler(8, 1, seed=3, repeats=repeats, rank=rank, world_size=2)) for rank in (0, 1)]
    assert [[a[0], b[0]] for a, b in zip(*ranks, strict=True)] == whole
