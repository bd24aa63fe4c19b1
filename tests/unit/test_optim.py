import pytest
import torch
from torch import nn

from vision_stack.config import ConfigError
from vision_stack.training.optim import OptimConfig, build_optimizer, lr_factor, parameter_groups


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.qkv = nn.Linear(4, 12)
        self.norm = nn.LayerNorm(4)


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.attention = Attention()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.query_embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 2)


def names_of(model: nn.Module, group: dict) -> set[str]:
    ids = {id(p) for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in ids}


def test_parameter_groups_only_weights_of_layers_are_decayed() -> None:
    model = Model()
    groups = {g["name"]: g for g in parameter_groups(model, OptimConfig(weight_decay=0.05))}
    assert names_of(model, groups["backbone"]) == {"backbone.conv.weight", "backbone.attention.qkv.weight"}
    assert names_of(model, groups["rest"]) == {"head.weight"}
    assert names_of(model, groups["rest_undecayed"]) == {"query_embed.weight", "head.bias"}
    assert "backbone.attention.relative_position_bias_table" in names_of(model, groups["backbone_undecayed"])
    assert "backbone.pos_embed" in names_of(model, groups["backbone_undecayed"])
    assert {g["weight_decay"] for n, g in groups.items() if n.endswith("undecayed")} == {0.0}
    assert groups["rest"]["weight_decay"] == 0.05


def test_parameter_groups_every_trainable_parameter_is_in_one_group_and_frozen_in_none() -> None:
    model = Model()
    model.backbone.conv.weight.requires_grad_(False)
    grouped = [id(p) for g in parameter_groups(model, OptimConfig()) for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_build_optimizer_backbone_rate_is_multiplied() -> None:
    optimizer = build_optimizer(Model(), OptimConfig(lr=1e-3, backbone_lr_multiplier=0.1))
    rates = {g["name"]: g["lr"] for g in optimizer.param_groups}
    assert rates["backbone"] == rates["backbone_undecayed"] == pytest.approx(1e-4)
    assert rates["rest"] == 1e-3


def test_build_optimizer_undecayed_parameter_without_gradient_signal_stays_and_decayed_shrinks() -> None:
    model = Model()
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(model.query_embed.weight, before["query_embed.weight"])
    torch.testing.assert_close(model.head.weight, before["head.weight"] * (1 - 0.1 * 0.5))


def test_lr_factor_warm_up_is_linear_and_ends_at_one() -> None:
    factor = lr_factor(OptimConfig(schedule="constant", warmup_steps=10, warmup_factor=0.0), None)
    assert [factor(s) for s in (0, 5, 10, 1000)] == [0.0, 0.5, 1.0, 1.0]


def test_lr_factor_cosine_and_poly_end_at_their_minimum() -> None:
    for schedule, middle in (("cosine", 0.55), ("poly", 0.1 + 0.9 * 0.5**0.9)):
        factor = lr_factor(OptimConfig(schedule=schedule, warmup_steps=20, min_lr_factor=0.1), 120)
        assert factor(20) == pytest.approx(1.0)
        assert factor(70) == pytest.approx(middle)
        assert factor(120) == factor(500) == pytest.approx(0.1)


def test_lr_factor_hold_fraction_is_constant_before_the_cosine_which_ends_where_it_did() -> None:
    factor = lr_factor(OptimConfig(schedule="cosine", warmup_steps=20, min_lr_factor=0.5, hold_fraction=0.5), 120)
    assert factor(20) == factor(70) == 1.0
    assert factor(95) == pytest.approx(0.75)
    assert factor(120) == pytest.approx(0.5)


def test_lr_factor_of_deim_rises_as_a_square_and_has_fallen_before_the_end() -> None:
    options = {"warmup_steps": 20, "warmup_factor": 0.0, "warmup_power": 2.0, "min_lr_factor": 0.5}
    factor = lr_factor(OptimConfig(schedule="cosine", hold_fraction=0.5, fall_until=0.9, **options), 120)
    assert [factor(5), factor(10), factor(20), factor(70)] == [0.0625, 0.25, 1.0, 1.0]
    assert factor(90) == pytest.approx(0.75)  # in the middle between 70 and 110
    assert factor(110) == factor(115) == factor(120) == pytest.approx(0.5)


def test_fall_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"fall_until: 0\.3 comes before hold_fraction, 0\.5; raise it"):
        OptimConfig(hold_fraction=0.5, fall_until=0.3).check()


def test_lr_factor_milestones_are_fractions_or_steps() -> None:
    by_fraction = lr_factor(OptimConfig(schedule="step", milestones=(0.5, 0.75)), 100)
    by_step = lr_factor(OptimConfig(schedule="step", milestones=(50, 75)), None)
    for factor in (by_fraction, by_step):
        assert [factor(s) for s in (49, 50, 74, 75)] == pytest.approx([1.0, 0.1, 0.1, 0.01])


def test_lr_factor_unknown_end_of_run_says_which_option_to_give() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.max_steps or trainer\.max_epochs"):
        lr_factor(OptimConfig(schedule="cosine"), None)


def test_optim_config_milestones_out_of_order_is_an_error() -> None:
    with pytest.raises(ConfigError, match="milestones: must increase"):
        OptimConfig(milestones=(0.9, 0.5))
