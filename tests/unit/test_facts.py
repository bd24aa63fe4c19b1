"""Which backbone is chosen, by what is cached and whether there is a network; what the data says of itself."""

from typing import Any

import pytest
import torch

from vision_stack.backbones import hub
from vision_stack.backbones.hub import PublishedWeights
from vision_stack.config import from_dict
from vision_stack.data.configs import DataConfig
from vision_stack.data.datamodule import build_datamodule
from vision_stack.training import facts
from vision_stack.training.facts import BACKBONES, Device, find_device, gather


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Models by name: whether they are cached; "network": whether there is one."""
    known = {"network": False}
    asked: list[str] = []

    def of(weights: PublishedWeights | None) -> str:
        assert weights is not None
        assert weights.repo_id is not None
        return weights.repo_id.removeprefix("timm/")

    def can_be_had(weights: PublishedWeights | None) -> bool:
        asked.append(of(weights))
        return known.get(of(weights), False) or known["network"]

    monkeypatch.setattr(facts, "can_be_had", can_be_had)
    monkeypatch.setattr(facts, "is_cached", lambda weights: known.get(of(weights), False))
    known["asked"] = asked  # type: ignore[assignment]
    return known


def choose(options: dict[str, Any], device: str = "cpu") -> tuple[str, str, bool]:
    return facts._backbone({"type": "timm", "model_name": "auto", "pretrained": "auto", **options}, device)


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_first_choice_is_taken_if_it_can_be_had(device: str, cache: dict[str, bool]) -> None:
    cache["network"] = True
    best = BACKBONES["cpu" if device == "cpu" else "other"][0]
    name, reason, found = choose({}, device)
    assert (name, found) == (best, True)
    assert "pretrained" in reason
    assert cache["asked"] == [best]  # nothing else is downloaded


def test_without_network_the_best_cached_one_is_taken(cache: dict[str, bool]) -> None:
    cache |= {"resnet50.tv_in1k": True, "resnet18.tv_in1k": True}
    assert choose({}) == ("resnet18.tv_in1k", "CPU, the best that is cached", True)
    assert choose({}, "cuda")[0] == "resnet50.tv_in1k"


def test_without_network_and_cache_the_first_choice_starts_at_random(cache: dict[str, bool]) -> None:
    assert choose({}) == (BACKBONES["cpu"][0], "CPU, no weights cached and no network", False)


def test_file_and_false_need_no_look_for_weights(cache: dict[str, bool]) -> None:
    assert choose({"pretrained": "weights.safetensors"})[2] is True
    assert choose({"pretrained": False})[2] is False
    assert choose({"model_name": "resnet18", "pretrained": True}) == ("", "", True)
    assert cache["asked"] == []


@pytest.mark.parametrize("options", [{"type": "timm", "model_name": "resnet18.tv_in1k"}, {"type": "swin"}], ids=str)
def test_named_backbone_is_pretrained_if_its_weights_can_be_had(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for found in (True, False):
        monkeypatch.setattr(facts, "can_be_had", lambda weights, found=found: found and weights is not None)
        expected = found and options["type"] == "timm"  # architecture fields have no published weights
        assert facts._backbone({**options, "pretrained": "auto", "freeze_norm": "auto"}, "cpu") == ("", "", expected)


def test_cache_is_looked_into_without_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(hub, "_answers", lambda address: pytest.fail("the network was asked"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    weights = PublishedWeights("timm/none-such-is-cached", "https://example.org/a/b-123.pth")
    assert not hub.is_cached(weights)
    assert not hub.is_cached(None)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "b-123.pth").write_bytes(b"")
    assert hub.is_cached(weights)
    assert hub.can_be_had(weights._replace(repo_id=None))


@pytest.mark.parametrize(
    ("task", "finds"), [("instance", "objects"), ("panoptic", "segments"), ("semantic", "classes")]
)
def test_facts_of_generated_scenes(task: Any, finds: str) -> None:
    options = {"type": "shapes", "image_size": 64, "num_train": 8, "num_val": 2, "max_objects": 3}
    config: DataConfig = from_dict(options, kind="data")
    device = Device(torch.device("cpu"), 2)
    found = gather({"backbone": {"type": "swin"}}, build_datamodule(config, task=task), device, fine_tunes=False)
    assert (found.num_train, found.num_val, found.short_edge, found.aspect) == (8, 2, 64, 1.0)
    assert (found.device, found.world_size, found.finds, found.pretrained) == ("cpu", 2, finds, False)
    assert 1 <= found.max_objects <= 5
    assert (found.object_size is None) == (task != "instance")
    assert found.object_size is None or 0.05 < found.object_size < 1


def test_device_is_what_lightning_makes_of_the_options() -> None:
    options = {"accelerator": "cpu", "devices": 2, "num_nodes": 3, "strategy": "ddp"}
    assert find_device(options) == Device(torch.device("cpu"), 6)
    with pytest.raises(ValueError, match=r"^trainer: "):
        find_device({"accelerator": "abacus"})
