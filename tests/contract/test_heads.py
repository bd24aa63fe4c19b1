"""What every mask head promises, and what MaskFormer's is."""

from typing import get_args

import pytest
import torch

from vision_stack.config import ConfigError, from_dict, registered
from vision_stack.heads import Head, MaskHeadConfig
from vision_stack.layers.position_encoding import sine_position_encoding
from vision_stack.structures import (
    DecodeOptions,
    FeatureSpec,
    ImageInfo,
    Instances,
    PanopticSegmentation,
    SemanticSegmentation,
    Task,
)

PIXEL_DECODER = (FeatureSpec("mask_features", 12, 4), FeatureSpec("stage4", 24, 32))
PYRAMID = tuple(FeatureSpec(f"p{i}", 20, 2**i) for i in range(2, 6))
TINY = {"num_queries": 7, "hidden_dim": 16, "ffn_dim": 32, "num_heads": 4}
SMALL = {  # three supervised predictions each
    "maskformer": {**TINY, "num_decoder_layers": 3},
    "mask2former": {**TINY, "num_decoder_layers": 2, "num_levels": 2},
}
MASK_HEADS = [name for name, config in registered("head").items() if issubclass(config, MaskHeadConfig)]
HEIGHT, WIDTH = 75, 101  # of the padded batch: no multiples of any stride


def build(name, specs, **options):
    torch.manual_seed(0)
    return from_dict({"type": name, **SMALL.get(name, {}), **options}, "head").build(specs, num_classes=3)


def specs_for(config):
    return PYRAMID[-1:] if config.tail else PYRAMID


