"""`vision-stack backbones`: rows that match, true figures, lines that fit the terminal."""

from vision_stack.backbones import TimmBackboneConfig
from vision_stack.backbones.listing import print_backbones


def test_listing_filter_gives_the_rows_that_match_with_channels_strides_and_parameters(capsys):
    assert print_backbones("resnet18", width=80) == 2
    header, first, second, *rest = capsys.readouterr().out.splitlines()
    assert header.split() == ["backbone=", "channels", "strides", "M", "param.", "model"]
    backbone = TimmBackboneConfig("resnet18", out_strides=[4, 8, 16, 32]).build()
    millions = f"{sum(p.numel() for p in backbone.parameters()) / 1e6:.1f}"
    assert first.split() == ["resnet18", "64", "128", "256", "512", "4", "8", "16", "32", millions, "resnet18.tv_in1k"]
    assert second.startswith("resnet18d ")
    assert all(len(line) <= 80 for line in [header, first, second, *rest])


def test_listing_pattern_with_star_and_models_of_timm_without_yaml(capsys):
    assert print_backbones("test_res*", timm_models=True, width=60) >= 1
    out = capsys.readouterr().out
    assert "test_resnet" in out
    assert max(map(len, out.splitlines())) <= 60


def test_listing_no_match_prints_no_table(capsys):
    assert print_backbones("no_such_backbone", width=80) == 0
    assert capsys.readouterr().out.startswith("0 backbones\n")
