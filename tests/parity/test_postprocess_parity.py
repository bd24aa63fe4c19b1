"""Instance post-processing beside transformers' `MaskFormerImageProcessor`.

transformers thresholds the masks at low resolution and enlarges them by nearest neighbour; we enlarge the logits and
threshold last. Candidates and class probabilities are the same, so with its masks the results are equal, and with ours
the masks differ by a rim of a few pixels.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from vision_stack.outputs import MaskOutputs
from vision_stack.postprocess import predict_instances
from vision_stack.postprocess.instance import _candidates
from vision_stack.structures import ImageInfo

transformers = pytest.importorskip("transformers")

SIZE = (240, 320)


@pytest.fixture(scope="module")
def outputs():
    """Two images, 40 queries with round masks of logits up to 6, a dozen of them sure of their class."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    place = torch.rand(2, 40, 4, 1, 1, generator=generator)
    distance = ((y - 48 * place[:, :, 0]) / (5 + 12 * place[:, :, 2])) ** 2
    distance = distance + ((x - 48 * place[:, :, 1]) / (5 + 12 * place[:, :, 3])) ** 2
    masks = (6 * (1 - distance)).clamp(min=-6)
    logits = torch.randn(2, 40, 6, generator=generator)
    logits[:, :12] *= 8
    return MaskOutputs(logits, torch.eye(40).expand(2, 40, 40), masks, logits.new_zeros(0, 2, 40, 6), torch.zeros(0))


def theirs(outputs, threshold):
    """Per image: scores, labels, masks, best first."""
    processor = transformers.MaskFormerImageProcessor()
    named = SimpleNamespace(class_queries_logits=outputs.pred_logits, masks_queries_logits=outputs.pred_masks)
    for result in processor.post_process_instance_segmentation(
        named, threshold=threshold, target_sizes=[SIZE] * 2, return_binary_maps=True
    ):
        scores = torch.tensor([segment["score"] for segment in result["segments_info"]])
        labels = torch.tensor([segment["label_id"] for segment in result["segments_info"]])
        order = scores.argsort(descending=True)
        yield scores[order], labels[order], result["segmentation"].bool()[order]


def test_candidates_with_their_masks_equal_theirs(outputs):
    for image, (scores, labels, masks) in enumerate(theirs(outputs, threshold=0.05)):
        probabilities, ours, queries = _candidates(outputs.pred_logits[image], top_k=40, threshold=0.0)
        low = outputs.pred_masks[image, queries]
        inside = low > 0
        score = probabilities * (low.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
        order = score.argsort(descending=True)
        order = order[score[order] >= 0.05]
        assert len(scores) > 10
        torch.testing.assert_close(score[order], scores, rtol=0, atol=1e-6)  # theirs are rounded to six digits
        assert torch.equal(ours[order], labels)
        assert torch.equal(F.interpolate(inside[order].float()[None], size=SIZE)[0].bool(), masks)


def test_results_differ_from_theirs_by_a_rim_only(outputs):
    infos = [ImageInfo(image_id=n, file_name="", size=SIZE, input_size=(192, 192)) for n in range(2)]
    for ours, (scores, labels, masks) in zip(
        predict_instances(outputs, infos, top_k=40, score_threshold=0.05), theirs(outputs, 0.05), strict=True
    ):
        iou = _iou(ours.masks, masks)
        same = (ours.labels[:, None] == labels) & ((ours.scores[:, None] - scores).abs() < 0.02)
        best = torch.where(same, iou, 0.0).max(1).values
        assert len(ours) == len(scores)
        assert best.mean() > 0.95  # a rim of half a low-resolution pixel around masks 10 to 34 of them wide
        flipped = torch.where(same, _iou(ours.masks.flip(2), masks), 0.0).max(1).values
        assert flipped.mean() < 0.8  # a mirrored mask would be noticed


def _iou(a, b):
    a, b = a.flatten(1).float(), b.flatten(1).float()
    intersection = a @ b.T
    return intersection / (a.sum(1)[:, None] + b.sum(1) - intersection)
