"""What fine-tuning asks of every backbone, on one small member of each kind."""

import copy

import pytest
import torch
from torch import nn

from vision_stack.backbones import Backbone, TimmBackboneConfig, TorchvisionBackboneConfig
from vision_stack.backbones.families import SwinConfig
from vision_stack.config import ConfigError
from vision_stack.structures import FeatureSpec
from vision_stack.training.finetune import FinetuneConfig, check_stages_known
from vision_stack.training.optim import OptimConfig, parameter_groups

SWIN = "swin_tiny_patch4_window7_224"
# Each: config, its stages, layers of timm's grouping (of torchvision's models: stages).
CASES = {
    "resnet": (
        TimmBackboneConfig("test_resnet", out_strides=[4, 8, 16], drop_path_rate=0.5),
        ["stem", "layer1", "layer2", "layer3"],
        4,
    ),
    "swin": (
        TimmBackboneConfig(SWIN, out_strides=[4, 8], drop_path_rate=0.5, out_norms=True),
        ["stem", "layers.0", "layers.1"],
        5,
    ),
    "convnext": (
        TimmBackboneConfig("test_convnext", out_strides=[4, 8, 16], drop_path_rate=0.5),
        ["stem", "stages.0", "stages.1", "stages.2"],
        8,
    ),
    "vit": (
        TimmBackboneConfig("test_vit", drop_path_rate=0.5),
        ["stem", *(f"blocks.{i}" for i in range(6))],
        7,
    ),
    "mobilenet": (  # its first stage in timm's list is the norm of its stem
        TimmBackboneConfig("mobilenetv4_conv_small_050", out_strides=[4, 8], drop_path_rate=0.5),
        ["stem", "blocks.0", "blocks.1"],
        5,
    ),
    "torchvision": (
        TorchvisionBackboneConfig("efficientnet_b0", out_strides=[4, 8], drop_path_rate=0.5),
        ["stem", "stage1", "stage2", "stage3"],
        4,
    ),
    "family": (
        SwinConfig(embed_dim=24, depths=(1, 1), num_heads=(2, 4), drop_path_rate=0.5, out_indices=[1, 2]),
        ["stem", "stage1", "stage2"],
        3,
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    config, stages, layers = CASES[request.param]
    torch.manual_seed(0)
    return config.build().train(), stages, layers


def images(batch=4):
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def backward(backbone, seed=2):
    torch.manual_seed(seed)  # of the stochastic depth
    backbone.zero_grad()
    # A weighted sum: the sum of a normalised map has no gradient.
    maps = backbone(images()).feature_maps
    sum((x * torch.linspace(-1, 1, x.shape[1])[:, None, None]).square().mean() for x in maps).backward()
    return maps


def published_names(backbone):
    return {name for name, _ in backbone.named_parameters() if not name.startswith(backbone.own_prefixes)}


def test_stage_groups_hold_every_published_parameter_once(case):
    backbone, stages, _ = case
    groups = backbone.stage_groups()
    assert [group.name for group in groups] == stages
    names = [name for group in groups for name in group.parameters]
    assert len(names) == len(set(names))
    assert set(names) == published_names(backbone)
    assert all(group.parameters for group in groups)


def test_layer_groups_hold_every_published_parameter_once_from_the_input_on(case):
    backbone, _, layers = case
    groups = backbone.layer_groups()
    assert len(groups) == layers
    names = [name for group in groups for name in group]
    assert len(names) == len(set(names))
    assert set(names) == published_names(backbone)
    stage_of = {name: i for i, group in enumerate(backbone.stage_groups()) for name in group.parameters}
    deepest = [max(stage_of[name] for name in group) for group in groups]
    assert deepest == sorted(deepest)
    assert stage_of[groups[0][0]] == 0


def test_freeze_stages_frozen_ones_have_no_gradient_others_do(case):
    backbone, *_ = case
    backbone.freeze_stages(2)
    backward(backbone)
    frozen = {name for group in backbone.stage_groups()[:2] for name in group.parameters}
    assert {name for name, p in backbone.named_parameters() if p.grad is None} == frozen


def test_freeze_stages_survive_train_with_statistics_and_without_drop_path(case):
    backbone, *_ = case
    backbone.freeze_stages(2)
    backbone.eval()
    backbone.train()
    before = copy.deepcopy(backbone.state_dict())
    outputs = []
    for seed in (1, 2):
        maps = backward(backbone, seed)
        outputs.append(maps[0] if len(maps) > 1 else backbone.net.model.blocks[0](torch.ones(4, 17, 64)))
    if backbone.norms is None:  # norms of maps are trained
        assert torch.equal(*outputs)  # of a frozen stage: the same whatever the seed of stochastic depth
    groups = backbone.stage_groups()
    for name, module in backbone.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            frozen = any(name in group.modules for group in groups[:2])
            assert torch.equal(module.running_mean, before[f"{name}.running_mean"]) == frozen, name
    assert not any(backbone.get_submodule(name).training for group in groups[:2] for name in group.modules)
    assert all(backbone.get_submodule(name).training for group in groups[2:] for name in group.modules)


def test_freeze_stages_fewer_thaws_the_others_but_what_was_never_trained(case):
    backbone, *_ = case
    fixed = next(iter(backbone.parameters())).requires_grad_(False)
    backbone.freeze_stages(3)
    backbone.freeze_stages(1)
    frozen = set(backbone.stage_groups()[0].parameters)
    assert {name for name, p in backbone.named_parameters() if not p.requires_grad} == frozen
    backbone.freeze_stages(0)
    assert [p is fixed for p in backbone.parameters() if not p.requires_grad] == [True]
    assert all(module.training for module in backbone.modules())


def test_freeze_stages_more_than_there_are_says_which_there_are():
    backbone = CASES["resnet"][0].build()
    with pytest.raises(ValueError, match=r"finetune\.freeze_stages: 5 .*4: stem, layer1, layer2, layer3$"):
        backbone.freeze_stages(5)


def test_gradient_checkpointing_same_gradients_and_statistics_with_less_kept(case):
    plain, *_ = case
    sparing = copy.deepcopy(plain)
    assert len(sparing.enable_gradient_checkpointing()) >= 2
    sparing = copy.deepcopy(sparing)  # as the average of weights does
    kept = []
    for backbone in (plain, sparing):
        count = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, count=count: (count.append(t.numel()), t)[1], lambda t: t
        ):
            backward(backbone)
        kept.append(sum(count))
    assert kept[1] < 0.9 * kept[0]  # in networks this small the stem, which is not recomputed, has most of them
    for (name, p), q in zip(plain.named_parameters(), sparing.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name  # the same operations in the same order
    for (name, x), y in zip(plain.state_dict().items(), sparing.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


def test_gradient_checkpointing_of_frozen_stages_leaves_them_frozen(case):
    backbone, *_ = case
    backbone.enable_gradient_checkpointing()
    backbone.freeze_stages(2)
    backward(backbone)
    frozen = {name for group in backbone.stage_groups()[:2] for name in group.parameters}
    assert {name for name, p in backbone.named_parameters() if p.grad is None} == frozen


def test_layer_decay_rates_fall_towards_the_input(case):
    backbone, _, layers = case
    model = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(2, 2)})
    config = OptimConfig(lr=1.0, backbone_lr_multiplier=0.5, layer_decay=0.8)
    rates = {id(p): group["lr"] for group in parameter_groups(model, config) for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    for i, layer in enumerate(backbone.layer_groups()):
        for name in layer:
            assert rates[id(backbone.get_parameter(name))] == pytest.approx(0.5 * 0.8 ** (layers - i)), name
    assert rates[id(model["head"].weight)] == 1.0
    if backbone.norms is not None:
        assert rates[id(backbone.norms[0].weight)] == 0.5


class Plain(Backbone):
    """A backbone whose stages are in no list."""

    class config:
        out_specs = (FeatureSpec("a", 4, 2),)
        type = "plain"

    def __init__(self):
        super().__init__(self.config)
        self.first = nn.Conv2d(3, 4, 3, stride=2)


def test_backbone_that_does_not_say_its_stages_is_told_how():
    for ask in (Plain().stage_groups, lambda: Plain().freeze_stages(1), Plain().enable_gradient_checkpointing):
        with pytest.raises(ValueError, match=r"Plain .* define `stage_modules\(\)`"):
            ask()


@pytest.mark.parametrize(
    ("options", "layer_decay", "line"),
    [
        ({"freeze_stages": 1}, 1.0, "finetune.freeze_stages: the stages of Conv2d are not known"),
        ({"gradient_checkpointing": True}, 1.0, "finetune.gradient_checkpointing: the stages of Conv2d"),
        ({}, 0.8, "optim.layer_decay: the stages of Conv2d"),
    ],
)
def test_module_that_is_no_backbone_is_refused_only_by_options_that_go_by_its_stages(options, layer_decay, line):
    foreign = nn.Conv2d(3, 8, 4, stride=4)
    with pytest.raises(ConfigError, match=line):
        check_stages_known(foreign, FinetuneConfig(**options), layer_decay)
    check_stages_known(foreign, FinetuneConfig(), 1.0)
    check_stages_known(CASES["resnet"][0].build(), FinetuneConfig(**options), layer_decay)


def test_finetune_config_equal_parts_thaw_at_each_epoch():
    backbone = CASES["resnet"][0].build()

    def frozen(**options):
        return [FinetuneConfig(**options).frozen_stages(epoch, backbone) for epoch in range(5)]

    assert frozen() == [0, 0, 0, 0, 0]
    assert frozen(freeze_stages=3) == [3, 3, 3, 3, 3]
    assert frozen(freeze_stages="all", unfreeze_epochs=(2,)) == [4, 4, 0, 0, 0]
    assert frozen(freeze_stages=3, unfreeze_epochs=(1, 2, 3)) == [3, 2, 1, 0, 0]
    assert frozen(freeze_stages=3, unfreeze_epochs=(1, 3)) == [3, 2, 2, 0, 0]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"unfreeze_epochs": (1,)}, "unfreeze_epochs: nothing is frozen; give freeze_stages"),
        ({"freeze_stages": 2, "unfreeze_epochs": (2, 2)}, "unfreeze_epochs: must increase"),
        ({"freeze_stages": -1}, "freeze_stages: -1 is outside"),
    ],
)
def test_finetune_config_what_makes_no_sense_is_one_line(options, line):
    with pytest.raises(ConfigError) as error:
        FinetuneConfig(**options)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
