"""Fine-tuning options in a run: what is frozen stays frozen until it is due, resumed or not."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny_run
import torch
from tiny_run import Crash, CrashAt, last

STAGED = ("finetune.freeze_stages=all", "finetune.unfreeze_epochs=[1,2]", "optim.layer_decay=0.9")


class Watch(pl.Callback):
    """Keeps the backbone's parameters as they are before the run, and at the end of each epoch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def _look(self, module: Any) -> None:
        self.seen.append({name: p.detach().clone() for name, p in module.model.backbone.state_dict().items()})

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._look(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._look(pl_module)

    def changed(self, epoch: int) -> set[str]:
        """Which of stem, layer1, layer2, layer3 changed in an epoch."""
        before, after = self.seen[epoch : epoch + 2]
        names = {name for name in before if not torch.equal(before[name], after[name])}
        return {name.split(".")[1] if "layer" in name else "stem" for name in names}


def test_staged_unfreezing_resumed_in_mid_epoch_equals_uninterrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = Watch()
    tiny_run.train(tmp_path / "whole", *STAGED, callbacks=(watch,))
    assert watch.changed(0) == set()
    assert watch.changed(1) == {"layer2", "layer3"}  # of all four, half
    assert watch.changed(2) == {"stem", "layer1", "layer2", "layer3"}
    printed = capsys.readouterr().out
    assert "frozen      stem, layer1, layer2, layer3, unfrozen at epoch 1, 2" in printed
    assert "in 4 steps from the input on" in printed

    with pytest.raises(Crash):
        tiny_run.train(tmp_path / "crashed", *STAGED, callbacks=(CrashAt(6),))
    position = last(tmp_path / "crashed")["position"]
    assert (position["epoch"], position["batches_done"]) == (1, 1)
    tiny_run.train(tmp_path / "crashed", *STAGED, f"resume='{tmp_path}/crashed/checkpoints/last.ckpt'")
    mine, theirs = last(tmp_path / "crashed"), last(tmp_path / "whole")
    for name, tensor in theirs["state_dict"].items():
        assert torch.equal(mine["state_dict"][name], tensor), name
    assert mine["optimizer"]["state"].keys() == theirs["optimizer"]["state"].keys()
    for key, state in theirs["optimizer"]["state"].items():
        for name, tensor in state.items():
            assert torch.equal(mine["optimizer"]["state"][key][name], tensor), (key, name)


def test_frozen_stages_and_checkpointed_blocks_train_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = Watch()
    options = ("finetune.freeze_stages=2", "finetune.gradient_checkpointing=true", "trainer.max_epochs=1")
    tiny_run.train(tmp_path, *options, callbacks=(watch,))
    assert watch.changed(0) == {"layer2", "layer3"}
    optimizer = last(tmp_path)["optimizer"]
    grouped = sum(len(group["params"]) for group in optimizer["param_groups"])
    assert grouped == len(optimizer["state"])  # frozen for good: unknown to the optimizer
    printed = capsys.readouterr().out
    assert " frozen), maps" in printed
    assert "frozen      stem, layer1\n" in printed
    assert "gradient checkpointing" in printed
