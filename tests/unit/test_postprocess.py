"""Post-processing against the plain formulation: interpolate twice, threshold, then look at the masks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask

from vision_stack.outputs import MaskOutputs
from vision_stack.postprocess import encode_instances, instance, predict_instances
from vision_stack.postprocess.crop_rle import encode_crop
from vision_stack.structures import ImageInfo

# (padded batch, input size, image size): as it is, enlarged, shrunk, tiny image, rows only padding, odd sizes
SIZES = [
    ((64, 96), (64, 96), (64, 96)),
    ((64, 96), (61, 77), (150, 203)),
    ((96, 64), (96, 50), (37, 20)),
    ((33, 35), (30, 35), (1, 3)),
    ((64, 64), (10, 64), (300, 41)),
]


def random_outputs(batch=2, queries=12, classes=5, size=(64, 96), channels=6, seed=0, smooth=True):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    h, w = -(-size[0] // 4), -(-size[1] // 4)
    features = draw(batch, channels, h, w)
    if smooth:
        features = F.interpolate(draw(batch, channels, 4, 4), size=(h, w), mode="bicubic")
    return MaskOutputs(
        pred_logits=3 * draw(batch, queries, classes + 1),
        mask_embed=draw(batch, queries, channels) - 0.5,
        mask_features=features,
        aux_logits=draw(0, batch, queries, classes + 1),
        aux_mask_embed=draw(0, batch, queries, channels),
    )


def infos_of(input_size, size, batch=2):
    return [ImageInfo(image_id=i, file_name=f"{i}.jpg", size=size, input_size=input_size) for i in range(batch)]


def plain_detections(outputs, image, info, top_k):
    """All queries resized at full size, as the papers' code does it; logits are returned for the tolerance."""
    logits = outputs.pred_masks[image][None]
    h, w = logits.shape[-2:]
    up = F.interpolate(logits, size=(4 * h, 4 * w), mode="bilinear")[..., : info.input_size[0], : info.input_size[1]]
    up = F.interpolate(up, size=info.size, mode="bilinear")[0]
    probabilities = outputs.pred_logits[image].softmax(-1)[:, :-1]
    best, flat = probabilities.flatten().topk(min(top_k, probabilities.numel()))
    queries, labels = flat // probabilities.shape[1], flat % probabilities.shape[1]
    masks = up > 0
    quality = (up.sigmoid() * masks).sum((1, 2)) / (masks.sum((1, 2)) + 1e-6)
    scores = best * quality[queries]
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] > 0]
    return scores[order], labels[order], up[queries[order]]


@pytest.mark.parametrize(("padded", "input_size", "size"), SIZES)
@pytest.mark.parametrize("smooth", [True, False])
def test_masks_scores_labels_any_size_equal_the_plain_formulation(padded, input_size, size, smooth):
    outputs = random_outputs(size=padded, smooth=smooth)
    infos = infos_of(input_size, size)
    results = list(predict_instances(outputs, infos, top_k=30))
    assert sum(len(result) for result in results) > 20
    for image, (result, info) in enumerate(zip(results, infos, strict=True)):
        scores, labels, logits = plain_detections(outputs, image, info, top_k=30)
        assert torch.equal(result.labels, labels)
        torch.testing.assert_close(result.scores, scores, rtol=1e-5, atol=1e-6)  # sums of fp32 in another order
        assert result.masks.shape == logits.shape
        clear = logits.abs() > 1e-5  # two resizes in one product round differently, by 1e-6 of logits around 5
        assert torch.equal(result.masks[clear], (logits > 0)[clear])
        assert clear.float().mean() > 0.99


def test_boxes_any_mask_are_tight_and_never_degenerate():
    outputs = random_outputs(queries=30, size=(96, 96))
    for result in predict_instances(outputs, infos_of((90, 80), (120, 55))):
        for box, mask in zip(result.boxes, result.masks, strict=True):
            y, x = torch.nonzero(mask, as_tuple=True)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_encoded_instances_same_outputs_decode_to_the_same_detections():
    outputs = random_outputs(size=(96, 64))
    infos = infos_of((96, 50), (131, 67))
    for plain, encoded in zip(predict_instances(outputs, infos), encode_instances(outputs, infos), strict=True):
        assert len(plain) > 10
        for name in ("boxes", "labels", "scores"):
            assert torch.equal(getattr(plain, name), getattr(encoded, name))
        for mask, rle in zip(plain.masks, encoded.masks, strict=True):
            assert rle == coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))


