"""With averaged weights: what is validated is what best.ckpt holds, and a resumed run continues bit by bit."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny_run
import torch
from tiny_run import Crash, CrashAt, best, last

from vision_stack.model import VisionModel
from vision_stack.training.checkpoints import checkpoints_of

LIGHTNINGS = "+callbacks.x._target_=pytorch_lightning.callbacks"
AVERAGES = {
    "ema": ["callbacks=ema"],
    "swa": ["callbacks=swa", "callbacks.average.start=5"],
    "Lightning's EMA": [f"{LIGHTNINGS}.EMAWeightAveraging", "+callbacks.x.decay=0.9999"],
    "by epoch": [
        f"{LIGHTNINGS}.EMAWeightAveraging",
        "+callbacks.x.decay=0.5",
        "+callbacks.x.update_every_n_steps=0",
        "+callbacks.x.update_starting_at_epoch=0",
    ],
}
RAW = ("current_model_state", "averaging_state")
Weights = dict[str, torch.Tensor]


class Watch(pl.Callback):
    """The model's weights in each validation, each of which counts as the best so far."""

    def __init__(self) -> None:
        self.validated: list[Weights] = []

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        checkpoints_of(trainer).best_score = None
        self.validated.append({name: tensor.clone() for name, tensor in pl_module.state_dict().items()})


def assert_equal(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("average", AVERAGES)
def test_average_is_validated_saved_and_resumed_bit_by_bit(average: str, tmp_path: Path) -> None:
    options = [*AVERAGES[average], "trainer.max_epochs=2"]
    watch = Watch()
    trainer = tiny_run.train(tmp_path / "whole", *options, callbacks=(watch,))
    whole = last(tmp_path / "whole")
    assert_equal(best(tmp_path / "whole")["state_dict"], watch.validated[-1])
    assert_equal(whole["state_dict"], trainer.lightning_module.state_dict())  # what `fit` leaves to its caller
    assert set(best(tmp_path / "whole")) == {*whole} - {"optimizer", "precision", "callbacks", *RAW}
    raw = whole["current_model_state"]
    assert any(not torch.equal(raw[name], tensor) for name, tensor in whole["state_dict"].items())
    if average != "by epoch":  # whose last update follows the validation
        assert_equal(whole["state_dict"], watch.validated[-1])

    for crash in (CrashAt(6), CrashAt(validation_after=4)):
        run_dir = tmp_path / f"crashed in {crash.batch or 'validation'}"
        with pytest.raises(Crash):
            tiny_run.train(run_dir, *options, callbacks=(crash,))
        watch = Watch()
        tiny_run.train(run_dir, *options, f"resume='{run_dir}/checkpoints/last.ckpt'", callbacks=(watch,))
        if average == "by epoch" and crash.validation_after:
            continue  # the update at the end of the epoch that was being validated is left out
        assert_equal(best(run_dir)["state_dict"], watch.validated[-1])
        resumed = last(run_dir)
        for part in ("state_dict", *RAW):
            assert_equal(resumed[part], whole[part])
        for key, state in whole["optimizer"]["state"].items():
            assert_equal(resumed["optimizer"]["state"][key], state)


def test_readers_of_last_checkpoint_get_the_average(tmp_path: Path) -> None:
    tiny_run.train(tmp_path, "callbacks=ema", "trainer.max_steps=2")
    model = VisionModel.from_pretrained(tmp_path / "checkpoints" / "last.ckpt")
    assert_equal({f"model.{name}": tensor for name, tensor in model.state_dict().items()}, last(tmp_path)["state_dict"])


def test_resume_without_the_average_is_refused_and_with_one_from_a_run_without_goes_on(tmp_path: Path) -> None:
    tiny_run.train(tmp_path / "average", "callbacks=ema", "trainer.max_steps=2")
    with pytest.raises(ValueError, match=r"^resume: the interrupted run averaged .*; give callbacks=ema"):
        tiny_run.train(tmp_path / "average", f"resume='{tmp_path}/average/checkpoints/last.ckpt'")
    tiny_run.train(tmp_path / "plain", "trainer.max_steps=2")
    plain = last(tmp_path / "plain")["state_dict"]
    resumed = [f"resume='{tmp_path}/plain/checkpoints/last.ckpt'", "callbacks=ema", "trainer.max_steps=3"]
    with pytest.warns(UserWarning, match="not created with WeightAveraging"):
        tiny_run.train(tmp_path / "plain", *resumed)
    assert last(tmp_path / "plain")["averaging_state"]["n_averaged"] == 1
    assert plain.keys() == last(tmp_path / "plain")["current_model_state"].keys()
