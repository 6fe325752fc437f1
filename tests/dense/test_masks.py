import json

import numpy as np
import pytest

from attlas.dense.masks import decoded, encoded, rasterized


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_run_lengths_are_json_and_come_back(share):
    mask = np.random.default_rng(0).random((7, 5)) < share
    found = json.loads(json.dumps(encoded(mask)))
    assert found["size"] == [7, 5]
    back = decoded(found)
    assert back.dtype == bool
    np.testing.assert_array_equal(back, mask)
    np.testing.assert_array_equal(decoded(encoded(mask.astype(np.uint8))), mask)


def test_segmentations_of_annotations():
    """Polygons, several of them too, and run lengths, compressed or not, of one and the same mask."""
    mask = np.zeros((9, 12), bool)
    mask[2:5, 3:8], mask[6:8, 1:3] = True, True
    polygons = [[3, 2, 8, 2, 8, 5, 3, 5], [1, 6, 3, 6, 3, 8, 1, 8]]
    columns = mask.T.ravel()
    edges = np.flatnonzero(np.diff(columns, prepend=False))
    counts = np.diff([0, *edges, columns.size]).tolist()
    for segmentation in (polygons, encoded(mask), dict(size=[9, 12], counts=counts)):
        found = rasterized(segmentation, (9, 12))
        assert found.dtype == bool
        np.testing.assert_array_equal(found, mask)
