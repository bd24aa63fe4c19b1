"""The task of a run that starts from a detector, and masks that it did not have."""

from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch

from vision_stack.commands.words import understand
from vision_stack.config import ConfigError, from_dict
from vision_stack.model import VisionModel, VisionModelConfig
from vision_stack.training.auto import fitting
from vision_stack.training.start import Start, read_start, transfer


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained for detection, saved."""
    torch.manual_seed(0)
    plain = {
        "backbone": {"type": "timm", "model_name": "test_resnet"},
        "neck": {"type": "fpn", "channels": 16},
        "head": {"type": "rt_detr", "hidden_dim": 16, "num_heads": 2, "ffn_dim": 16, "num_decoder_layers": 1},
        "categories": [{"id": 1, "name": "ring"}],
        "task": "detection",
    }
    directory = tmp_path_factory.mktemp("detector")
    VisionModel(from_dict(plain, cls=VisionModelConfig)).save_pretrained(directory)
    return directory


def start_of(source: Path, *overrides: str) -> Start:
    options = fitting(tiny_run.compose_options("train", list(overrides)), overrides)
    return read_start(str(source), options, overrides)


@pytest.mark.parametrize(
    ("overrides", "task", "masks"),
    [
        ((), "detection", False),
        (("experiment=from_weights",), "detection", False),
        (("task=detection",), "detection", False),
        (("task=instance",), "instance", True),
        (("+head.masks=true",), "instance", True),
        (("head=d_fine",), "instance", True),
        (("experiment=overfit", "task=instance"), "instance", True),
    ],
)
def test_task_is_what_was_typed_or_what_the_weights_serve(
    overrides: tuple[str, ...], task: str, masks: bool, detector: Path
) -> None:
    start = start_of(detector, *overrides)
    assert (start.task, start.parts["head"].masks) == (task, masks)
    assert bool(start.task_reason) == (task == "detection" and "task=detection" not in overrides)


@pytest.mark.parametrize(
    ("own", "overrides", "masks"),
    [
        ("rt_detr", ("task=detection",), False),
        ("rt_detr", ("task=detection", "++head.masks=true"), True),
        ("rt_detr", ("task=instance",), True),
        ("rf_detr_seg", ("task=detection",), True),  # whose own default they are
    ],
)
def test_masks_of_an_instance_model_go_where_boxes_are_trained(
    own: str, overrides: tuple[str, ...], masks: bool, tmp_path: Path
) -> None:
    plain = {
        "backbone": {"type": "timm", "model_name": "test_resnet"},
        "neck": {"type": "fpn", "channels": 32},
        "head": {"type": own, "hidden_dim": 32, "num_heads": 2, "ffn_dim": 16, "num_decoder_layers": 1, "masks": True},
        "categories": [{"id": 1, "name": "ring"}],
    }
    VisionModel(from_dict(plain, cls=VisionModelConfig)).save_pretrained(tmp_path)
    assert start_of(tmp_path, *overrides).parts["head"].masks is masks


def test_options_of_the_heads_of_weights_are_known(detector: Path, tmp_path: Path) -> None:
    """Without `head=`, although the yaml files name another head."""
    tiny_run.train(
        tmp_path, *understand("train", [f"weights={detector}", "head.num_denoising=7"]).options, "trainer.max_steps=1"
    )
    head: Any = VisionModel.from_pretrained(tmp_path / "checkpoints" / "last.ckpt").config.head
    assert head.num_denoising == 7


def test_experiment_that_was_named_keeps_its_task(detector: Path) -> None:
    head = start_of(detector, "experiment=overfit").parts["head"]
    with pytest.raises(ConfigError, match=r"^head.masks: task=instance needs them; set head.masks=true, or use task="):
        head.check_task("instance")


def test_run_from_a_detector_says_that_it_trains_detection(detector: Path, tmp_path: Path, capsys: Any) -> None:
    tiny_run.train(tmp_path, f"weights='{detector}'", "trainer.max_steps=1")
    printed = capsys.readouterr().out
    assert "task        detection: that of the weights, whose head has nothing for task=instance\n" in printed
    assert VisionModel.from_pretrained(tmp_path / "checkpoints" / "last.ckpt").config.task == "detection"
    assert "task: detection" in (tmp_path / "config.yaml").read_text()


def test_run_from_a_detector_for_instances_adds_masks_and_keeps_the_rest(
    detector: Path, tmp_path: Path, capsys: Any
) -> None:
    tiny_run.train(tmp_path, f"weights='{detector}'", "task=instance", "optim.lr=1e-12", "trainer.max_steps=1")
    assert "at random: head.masks.bias, " in capsys.readouterr().out
    trained = VisionModel.from_pretrained(tmp_path / "checkpoints" / "last.ckpt")
    assert trained.config.task == "instance"
    state = trained.state_dict()
    for name, value in VisionModel.from_pretrained(detector).state_dict().items():
        if name.startswith("head.layers."):
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-6)


PLAIN = {
    "eomt": {"neck": {"type": "none"}, "head": {"type": "eomt", "num_queries": 5, "num_blocks": 1}},
    "fcos": {"neck": {"type": "simple_pyramid", "channels": 16}, "head": {"type": "fcos"}, "task": "detection"},
}


def plain_model(name: str) -> VisionModel:
    backbone = {"type": "timm", "model_name": "test_vit", "out_norms": name == "fcos"}
    plain = {"backbone": backbone, "categories": [{"id": 1, "name": "ring"}], **PLAIN[name]}
    return VisionModel(from_dict(plain, cls=VisionModelConfig))


@pytest.mark.parametrize(("source", "target"), [("eomt", "fcos"), ("fcos", "eomt")])
def test_plain_transformer_goes_from_a_detector_to_eomt_and_back(source: str, target: str) -> None:
    """The norm after the last block is that of tokens in EoMT, and that of the map in a detector."""
    theirs, own = plain_model(source), plain_model(target)
    for parameter in theirs.backbone.parameters():
        torch.nn.init.normal_(parameter)
    found = transfer(Start("a model", theirs, {}, (), "detection"), own)
    assert not [name for name in found.fresh if name.startswith("backbone.")]
    (norm,) = {n for n in own.state_dict() if n.endswith(("norms.0.weight", "net.model.norm.weight"))}
    (their_norm,) = {n for n in theirs.state_dict() if n.endswith(("norms.0.weight", "net.model.norm.weight"))}
    assert norm != their_norm
    torch.testing.assert_close(own.state_dict()[norm], theirs.state_dict()[their_norm])
