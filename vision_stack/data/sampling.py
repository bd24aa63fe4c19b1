"""How often each image comes in an epoch, by the classes in it, and how many of its objects are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from vision_stack.config import Config, ConfigError, Count, Fraction, Range, suggest
from vision_stack.structures import Category

MOST_REPEATS = 100.0  # of an image in an epoch
Weight = Annotated[float, Range(0.01, MOST_REPEATS)]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Config):
    """Which images an epoch has, and which of their objects.

    `repeat_threshold` t (Gupta et al. 2019, App. B.2): a class in a share f of the training images has the repeat
    factor max(1, sqrt(t / f)). `class_weights` multiply the factors of their classes. An image comes as often as the
    largest factor of its classes says, on average; an image without objects once.
    """

    repeat_threshold: Fraction = 0.0  # 0: off; LVIS has 0.001
    class_weights: dict[str, Weight] | None = None  # by class name; others have 1
    max_objects: Count | None = None  # of an image in training, drawn anew each epoch; the others count as background

    @property
    def repeats(self) -> bool:
        """Whether some images may come more often than others."""
        return bool(self.repeat_threshold or self.class_weights)


def repeat_factors(
    labels: Sequence[NDArray[np.int64]], categories: Sequence[Category], config: SamplingConfig
) -> NDArray[np.float64]:
    """How often each image comes in an epoch, on average, [n].

    Args:
        labels: of the objects of each image.
        categories: by label.

    Raises:
        ConfigError: `class_weights` has a name that no class has.
    """
    names = [category.name for category in categories]
    weights = config.class_weights or {}
    for name in weights:
        if name not in names:
            raise ConfigError(f"data.sampling.class_weights: there is no class {name!r}; {suggest(name, names)}")
    present = [np.unique(each) for each in labels]
    images_with = np.bincount(np.concatenate([*present, np.zeros(0, np.int64)]), minlength=len(names))
    share = images_with / max(len(labels), 1)
    factors = np.maximum(1.0, np.sqrt(config.repeat_threshold / np.where(share > 0, share, 1.0)))
    factors *= [weights.get(name, 1.0) for name in names]
    return np.array([factors[each].max() if len(each) else 1.0 for each in present]).clip(max=MOST_REPEATS)


def describe_repeats(factors: NDArray[np.float64], size: int) -> str:
    """A line on what an epoch is made of."""
    more, fewer = np.count_nonzero(factors > 1), np.count_nonzero(factors < 1)
    parts = [f"{more:,} come up to {factors.max():.1f} times"] if more else []
    parts += [f"{fewer:,} come less than once"] if fewer else []
    return f"an epoch has {size:,} images of {len(factors):,}: {', '.join(parts) or 'each comes once'}"


def systematic_sample(factors: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices in random order, each as often as its factor rounded up or down, floor(sum of factors) in all.

    Rounding by one random offset along a random order keeps the average of each count, and the total the same in each
    epoch, which independent rounding would not.
    """
    shuffled = rng.permutation(len(factors))
    ends = np.cumsum(factors[shuffled])
    points = rng.random() + np.arange(int(ends[-1] + 1e-9) if len(ends) else 0)
    rows = np.searchsorted(ends, points, side="right").clip(max=len(factors) - 1)
    drawn: NDArray[np.int64] = rng.permutation(shuffled[rows])
    return drawn
