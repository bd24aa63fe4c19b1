from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import timm
import torch
from pytorch_lightning.strategies import FSDPStrategy
from torch import nn

from vision_stack.training.finetune import FinetuneConfig
from vision_stack.training.strategy import SyncBatchNorm, prepare_strategy

STAGED = FinetuneConfig(freeze_stages=1, unfreeze_epochs=(1,))


def test_synchronized_batch_norm_keeps_the_activation_of_timms_norms() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=0).eval()
    images = torch.randn(1, 3, 32, 32)
    before = model(images)
    converted = SyncBatchNorm().apply(model)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
    torch.testing.assert_close(converted(images), before)  # as in eval mode, on any device


@pytest.mark.parametrize("strategy", ["ddp", "auto"])
def test_ddp_allows_for_parameters_without_gradient(strategy: str) -> None:
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False)
    assert prepare_strategy(trainer, nn.Linear(1, 1), STAGED) == []
    assert trainer.strategy._ddp_kwargs["find_unused_parameters"] is True


def test_explicit_refusal_of_unused_parameters_does_not_go_with_stages_that_thaw() -> None:
    name = "ddp_find_unused_parameters_false"
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy=name, logger=False)
    assert prepare_strategy(trainer, nn.Linear(1, 1), FinetuneConfig()) == []
    with pytest.raises(ValueError, match=r"^trainer\.strategy: stages that are frozen .*, which ddp is here"):
        prepare_strategy(trainer, nn.Linear(1, 1), STAGED)


def test_strategy_that_splits_the_model_is_refused() -> None:
    trainer = SimpleNamespace(strategy=FSDPStrategy())  # which Lightning's trainer only takes with GPUs
    with pytest.raises(ValueError, match=r"^trainer\.strategy: FSDPStrategy splits the model, .*; use ddp"):
        prepare_strategy(trainer, nn.Linear(1, 1), FinetuneConfig())


@pytest.mark.parametrize(("norm", "warned"), [(nn.BatchNorm2d(1), True), (nn.GroupNorm(1, 1), False)])
def test_synchronized_batch_norm_is_off_on_cpus_and_said_so(norm: nn.Module, warned: bool) -> None:
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", sync_batchnorm=True, logger=False)
    assert len(prepare_strategy(trainer, nn.Sequential(norm), FinetuneConfig())) == warned
    assert trainer.strategy._layer_sync is None
