"""Masks within a box as run lengths of the image, against COCO's own encoder."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everymask.errors import InputError
from everymask.formats.drawn_shapes import cropped, ellipse, placed_runs

mask_api = pytest.importorskip("pycocotools.mask")


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_runs_of_a_crop(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))
    rows, columns = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - rows)), data.draw(st.integers(0, width - columns))
    values = data.draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
    crop = np.array(values).reshape(rows, columns)
    image = np.zeros((height, width), np.uint8)
    image[top : top + rows, left : left + columns] = crop
    runs = placed_runs(crop, left, top, (height, width))
    official = mask_api.encode(np.asfortranarray(image))["counts"]
    assert mask_api.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)["counts"] == official
    back, x, y = cropped(runs, (height, width))
    again = np.zeros((height, width), np.uint8)
    again[y : y + back.shape[0], x : x + back.shape[1]] = back
    assert np.array_equal(again, image)
    if image.any():
        assert back[0].any() and back[-1].any() and back[:, 0].any() and back[:, -1].any()


def test_a_crop_that_leaves_the_image() -> None:
    for left, top in ((-1, 0), (0, -1), (4, 0), (0, 3)):
        with pytest.raises(InputError, match="leaves the image of 5 x 6"):
            placed_runs(np.ones((3, 3), bool), left, top, (5, 6))


@pytest.mark.parametrize("radii", [(0.2, 0.1), (3, 3), (500, 20)])
def test_an_ellipse_is_kept_to_a_twentieth_of_a_pixel(radii: tuple[float, float]) -> None:
    points = ellipse((10, 20), radii) - np.array([10, 20])
    # A chord of the unit circle whose ends are an angle apart comes within cos(angle / 2) of its centre.
    unit = points / radii
    middles = (unit + np.roll(unit, -1, axis=0)) / 2
    assert np.allclose(np.hypot(*unit.T), 1)
    assert (max(radii) * (1 - np.hypot(*middles.T)) <= 0.0501).all()
