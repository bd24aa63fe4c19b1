"""`weights=` with another number of learnt queries, or of their groups: the first are kept, and the rest is said."""

from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from torch import Tensor, nn

from vision_stack import evaluate
from vision_stack.config import from_dict
from vision_stack.heads import Head
from vision_stack.heads.rf_detr import RFDETRHead
from vision_stack.model import VisionModel, VisionModelConfig
from vision_stack.training.start import Start, Transfer, transfer

SMALL = {"hidden_dim": 16, "num_heads": 2, "ffn_dim": 16, "num_decoder_layers": 2}
HEADS: dict[str, dict[str, Any]] = {
    "rf_detr": {**SMALL, "cross_heads": 2, "num_groups": 3},
    "deformable_detr": {**SMALL, "two_stage": False},
    "mask2former": {**SMALL, "num_levels": 2},
    "maskformer": SMALL,
    "eomt": {"num_blocks": 2},
}
TABLES = {
    "rf_detr": ["query_feat.weight", "reference_embed.weight"],
    "deformable_detr": ["query_embed.weight"],
    "mask2former": ["query_embed.weight", "query_feat.weight"],
    "maskformer": ["query_embed.weight"],
    "eomt": ["query_embed.weight"],
}
CONVNET = {"type": "timm", "model_name": "test_resnet", "out_strides": [4, 8, 16, 32]}
VIT = {"type": "vit", "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64}


def model(head: str, seed: int = 0, **options: Any) -> VisionModel:
    plain = {
        "backbone": VIT if head == "eomt" else CONVNET,
        "neck": {"type": "none"} if head == "eomt" else {"type": "fpn", "channels": 16},
        "head": {"type": head, "num_queries": 12, **HEADS[head], **options},
        "categories": [{"id": 1, "name": "ring"}, {"id": 2, "name": "disc"}],
        "task": "detection",
    }
    torch.manual_seed(seed)
    built = VisionModel(from_dict(plain, cls=VisionModelConfig))
    for name in TABLES[head]:  # some start at zero
        nn.init.normal_(built.head.get_parameter(name))
    return built.eval()


def start_of(source: VisionModel) -> Start:
    return Start("a model", source, {}, (), "detection")


def cut(source: VisionModel, head: str, **options: Any) -> tuple[VisionModel, dict[str, Tensor], Transfer]:
    """A model with other options that starts from the source, its own learnt queries before that, and the report."""
    started = model(head, seed=1, **options)
    fresh = {name: started.head.get_parameter(name).detach().clone() for name in TABLES[head]}
    return started, fresh, transfer(start_of(source), started)


@pytest.mark.parametrize("head", HEADS)
def test_fewer_queries_are_the_first_of_each_group(head: str) -> None:
    source = model(head)
    started, _, report = cut(source, head, num_queries=8)
    groups = 3 if head == "rf_detr" else 1
    assert report.cut == tuple(f"head.{name}" for name in TABLES[head])
    assert report.fresh == ()
    assert f"; queries: 8 of 12 kept{', per group' if groups > 1 else ''}" in f"{report};"
    for name in TABLES[head]:
        ours, theirs = started.head.get_parameter(name), source.head.get_parameter(name)
        for group in range(groups):
            assert torch.equal(ours[8 * group : 8 * group + 8], theirs[12 * group : 12 * group + 8]), (name, group)
        assert torch.equal(ours, theirs[: len(ours)]) == (groups == 1)  # that of all groups at once is something else


@pytest.mark.parametrize("head", HEADS)
def test_more_queries_than_there_are_leave_the_rest_fresh(head: str) -> None:
    source = model(head)
    started, fresh, report = cut(source, head, num_queries=15)
    assert "; queries: 12 of 12 kept, 3 more at random" in str(report)
    groups = 3 if head == "rf_detr" else 1
    for name in TABLES[head]:
        ours, own, theirs = (
            x.unflatten(0, (groups, -1))
            for x in (started.head.get_parameter(name), fresh[name], source.head.get_parameter(name))
        )
        assert torch.equal(ours[:, :12], theirs)
        assert torch.equal(ours[:, 12:], own[:, 12:])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_groups": 1}, "; queries: 12 of 12 kept, per group; groups: 1 of 3 kept"),
        ({"num_groups": 1, "num_queries": 5}, "; queries: 5 of 12 kept, per group; groups: 1 of 3 kept"),
        ({"num_groups": 9, "num_queries": 4}, "; queries: 4 of 12 kept, per group; groups: 3 of 3 kept, 6 more at ran"),
    ],
)
def test_other_groups_keep_the_first_with_their_selections(options: dict[str, int], said: str) -> None:
    source = model("rf_detr")
    started, fresh, report = cut(source, "rf_detr", **options)
    assert said in str(report)
    groups, kept = options["num_groups"], min(3, options["num_groups"])
    queries = options.get("num_queries", 12)
    for name in TABLES["rf_detr"]:  # nine groups of four queries are as many rows as three of twelve
        ours, own = (x.unflatten(0, (groups, -1)) for x in (started.head.get_parameter(name), fresh[name]))
        theirs = source.head.get_parameter(name).unflatten(0, (3, -1))
        assert torch.equal(ours[:kept], theirs[:kept, :queries])
        assert torch.equal(ours[kept:], own[kept:])
    selections = {name: value for name, value in started.head.state_dict().items() if name.startswith("selections.")}
    theirs_too = source.head.state_dict()
    for name, value in selections.items():
        if int(name.split(".")[1]) < kept:
            assert torch.equal(value, theirs_too[name]), name
        else:
            assert f"head.{name}" in report.fresh


