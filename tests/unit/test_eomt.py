"""EoMT's annealing, and fine-tuning of the backbone whose last blocks the head runs."""

import copy
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vision_stack.config import ConfigError, from_dict
from vision_stack.heads import EoMTHeadConfig
from vision_stack.model import VisionModel, VisionModelConfig

BACKBONES: dict[str, dict[str, Any]] = {
    "vit": {"type": "vit", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 64},
    "timm_dinov2": {"type": "timm", "model_name": "vit_small_patch14_dinov2", "img_size": [56, 56]},
    "timm_eva02": {"type": "timm", "model_name": "eva02_tiny_patch14_224"},  # its only norm follows the pooling
    "timm_siglip": {"type": "timm", "model_name": "vit_base_patch16_siglip_224"},  # without a class token
}


def model(backbone: str = "vit", **head: Any) -> VisionModel:
    torch.manual_seed(0)
    plain = {
        "backbone": BACKBONES[backbone],
        "neck": {"type": "none"},
        "head": {"type": "eomt", "num_queries": 5, "num_blocks": 2, **head},
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    return VisionModel(from_dict(plain, cls=VisionModelConfig))


def losses(vision: VisionModel, size: tuple[int, int] = (75, 101)) -> torch.Tensor:
    masks = torch.zeros(1, *size, dtype=torch.bool)
    masks[:, 10:40, 20:60] = True
    target = {"labels": torch.zeros(1, dtype=torch.int64), "masks": masks, "boxes": torch.tensor([[20.0, 10, 60, 40]])}
    outputs = vision(torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)))
    return torch.stack(list(vision.head.compute_loss(outputs, [target, target]).values())).sum()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_any_plain_transformer_trains_all_its_parameters_at_any_size(backbone: str) -> None:
    vision = model(backbone).train()
    losses(vision).backward()
    assert [name for name, p in vision.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        layer = vision.eval()(torch.randn(1, 3, 61, 90)).last
    assert layer.mask_features.shape[-2:] == (16, 23)


def test_blocks_fade_one_after_the_other_and_eval_predicts_once_when_all_have() -> None:
    head = model(num_blocks=3).head
    expected = {0: [1, 1, 1], 20: [1, 1, 1], 30: [0.5**0.9, 1, 1], 50: [0, 0.5**0.9, 1], 80: [0, 0, 0], 100: [0, 0, 0]}
    for step, probabilities in expected.items():
        head.set_progress(step, 100)
        torch.testing.assert_close(head.mask_probability, torch.tensor(probabilities, dtype=torch.float32))
    head.set_progress(0, None)  # nobody knows the end: as it was
    assert not head.mask_probability.any()


def test_masks_go_query_by_query_with_the_probability() -> None:
    head = EoMTHeadConfig(num_queries=2000, num_blocks=1).build(model().backbone.out_specs, 2).train()
    embed, features = -torch.ones(1, 2000, 32), torch.ones(1, 32, 8, 12)
    for probability in (1.0, 0.3, 0.0):
        allowed = head._attend(embed, features, probability, (2, 3), 2000 + 1 + 6)
        free = allowed[0, 0, :2000, -6:]
        assert torch.equal(free.all(1), free.any(1))  # the whole query or none of it
        assert abs(float(free.all(1).float().mean()) - (1 - probability)) < 0.05
        assert allowed[0, 0, 2000:].all()
        assert allowed[0, 0, :, :2001].all()


def test_probabilities_are_stored_and_read_back() -> None:
    vision = model()
    vision.head.set_progress(1, 2)
    twin = model()
    twin.load_state_dict(vision.state_dict())
    assert twin.head._probabilities == vision.head.mask_probability.tolist() != [1.0, 1.0]


def test_probabilities_go_on_from_what_was_loaded_also_in_a_copy() -> None:
    vision, other = model(), model()
    copied = copy.deepcopy(vision)
    vision.head.set_progress(3, 4)
    expected = vision.head.mask_probability.clone()
    for loaded in (other, copied):
        loaded.head.set_progress(1, 2)  # others than those that are loaded
        loaded.load_state_dict(model().state_dict())
        assert loaded.head._probabilities == [1.0, 1.0]
        assert vision.head._probabilities != [1.0, 1.0]
        loaded.head.set_progress(3, 4)
        assert torch.equal(loaded.head.mask_probability, expected)


def test_probabilities_are_written_where_they_change_and_nothing_is_copied_from_the_host() -> None:
    class Writes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    head = model(num_blocks=3).head
    written = []
    for step in (0, 20, 30, 30, 50, 100, 100):
        seen: list[str] = []
        with Writes():
            head.set_progress(step, 100)
        assert set(seen) <= {"select", "fill_"}
        written.append(seen.count("fill_"))
    assert written == [0, 0, 1, 0, 2, 2, 0]


def test_without_masked_attention_only_the_last_prediction_is_supervised() -> None:
    vision = model(masked_attention=False).train()
    assert len(vision(torch.randn(1, 3, 64, 64)).layers) == 1


def test_freezing_checkpointing_and_layer_groups_reach_the_blocks_that_the_head_runs() -> None:
    vision = model().train()
    groups = vision.backbone.layer_groups()
    assert any("net.blocks.3.attn.qkv.weight" in group for group in groups)
    assert {name for group in groups for name in group} == {name for name, _ in vision.backbone.named_parameters()}
    expected = torch.autograd.grad(losses(vision), vision.backbone.net.blocks[3].attn.qkv.weight)[0]
    torch.manual_seed(0)
    assert "net.blocks.3" in vision.backbone.enable_gradient_checkpointing()
    torch.manual_seed(0)
    vision.head.set_progress(0, 100)
    found = torch.autograd.grad(losses(vision), vision.backbone.net.blocks[3].attn.qkv.weight)[0]
    assert found.shape == expected.shape
    assert found.any()
    vision.backbone.freeze_stages(5)
    assert not any(p.requires_grad for p in vision.backbone.net.blocks.parameters())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"anneal_start": (0.1,)}, "anneal_start: one entry for each of the 4 num_blocks, got 1"),
        ({"anneal_start": (0.5,) * 4, "anneal_end": (0.4,) * 4}, "anneal_end: a block that starts at 0.5"),
    ],
)
def test_annealing_that_cannot_be_is_one_line(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        EoMTHeadConfig(**options)
