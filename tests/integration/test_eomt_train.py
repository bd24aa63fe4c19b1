"""EoMT from the command line."""

from pathlib import Path

import tiny_run

from vision_stack.model import VisionModel


def test_trains_from_the_command_line_and_evaluates(tmp_path: Path) -> None:
    shape = ("hidden_size=32", "num_hidden_layers=3", "num_attention_heads=2", "intermediate_size=32", "image_size=64")
    tiny_run.train(
        tmp_path,
        "head=eomt",
        "neck=none",
        "backbone=vit",
        *(f"backbone.{option}" for option in shape),
        "head.num_blocks=2",
        "optim.layer_decay=0.8",
        "optim.backbone_lr_multiplier=1",
        "finetune.freeze_stages=1",
        "trainer.max_steps=2",
    )
    trained = VisionModel.from_pretrained(tmp_path / "checkpoints" / "last.ckpt")
    assert trained.head.mask_probability.tolist() == trained.head._probabilities
    assert trained.head.mask_probability[0] < 1  # progress was heard of