def maps_of(specs):
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(2, s.channels, -(-HEIGHT // s.stride), -(-WIDTH // s.stride), generator=generator) for s in specs
    )


def targets_of(*counts):
    masks = [torch.zeros(n, HEIGHT, WIDTH, dtype=torch.bool) for n in counts]
    for m in masks:
        for i in range(len(m)):
            m[i, 10 * i : 10 * i + 20, 8 * i : 8 * i + 30] = True
    return [
        {"labels": torch.arange(n) % 3, "masks": m, "boxes": torch.zeros(n, 4)}
        for n, m in zip(counts, masks, strict=True)
    ]


@pytest.mark.parametrize("specs", [PIXEL_DECODER, PYRAMID], ids=["pixel_decoder", "pyramid"])
@pytest.mark.parametrize("name", MASK_HEADS)
def test_head_outputs_have_the_declared_shapes_in_train_and_eval(name, specs):
    head = build(name, specs)
    for mode in (True, False):
        outputs = head.train(mode)(maps_of(specs))
        channels = outputs.mask_embed.shape[-1]
        assert outputs.pred_logits.shape == (2, 7, 4)
        assert outputs.mask_features.shape == (2, channels, 19, 26)
        assert outputs.pred_masks.shape == (2, 7, 19, 26)
        assert outputs.aux_logits.shape == (2, 2, 7, 4)
        assert outputs.aux_mask_embed.shape == (2, 2, 7, channels)
        assert head.num_classes == 3


def test_maskformer_without_deep_supervision_gives_no_aux_and_the_same_last_layer():
    maps = maps_of(PIXEL_DECODER)
    with_aux, without = (build("maskformer", PIXEL_DECODER, deep_supervision=on).eval()(maps) for on in (True, False))
    assert without.aux_logits.shape == (0, 2, 7, 4)
    assert without.aux_mask_embed.shape[0] == 0
    torch.testing.assert_close(without.pred_logits, with_aux.pred_logits)
    torch.testing.assert_close(without.pred_masks, with_aux.pred_masks)


@pytest.mark.parametrize("specs", [PIXEL_DECODER, PYRAMID], ids=["pixel_decoder", "pyramid"])
@pytest.mark.parametrize("name", MASK_HEADS)
def test_head_loss_reaches_every_parameter_and_names_each_layer(name, specs):
    head = build(name, specs).train()
    losses = head.compute_loss(head(maps_of(specs)), targets_of(2, 0))
    assert {"loss_class", "loss_mask", "loss_dice", "loss_mask_0", "loss_mask_1"} <= losses.keys()
    total = sum(losses.values())
    assert total.ndim == 0
    total.backward()
    assert [k for k, p in head.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    idle = {k for k, p in head.named_parameters() if not p.grad.any()}
    # Queries start at zero, so the first self-attention mixes equal values; key biases are invisible to softmax.
    assert {k for k in idle if not k.startswith("layers.0.self_attn") and not k.endswith("k_proj.bias")} == set()


@pytest.mark.parametrize("name", MASK_HEADS)
@pytest.mark.parametrize("task", ["detection", "instance", "semantic", "panoptic"])
def test_head_decodes_for_each_of_its_tasks(name, task):
    head = build(name, PIXEL_DECODER).eval()
    infos = [ImageInfo(1, "a", (15, 20), (75, 100)), ImageInfo(2, "b", (30, 40), (60, 80))]
    options = DecodeOptions(threshold=0.0, is_thing=(True, True, False), masks="rle")
    with torch.inference_mode():
        found = list(head.predict(head(maps_of(PIXEL_DECODER)), infos, task, options))
    assert {type(each) for each in found} == {
        {"semantic": SemanticSegmentation, "panoptic": PanopticSegmentation}.get(task, Instances)
    }
    if task == "instance":
        assert all(isinstance(each.masks, list) and len(each.masks) == len(each) > 0 for each in found)
    if task == "detection":
        with torch.inference_mode():
            masked = list(head.predict(head(maps_of(PIXEL_DECODER)), infos, "instance", options))
        for ours, theirs in zip(found, masked, strict=True):
            assert ours.masks is None
            assert torch.equal(ours.boxes, theirs.boxes)


@pytest.mark.parametrize("name", registered("head"))
def test_head_decodes_for_just_the_tasks_that_its_config_says_and_refuses_others_in_one_line(name):
    config = registered("head")[name]()
    head = config.build(specs_for(config), num_classes=3)
    assert isinstance(head, Head)
    assert head.decoders.keys() == config.tasks
    for task in get_args(Task):
        if task in config.tasks:
            config.check_task(task)
        else:
            with pytest.raises(ConfigError, match=rf"^task: head={name} cannot be trained for {task}; use task="):
                config.check_task(task)


@pytest.mark.parametrize("name", registered("head"))
def test_head_names_the_rows_of_its_classes(name):
    config = registered("head")[name]()
    assert config.build(specs_for(config), num_classes=3).class_rows()  # testing.check_head looks at them


@pytest.mark.parametrize("name", MASK_HEADS)
def test_head_without_a_stride_4_map_fails_naming_parts_that_fit(name):
    with pytest.raises(ConfigError) as error:
        build(name, PYRAMID[1:])
    message = str(error.value)
    assert "stride 4" in message
    assert "(8, 16, 32)" in message
    assert "neck=" in message
    assert "resnet50" in message
    assert "\n" not in message


def test_mask2former_without_a_coarser_map_fails_naming_a_neck():
    with pytest.raises(ConfigError, match=r"needs maps coarser than stride 4 too, got \(4,\); use neck=fpn"):
        build("mask2former", PYRAMID[:1])


def test_mask2former_reads_the_coarsest_levels_first_and_no_more_than_asked_for():
    assert build("mask2former", PYRAMID, num_levels=3).level_indices == [3, 2, 1]
    assert build("mask2former", PYRAMID, num_levels=2).level_indices == [3, 2]


def test_maskformer_takes_mask_features_by_name_even_beside_another_stride_4_map():
    specs = (FeatureSpec("stage1", 8, 4), *PIXEL_DECODER)
    maps = maps_of(specs)
    assert build("maskformer", specs).eval()(maps).mask_features is maps[1]


def test_maskformer_mask_dim_unlike_the_necks_fails_naming_the_option():
    with pytest.raises(
        ConfigError, match=r"head\.mask_dim: 16 differs from the 12 channels .* set neck\.mask_channels"
    ):
        build("maskformer", PIXEL_DECODER, mask_dim=16)


def test_maskformer_mask_dim_on_a_plain_pyramid_is_that_of_the_projection():
    assert build("maskformer", PYRAMID, mask_dim=12)(maps_of(PYRAMID)).mask_features.shape[1] == 12


def test_maskformer_reads_the_coarsest_map_and_projects_only_other_widths():
    assert isinstance(build("maskformer", PIXEL_DECODER).input_projection, torch.nn.Conv2d)
    same = (PIXEL_DECODER[0], FeatureSpec("stage4", 16, 32))
    assert isinstance(build("maskformer", same).input_projection, torch.nn.Identity)


def test_maskformer_hidden_dim_that_heads_do_not_divide_fails():
    with pytest.raises(ConfigError, match="hidden_dim: 18 must be a multiple of 4 and of num_heads"):
        build("maskformer", PIXEL_DECODER, hidden_dim=18)


def test_sine_positions_cached_under_inference_mode_can_be_trained_with():
    with torch.inference_mode():
        sine_position_encoding(3, 5, 8, torch.device("cpu"))
    position = sine_position_encoding(3, 5, 8, torch.device("cpu"))
    weight = torch.ones(8, requires_grad=True)
    (weight * position).sum().backward()  # a product keeps its factors for the gradient, which inference tensors refuse
    torch.testing.assert_close(weight.grad, position.sum(0))


def test_sine_positions_compiled_equal_eager_and_leave_the_cache_usable():
    def encode(x):
        return x + sine_position_encoding(4, 7, 8, x.device, x.dtype)

    x = torch.zeros(28, 8)
    exported = torch.export.export(_Wrap(encode), (x,)).module()
    torch.testing.assert_close(exported(x), encode(x))


class _Wrap(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_sine_positions_channels_not_a_multiple_of_4_fails():
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        sine_position_encoding(2, 2, 6, torch.device("cpu"))


@pytest.mark.parametrize("specs", [PIXEL_DECODER, PYRAMID], ids=["pixel_decoder", "pyramid"])
@pytest.mark.parametrize("name", MASK_HEADS)
def test_head_with_mask_feature_pos_embed_tells_equal_pixels_apart_by_their_place(name, specs):
    constant = tuple(torch.ones_like(x) for x in maps_of(specs))
    for positions in (False, True):
        masks = build(name, specs, mask_feature_pos_embed=positions).eval()(constant).pred_masks
        assert (masks.flatten(2).std(2) > 1e-3).all() == positions


def test_head_with_mask_feature_pos_embed_on_unfit_mask_features_fails_in_one_line():
    specs = (FeatureSpec("mask_features", 10, 4), FeatureSpec("stage4", 24, 32))
    with pytest.raises(ConfigError, match=r"^head.mask_feature_pos_embed: .* multiple of 4 channels, not 10"):
        build("maskformer", specs, mask_feature_pos_embed=True)


@pytest.mark.parametrize("name", MASK_HEADS)
def test_head_with_pixel_ce_weight_trains_a_classifier_of_pixels(name):
    head = build(name, PYRAMID, loss={"pixel_ce_weight": 2.0})
    losses = head.compute_loss(head(maps_of(PYRAMID)), targets_of(2, 0))
    assert losses["loss_semantic"] > 0
    losses["loss_semantic"].backward()
    assert head.pixel_classifier.weight.grad.abs().sum() > 0
    assert "loss_semantic" not in build(name, PYRAMID).compute_loss(head(maps_of(PYRAMID)), targets_of(2, 0))
