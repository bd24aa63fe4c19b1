"""What heads of the DETR family share: padding, predictions, small images, precision, refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch

from vision_stack.config import ConfigError, from_dict
from vision_stack.heads.detr import DETRHead, image_sizes_of
from vision_stack.model import VisionModel, VisionModelConfig
from vision_stack.ops.box_edges import bin_values, move_edges
from vision_stack.outputs import BoxOutputs
from vision_stack.structures import DecodeOptions, Features, FeatureSpec, ImageInfo, Target

SPECS = tuple(FeatureSpec(f"p{i}", 16, 2**i) for i in (3, 4, 5))
SMALL = {"num_queries": 6, "hidden_dim": 16, "ffn_dim": 32, "num_heads": 4, "num_decoder_layers": 2}
HEADS: dict[str, dict[str, Any]] = {
    "deformable_detr": {"type": "deformable_detr", **SMALL},
    "deformable_detr, learnt queries": {"type": "deformable_detr", "two_stage": False, **SMALL},
    "rt_detr": {"type": "rt_detr", **SMALL},
    "d_fine": {"type": "d_fine", **SMALL},
    "deimv2": {"type": "deimv2", **SMALL},
}


def build(name: str, **options: Any) -> DETRHead:
    torch.manual_seed(0)
    head: DETRHead = from_dict({**HEADS[name], **options}, "head").build(SPECS, 3)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return head.eval()


def features(size: tuple[int, int], dtype: torch.dtype = torch.float32) -> Features:
    generator = torch.Generator().manual_seed(1)
    maps = (
        torch.randn(1, s.channels, *(-(-n // s.stride) for n in size), generator=generator).to(dtype) for s in SPECS
    )
    return Features(tuple(maps), size, (size,))


@pytest.mark.parametrize("name", HEADS)
def test_image_that_is_padded_has_the_outputs_of_itself_alone(name: str) -> None:
    head, alone = build(name).double(), features((96, 160), torch.float64)
    padded = []
    for x in alone.maps:
        filled = torch.full((2, x.shape[1], 2 * x.shape[2], 2 * x.shape[3]), 3.0, dtype=torch.float64)
        filled[0, :, : x.shape[2], : x.shape[3]] = x[0]
        padded.append(filled)
    batch = Features(tuple(padded), (192, 320), ((96, 160), (192, 320)))
    with torch.no_grad():
        expected, found = head(alone), head(batch)
    assert expected.pred_boxes.std() > 0.05
    torch.testing.assert_close(found.pred_logits[:1], expected.pred_logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.pred_boxes[:1], expected.pred_boxes, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", HEADS)
def test_boxes_are_precise_in_bfloat16(name: str) -> None:
    """bfloat16 would round shares of an image of 1,024 pixels to multiples of 4 pixels."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = build(name)(features((256, 256), torch.bfloat16))
    assert outputs.pred_boxes.dtype == torch.float32
    assert (outputs.pred_boxes != outputs.pred_boxes.bfloat16()).float().mean() > 0.9


@pytest.mark.parametrize("name", HEADS)
def test_image_with_fewer_cells_than_queries_trains_and_predicts(name: str) -> None:
    head, small = build(name, num_queries=60).train(), features((64, 32))
    target: Target = {"labels": torch.tensor([1]), "boxes": torch.tensor([[4.0, 4.0, 20.0, 30.0]])}
    losses = head.compute_loss(head(small, [target]), [target])
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in head.parameters())
    with torch.no_grad():
        (found,) = head.eval().predict(head(small), [ImageInfo(0, "", (64, 32), (64, 32))], "detection")
    assert found.masks is None


