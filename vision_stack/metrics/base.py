"""What every task's evaluation has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType

from vision_stack.structures import Category

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # recall and precision, by falling score
MOST_CLASSES = 200  # of a confusion matrix; more cannot be read, and take memory by their square


class Report(NamedTuple):
    """Where a model errs, for pictures; empty where a task has no such thing.

    Attributes:
        point: {"threshold", "precision", "recall", "f1"}: the score from which on detections have the best F1.
        curves: by class, all classes together first.
        confusion: [R, R] counts, true class by found class; of detections the last is "nothing".
    """

    point: dict[str, float] | None = None
    curves: Mapping[str, Curve] = MappingProxyType({})
    confusion: NDArray[np.int64] | None = None


State = list[tuple[int, Any]]  # per image: its id and what is kept of it


class Evaluator(ABC):
    """Metrics over a data set, fed image by image; what it keeps of an image is small, and found by the image's id.

    Attributes:
        score_name: the metric by which the best checkpoint is chosen.
        max_detections: of an image, the most objects that count, best first.
    """

    score_name: str
    max_detections: int = 100
    categories: tuple[Category, ...]

    def __init__(self) -> None:
        self._kept: dict[int, Any] = {}

    @abstractmethod
    def update(self, image_id: int, prediction: Any) -> None:
        """Add what was found in an image, or replace it (a distributed sampler repeats images)."""

    @abstractmethod
    def compute(self, *, only_updated: bool = False) -> dict[str, Any]:
        """The metrics as plain values, in [0, 1] or None where there is nothing to measure.

        Args:
            only_updated: leave out images that have not been fed. Otherwise what is in them counts as missed.
        """

    @abstractmethod
    def results(self) -> Any:
        """What `predictions.json` gets: plain values, images by id, with the data set's own category ids."""

    def files(self) -> dict[str, bytes]:
        """Contents of the files beside `predictions.json`, by name."""
        return {}

    @abstractmethod
    def scalars(self, metrics: Mapping[str, Any]) -> dict[str, float | None]:
        """What loggers get of the metrics; the first is the score."""

    @abstractmethod
    def one_line(self, metrics: Mapping[str, Any]) -> str:
        """The most important metrics in words."""

    def report(self) -> Report:
        """Where the model errs, as of the last `compute`."""
        return Report()

    @abstractmethod
    def table(self, metrics: Mapping[str, Any]) -> RenderableType:
        """The metrics for a terminal, within 80 columns."""

    def score(self, metrics: Mapping[str, Any]) -> float:
        """By which the best checkpoint is chosen; -1 where there is nothing to find, which is less than any other."""
        value = next(iter(self.scalars(metrics).values()))
        return -1.0 if value is None else float(value)

    def score_text(self, score: float) -> str:
        """A score with its name, for printing."""
        return f"{self.score_name} {three_digits(None if score < 0 else score)}"

    @property
    def num_images(self) -> int:
        """How many images have been fed."""
        return len(self._kept)

    def reset(self) -> None:
        """Forget all images."""
        self._kept.clear()

    def state(self) -> State:
        """What another rank's `merge` takes: plain values."""
        return list(self._kept.items())

    def merge(self, states: Iterable[State]) -> None:
        """Add what other ranks found."""
        for state in states:
            self._kept.update(state)


def class_names(names: Iterable[str], ids: Iterable[int]) -> list[str]:
    """Names as keys; two classes of one name are told apart by their ids."""
    known = list(names)
    count = Counter(known)
    return [n if count[n] == 1 else f"{n} ({i})" for n, i in zip(known, ids, strict=True)]


def three_digits(value: float | None) -> str:
    """A metric in a line of text."""
    return "-" if value is None else f"{value:.3f}"
