"""Every yaml and every option of the command line, composed as the scripts do it, and decoded."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import OmegaConf

import vision_stack.data.configs
import vision_stack.model  # noqa: F401  these two register what yamls name
from vision_stack.backbones.names import named_options
from vision_stack.commands import arguments, errors
from vision_stack.config import from_dict, registered, to_dict
from vision_stack.training.auto import fitting, without_autos
from vision_stack.training.finetune import FinetuneConfig
from vision_stack.training.optim import OptimConfig

CONFIGS = Path(__file__).parents[2] / "configs"


def options(name: str = "train", *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return OmegaConf.to_container(compose(name, [f"run_dir={name}", *overrides]), resolve=True)


def yamls(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml") if not path.stem.startswith("_"))


def decode(config: dict[str, Any], *overrides: str) -> None:
    config = without_autos(fitting(config, overrides))
    for kind in ("backbone", "neck", "head", "data"):
        plain = {name: value for name, value in config[kind].items() if name != "pretrained"}
        from_dict(plain, kind=kind)
    from_dict(config["optim"], cls=OptimConfig, path="optim")


def test_train_defaults_are_the_generated_data() -> None:
    config = options()
    decode(config)
    assert config["data"]["type"] == "shapes"
    assert config["head"]["num_queries"] == 20  # of experiment/shapes.yaml, chosen by the data


def test_train_other_data_takes_the_values_of_its_own_experiment() -> None:
    config = options("train", "data=coco", "data.root=x")
    decode(config)
    assert config["head"]["num_queries"] == "auto"


@pytest.mark.parametrize("group", ["neck", "head", "data"])  # backbones: test_backbone_grid.py
def test_every_yaml_of_a_group_decodes_and_lists_every_option(group: str) -> None:
    for name in yamls(group):
        config = options("train", f"{group}={name}", "experiment=debug")[group]
        config.pop("pretrained", None)
        decoded = from_dict(config, kind=group)
        assert set(to_dict(decoded)) == set(config), f"{group}/{name}.yaml"


@pytest.mark.parametrize("kind", ["neck", "head"])
def test_values_of_the_generated_data_are_options_of_some_part(kind: str) -> None:
    known = {field for cls in registered(kind).values() for field in cls.__dataclass_fields__} | {"type"}
    assert set(options()[kind]) <= known


@pytest.mark.parametrize("name", yamls("experiment"))
def test_every_experiment_composes_and_decodes(name: str) -> None:
    decode(options("train", f"experiment={name}"), f"experiment={name}")


def test_optim_yaml_lists_every_option_with_its_default() -> None:
    assert from_dict(options("train", "experiment=debug")["optim"], cls=OptimConfig) == OptimConfig()


@pytest.mark.parametrize("name", yamls("logger"))
def test_every_logger_composes(name: str) -> None:
    assert isinstance(options("train", f"logger={name}")["logger"], dict)


def test_backbone_option_needs_no_plus() -> None:
    config = options("train", "backbone=swin_tiny", "backbone.drop_path_rate=0.25", "backbone.pretrained=true")
    assert config["backbone"]["drop_path_rate"] == 0.25
    assert config["backbone"]["pretrained"] is True


def test_every_registered_backbone_neck_and_head_has_a_yaml() -> None:
    for kind in ("backbone", "neck", "head", "data"):
        files = [CONFIGS / kind / f"{name}.yaml" for name in yamls(kind)]
        types = {named_options(file)["type"] for file in files}
        ours = {name for name, cls in registered(kind).items() if cls.__module__.startswith("vision_stack")}
        assert types == ours, kind


def test_unknown_choice_is_one_line_with_the_choices() -> None:
    choices = "choose one of: " + ", ".join(yamls("neck"))
    for name, advice in (("fpm", "did you mean 'fpn'?"), ("xyz", choices)):
        with pytest.raises(MissingConfigException) as error:
            options("train", f"neck={name}")
        assert errors.one_line(error.value) == f"unknown neck {name!r}; {advice}"


def test_unknown_option_is_one_line_with_its_name() -> None:
    with pytest.raises(ConfigCompositionException) as error:
        options("train", "neck.chanels=3")
    assert errors.one_line(error.value).startswith("neck.chanels: unknown option")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("backbone.freeze_stages=2", "finetune.freeze_stages"),
        ("freeze_stages=2", "finetune.freeze_stages"),
        ("backbone.gradient_checkpointing=true", "finetune.gradient_checkpointing"),
        ("backbone.drop_path=0.2", "backbone.drop_path_rate"),
        ("backbone.lr_multiplier=0.1", "optim.backbone_lr_multiplier"),
        ("backbone.layer_decay=0.8", "optim.layer_decay"),
    ],
)
def test_fine_tuning_option_in_another_place_says_where_it_is(typed: str, meant: str) -> None:
    with pytest.raises(ConfigCompositionException) as error:
        options("train", typed)
    line = errors.one_line(error.value)
    advice = (f"did you mean {meant}?", f"give {meant}", f"give {meant}=N")
    assert line.removeprefix(f"{typed.partition('=')[0]}: unknown option; ") in advice
    options("train", f"{meant}={typed.partition('=')[2]}")


def test_overfit_batches_of_lightning_says_what_there_is_instead() -> None:
    """Lightning's would only shorten the epochs: the order of images and their augmentation stay random."""
    with pytest.raises(ConfigCompositionException) as error:
        options("train", "trainer.overfit_batches=1")
    assert errors.one_line(error.value).endswith("give experiment=overfit, or data.max_train_images")
    assert options("train", "experiment=overfit")["data"]["max_train_images"] == 4


def test_finetune_options_are_listed_with_their_defaults() -> None:
    assert from_dict(options("train", "experiment=debug")["finetune"], cls=FinetuneConfig) == FinetuneConfig()


def test_paths_with_odd_characters_reach_the_options_as_typed() -> None:
    odd = "/a b/c=d, [e] {f} (g) é's"
    argv = arguments.quote_paths(["data=coco", f"data.root={odd}", f"run_dir={odd}", f"weights={odd}"])
    config = options("train", *argv)
    assert config["data"]["root"] == config["run_dir"] == config["weights"] == odd


def test_eval_and_predict_missing_checkpoint_is_said() -> None:
    for name in ("eval", "predict"):
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            assert OmegaConf.is_missing(compose(name), "checkpoint")


def test_eval_data_options_of_the_checkpoint_can_be_overridden() -> None:
    argv = arguments.open_group(
        arguments.quote_paths(["checkpoint=x", "data.root=a b", "data.eval_transform.short_edge=64"]), "data"
    )
    assert options("eval", *argv)["data"] == {"root": "a b", "eval_transform": {"short_edge": 64}}


def test_eval_data_by_name_as_typed_for_training_is_its_type() -> None:
    argv = arguments.open_group(["checkpoint=x", "data=coco", "data.root=a"], "data")
    assert options("eval", *argv)["data"] == {"type": "coco", "root": "a"}
