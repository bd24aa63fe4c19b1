"""Backbones with windows, beside the tests of all families: images that are not square, selected stages, names."""

import copy

import pytest
import torch
import transformers
from family_parity import pair

from vision_stack.backbones.families.windowed_dinov2 import WindowedDinov2Config
from vision_stack.config import from_dict, to_dict
from vision_stack.weights.lw_detr_vit import convert_lw_detr_vit, export_lw_detr_vit
from vision_stack.weights.windowed_dinov2 import convert_windowed_dinov2, export_windowed_dinov2

NAME = "rf_detr_dinov2"


def plain_maps(ours, pixels):
    """Every map, window by window: each is cut out of the image's tokens, goes through the block, and is put back."""
    net, side = ours.net, ours.config.num_windows
    tokens, _ = ours.embed(pixels)
    height, width = (length // ours.config.patch_size for length in pixels.shape[-2:])
    grid = tokens[:, 1:].unflatten(1, (height, width))
    firsts = [[tokens[:, :1] for _ in range(side)] for _ in range(side)]
    cuts = [
        (a, b, slice(a * height // side, (a + 1) * height // side), slice(b * width // side, (b + 1) * width // side))
        for a in range(side)
        for b in range(side)
    ]
    yield grid
    for number, block in enumerate(net.blocks):
        sequences = [torch.cat([firsts[a][b], grid[:, rows, columns].flatten(1, 2)], 1) for a, b, rows, columns in cuts]
        if number in ours.config.window_block_indexes:
            outputs = [block(sequence) for sequence in sequences]
        else:
            outputs = block(torch.cat(sequences, 1)).chunk(len(sequences), 1)
        grid = grid.clone()
        for (a, b, rows, columns), output in zip(cuts, outputs, strict=True):
            firsts[a][b] = output[:, :1]
            grid[:, rows, columns] = output[:, 1:].unflatten(1, grid[:, rows, columns].shape[1:3])
        yield grid


@torch.no_grad()
@pytest.mark.parametrize("size", [(56, 112), (84, 28)])
def test_windowed_dinov2_windows_of_a_rectangle_are_rectangles(size):
    ours = copy.deepcopy(pair(NAME)[1]).double()
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for found, expected in zip(ours(pixels).feature_maps, plain_maps(ours, pixels), strict=True):
        torch.testing.assert_close(found, ours.net.norm(expected).permute(0, 3, 1, 2), rtol=0, atol=1e-9)


def test_windowed_dinov2_selected_stages_choose_the_blocks_that_see_the_whole_image():
    theirs = transformers.RfDetrDinov2Config(out_indices=[3, 6, 9, 12])
    config = WindowedDinov2Config(out_indices=[3, 6, 9, 12])
    assert list(config.window_block_indexes) == theirs.window_block_indexes == [0, 1, 2, 4, 5, 7, 8, 10, 11]
    config.out_indices = [12]  # of what is built, the windows stay
    assert list(config.window_block_indexes) == theirs.window_block_indexes
    assert from_dict(to_dict(config), "backbone") == config
    assert WindowedDinov2Config.from_transformers(theirs.to_dict()).window_block_indexes == config.window_block_indexes


@pytest.mark.parametrize(
    ("name", "convert", "export"),
    [
        ("rf_detr_dinov2", convert_windowed_dinov2, export_windowed_dinov2),
        ("lw_detr_vit", convert_lw_detr_vit, export_lw_detr_vit),
    ],
)
def test_windowed_backbone_names_hold_both_ways(name, convert, export):
    theirs, ours = pair(name)
    state = {key.removeprefix("net."): value for key, value in ours.state_dict().items()}
    of_files = export(state)
    back = convert(of_files)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    assert "encoder.layer.0.attention.attention.query.weight" in of_files  # as in the whole models' own files
    in_memory = {key: value for key, value in theirs.state_dict().items() if "mask_token" not in key}
    assert len(in_memory) == len(of_files)
    assert {key: x.shape for key, x in convert(in_memory).items()} == {key: x.shape for key, x in state.items()}
