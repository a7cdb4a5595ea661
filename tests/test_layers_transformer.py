"""Transformer layers against those of torch and transformers, and set matching against the best of all matchings."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from everymask.errors import InputError
from everymask.layers.set_matching import Costs, centres, corners, match_sets, pair_costs
from everymask.layers.transformer import Attention, Decoder, DecoderLayer, Encoder, EncoderLayer, sine_positions

WIDTH, HEADS, HIDDEN = 32, 4, 48


def random_network(network: Any, seed: int = 0) -> Any:
    """With weights, biases and normalisations that are all in use."""
    random = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=random) + (parameter.ndim == 1) * parameter.data
    return network.eval()


def take_attention(own: Attention, theirs: nn.MultiheadAttention) -> None:
    weights, biases = theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3)
    for layer, weight, bias in zip((own.query, own.key, own.value), weights, biases, strict=True):
        layer.weight.data, layer.bias.data = weight.data, bias.data
    own.output.load_state_dict(theirs.out_proj.state_dict())


def take_rest(own: Any, theirs: Any, norms: dict[str, str]) -> None:
    for name, other in norms.items():
        getattr(own, name).load_state_dict(getattr(theirs, other).state_dict())
    own.feed_forward[0].load_state_dict(theirs.linear1.state_dict())
    own.feed_forward[3].load_state_dict(theirs.linear2.state_dict())


def padded(lengths: tuple[int, ...], most: int) -> Tensor:
    """(B, most) whether a feature is no padding."""
    return torch.arange(most) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("pre_norm", [False, True])
def test_encoder_layer_is_that_of_torch(pre_norm: bool) -> None:
    theirs = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, batch_first=True, norm_first=pre_norm)
    random_network(theirs)
    own = EncoderLayer(WIDTH, HEADS, HIDDEN, pre_norm=pre_norm).eval()
    take_attention(own.attention, theirs.self_attn)
    take_rest(own, theirs, {"attention_norm": "norm1", "final_norm": "norm2"})
    features, real = torch.randn(2, 9, WIDTH), padded((9, 5), 9)
    expected = theirs(features, src_key_padding_mask=~real)
    found = own(features, mask=real[:, None, None])
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)
    alone = own(features[1:, :5])
    torch.testing.assert_close(found[1:, :5], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(own(features)[1, :5], alone[0], atol=1e-3)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_decoder_layer_is_that_of_torch(pre_norm: bool) -> None:
    theirs = random_network(nn.TransformerDecoderLayer(WIDTH, HEADS, HIDDEN, batch_first=True, norm_first=pre_norm))
    own = DecoderLayer(WIDTH, HEADS, HIDDEN, pre_norm=pre_norm).eval()
    take_attention(own.attention, theirs.self_attn)
    take_attention(own.cross_attention, theirs.multihead_attn)
    take_rest(own, theirs, {"attention_norm": "norm1", "cross_norm": "norm2", "final_norm": "norm3"})
    objects, memory, real = torch.randn(2, 6, WIDTH), torch.randn(2, 9, WIDTH), padded((4, 9), 9)
    expected = theirs(objects, memory, memory_key_padding_mask=~real)
    torch.testing.assert_close(own(objects, memory, mask=real[:, None, None]), expected, atol=1e-5, rtol=1e-5)


def test_positions_are_added_to_queries_and_keys_alone() -> None:
    own = random_network(EncoderLayer(WIDTH, 1, HIDDEN))
    features, positions = torch.randn(2, 5, WIDTH), torch.randn(1, 5, WIDTH)
    attention = own.attention
    placed = features + positions
    weights = (attention.query(placed) @ attention.key(placed).transpose(1, 2) / math.sqrt(WIDTH)).softmax(-1)
    mixed = own.attention_norm(features + attention.output(weights @ attention.value(features)))
    hidden = own.feed_forward[3](own.feed_forward[0](mixed).relu())
    torch.testing.assert_close(own(features, positions), own.final_norm(mixed + hidden), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_stacks_of_layers(pre_norm: bool) -> None:
    options = (3, WIDTH, HEADS, HIDDEN, 0.0, pre_norm)
    encoder, decoder = random_network(Encoder(*options)), random_network(Decoder(*options), 1)
    features, positions, queries = torch.randn(2, 7, WIDTH), torch.randn(1, 7, WIDTH), torch.randn(4, WIDTH)
    memory = features
    for layer in encoder.layers:
        memory = layer(memory, positions)
    memory = encoder.norm(memory) if pre_norm else memory
    torch.testing.assert_close(encoder(features, positions), memory)
    every = decoder(queries, memory, positions, every_layer=True)
    objects, placed = torch.zeros(2, 4, WIDTH), queries.expand(2, -1, -1)
    for number, layer in enumerate(decoder.layers):
        objects = layer(objects, memory, placed, memory + positions)
        torch.testing.assert_close(every[number], decoder.norm(objects))
    torch.testing.assert_close(decoder(queries, memory, positions), every[-1:])


def test_dropout_is_for_training() -> None:
    own = EncoderLayer(WIDTH, HEADS, HIDDEN, dropout=0.5)
    features = torch.randn(1, 6, WIDTH)
    assert not torch.equal(own(features), own(features))
    own.eval()
    assert torch.equal(own(features), own(features))


def test_sine_positions_are_those_of_the_formula() -> None:
    found = sine_positions(3, 5, 12)
    assert found.shape == (1, 15, 12)
    for row, column, channel in itertools.product(range(3), range(5), range(12)):
        place, length = (row, 3) if channel < 6 else (column, 5)
        index = channel % 6
        angle = 2 * math.pi * (place + 1) / length / 10_000 ** (2 * (index // 2) / 6)
        expected = math.cos(angle) if index % 2 else math.sin(angle)
        assert found[0, 5 * row + column, channel].item() == pytest.approx(expected, abs=1e-5)


def test_sine_positions_are_those_of_transformers() -> None:
    modeling = pytest.importorskip("transformers.models.detr.modeling_detr")
    theirs = modeling.DetrSinePositionEmbedding(16, normalize=True)
    valid = torch.tensor([[4, 6], [3, 6], [4, 2]])
    mask = torch.stack([torch.outer(torch.arange(4) < rows, torch.arange(6) < columns) for rows, columns in valid])
    shape = torch.Size((3, 32, 4, 6))
    expected = theirs(shape, torch.device("cpu"), torch.float32, mask).flatten(2).transpose(1, 2)
    found = sine_positions(4, 6, 32, valid=valid)
    # What lies in the padding is seen by nobody, and differs in the corner beside it.
    torch.testing.assert_close(found[mask.flatten(1)], expected[mask.flatten(1)], atol=1e-6, rtol=0)
    torch.testing.assert_close(sine_positions(4, 6, 32)[0], expected[0], atol=1e-6, rtol=0)


def test_wrong_widths_are_told() -> None:
    with pytest.raises(InputError, match="multiple of 4 channels, got 6"):
        sine_positions(2, 2, 6)
    with pytest.raises(InputError, match="32 must be a multiple of the number of heads, got 5"):
        Attention(32, 5)


def random_sets(counts: tuple[int, ...], sets: int = 2, queries: int = 5, classes: int = 3, seed: int = 0) -> Any:
    """Logits, boxes, and the classes and boxes of the objects of each image."""
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(sets, len(counts), queries, classes + 1, generator=random)
    boxes = torch.rand(sets, len(counts), queries, 4, generator=random) * 0.5 + 0.1
    true_classes = [torch.randint(classes, (count,), generator=random) for count in counts]
    true_boxes = [torch.rand(count, 4, generator=random) * 0.5 + 0.1 for count in counts]
    return logits, boxes, true_classes, true_boxes


def slow_cost(logits: Tensor, box: Tensor, wanted: int, true: Tensor, costs: Costs) -> float:
    """Cost of one pair by the formulas of the paper."""
    ax, ay, aw, ah = box.double().tolist()
    bx, by, bw, bh = true.double().tolist()
    sides = [
        (min(ax + aw / 2, bx + bw / 2) - max(ax - aw / 2, bx - bw / 2)),
        (min(ay + ah / 2, by + bh / 2) - max(ay - ah / 2, by - bh / 2)),
    ]
    shared = max(sides[0], 0) * max(sides[1], 0)
    union = aw * ah + bw * bh - shared
    enclosing = (max(ax + aw / 2, bx + bw / 2) - min(ax - aw / 2, bx - bw / 2)) * (
        max(ay + ah / 2, by + bh / 2) - min(ay - ah / 2, by - bh / 2)
    )
    overlap = shared / union - (enclosing - union) / enclosing
    distance = abs(ax - bx) + abs(ay - by) + abs(aw - bw) + abs(ah - bh)
    probability = logits.double().softmax(-1)[wanted].item()
    return costs.boxes * distance - costs.classes * probability - costs.overlap * overlap


@pytest.mark.parametrize("costs", [Costs(), Costs(2.0, 0.5, 3.0)])
def test_costs_are_those_of_the_paper(costs: Costs) -> None:
    counts = (3, 0, 2)
    logits, boxes, classes, true = random_sets(counts)
    table = pair_costs(logits, boxes, classes, true, costs)
    for layer, image in itertools.product(range(2), range(3)):
        for query, number in itertools.product(range(5), range(counts[image])):
            expected = slow_cost(
                logits[layer, image, query],
                boxes[layer, image, query],
                int(classes[image][number]),
                true[image][number],
                costs,
            )
            assert table[layer, image, query, number].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("counts", [(3, 2), (0, 4), (5, 1), (7, 0, 6)])
def test_no_matching_is_better(counts: tuple[int, ...]) -> None:
    """All matchings are tried, of more objects than queries, too."""
    logits, boxes, classes, true = random_sets(counts, queries=5, seed=sum(counts))
    found = match_sets(logits, boxes, classes, true)
    table = pair_costs(logits, boxes, classes, true, Costs()).numpy().astype(np.float64)
    pairs = [min(5, count) for count in counts]
    assert found.image.tolist() == np.repeat(np.arange(len(counts)), pairs).tolist()
    assert found.prediction.shape == found.object.shape == (2, sum(pairs))
    first = np.concatenate([[0], np.cumsum(counts)])
    for layer, image in itertools.product(range(2), range(len(counts))):
        mine = found.image == image
        queries = found.prediction[layer, mine].tolist()
        objects = (found.object[layer, mine] - first[image]).tolist()
        assert len(set(queries)) == len(set(objects)) == pairs[image]
        assert all(0 <= each < counts[image] for each in objects)
        costs = table[layer, image, :, : counts[image]]
        costs = costs if counts[image] <= 5 else costs.T
        fewer, more = costs.shape[1], costs.shape[0]
        best = min(
            sum(costs[place, number] for number, place in enumerate(chosen))
            for chosen in itertools.permutations(range(more), fewer)
        )
        total = sum(table[layer, image, query, number] for query, number in zip(queries, objects, strict=True))
        assert total == pytest.approx(best, abs=1e-5)


def test_matching_is_that_of_transformers() -> None:
    reference = pytest.importorskip("transformers.loss.loss_for_object_detection")
    logits, boxes, classes, true = random_sets((3, 0, 9, 6), sets=3, queries=8, classes=5)
    found = match_sets(logits, boxes, classes, true)
    targets = [{"class_labels": one, "boxes": two} for one, two in zip(classes, true, strict=True)]
    matcher = reference.HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    first = [0, 3, 3, 12]
    for layer in range(3):
        expected = matcher({"logits": logits[layer], "pred_boxes": boxes[layer]}, targets)
        assert found.prediction[layer].tolist() == [int(each) for rows, _ in expected for each in rows]
        objects = [int(each) + first[image] for image, (_, columns) in enumerate(expected) for each in columns]
        assert found.object[layer].tolist() == objects


def test_no_objects_and_lost_networks_match() -> None:
    logits, boxes, classes, true = random_sets((0, 0))
    found = match_sets(logits, boxes, classes, true)
    assert found.image.shape == (0,) and found.prediction.shape == found.object.shape == (2, 0)
    logits, boxes, classes, true = random_sets((3, 2))
    logits[0], boxes[1, 0, 2] = torch.nan, torch.nan
    found = match_sets(logits, boxes, classes, true)
    assert found.prediction.shape == (2, 5)
    assert 2 not in found.prediction[1, :3]  # a query whose box is no number is the last choice


def test_corners_and_centres() -> None:
    boxes = torch.tensor([[0.5, 0.4, 0.2, 0.6], [3.0, 2, 0, 1]])
    assert torch.allclose(corners(boxes), torch.tensor([[0.4, 0.1, 0.6, 0.7], [3.0, 1.5, 3, 2.5]]))
    assert torch.allclose(centres(corners(boxes)), boxes)
