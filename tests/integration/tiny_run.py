"""Runs of the three scripts' functions in this process: three epochs of four steps on images of 64 pixels."""

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from vision_stack.commands.arguments import quote
from vision_stack.commands.launch import instantiate_all

ROOT = Path(__file__).parents[2]
TINY = [
    "data.image_size=64",
    "data.num_train=8",
    "data.num_val=2",
    "data.batch_size=2",
    "backbone=tiny",
    "neck.channels=16",
    "head.hidden_dim=16",
    "head.num_heads=2",
    "head.ffn_dim=32",
    "head.num_decoder_layers=2",
    "head.num_queries=10",
    "head.dropout=0.1",  # randomness that a resumed run has to repeat
    "optim.warmup_steps=2",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=3",
    "trainer.check_val_every_n_epoch=1",
    "trainer.log_every_n_steps=1",
    "callbacks.checkpoints.every_n_steps=1",
    "num_pictures=0",
    "logger=none",
]


def compose_options(name: str, overrides: list[str]) -> dict[str, Any]:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return OmegaConf.to_container(compose(name, ["run_dir=unused", *overrides]), resolve=True)


def train(run_dir: Path, *overrides: str, callbacks: tuple[pl.Callback, ...] = ()) -> pl.Trainer:
    """As train.py does it, with callbacks of the test's own."""
    return train_composed(run_dir, [*TINY, *overrides], callbacks=callbacks, typed=overrides)


def train_composed(
    run_dir: Path, options: list[str], *, callbacks: tuple[pl.Callback, ...] = (), typed: Sequence[str] | None = None
) -> pl.Trainer:
    """With other options than `TINY`; `typed` are those that count as the user's."""
    from vision_stack.training.run import train as fit

    config = compose_options("train", [f"run_dir={quote(str(run_dir))}", *options])
    made: list[pl.Trainer] = []

    def make_trainer(extra: list[Any], trainer: Mapping[str, Any]) -> pl.Trainer:
        mine, loggers = instantiate_all(config, "callbacks"), instantiate_all(config, "logger")
        everything = {"callbacks": [*extra, *callbacks, *mine], "logger": loggers, "default_root_dir": str(run_dir)}
        made.append(instantiate(trainer, _convert_="all", **everything))
        return made[0]

    fit(config, run_dir, make_trainer, options if typed is None else typed)
    return made[0]


def last(run_dir: Path) -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


def best(run_dir: Path) -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / "best.ckpt", weights_only=True)


class Crash(Exception):
    pass


class CrashAt(pl.Callback):
    """Ends the run at a batch (counted from the run's beginning) or in the validation after it."""

    def __init__(self, batch: int = 0, *, validation_after: int = 0, signum: int = 0) -> None:
        self.batch = batch
        self.validation_after = validation_after
        self.signum = signum
        self.count = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.count += 1
        if self.count == self.batch:
            self.act()

    def on_validation_batch_end(self, *_: Any) -> None:
        if self.count == self.validation_after:
            self.act()

    def act(self) -> None:
        self.batch = self.validation_after = -1  # once
        if not self.signum:
            raise Crash
        os.kill(os.getpid(), self.signum)


def kill(batch: int) -> CrashAt:
    """For the command line: `+callbacks.kill._target_=tiny_run.kill +callbacks.kill.batch=5`."""
    return CrashAt(batch, signum=signal.SIGKILL)
