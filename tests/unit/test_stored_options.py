"""`resume=`: the options of the run, with what was typed on top; and what a stranger's config.yaml may not do."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from vision_stack.commands.arguments import quote_paths
from vision_stack.commands.composing import Composition, compose_options
from vision_stack.commands.stored_options import train_composition
from vision_stack.training.results import write_config


def composed(options: Sequence[str]) -> dict[str, Any]:
    composition = train_composition(options)
    return compose_options(Composition(composition.name, quote_paths(composition.options)))[0]


def interrupted_run(run_dir: Path, *options: str) -> Path:
    """A folder as an interrupted run leaves it, as far as options go."""
    write_config(composed([*options, f"run_dir={run_dir}"]), run_dir)
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints" / "last.ckpt").touch()
    return run_dir


STARTED = [
    "data=coco",
    "data.root=/photos/${x} a",
    "backbone=resnet18",
    "trainer.max_epochs=7",
    "+trainer.min_epochs=1",
]
STARTED += ["callbacks=[early_stopping]", "callbacks.early_stopping.patience=9", "logger=[csv,tensorboard]"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return interrupted_run(tmp_path / "run, a", *STARTED)


def test_resumed_without_options_has_those_of_the_run(run: Path) -> None:
    first = yaml.safe_load((run / "config.yaml").read_text())
    assert first["data"]["root"] == "/photos/${x} a"
    assert composed([f"resume={run}"]) == {**first, "resume": f"{run}/checkpoints/last.ckpt"}


def test_resumed_with_the_same_options_typed_again_is_the_same(run: Path) -> None:
    assert composed([f"resume={run}", *STARTED]) == composed([f"resume={run}"])


def test_resumed_in_another_folder_logs_there(run: Path, tmp_path: Path) -> None:
    run.rename(tmp_path / "moved")
    resumed = composed([f"resume={tmp_path}/moved"])
    assert resumed["run_dir"] == str(tmp_path / "moved")
    assert resumed["logger"]["csv"]["run_dir"] == resumed["logger"]["tensorboard"]["save_dir"] == resumed["run_dir"]


def test_resumed_typed_options_override_single_values(run: Path) -> None:
    typed = ["optim.lr=0.5", "data.root=/new", "callbacks.early_stopping.patience=2", "~trainer.min_epochs"]
    first, resumed = composed([f"resume={run}"]), composed([f"resume={run}", *typed])
    assert resumed["optim"] == {**first["optim"], "lr": 0.5}
    assert resumed["data"] == {**first["data"], "root": "/new"}
    assert resumed["callbacks"]["early_stopping"]["patience"] == 2
    assert "min_epochs" not in resumed["trainer"]


def test_resumed_other_choice_in_a_group_changes_what_differs_between_the_two(run: Path) -> None:
    first = composed([f"resume={run}"])
    resumed = composed([f"resume={run}", "trainer=ddp", "callbacks=[early_stopping,ema]", "logger=csv"])
    assert resumed["trainer"] == {**first["trainer"], "strategy": "ddp", "sync_batchnorm": True, "devices": "auto"}
    assert resumed["callbacks"].keys() == first["callbacks"].keys() | {"average"}
    assert resumed["callbacks"]["early_stopping"]["patience"] == 9
    assert resumed["logger"].keys() == {"csv"}
    assert resumed["choices"]["callbacks"] == ["early_stopping", "ema"]


def test_resumed_length_that_is_typed_is_the_only_limit(run: Path) -> None:
    assert composed([f"resume={run}", "trainer.max_steps=50"])["trainer"]["max_epochs"] == -1
    assert composed([f"resume={run}", "trainer.max_epochs=9"])["trainer"]["max_epochs"] == 9


def test_resumed_unknown_option_is_refused_as_ever(run: Path) -> None:
    from hydra.errors import ConfigCompositionException

    with pytest.raises(ConfigCompositionException, match=r"optim\.nope"):
        composed([f"resume={run}", "optim.nope=1"])


def test_resumed_with_another_experiment_is_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="the run has experiment=coco; give single options"):
        composed([f"resume={run}", "experiment=debug"])
    assert composed([f"resume={run}", "experiment=coco"]) == composed([f"resume={run}"])


def test_resumed_checkpoint_that_was_taken_out_or_is_older_gets_only_what_is_typed(run: Path, tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").touch()
    alone = train_composition([f"resume={tmp_path}/last.ckpt", "seed=3"])
    assert alone == Composition("train", [f"resume={tmp_path}/last.ckpt", "seed=3"])
    edit(run, lambda options: options.pop("choices"))
    assert train_composition([f"resume={run}", "seed=3"]).name == "train"


def edit(run: Path, change: Any) -> None:
    options = yaml.safe_load((run / "config.yaml").read_text())
    change(options)
    write_config(options, run)


CALLBACK = {"_target_": "os.system", "command": "true"}
STRANGE = {  # what a stranger put in -> what the line must contain, what the user may type to have it all the same
    "callback": (lambda o: o["callbacks"].update(x=CALLBACK), "+callbacks.x._target_=os.system", True),
    "callback within": (lambda o: o["callbacks"]["progress"].update(y=[CALLBACK]), "callbacks.progress.y[0]", False),
    "target of another group": (
        lambda o: o["callbacks"].update(x={"_target_": "pytorch_lightning.Trainer"}),
        "+callbacks.x._target_=pytorch_lightning.Trainer",
        True,
    ),
    "target that is no name": (lambda o: o["trainer"].update(_target_=["os.system"]), "trainer._target_[0]", False),
    "trainer": (lambda o: o["trainer"].update(_target_="os.system"), "+trainer._target_=os.system", True),
    "positional argument": (lambda o: o["logger"]["csv"].update(_args_=["/home"]), "logger.csv._args_[0]", False),
    "place of a logger": (lambda o: o["logger"]["csv"].update(run_dir="/home"), "logger.csv.run_dir=/home", True),
    "way out of the folder": (
        lambda o: o["logger"]["tensorboard"].update(version=".."),
        "logger.tensorboard.version=..",
        True,
    ),
    "plugins": (lambda o: o.update(plugins=["this"]), "plugins=[this]", True),
    "options of Hydra": (lambda o: o.update(hydra={"callbacks": {"x": CALLBACK}}), "hydra: unknown option", False),
    "defaults": (lambda o: o.update(defaults=[{"data": "coco"}]), "defaults: unknown option", False),
    "unknown option": (lambda o: o.update(mine=3), "+mine=", False),
    "choice that is a path": (lambda o: o["choices"].update(data="../../x"), "choices.data", False),
    "choice of no group": (lambda o: o["choices"].update(nope="x"), "choices.nope", False),
    "group that is missing": (lambda o: o.pop("logger"), "choices.logger", False),
}


@pytest.mark.parametrize("name", STRANGE)
def test_resumed_config_of_a_stranger_is_followed_only_where_it_is_typed_again(name: str, run: Path) -> None:
    change, expected, may_type = STRANGE[name]
    edit(run, change)
    with pytest.raises(ValueError) as error:
        composed([f"resume={run}"])
    assert expected in str(error.value)
    assert str(error.value).startswith(f"resume: {run}/config.yaml: ")
    assert "\n" not in str(error.value)
    if may_type:
        assert composed([f"resume={run}", expected])


def test_resumed_interpolations_of_a_stranger_are_text(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "42")
    edit(run, lambda options: options.update(weights="${oc.env:SECRET} \\${x}"))
    assert composed([f"resume={run}"])["weights"] == "${oc.env:SECRET} \\${x}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [b", "cannot be read as yaml"),
        ("- a", "expected a mapping"),
        ("a: &x [1]\nb: [*x, *x]", "aliases"),
        ("a: !!python/object/apply:os.system ['true']", "cannot be read as yaml"),
        ("a: " + "[" * 5000, "cannot be read as yaml"),
        ("choices: 3", "expected a mapping"),
        ("# " + "x" * 4_000_000, "more than 4,000,000 bytes"),
        ("choices: {}\nseed: 2001-01-01", "seed: expected a plain value, got a date"),
        ("choices: {}\nfinetune: {1: 2}", "finetune: expected names as keys"),
    ],
)
def test_resumed_config_that_is_damaged_is_one_line(text: str, expected: str, run: Path) -> None:
    (run / "config.yaml").write_text(textwrap.dedent(text))
    with pytest.raises(ValueError) as error:
        composed([f"resume={run}"])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
