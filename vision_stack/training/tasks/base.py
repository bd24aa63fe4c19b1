"""What a task says of itself, beside the decoders of heads and the readers of data sets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from vision_stack.metrics import Evaluator
from vision_stack.structures import Category, Prediction, Threshold

P = TypeVar("P", bound=Prediction)
Records = list[dict[str, Any]]  # of one image, in `predictions.json`


class Written(NamedTuple):
    """What is written of one image."""

    records: Records  # without the names of files
    label_map: bytes | None = None  # PNG


class TaskSpec(ABC, Generic[P]):
    """One task, whose predictions are of type P.

    Attributes:
        finds: what a head's queries find, in words.
        has_label_maps: predictions of each image are a PNG in the folder `predictions`, which its record names.
        has_boundary_ap: the evaluator can compute boundary AP.
    """

    finds: ClassVar[str]
    has_label_maps: ClassVar[bool] = False
    has_boundary_ap: bool = False

    @abstractmethod
    def evaluator(
        self, truth: Any, categories: Sequence[Category], *, top_k: int, boundary_ap: bool = False
    ) -> Evaluator:
        """The evaluator of images whose ground truth the data gives (`DataModule.val_ground_truth`)."""

    def kept(self, threshold: Threshold | None, top_k: int) -> dict[str, Any]:
        """Arguments of `VisionModel.decode` for what results keep, by `threshold` and `top_k` of the options."""
        return {"threshold": threshold}

    @abstractmethod
    def written(self, image_id: int, found: P, categories: Sequence[Category]) -> Written:
        """What `predict` writes of an image."""

    def header(self, categories: Sequence[Category]) -> dict[str, Any]:
        """What `predictions.json` has beside the records; where there is nothing, it is a list of them."""
        return {}

    @abstractmethod
    def read(self, records: Records, folder: Path, categories: Sequence[Category], size: tuple[int, int]) -> P | None:
        """The prediction of an image of `size` (height, width) out of its records and the label maps in `folder`.

        None of an image that was not looked at.
        """

    @abstractmethod
    def truth(self, record: Any) -> P:
        """What an image's annotation says, in the form of a prediction."""

    def shown(self, found: P, threshold: Threshold, size: tuple[int, int]) -> P:
        """The part of a prediction that pictures show, in a form that `draw` takes."""
        return found

    def chosen(self, found: P, truth: P, point: Mapping[str, float] | None) -> tuple[P, str]:
        """The part of a prediction that is shown beside the truth of its image, and a caption that says which.

        Args:
            point: "operating_point" of the metrics of all images, where they have one.
        """
        return found, "prediction"

    @abstractmethod
    def draw(self, image: np.ndarray, found: P, categories: Sequence[Category]) -> Image.Image:
        """A prediction, as `shown` gives it, over its image, uint8 RGB [height, width, 3]."""

    @abstractmethod
    def count(self, record: Mapping[str, Any], lowest: Mapping[int, float]) -> int:
        """How many things a record of `predictions.json` stands for; `lowest` are the scores by category id."""

    @abstractmethod
    def summary(self, count: int, threshold: str) -> str:
        """All counts of a folder of images, in words; `threshold` in words, too."""
