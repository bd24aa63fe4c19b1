"""The presets `augment=NAME`: what they set, over what, and how their single values are given."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import vision_stack.model  # noqa: F401  registers what yamls name
from vision_stack.commands.words import understand
from vision_stack.config import from_dict
from vision_stack.data.augment.transforms import TrainTransformConfig
from vision_stack.training.auto import without_autos

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = sorted(path.stem for path in (CONFIGS / "augment").glob("*.yaml"))
STRENGTHS = {"warp", "iou_crop", "zoom_out", "mosaic", "mixup", "copy_blend", "copy_paste", "flip", "vertical_flip"}
SWITCHES = STRENGTHS | {"color_jitter", "photometric", "keep_objects"}
SWITCHES |= {"start_fraction", "mosaic_until", "stop_fraction"}


def transform(*typed: str) -> Any:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", ["run_dir=x", "data.root=x", *understand("train", list(typed)).options])
    plain = without_autos(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    return from_dict(plain["data"], kind="data").train_transform


def test_presets_are_those_that_the_documentation_names() -> None:
    assert PRESETS == ["light", "lsj", "none", "standard", "strong"]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("data", ["shapes", "auto", "coco", "coco_panoptic", "semantic"])
def test_preset_sets_every_switch_whatever_the_data_says(name: str, data: str) -> None:
    plain = OmegaConf.to_container(OmegaConf.load(CONFIGS / "augment" / f"{name}.yaml"))
    assert isinstance(plain, dict)
    assert plain.keys() >= SWITCHES
    assert plain.keys() <= set(TrainTransformConfig.__dataclass_fields__)
    overridden = [f"data.train_transform.{key}=0.123" for key in ("mosaic", "warp")]
    after = transform(f"data={data}", f"augment={name}")
    assert {key: getattr(after, key) for key in plain if plain[key] != "auto" and not isinstance(plain[key], list)} == {
        key: value for key, value in plain.items() if value != "auto" and not isinstance(value, list)
    }
    assert transform(f"data={data}", f"augment={name}", *overridden).mosaic == 0.123


def test_none_has_no_augmentation_and_without_preset_nothing_changes() -> None:
    none = transform("data=coco", "augment=none")
    assert all(getattr(none, name) == 0 for name in STRENGTHS)
    assert none.scale_range == (1.0, 1.0)
    assert transform("data=coco", "augment=light").flip == transform("data=coco").flip == 0.5


def test_preset_goes_over_the_experiment_and_what_is_typed_over_the_preset() -> None:
    published = transform("experiment=coco_instance/mask2former_swin_tiny")
    assert (published.mode, published.scale_range) == ("large_scale_jitter", (0.1, 2.0))
    changed = transform("experiment=coco_instance/mask2former_swin_tiny", "augment=strong", "augment.mosaic=0.75")
    assert (changed.mode, changed.crop_size, changed.scale_range) == ("large_scale_jitter", 1024, (0.5, 1.5))
    assert (changed.mosaic, changed.warp) == (0.75, 0.3)
    assert transform("augment=lsj").mode == "large_scale_jitter"


def test_single_values_have_short_names_and_those_of_other_tools() -> None:
    assert understand("train", ["augment.stop_fraction=0.3"]).options == ["data.train_transform.stop_fraction=0.3"]
    assert understand("train", ["--fliplr", "0.2"]).options == ["data.train_transform.flip=0.2"]
    assert understand("train", ["mosaic=1"]).options == ["data.train_transform.mosaic=1"]
