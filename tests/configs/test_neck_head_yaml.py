"""configs/neck and configs/head: one yaml per registered module, every field in it, with the default as its value."""

from pathlib import Path

import pytest
import yaml

import vision_stack.heads
import vision_stack.necks  # noqa: F401
from vision_stack.config import from_dict, registered, to_dict

CONFIGS = Path(__file__).parents[2] / "configs"
MODULES = [(kind, name) for kind in ("neck", "head") for name in registered(kind)]


@pytest.mark.parametrize(("kind", "name"), MODULES)
def test_yaml_of_a_module_lists_every_field_with_its_default(kind, name):
    data = yaml.safe_load((CONFIGS / kind / f"{name}.yaml").read_text(encoding="utf-8"))
    assert data == to_dict(registered(kind)[name]())
    assert list(data) == list(to_dict(registered(kind)[name]()))  # in the same order, so that both read alike


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("neck/*.yaml")) + sorted(CONFIGS.glob("head/*.yaml")), ids=str)
def test_yaml_of_every_file_decodes(file):
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert from_dict(data, file.parent.name).kind == file.parent.name
