import json

import numpy as np
import pytest

from attlas.dense.masks import decoded, encoded


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_run_lengths_are_json_and_come_back(share):
    mask = np.random.default_rng(0).random((7, 5)) < share
    found = json.loads(json.dumps(encoded(mask)))
    assert found["size"] == [7, 5]
    back = decoded(found)
    assert back.dtype == bool
    np.testing.assert_array_equal(back, mask)
    np.testing.assert_array_equal(decoded(encoded(mask.astype(np.uint8))), mask)
