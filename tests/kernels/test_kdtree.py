"""What the trees hold; what is found with them is in test_neighbors.py."""

import numpy as np
import pytest

from attlas.kernels.kdtree import LEAF, NONE, build


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, LEAF, LEAF + 1, 5 * LEAF, 1000])
@pytest.mark.parametrize("kind", ["scattered", "copies", "one place"])
def test_a_tree_holds_every_point_once_in_tight_boxes(kind, size, dtype):
    points = np.random.randn(size, 3).astype(dtype)
    if kind == "copies":
        points = points.round()
    elif kind == "one place":
        points[:] = points[0]
    slots, index, box, first = build(points)
    leaves = len(index)
    members = [row[row != NONE] for row in index]
    assert sorted(np.concatenate(members)) == list(range(size))
    for j, member in enumerate(members):
        # as equal in size as whole numbers are
        assert len(member) == (j + 1) * size // leaves - j * size // leaves <= LEAF
        assert np.array_equal(slots[:, j, : len(member)].T, points[member])
        assert np.isinf(slots[:, j, len(member) :]).all()
    nodes = {leaves + j: member for j, member in enumerate(members)}
    for node in range(leaves - 1, 0, -1):
        nodes[node] = np.concatenate([nodes[2 * node], nodes[2 * node + 1]])
    for node, member in nodes.items():
        assert np.array_equal(box[node], np.concatenate([points[member].min(0), points[member].max(0)]))
        assert first[node] == member.min()
