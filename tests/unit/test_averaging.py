import math
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from torch import nn

from vision_stack.training.averaging import EqualAverage, ExponentialAverage, prepare_averaging


class Table(pl.LightningModule):
    """A weight, and a table of indices such as Swin's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("index", torch.arange(300), persistent=False)


def averaged(callback: WeightAveraging, weights: list[float]) -> Any:
    """The average of a model whose weight had these values after its steps."""
    trainer: Any = SimpleNamespace(callbacks=[callback], global_step=0, estimated_stepping_batches=len(weights))
    module = Table()
    prepare_averaging(trainer)
    callback.setup(trainer, module, "fit")
    for step, weight in enumerate(weights):
        module.weight.data.fill_(weight)
        trainer.global_step = step + 1
        callback.on_train_batch_end(trainer, module, None, None, step)
    assert callback._average_model is not None
    return callback._average_model.module.requires_grad_(False)


@pytest.mark.parametrize(
    "callback",
    [ExponentialAverage(0.9999), EqualAverage(0.0), EMAWeightAveraging(decay=0.9999), WeightAveraging()],
    ids=lambda callback: type(callback).__name__,
)
def test_tables_of_integers_stay_as_they_are(callback: WeightAveraging) -> None:
    """Of 0.9999 times 2 plus 0.0001 times 2 PyTorch makes 1."""
    assert torch.equal(averaged(callback, [1.0, 2.0, 3.0]).index, torch.arange(300))


def test_exponential_average_forgets_its_beginning_also_in_a_short_run() -> None:
    weight = 5.0
    for count, value in enumerate((1.0, 2.0, 3.0), start=1):
        decay = min(0.2, (1 + count) / (10 + count))
        weight = decay * weight + (1 - decay) * value
    assert averaged(ExponentialAverage(0.2), [5.0, 1.0, 2.0, 3.0]).weight == pytest.approx(weight, rel=1e-6)
    assert averaged(ExponentialAverage(0.999), [100.0] + 30 * [1.0]).weight < 1.01


def test_exponential_average_with_the_ramp_of_published_recipes() -> None:
    weight = 5.0
    for update, value in enumerate((1.0, 2.0, 3.0), start=2):  # the first was that of 5
        decay = 0.9 * (1 - math.exp(-update / 4))
        weight = decay * weight + (1 - decay) * value
    assert averaged(ExponentialAverage(0.9, ramp=4), [5.0, 1.0, 2.0, 3.0]).weight == pytest.approx(weight, rel=1e-6)
    constant = averaged(ExponentialAverage(0.9, ramp=0), [5.0, 1.0]).weight
    assert constant == pytest.approx(0.9 * 5 + 0.1 * 1)


@pytest.mark.parametrize(("start", "mean"), [(0.0, 2.5), (0.5, 3.0), (3, 3.5), (10, 4.0)])
def test_equal_average_is_that_of_the_steps_from_its_start_on(start: float, mean: float) -> None:
    assert averaged(EqualAverage(start), [1.0, 2.0, 3.0, 4.0]).weight == pytest.approx(mean)


def test_equal_average_from_a_fraction_of_an_endless_run_says_what_to_give() -> None:
    callback = EqualAverage()
    trainer: Any = SimpleNamespace(callbacks=[callback], global_step=0, estimated_stepping_batches=float("inf"))
    callback.setup(trainer, Table(), "fit")
    with pytest.raises(ValueError, match=r"^callbacks\.average\.start: .* give trainer\.max_epochs"):
        callback.on_train_batch_end(trainer, Table(), None, None, 0)


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([StochasticWeightAveraging(0.1)], "StochasticWeightAveraging .* use callbacks=swa, or callbacks=ema"),
        ([ExponentialAverage(), EqualAverage()], "ExponentialAverage, EqualAverage .* keep one of them"),
    ],
)
def test_averages_that_do_not_work_are_refused(callbacks: list[pl.Callback], message: str) -> None:
    trainer: Any = SimpleNamespace(callbacks=callbacks)
    with pytest.raises(ValueError, match=f"^callbacks: {message}"):
        prepare_averaging(trainer)


@pytest.mark.parametrize(
    "make", [lambda: ExponentialAverage(1.0), lambda: ExponentialAverage(ramp=-1), lambda: EqualAverage(-1.0)]
)
def test_option_out_of_range_is_named(make: Any) -> None:
    with pytest.raises(ValueError, match=r"^callbacks\.average\.(decay|ramp|start): "):
        make()
