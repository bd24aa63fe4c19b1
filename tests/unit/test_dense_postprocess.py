"""Semantic and panoptic post-processing against the original Mask2Former repository's formulas, written plainly."""

import pytest
import torch
import torch.nn.functional as F

from vision_stack.outputs import MaskOutputs
from vision_stack.postprocess import bands, predict_panoptic, predict_semantic
from vision_stack.structures import ImageInfo

# (padded batch, input size, image size): as it is, enlarged, shrunk, tiny image, rows only padding, odd sizes
SIZES = [
    ((64, 96), (64, 96), (64, 96)),
    ((64, 96), (61, 77), (150, 203)),
    ((96, 64), (96, 50), (37, 20)),
    ((33, 35), (30, 35), (1, 3)),
    ((64, 64), (10, 64), (300, 41)),
]
IS_THING = (True, True, False, True, False)


def outputs_of(size, queries=12, classes=5, batch=2, spread=4.0, seed=0):
    """Smooth masks, and queries that are sure of their class more often than not."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    h, w = -(-size[0] // 4), -(-size[1] // 4)
    features = F.interpolate(draw(batch, 6, 4, 4), size=(h, w), mode="bicubic")
    logits = spread * draw(batch, queries, classes + 1)
    empty = draw(0, batch, queries, classes + 1)
    return MaskOutputs(logits, 3 * draw(batch, queries, 6) - 0.5, features, empty, empty)


def infos_of(input_size, size, batch=2):
    return [ImageInfo(image_id=i, file_name=f"{i}.jpg", size=size, input_size=input_size) for i in range(batch)]


def upsampled(outputs, image):
    """Mask logits of one image at the size of the padded batch."""
    logits = outputs.pred_masks[image][None]
    h, w = logits.shape[-2:]
    return F.interpolate(logits, size=(4 * h, 4 * w), mode="bilinear", align_corners=False)[0]


def crop_and_resize(maps, info):
    """detectron2's `sem_seg_postprocess`."""
    cropped = maps[:, : info.input_size[0], : info.input_size[1]][None]
    return F.interpolate(cropped, size=info.size, mode="bilinear", align_corners=False)[0]


def semantic_scores(outputs, image, info):
    """`semantic_inference`, then `sem_seg_postprocess`: [K, height, width]."""
    classes = outputs.pred_logits[image].softmax(-1)[..., :-1]
    scores = torch.einsum("qc,qhw->chw", classes, upsampled(outputs, image).sigmoid())
    return crop_and_resize(scores, info)


def panoptic_inference(outputs, image, info, score_threshold, overlap_threshold):
    """`panoptic_inference` of masks that `sem_seg_postprocess` has resized: the map, and labels and scores in order."""
    scores, labels = outputs.pred_logits[image].softmax(-1).max(-1)
    masks = crop_and_resize(upsampled(outputs, image), info).sigmoid()
    keep = (labels != outputs.pred_logits.shape[-1] - 1) & (scores > score_threshold)
    scores, labels, masks = scores[keep], labels[keep], masks[keep]
    segment_map = torch.zeros(info.size, dtype=torch.int32)
    found, stuff = [], {}
    if not len(scores):
        return segment_map, found
    ids = (scores[:, None, None] * masks).argmax(0)
    for k, label in enumerate(labels.tolist()):
        mask = (ids == k) & (masks[k] >= 0.5)
        area, own = int((ids == k).sum()), int((masks[k] >= 0.5).sum())
        if area == 0 or own == 0 or not mask.any() or area / own < overlap_threshold:
            continue
        if not IS_THING[label] and label in stuff:
            segment_map[mask] = stuff[label]
            continue
        found.append((label, float(scores[k])))
        segment_map[mask] = len(found)
        if not IS_THING[label]:
            stuff[label] = len(found)
    return segment_map, found


@pytest.mark.parametrize(("padded", "input_size", "size"), SIZES)
def test_semantic_any_size_equals_the_plain_formula(padded, input_size, size):
    outputs = outputs_of(padded)
    infos = infos_of(input_size, size)
    labels = set()
    for image, (result, info) in enumerate(zip(predict_semantic(outputs, infos), infos, strict=True)):
        scores = semantic_scores(outputs, image, info)
        assert result.label_map.shape == size
        best = scores.topk(2, dim=0).values
        clear = best[0] - best[1] > 1e-5  # sums of fp32 in another order differ by 1e-6 of scores around 1
        assert torch.equal(result.label_map[clear].long(), scores.argmax(0)[clear])
        assert clear.float().mean() > 0.99
        labels |= set(result.label_map.unique().tolist())
    assert len(labels) > 1


