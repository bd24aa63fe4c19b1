"""What every task's evaluation has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType

from vision_stack.metrics.confusion import Confusion
from vision_stack.structures import Category


class Report(NamedTuple):
    """Where a model errs, for pictures; empty where a task has no such thing.

    Attributes:
        class_scores: by class, of those that have one.
        score_name: what these are.
        point: {"threshold", "precision", "recall", "f1"}: the score from which on detections have the best F1. An F1 of
            0 says that none matches an object; as many are kept as there are objects.
        curves: precision [101] at recalls of 0, 0.01, ..., 1, by class, as COCO averages them.
        all_classes: recall and precision, by falling score, of the detections of all classes as if of one.
        confusion: true class by found class.
        unit: what it counts.
    """

    class_scores: Mapping[str, float]
    score_name: str
    point: dict[str, float] | None = None
    curves: Mapping[str, NDArray[np.float64]] = MappingProxyType({})
    all_classes: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    confusion: Confusion | None = None
    unit: Literal["objects", "pixels"] = "pixels"


State = list[tuple[int, Any]]  # per image: its id and what is kept of it


class Evaluator(ABC):
    """Metrics over a data set, fed image by image; what it keeps of an image is small, and found by the image's id.

    Attributes:
        score_name: the metric by which the best checkpoint is chosen.
        class_key: the name that it has among those of a class, in the metrics' `per_class`.
        max_detections: of an image, the most objects that count, best first.
    """

    score_name: str
    class_key: str
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

    def report(self, metrics: Mapping[str, Any]) -> Report:
        """Where the model errs; the metrics are those of the last `compute`."""
        scores = {name: values[self.class_key] for name, values in metrics["per_class"].items()}
        return Report({name: score for name, score in scores.items() if score is not None}, self.score_name)

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
