"""Any logger of Lightning gets scalars and the run's options; a missing package takes one line."""

import csv
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_run
import yaml
from hydra.errors import InstantiationException

from vision_stack.commands.errors import one_line
from vision_stack.commands.launch import instantiate_all

LIGHTNINGS = "+logger.mine._target_=pytorch_lightning.loggers"


def test_loggers_of_lightning_write_where_they_are_told(tmp_path: Path) -> None:
    mine = [f"{LIGHTNINGS}.CSVLogger", f"+logger.mine.save_dir='{tmp_path}/curves, a=b'", "+logger.mine.name=x"]
    tiny_run.train(tmp_path / "run", "trainer.max_steps=2", "logger=[csv,tensorboard]", *mine)
    folder = tmp_path / "curves, a=b" / "x" / "version_0"
    for file in (tmp_path / "run" / "metrics.csv", folder / "metrics.csv"):
        with file.open() as rows:
            assert [row["step"] for row in csv.DictReader(rows) if row["train/loss"]] == ["0", "1"], file
    assert yaml.safe_load((folder / "hparams.yaml").read_text())["head"]["num_queries"] == 10
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_options_are_not_logged_if_not_asked_for(tmp_path: Path) -> None:
    mine = [f"{LIGHTNINGS}.CSVLogger", f"+logger.mine.save_dir='{tmp_path}'", "+trainer.enable_autolog_hparams=false"]
    tiny_run.train(tmp_path / "run", "trainer.max_steps=1", *mine)
    assert not list(tmp_path.rglob("hparams.yaml"))


class Wandb(SimpleNamespace):
    """As much of the package as Lightning's logger calls; it is its own run, too."""

    def __init__(self) -> None:
        super().__init__(run=None, logged=[], options={}, started={}, __version__="0.19.0", __spec__=None)
        self.config = SimpleNamespace(update=lambda options, **_: self.options.update(options))

    def init(self, **options: Any) -> Any:
        self.started = options
        return self

    def log(self, values: dict[str, Any], **_: Any) -> None:
        self.logged.append(values)

    def define_metric(self, *_: Any, **__: Any) -> None: ...


def test_wandb_starts_a_run_in_its_folder_and_gets_scalars_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)  # type: ignore[arg-type]
    monkeypatch.setattr("pytorch_lightning.loggers.wandb._WANDB_AVAILABLE", True)
    monkeypatch.setattr("pytorch_lightning.loggers.wandb.WandbLogger.experiment", wandb)
    tiny_run.train(tmp_path, "trainer.max_steps=2", "logger=[csv,wandb]", "logger.wandb.name=mine")
    assert {"train/loss", "val/segm_AP"} <= {name for values in wandb.logged for name in values}
    assert wandb.options["optim"]["lr"] == 2e-3
    assert (tmp_path / "metrics.csv").is_file()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_missing_package_is_one_line_with_the_command_that_installs_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Missing:
        def __bool__(self) -> bool:
            return False

        def __str__(self) -> str:
            return f"Requirement '{name}>=1.0' not met. HINT: Try running `pip install -U '{name}>=1.0'`"

    monkeypatch.setattr(f"pytorch_lightning.loggers.{name}._{name.upper()}_AVAILABLE", Missing())
    with pytest.raises(InstantiationException) as error:
        instantiate_all(tiny_run.compose_options("train", [f"logger={name}"]), "logger")
    line = one_line(error.value)
    assert line == f"logger.{name}: needs a package that is not installed; pip install {name}"


def test_group_entry_that_is_null_is_left_out(tmp_path: Path) -> None:
    config = tiny_run.compose_options("train", ["callbacks=ema", "callbacks.average=null", "logger=none"])
    assert len(instantiate_all(config, "callbacks")) == 2
    assert instantiate_all(config, "logger") == []