def test_as_many_queries_and_groups_are_taken_over_as_they_are() -> None:
    source = model("rf_detr")
    _, _, report = cut(source, "rf_detr", num_decoder_layers=1)
    assert "head.query_feat.weight" in report.matched
    assert report.cut == report.queries == ()
    assert "queries" not in str(report)


def test_queries_of_another_width_start_at_random_by_name() -> None:
    _, _, report = cut(model("maskformer"), "maskformer", num_queries=8, hidden_dim=32)
    assert "head.query_embed.weight" in report.fresh
    assert report.cut == ()


def test_heads_that_say_nothing_of_their_queries_start_them_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RFDETRHead, "query_layers", Head.query_layers)
    source = model("rf_detr")
    _, _, report = cut(source, "rf_detr", num_queries=8)
    assert report.fresh == ("head.query_feat.weight", "head.reference_embed.weight")
    assert "head.query_feat.weight" in cut(source, "rf_detr")[2].matched


@pytest.mark.parametrize("head", ["rf_detr", "deformable_detr", "mask2former", "maskformer"])
def test_a_model_cut_to_eight_queries_predicts_what_the_first_eight_did(head: str) -> None:
    source = model(head)
    for name, parameter in source.head.named_parameters():
        if ".self_attn.out_proj" in name:  # queries hear nothing of one another, so that all else is equal
            nn.init.zeros_(parameter)
    started, _, _ = cut(source, head, num_queries=8)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, part = source(images), started(images)
    torch.testing.assert_close(part.pred_logits, whole.pred_logits[:, :8])
    name = "pred_masks" if head.startswith("mask") else "pred_boxes"
    torch.testing.assert_close(getattr(part, name), getattr(whole, name)[:, :8])
    assert part.pred_logits.std(1).min() > 0  # queries differ


def test_mask2former_cut_to_eight_queries_makes_the_same_first_prediction_of_them() -> None:
    source = model("mask2former")
    started, _, _ = cut(source, "mask2former", num_queries=8)
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, part = source(images), started(images)
    # Before the first layer queries have not heard of one another.
    torch.testing.assert_close(part.aux_logits[0], whole.aux_logits[0, :, :8])
    torch.testing.assert_close(part.aux_mask_embed[0], whole.aux_mask_embed[0, :, :8])
    assert not torch.allclose(part.pred_logits, whole.pred_logits[:, :8])


def test_run_with_fewer_queries_says_what_is_kept_and_is_evaluated(tmp_path: Path, capsys: Any) -> None:
    source = model("rf_detr")
    source.save_pretrained(tmp_path / "source")
    options = ["head.num_queries=8", "+head.num_groups=2", "task=detection", "optim.lr=1e-12", "trainer.max_steps=1"]
    tiny_run.train(tmp_path / "run", f"weights='{tmp_path / 'source'}'", *options)
    said = [line for line in capsys.readouterr().out.splitlines() if "tensors taken over" in line]
    assert len(said) == 1
    assert "; queries: 8 of 12 kept, per group; groups: 2 of 3 kept" in said[0]
    trained = VisionModel.from_pretrained(tmp_path / "run" / "checkpoints" / "best.ckpt")
    rows = torch.cat([source.head.query_feat.weight[first : first + 8] for first in (0, 12)])
    torch.testing.assert_close(trained.head.query_feat.weight, rows, rtol=0, atol=1e-9)  # a step at a rate of 1e-12
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert "bbox" in evaluate(checkpoint, run_dir=tmp_path / "eval", overrides=["num_pictures=0", "device=cpu"]).metrics
