"""Each yaml of configs/data lists exactly the fields of its dataclass, with the same defaults."""

import dataclasses
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import vision_stack.data.configs  # noqa: F401  registers
from vision_stack.config import Config, from_dict, registered

FOLDER = Path(__file__).parents[2] / "configs" / "data"


def load(name):
    """As Hydra composes it: over what all share."""
    own = OmegaConf.load(FOLDER / f"{name}.yaml")
    assert own.pop("defaults") == ["_shared"]
    return OmegaConf.merge(OmegaConf.load(FOLDER / "_shared.yaml"), own)


def read(name):
    return OmegaConf.to_container(load(name), resolve=True)


def assert_lists_all_fields(plain, config):
    fields = {field.name for field in dataclasses.fields(config)}
    assert plain.keys() - {"type"} == fields
    for name in fields:
        value = getattr(config, name)
        if isinstance(value, Config):
            assert_lists_all_fields(plain[name], value)


@pytest.mark.parametrize("name", ["auto", "coco", "coco_panoptic", "semantic", "shapes"])
def test_data_yaml_lists_every_option_and_the_defaults_of_python(name):
    plain = read(name)
    config = from_dict(plain, kind="data")
    assert_lists_all_fields(plain, config)
    assert config == registered("data")[name]()


def test_shapes_yaml_resizes_to_the_image_size():
    node = OmegaConf.merge(load("shapes"), {"image_size": 96})
    config = from_dict(OmegaConf.to_container(node, resolve=True), kind="data")
    assert config.train_transform.short_edges == (96,)
    assert config.train_transform.long_edge == config.eval_transform.short_edge == config.eval_transform.long_edge == 96
