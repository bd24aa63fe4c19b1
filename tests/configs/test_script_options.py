"""The options at the top of train.yaml, eval.yaml and predict.yaml: each is checked, and the error names it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vision_stack.config import Config, ConfigError
from vision_stack.training.options import EvalOptions, PredictOptions, TrainerNumbers, TrainOptions, decode_options

CONFIGS = Path(__file__).parents[2] / "configs"
CLASSES: dict[str, type[Config]] = {"train": TrainOptions, "eval": EvalOptions, "predict": PredictOptions}
NEEDED = {"train": [], "eval": ["checkpoint=x"], "predict": ["checkpoint=x", "source=x"]}
# Checked elsewhere: parts and data by the registry, Lightning's by Lightning, the last two by the scripts.
ELSEWHERE = {"backbone", "neck", "head", "data", "trainer", "callbacks", "logger", "run_dir", "plugins"}


def decode(script: str, *overrides: str) -> Any:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(script, [*NEEDED[script], *overrides])
    return decode_options(OmegaConf.to_container(config, resolve=True), CLASSES[script])  # type: ignore[arg-type]


@pytest.mark.parametrize("script", CLASSES)
def test_every_option_of_a_script_is_checked(script: str) -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        listed = set(compose(script)) - ELSEWHERE
    assert listed == {field.name for field in dataclasses.fields(CLASSES[script])}
    assert decode(script).top_k == 100


def test_trainer_numbers_are_options_of_the_trainer() -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        listed = set(compose("train").trainer)
    assert {field.name for field in dataclasses.fields(TrainerNumbers)} <= listed


@pytest.mark.parametrize(
    ("script", "override"),
    [
        *[("train", text) for text in ("num_pictures=all", "num_pictures=-1", "top_k=0", "seed=abc", "seed=null")],
        *[("train", text) for text in ("task=things", "resume=true", "optim.lr=fast", "panoptic.score_threshold=2")],
        *[("train", f"trainer.{text}") for text in ("max_epochs=ten", "max_steps=1.5", "max_steps=-2")],
        *[("train", f"trainer.{text}") for text in ("accumulate_grad_batches=0", "log_every_n_steps=x")],
        *[("eval", text) for text in ("top_k=ten", "top_k=0", "num_pictures=true", "boundary_ap=1", "checkpoint=null")],
        *[("eval", text) for text in ("trainer.limit_val_batches=few",)],
        *[("predict", text) for text in ("threshold=high", "threshold=1.5", "top_k=-1", "device=0", "source=null")],
    ],
)
def test_bad_value_is_one_line_that_names_the_option(script: str, override: str) -> None:
    with pytest.raises(ConfigError) as error:
        decode(script, override)
    assert str(error.value).startswith(f"{override.partition('=')[0]}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("override", ["max_epochs=null", "max_epochs=-1", "max_steps=-1", "limit_val_batches=0.5"])
def test_trainer_values_that_mean_something_to_lightning_pass(override: str) -> None:
    decode("train", f"trainer.{override}")
