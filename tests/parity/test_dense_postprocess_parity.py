"""Semantic and panoptic post-processing beside transformers' `Mask2FormerImageProcessor`, at its input size of 384.

Its semantic segmentation is the original repository's formula, so that the maps are equal. In its panoptic one it
resizes probabilities where the original resizes logits, so that borders differ by a pixel here and there, and leaves
no pixel without a segment.
"""

from types import SimpleNamespace

import pytest
import torch

from vision_stack.outputs import MaskOutputs
from vision_stack.postprocess import predict_panoptic, predict_semantic
from vision_stack.structures import ImageInfo

transformers = pytest.importorskip("transformers")

SIZE = (120, 160)
INFOS = [ImageInfo(image_id=n, file_name="", size=SIZE, input_size=(384, 384)) for n in range(2)]


@pytest.fixture(scope="module")
def outputs():
    """Two images, 30 queries with round masks of logits up to 6, a dozen of them sure of one of six classes."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    place = torch.rand(2, 30, 4, 1, 1, generator=generator)
    distance = ((y - 96 * place[:, :, 0]) / (10 + 24 * place[:, :, 2])) ** 2
    distance = distance + ((x - 96 * place[:, :, 1]) / (10 + 24 * place[:, :, 3])) ** 2
    logits = torch.randn(2, 30, 7, generator=generator)
    logits[:, :12] *= 8
    masks = (6 * (1 - distance)).clamp(min=-6)
    return MaskOutputs(logits, torch.eye(30).expand(2, 30, 30), masks, logits.new_zeros(0, 2, 30, 7), torch.zeros(0))


@pytest.fixture(scope="module")
def theirs(outputs):
    processor = transformers.Mask2FormerImageProcessor()
    named = SimpleNamespace(class_queries_logits=outputs.pred_logits, masks_queries_logits=outputs.pred_masks)
    return processor, named


def test_semantic_maps_equal_theirs(outputs, theirs):
    processor, named = theirs
    expected = processor.post_process_semantic_segmentation(named, target_sizes=[SIZE] * 2)
    for ours, their_map in zip(predict_semantic(outputs, INFOS), expected, strict=True):
        assert len(their_map.unique()) > 3
        # sums of fp32 in another order, where two classes score the same to six digits
        assert (ours.label_map == their_map).float().mean() > 0.999
        assert (ours.label_map.flip(1) == their_map).float().mean() < 0.9  # a mirrored map would be noticed


def test_panoptic_segments_agree_with_theirs(outputs, theirs):
    """With an overlap threshold of 0, since theirs counts other areas; and where ours has a segment, since theirs has
    no void: a pixel outside of its query's own mask is the segment's there, in the original repository nobody's."""
    processor, named = theirs
    expected = processor.post_process_panoptic_segmentation(
        named, threshold=0.8, overlap_mask_area_threshold=0.0, label_ids_to_fuse=set(), target_sizes=[SIZE] * 2
    )
    found = predict_panoptic(outputs, INFOS, [True] * 6, score_threshold=0.8, overlap_threshold=0.0)
    for ours, their in zip(found, expected, strict=True):
        infos = their["segments_info"]
        assert len(ours.labels) == len(infos) > 4
        assert ours.labels.tolist() == [info["label_id"] for info in infos]
        assert ours.scores.tolist() == pytest.approx([info["score"] for info in infos], abs=1e-5)  # theirs are rounded
        inside = ours.segment_map > 0
        same = ours.segment_map == their["segmentation"]
        assert same[inside].float().mean() > 0.99  # a rim of half a pixel of 96
        assert same.flip(1)[inside].float().mean() < 0.9