def test_semantic_sigmoid_after_the_resize_would_be_noticed():
    """A planted fault: resizing logits instead of scores moves borders."""
    outputs, (info,) = outputs_of((64, 64), batch=1), infos_of((64, 64), (333, 250), batch=1)
    classes = outputs.pred_logits[0].softmax(-1)[..., :-1]
    wrong = torch.einsum("qc,qhw->chw", classes, crop_and_resize(upsampled(outputs, 0) * 20, info).sigmoid())
    (result,) = predict_semantic(outputs._replace(mask_embed=outputs.mask_embed * 20), [info])
    assert (result.label_map != wrong.argmax(0)).float().mean() > 1e-3


@pytest.mark.parametrize(("padded", "input_size", "size"), SIZES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_panoptic_any_size_equals_the_plain_formula(padded, input_size, size, seed):
    outputs = outputs_of(padded, seed=seed)
    infos = infos_of(input_size, size)
    results = predict_panoptic(outputs, infos, IS_THING, score_threshold=0.6, overlap_threshold=0.5)
    for image, (result, info) in enumerate(zip(results, infos, strict=True)):
        segment_map, found = panoptic_inference(outputs, image, info, 0.6, 0.5)
        assert result.labels.tolist() == [label for label, _ in found]
        assert result.scores.tolist() == pytest.approx([score for _, score in found], abs=1e-6)
        # two resizes in another order round differently, by 1e-6 of logits around 5: at borders a pixel in thousands
        assert (result.segment_map != segment_map).float().mean() < 1e-3


def test_panoptic_cases_cover_dropped_merged_and_empty():
    """What the comparison above runs into, so that it is not a comparison of empty maps."""
    sizes, outputs = infos_of((64, 96), (64, 96)), [outputs_of((64, 96), seed=seed) for seed in range(3)]
    kept = merged = candidates = 0
    for each in outputs:
        for image, info in enumerate(sizes):
            _, found = panoptic_inference(each, image, info, 0.6, 0.5)
            scores, labels = each.pred_logits[image].softmax(-1).max(-1)
            chosen = labels[(labels < 5) & (scores > 0.6)].tolist()
            candidates, kept = candidates + len(chosen), kept + len(found)
            merged += sum(max(0, chosen.count(label) - 1) for label in (2, 4))
    assert kept > 5
    assert candidates > kept + merged > kept


def test_panoptic_without_a_sure_query_is_empty():
    (result,) = predict_panoptic(outputs_of((64, 64), batch=1, spread=0.1), infos_of((64, 64), (20, 30), 1), IS_THING)
    assert result.segment_map.shape == (20, 30)
    assert not result.segment_map.any()
    assert len(result.labels) == len(result.scores) == 0


def test_results_do_not_depend_on_the_bands(monkeypatch):
    outputs, infos = outputs_of((64, 96)), infos_of((61, 77), (150, 203))
    whole = [*predict_semantic(outputs, infos), *predict_panoptic(outputs, infos, IS_THING, score_threshold=0.5)]
    narrow = lambda height, *_: ((start, min(start + 7, height)) for start in range(0, height, 7))  # noqa: E731
    for name in ("semantic", "panoptic"):
        monkeypatch.setattr(f"vision_stack.postprocess.{name}.bands", narrow)
    banded = [*predict_semantic(outputs, infos), *predict_panoptic(outputs, infos, IS_THING, score_threshold=0.5)]
    for a, b in zip(whole, banded, strict=True):
        # a product over fewer rows may be summed in another order
        assert (a[0] != b[0]).float().mean() < 1e-3


def test_bands_are_bounded_in_memory_and_cover_every_row():
    rows = list(bands.bands(1000, 5 * 2**20, torch.device("cpu")))
    assert [start for start, _ in rows] == [0, *(stop for _, stop in rows[:-1])]
    assert rows[-1][1] == 1000
    assert max(stop - start for start, stop in rows) * 5 * 2**20 <= bands.CPU_BYTES


def test_another_number_of_infos_is_refused():
    for predict in (predict_semantic, lambda outputs, infos: predict_panoptic(outputs, infos, IS_THING)):
        with pytest.raises(ValueError, match="1 infos for 2 images"):
            next(predict(outputs_of((64, 64)), infos_of((64, 64), (64, 64), batch=1)))


@pytest.mark.gpu
def test_gpu_gives_the_segmentations_of_the_cpu():
    outputs, infos = outputs_of((96, 64)), infos_of((96, 50), (131, 67))
    on_gpu = MaskOutputs(*(tensor.cuda() for tensor in outputs))
    with torch.autocast("cuda", dtype=torch.float16):
        found = [*predict_semantic(on_gpu, infos), *predict_panoptic(on_gpu, infos, IS_THING, score_threshold=0.5)]
    expected = [*predict_semantic(outputs, infos), *predict_panoptic(outputs, infos, IS_THING, score_threshold=0.5)]
    for a, b in zip(found, expected, strict=True):
        assert a[0].is_cuda
        assert (a[0].cpu() != b[0]).float().mean() < 1e-3  # other order of sums