def test_best_pairs_of_query_and_class_are_in_pixels_of_the_image_clipped() -> None:
    head = build("rt_detr")
    logits = torch.full((1, 2, 3), -9.0)
    logits[0, 0], logits[0, 1, 2] = torch.tensor([2.0, 1.0, -9.0]), 3.0
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.2], [0.1, 0.9, 0.4, 0.4]]])
    outputs = BoxOutputs(logits, boxes, logits[None][:0], boxes[None][:0], torch.tensor([[50.0, 25.0]]))
    info = ImageInfo(0, "", (200, 400), (25, 50))
    (found,) = head.predict(outputs, [info], "detection", DecodeOptions(threshold=0.5))
    assert found.labels.tolist() == [2, 0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0, 1.0]).sigmoid())
    expected = [[0.0, 140.0, 120.0, 200.0], [100.0, 80.0, 300.0, 120.0], [100.0, 80.0, 300.0, 120.0]]
    torch.testing.assert_close(found.boxes, torch.tensor(expected))
    (few,) = head.predict(outputs, [info], "detection", DecodeOptions(threshold=0.0, top_k=2, masks="rle"))
    assert few.labels.tolist() == [2, 0]
    head.max_objects = 1
    (one,) = head.predict(outputs, [info], "detection", DecodeOptions(threshold=0.0))
    assert one.labels.tolist() == [2]


def test_sizes_of_images_are_those_without_padding_or_of_the_batch() -> None:
    maps = features((64, 96)).maps
    assert image_sizes_of(Features(maps, (64, 96), ((50, 90),))).tolist() == [[90.0, 50.0]]
    assert image_sizes_of(Features(maps, (64, 96))).tolist() == [[96.0, 64.0]]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"hidden_dim": 18}, "hidden_dim: 18 must be a multiple of 4 and of num_heads"),
        ({"with_box_refine": False}, "two_stage: needs with_box_refine; set head.with_box_refine=true"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        build("deformable_detr", **options)


def test_head_without_coarse_maps_names_necks_and_backbones_that_have_them() -> None:
    with pytest.raises(
        ConfigError, match=r"head: rt_detr needs maps at stride 8 or coarser, got \(4,\); .*neck=simple"
    ):
        from_dict(HEADS["rt_detr"], "head").build((FeatureSpec("stage1", 8, 4),), 3)


def test_numbers_of_points_that_are_not_of_the_maps_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"head.num_points: \[3, 6\] is of 2 maps, .* \(8, 16, 32\) .*=auto"):
        build("d_fine", num_points=[3, 6])
    head = from_dict(HEADS["d_fine"], "head").build((FeatureSpec("p4", 16, 16),), 3)
    assert head.layers[0].cross_attn.num_points == (4,)


@pytest.mark.parametrize("name", ["d_fine", "deimv2"])
def test_edges_are_moved_by_precise_means_in_bfloat16(name: str) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = build(name).train()(features((256, 256), torch.bfloat16))
    edges = outputs.edges
    moves = (edges.logits[-1].double().softmax(-1) * bin_values(4.0, edges.boxes.double())).sum(-1)
    expected = move_edges(edges.boxes.double(), moves)
    torch.testing.assert_close(outputs.pred_boxes.double(), expected, rtol=1e-5, atol=1e-5)  # float32


TASKS = {"detection": False, "instance": True}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("task", TASKS)
def test_masks_follow_the_task_of_the_model(name: str, task: str) -> None:
    plain = {
        "backbone": {"type": "timm", "model_name": "test_resnet"},
        "neck": {"type": "fpn"},
        "head": HEADS[name],
        "categories": [{"id": 1, "name": "a"}],
        "task": task,
    }
    config = from_dict(plain, cls=VisionModelConfig)
    assert config.head.masks is config.head.reads_masks is TASKS[task]
    assert config.neck.finest_stride == (4 if TASKS[task] else 8)  # masks have stride 4
    with pytest.raises(ConfigError, match=r"^head.masks: task=instance needs them; set head.masks=true, or use task="):
        from_dict({**plain, "task": "instance", "head": {**HEADS[name], "masks": False}}, cls=VisionModelConfig)
    head = build(name)
    assert head.masks is None
    with pytest.raises(ConfigError, match=r"^head\.masks: .* build the head with masks=True"):
        next(head.predict(head(features((64, 64))), [ImageInfo(0, "", (64, 64), (64, 64))], "instance"))


