"""The options at the top of the scripts' yaml files, checked before anything is read, built or written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from vision_stack.config import Config, Count, Fraction, NonNegative, Range, from_dict
from vision_stack.model import VisionModel
from vision_stack.structures import PanopticOptions, Task
from vision_stack.training.finetune import FinetuneConfig
from vision_stack.training.optim import OptimConfig
from vision_stack.training.trainer_options import check_trainer_options

Options = TypeVar("Options", bound=Config)

Amount = Annotated[int, Range(0)]
NMS = Literal["hard", "soft"]
Limit = Annotated[int, Range(-1)]  # -1: none


@dataclass(frozen=True, kw_only=True)
class TrainerNumbers(Config):
    """Numbers that Lightning takes whatever they are, and fails at after a while or never. It checks the others."""

    kind: ClassVar[str] = ""
    max_epochs: Limit | None = None
    max_steps: Limit = -1
    accumulate_grad_batches: Count = 1
    check_val_every_n_epoch: Count | None = 1
    limit_train_batches: NonNegative | None = None
    limit_val_batches: NonNegative | None = None
    log_every_n_steps: Amount = 20
    num_sanity_val_steps: Limit = 0
    auto_batch: bool = False  # ours


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Config):
    """Of configs/train.yaml, all but the parts of the model, the data and what goes to Lightning."""

    kind: ClassVar[str] = ""
    task: Task
    seed: Annotated[int, Range(0, 2**32 - 1)]
    resume: str | None
    weights: str | None
    measure: bool
    num_pictures: Amount
    top_k: Count
    optim: OptimConfig
    finetune: FinetuneConfig
    panoptic: PanopticOptions


@dataclass(frozen=True, kw_only=True)
class EvalOptions(Config):
    """Of configs/eval.yaml, all but the data and what goes to Lightning."""

    kind: ClassVar[str] = ""
    checkpoint: str
    top_k: Count
    num_pictures: Amount
    boundary_ap: bool
    nms: NMS | None = None
    nms_iou: Fraction | None = None
    class_agnostic_nms: bool | None = None


@dataclass(frozen=True, kw_only=True)
class PredictOptions(Config):
    """Of configs/predict.yaml."""

    kind: ClassVar[str] = ""
    checkpoint: str
    source: str
    threshold: Fraction | dict[str, Fraction] | None
    top_k: Count
    device: str
    nms: NMS | None = None
    nms_iou: Fraction | None = None
    class_agnostic_nms: bool | None = None


def decode_options(config: Mapping[str, Any], cls: type[Options]) -> Options:
    """Those of a script's options that `cls` has.

    Raises:
        ConfigError: one is of the wrong type or out of range, or one of the trainer's numbers is.
        ValueError: one of the trainer's would do nothing.
    """
    if "trainer" in config:
        check_trainer_options(config["trainer"], "eval" if cls is EvalOptions else "train")
        from_dict(_known(config["trainer"], TrainerNumbers), cls=TrainerNumbers, path="trainer")
    return from_dict(_known(config, cls), cls=cls)


def _known(options: Mapping[str, Any], cls: type[Config]) -> dict[str, Any]:
    return {field.name: options[field.name] for field in dataclasses.fields(cls) if field.name in options}


def set_nms(model: VisionModel, options: EvalOptions | PredictOptions) -> None:
    """Suppress boxes as the options say, where they say anything.

    Raises:
        ConfigError: they do, and the model's head has no suppression.
    """
    given = {"iou_threshold": options.nms_iou, "class_agnostic": options.class_agnostic_nms}
    if options.nms is not None or any(value is not None for value in given.values()):
        model.head.set_nms(options.nms, **given)
