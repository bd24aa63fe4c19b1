"""Which part of a backbone is trained, from when on, and in how much memory: the same options for every backbone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import nn

from vision_stack.backbones.base import Backbone
from vision_stack.backbones.finetuning import FineTunable
from vision_stack.config import Config, ConfigError, Range


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Config):
    """Options of the backbone's training that are not part of its architecture, so that no model's config holds them.

    What is frozen is a function of the epoch only: a resumed run needs only the epoch to continue as it was.
    """

    kind: ClassVar[str] = ""
    freeze_stages: Annotated[int, Range(0, 1000)] | Literal["all"] = 0  # how many of stem, stage 1, stage 2, ...
    unfreeze_epochs: tuple[Annotated[int, Range(1)], ...] = ()  # at each an equal share is unfrozen, deepest first
    gradient_checkpointing: bool = False  # less memory, about a third more time

    def check(self) -> None:
        if list(self.unfreeze_epochs) != sorted(set(self.unfreeze_epochs)):
            raise ConfigError("unfreeze_epochs: must increase, such as [1, 2, 3]")
        if self.unfreeze_epochs and not self.freeze_stages:
            raise ConfigError("unfreeze_epochs: nothing is frozen; give freeze_stages, such as freeze_stages=all")

    def frozen_stages(self, epoch: int, backbone: Backbone) -> int:
        """How many stages of `backbone` are frozen in an epoch (0 is the first), the stem counted as one."""
        if not self.freeze_stages:
            return 0
        frozen = len(backbone.stage_groups()) if self.freeze_stages == "all" else self.freeze_stages
        if not self.unfreeze_epochs:
            return frozen
        parts_left = sum(epoch < due for due in self.unfreeze_epochs)
        return math.ceil(frozen * parts_left / len(self.unfreeze_epochs))

    def apply(self, backbone: Backbone, epoch: int) -> None:
        """Freeze what is frozen in `epoch` (Howard & Ruder 2018, Sec. 3.3: gradual unfreezing), unfreeze the rest.

        Raises:
            ValueError: there are fewer stages than are to be frozen; the line names them.
        """
        frozen = self.frozen_stages(epoch, backbone)
        if frozen != getattr(backbone, "frozen_stages", 0):  # a module that is no `Backbone` of ours has none frozen
            backbone.freeze_stages(frozen)

    def unfreeze_for_setup(self, backbone: Backbone) -> None:
        """Thaw what will be trained at some time, since the optimizer and DDP have to know it from the beginning."""
        if self.unfreeze_epochs:
            backbone.freeze_stages(0)


def check_stages_known(backbone: nn.Module, finetune: FinetuneConfig, layer_decay: float) -> None:
    """Raise ConfigError where an option goes by the stages of a module that does not derive from `Backbone`."""
    asked = {
        "finetune.freeze_stages": finetune.freeze_stages,
        "finetune.gradient_checkpointing": finetune.gradient_checkpointing,
        "optim.layer_decay": layer_decay != 1.0,
    }
    option = next((name for name, wanted in asked.items() if wanted), None)
    if option and not isinstance(backbone, FineTunable):
        raise ConfigError(
            f"{option}: the stages of {type(backbone).__name__} are not known; derive it from "
            "vision_stack.backbones.Backbone, or leave the option out"
        )