@pytest.mark.parametrize("name", HEADS)
def test_masks_change_neither_boxes_nor_classes(name: str) -> None:
    plain, masked = build(name), build(name, masks=True)
    masked.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        expected, found = plain(features((64, 96))), masked(features((64, 96)))
    assert torch.equal(found.pred_logits, expected.pred_logits)
    assert torch.equal(found.pred_boxes, expected.pred_boxes)
    assert expected.masks is None
    assert found.masks.embed.shape == (1, 1, 6, 17)  # of the last layer alone, with the scalar
    assert found.masks.features.shape == (1, 1, 17, 16, 24)


def test_masks_are_made_of_a_map_of_their_stride_where_there_is_one() -> None:
    config = from_dict({**HEADS["rt_detr"], "masks": True}, "head")
    finer = (FeatureSpec("p2", 8, 4), *SPECS)
    head = config.build(finer, 3).eval()
    coarse = features((64, 64))
    maps = tuple(torch.randn(1, 8, 16, 16, requires_grad=True) if n < 0 else coarse.maps[n] for n in range(-1, 3))
    head(Features(maps, (64, 64), ((64, 64),))).masks.features.sum().backward()
    assert maps[0].grad is not None
    assert config.build(SPECS, 3).mask_map is None


@pytest.mark.parametrize("name", HEADS)
def test_each_layer_has_losses_of_masks_but_the_first_box_and_noised_objects_have_none(name: str) -> None:
    head, image = build(name, masks=True).train(), features((64, 64))
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[:, 8:40, 8:40] = True
    target: Target = {"labels": torch.tensor([1]), "boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "masks": masks}
    losses = head.compute_loss(head(image, [target]), [target])
    number = 1 if name in ("d_fine", "deimv2") else 0  # 0 is the first box, before its edges are distributions
    assert {key for key in losses if "mask" in key or "dice" in key} == {
        "loss_mask", "loss_dice", f"loss_mask_{number}", f"loss_dice_{number}"
    }  # fmt: skip
    assert f"loss_bbox_{number}" in losses
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert head.masks is not None
    for key, parameter in head.masks.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.any(), key


def test_masks_that_transformers_does_not_have_are_not_written_for_it(tmp_path: Path) -> None:
    small = {"num_heads": 4, "ffn_dim": 16}
    plain = {
        "backbone": {"type": "timm", "model_name": "test_resnet"},
        "neck": {"type": "hybrid_encoder", "channels": 16, "num_blocks": 1, **small},
        "head": HEADS["rt_detr"],
        "categories": [{"id": 1, "name": "a"}],
    }
    model = VisionModel(from_dict(plain, cls=VisionModelConfig))
    with pytest.raises(ConfigError, match=r"^head.masks: transformers' rt_detr has none; .* head.masks=false"):
        model.export_transformers(tmp_path)
    model.eval().save_pretrained(tmp_path)
    again = VisionModel.from_pretrained(tmp_path)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = (each(image).masks for each in (model, again))
    assert expected is not None
    assert torch.equal(found.embed @ found.features.flatten(3), expected.embed @ expected.features.flatten(3))


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("name", ["deformable_detr", "d_fine"])
def test_matching_changes_when_the_training_has_come_so_far(name: str, masks: bool) -> None:
    found = features((64, 96))
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0], [20.0, 4.0, 90.0, 60.0], [30.0, 20.0, 70.0, 64.0]])
    target: Target = {"labels": torch.tensor([0, 2, 1]), "boxes": boxes, "masks": torch.zeros(3, 64, 96) > 0}

    def loss(step: int, total: int | None, **options: float) -> float:
        head = build(name, masks=masks, loss=options).train()
        head.set_progress(step, total)
        torch.manual_seed(2)
        return float(torch.stack(list(head.compute_loss(head(found, [target]), [target]).values())).sum())

    assert loss(9, 10) == loss(0, 10) == loss(9, 10, quality_cost_from=0.95) == loss(9, None, quality_cost_from=0.5)
    assert loss(9, 10, quality_cost_from=0.9) != loss(8, 10, quality_cost_from=0.9)