@pytest.mark.parametrize("case", ["noise", "empty", "full", "columns", "last pixel", "first pixel", "no pixels"])
@pytest.mark.parametrize(("top", "left", "size"), [(0, 0, (7, 5)), (3, 2, (12, 9)), (0, 4, (7, 9)), (5, 0, (12, 5))])
def test_crop_rle_any_mask_equals_pycocotools_on_the_frame(case, top, left, size):
    mask = np.zeros((7, 5), dtype=bool)
    if case == "noise":
        mask = np.random.default_rng(0).random((7, 5)) > 0.4
    elif case == "full":
        mask[:] = True
    elif case == "columns":
        mask[:, 1:3] = True
        mask[3:, 3] = True
    elif case == "last pixel":
        mask[-1, -1] = True
    elif case == "first pixel":
        mask[0, 0] = True
    elif case == "no pixels":
        mask = mask[:0, :0]
    frame = np.zeros(size, dtype=np.uint8, order="F")
    frame[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    assert encode_crop(mask, top, left, size) == coco_mask.encode(frame)


def test_query_without_pixels_is_left_out():
    outputs = random_outputs(batch=1)
    outputs = outputs._replace(mask_features=outputs.mask_features.abs(), mask_embed=-outputs.mask_embed.abs())
    (result,) = predict_instances(outputs, infos_of((64, 96), (80, 90), batch=1))
    assert len(result) == 0
    assert result.masks.shape == (0, 80, 90)
    assert result.boxes.shape == (0, 4)
    (encoded,) = encode_instances(outputs, infos_of((64, 96), (80, 90), batch=1))
    assert encoded.masks == []


def test_score_threshold_keeps_exactly_the_detections_above_it():
    outputs, infos = random_outputs(), infos_of((64, 96), (64, 96))
    for everything, above in zip(
        predict_instances(outputs, infos), predict_instances(outputs, infos, score_threshold=0.3), strict=True
    ):
        keep = everything.scores >= 0.3
        assert 0 < keep.sum() < len(everything)
        assert torch.equal(above.scores, everything[keep].scores)
        assert torch.equal(above.masks, everything[keep].masks)


def test_threshold_above_every_score_gives_no_instances():
    for result in predict_instances(random_outputs(), infos_of((64, 96), (64, 96)), score_threshold=1.0):
        assert len(result) == 0


def test_top_k_larger_than_candidates_gives_each_query_and_class_once():
    outputs = random_outputs(batch=1, queries=3, classes=2)
    (result,) = predict_instances(outputs, infos_of((64, 96), (64, 96), batch=1), top_k=1000)
    assert len(result) == 6
    assert torch.equal(result.scores, result.scores.sort(descending=True).values)


def test_autocast_and_half_outputs_compute_in_float32():
    outputs, infos = random_outputs(), infos_of((64, 96), (64, 96))
    half = MaskOutputs(*(tensor.bfloat16() for tensor in outputs))
    rounded = MaskOutputs(*(tensor.float() for tensor in half))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = list(predict_instances(half, infos))
    for a, b in zip(inside, predict_instances(rounded, infos), strict=True):
        assert a.scores.dtype == torch.float32
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.masks, b.masks)


def test_wrong_number_of_infos_is_an_error():
    with pytest.raises(ValueError, match="1 infos for 2 images"):
        list(predict_instances(random_outputs(), infos_of((64, 96), (64, 96), batch=1)))


def test_chunks_large_image_stay_within_the_byte_budget(monkeypatch):
    outputs = random_outputs(batch=1, queries=40, classes=2)
    size = (400, 600)
    held, calls = [], []
    original = instance.resize_masks

    def spy(logits, *axes):
        held.append(len(logits) * (4 * logits[0].numel() + size[0] * size[1]))
        calls.append(len(logits))
        return original(logits, *axes)

    monkeypatch.setattr(instance, "CHUNK_BYTES", 2**20)
    monkeypatch.setattr(instance, "resize_masks", spy)
    (chunked,) = encode_instances(outputs, infos_of((64, 96), size, batch=1), top_k=80)
    assert max(held) <= 2**20
    assert sum(calls) == 40  # each query once, though most are kept for two classes
    monkeypatch.undo()
    (whole,) = encode_instances(outputs, infos_of((64, 96), size, batch=1), top_k=80)
    assert chunked.masks == whole.masks
    # a product over fewer queries may be summed in another order
    torch.testing.assert_close(chunked.scores, whole.scores, rtol=1e-6, atol=0)


@pytest.mark.gpu
def test_gpu_gives_the_detections_of_the_cpu():
    outputs, infos = random_outputs(size=(96, 64)), infos_of((96, 50), (131, 67))
    on_gpu = MaskOutputs(*(tensor.cuda() for tensor in outputs))
    with torch.autocast("cuda", dtype=torch.float16):
        found = list(predict_instances(on_gpu, infos))
        codes = list(encode_instances(on_gpu, infos))
    for a, b, encoded in zip(found, predict_instances(outputs, infos), codes, strict=True):
        assert a.masks.is_cuda
        assert torch.equal(a.labels.cpu(), b.labels)
        torch.testing.assert_close(a.scores.cpu(), b.scores, rtol=1e-4, atol=1e-5)  # other order of sums
        assert (a.masks.cpu() != b.masks).float().mean() < 1e-4
        decoded = np.stack([coco_mask.decode(rle) for rle in encoded.masks])
        assert np.array_equal(decoded, a.masks.cpu().numpy())
