"""The contract of any head: from maps to outputs, losses and predictions. docs/your_own_head.md shows a small one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from vision_stack.config import ConfigError
from vision_stack.structures import DecodeOptions, Features, ImageInfo, Prediction, Target, Task

Outputs = TypeVar("Outputs")
Decoder = Callable[[Any, Any, Sequence[ImageInfo], DecodeOptions], Iterator[Any]]  # head, outputs, infos, options


class Head(nn.Module, Generic[Outputs]):
    """Base of heads. What `forward` gives is the head's own affair: only its losses and decoders read it.

    Attributes:
        num_classes: K.
        max_objects: the most objects that can be found in an image, if there is such a limit.
        decoders: for each of the config's `tasks` what turns outputs into predictions, one image after the other.
        class_layers: names of the layers that begin with a row for each class, such as "class_embed.", wherever they
            are in the head.
        query_layers: names of the tables of learnt queries, such as "query_embed.".
        num_groups: of learnt queries; a table has the rows of one group after the other.
    """

    num_classes: int
    max_objects: int | None = None
    decoders: ClassVar[Mapping[Task, Decoder]] = {}
    class_layers: ClassVar[tuple[str, ...]] = ()
    query_layers: ClassVar[tuple[str, ...]] = ()
    num_groups: int = 1

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> Outputs:
        """Maps of `in_specs` -> outputs.

        Args:
            targets: while training, for heads that sample proposals or add noised queries; otherwise None.
        """
        raise NotImplementedError

    def compute_loss(self, outputs: Outputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Weighted losses by name, scalars; their sum is the total."""
        raise NotImplementedError

    def predict(
        self,
        outputs: Outputs,
        infos: Sequence[ImageInfo],
        task: Task = "instance",
        options: DecodeOptions = DecodeOptions(),  # noqa: B008  immutable
    ) -> Iterator[Prediction]:
        """What the outputs of a batch mean for a task, one image after the other, in the image's own pixels."""
        return self.decoders[task](self, outputs, infos, options)

    def class_rows(self) -> dict[str, Tensor]:
        """Parameters that have rows (entries along the first dimension) for each class: name -> rows [K, R] int64.

        Weights of a model with other classes are taken over by these, class by class. Rows that belong to no class
        ("no object", background) are taken over in their order.
        """
        rows = torch.arange(self.num_classes)[:, None]
        return {name: rows for name in self._parameters_of(self.class_layers)}

    def query_rows(self) -> dict[str, Tensor]:
        """Parameters that have a row for each learnt query: name -> rows [G, Q] int64 of Q queries in each of G groups.

        Of the weights of a model with another number of queries or groups, the first queries of the first groups are
        taken over.
        """
        sizes = {name: len(self.get_parameter(name)) for name in self._parameters_of(self.query_layers)}
        return {name: torch.arange(size).view(self.num_groups, -1) for name, size in sizes.items()}

    def set_nms(
        self,
        method: Literal["hard", "soft"] | None = None,
        *,
        iou_threshold: float | None = None,
        class_agnostic: bool | None = None,
    ) -> None:
        """Change how boxes that overlap a better one are treated, in heads that have such boxes.

        Raises:
            ConfigError: a head without suppression.
        """
        raise ConfigError("nms: this head finds each object once and has no suppression; leave it out")

    def set_progress(self, step: int, total: int | None) -> None:
        """Hear how far training is, before each step; `total` is None where nobody knows."""

    def _parameters_of(self, layers: tuple[str, ...]) -> list[str]:
        return [name for name, _ in self.named_parameters() if any(f".{layer}" in f".{name}" for layer in layers)]
