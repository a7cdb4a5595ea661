"""Tiles that fade into one another: the weights, the sums, and what is gained over borders between tiles."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from predict_toys import PLAIN, Bands, Blobs, Vignette, blob_field
from torch import Tensor

from everymask.errors import InputError
from everymask.methods.semantic.unet import UNetSegmentation
from everymask.predict.blending import blend, fading_weights
from everymask.predict.predictor import Predictor
from everymask.predict.tiling import plan_tiles


def probabilities(predictor: Predictor, image: np.ndarray) -> Tensor:
    outputs, size = predictor.outputs(image)
    return outputs["classes"].softmax(1)[0, :, : size[0], : size[1]]


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(1, 2000),
    stride=st.sampled_from([1, 8, 32]),
    strides=st.integers(2, 20),
    share=st.floats(0, 0.5),
    context=st.integers(0, 200),
)
def test_weights_of_all_tiles_sum_to_one(length: int, stride: int, strides: int, share: float, context: int) -> None:
    tile = stride * strides
    spans = [each.columns for each in plan_tiles((1, length), tile, int(share * tile), stride)]
    for grid in {1, stride}:
        weights = fading_weights(spans, context, grid)
        total = np.zeros(spans[-1].stop // grid)
        for span, weight in zip(spans, weights, strict=True):
            assert len(weight) == (span.stop - span.start) // grid and (weight >= 0).all()
            total[span.start // grid : span.stop // grid] += weight
        np.testing.assert_allclose(total, 1, atol=1e-6)
        assert weights[0][0] == 1 and weights[-1][-1] == 1  # the edges of the image are no edges of tiles
    for (one, two), (weight_one, weight_two) in zip(
        itertools.pairwise(spans), itertools.pairwise(fading_weights(spans, context)), strict=True
    ):
        overlap = one.stop - two.start
        margin = context if 2 * context <= overlap else overlap // 4
        assert not weight_two[:margin].any() and not weight_one[len(weight_one) - margin :].any()


@pytest.mark.parametrize(("size", "tile", "overlap"), [((70, 150), 48, 16), ((200, 64), 64, 32), ((130, 131), 40, 20)])
def test_blocks_are_the_weighted_sums_of_the_tiles(size: tuple[int, int], tile: int, overlap: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tiles = plan_tiles(size, tile, overlap, 8)
    shape = (tiles[-1].rows.stop, tiles[-1].columns.stop)
    for grid in (1, 4):
        drawn = []
        for each in tiles:
            height, width = ((span.stop - span.start) // grid for span in (each.rows, each.columns))
            drawn.append(torch.rand(1, 3, height, width, generator=generator))
        rows, columns = ([*dict.fromkeys(getattr(each, axis) for each in tiles)] for axis in ("rows", "columns"))
        expected = torch.zeros(1, 3, shape[0] // grid, shape[1] // grid)
        found = torch.full_like(expected, torch.nan)
        for each, values in zip(tiles, drawn, strict=True):
            weights = np.outer(
                fading_weights(rows, 4, grid)[rows.index(each.rows)],
                fading_weights(columns, 4, grid)[columns.index(each.columns)],
            )
            window = tuple(slice(axis.start // grid, axis.stop // grid) for axis in (each.rows, each.columns))
            expected[:, :, *window] += values * torch.from_numpy(weights)
        parts = zip(tiles, ({"classes": values, "other": 2 * values} for values in drawn), strict=True)
        for block, maps in blend(parts, tiles, 4, grid):
            window = tuple(slice(axis.start // grid, axis.stop // grid) for axis in (block.rows, block.columns))
            assert torch.isnan(found[:, :, *window]).all()  # each pixel once
            found[:, :, *window] = maps["classes"]
            torch.testing.assert_close(maps["other"], 2 * maps["classes"])
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_complete_surroundings_give_the_untiled_result() -> None:
    torch.manual_seed(0)
    method = UNetSegmentation(classes=3, channels=1, base=4, depth=2)
    assert method.context <= 64
    image = blob_field((330, 270))
    arguments = (method, PLAIN, "cpu", "float32")
    whole = probabilities(Predictor(*arguments), image)
    tiled = Predictor(*arguments, tile=192, overlap=96)
    assert 2 * method.context <= tiled.overlap
    torch.testing.assert_close(probabilities(tiled, image), whole, atol=1e-5, rtol=0)
    classes = Predictor(*arguments)(image).semantic_map()
    sure = (whole.topk(2, 0).values.diff(dim=0).abs()[0] > 1e-4).numpy()
    np.testing.assert_array_equal(tiled(image).semantic_map()[sure], classes[sure])


def test_seams_are_smaller_than_those_of_hard_borders() -> None:
    image = np.full((64, 400), 0.4, np.float32)
    method = Vignette(reach=100)
    jumps = {}
    for soft in (True, False):
        predictor = Predictor(method, PLAIN, "cpu", "float32", tile=160, overlap=80, blend=soft)
        jumps[soft] = float(probabilities(predictor, image)[1].diff(dim=-1).abs().max())
        assert Predictor(method, PLAIN, "cpu", "float32").blend  # the default
    assert jumps[False] > 0.2
    assert jumps[True] < jumps[False] / 5


def test_the_classes_are_those_of_the_blended_probabilities() -> None:
    image = blob_field((100, 300), level=0.5)
    predictor = Predictor(Vignette(reach=100), PLAIN, "cpu", "float32", tile=96, overlap=48)
    expected = probabilities(predictor, image)
    found = predictor(image)
    np.testing.assert_array_equal(found.semantic_map(), expected.argmax(0).numpy())
    scores = [float(expected[k][expected.argmax(0) == k].mean()) for k in range(2)]
    np.testing.assert_allclose(found.score, scores, rtol=1e-5)


def test_blending_is_for_classes_of_pixels() -> None:
    with pytest.raises(InputError, match="Blobs finds objects"):
        Predictor(Blobs(), PLAIN, "cpu", blend=True)
    image = blob_field((60, 200), level=0.47)
    whole = Predictor(Bands(), PLAIN, "cpu", "float32")(image).label_map()
    assert not Predictor(Bands(), PLAIN, "cpu").blend
    asked = Predictor(Bands(), PLAIN, "cpu", "float32", tile=64, overlap=16, blend=True)(image)
    np.testing.assert_array_equal(asked.label_map(), whole)
