"""Pixels that are dropped are gone from the work, and back on the grid for whoever wants maps."""

import pytest
import torch
from networks import close

from attlas import backbones
from attlas.backbones.layers import best, keep_pixels, prune, put_back
from attlas.kernels.dispatch import decompositions


def test_kept_pixels_are_those_of_the_map():
    x = torch.randn(2, 5, 3, 4).contiguous(memory_format=torch.channels_last)
    index = torch.tensor([[11, 0, 6], [1, 2, 3]])
    kept = keep_pixels(x, index)
    assert kept.shape == (2, 5, 1, 3)
    close(kept[0, :, 0], torch.stack([x[0, :, 2, 3], x[0, :, 0, 0], x[0, :, 1, 2]], dim=1), 0)
    back = put_back(-kept, index, x)
    signs = torch.where(keep_pixels(back, index) == -kept, -1, 1)
    assert (signs == -1).all()
    assert (back != x).any(1).sum() == 6
    assert torch.equal(put_back(kept, index, x), x)


def test_what_was_dropped_stays_dropped_with_its_last_value():
    x = torch.arange(8.0).view(1, 1, 2, 4)
    first, pruned = prune(x, torch.tensor([[1, 3, 4, 6]]))
    second, pruned = prune(first + 10, torch.tensor([[0, 3]]), pruned)
    assert pruned.places.tolist() == [[1, 6]]
    assert pruned.grid(second + 100).flatten().tolist() == [0, 111, 2, 13, 14, 5, 116, 7]


def test_the_best_come_in_the_order_of_the_grid():
    assert best(torch.tensor([[1.0, 3, 2, 3, 0]]), 2).tolist() == [[1, 3]]
    assert best(torch.zeros(1, 4), 3).tolist() == [[0, 1, 2]]  # of equal ones the first


class Halving(backbones.Isotropic):
    """Behind every block, the first half of the pixels is left."""

    def prune(self, index, x, tokens, notes):
        half = torch.arange(x.shape[2] * x.shape[3] // 2).expand(x.shape[0], -1)
        x, notes["pruned"] = prune(x, half, notes.get("pruned"))
        return x, tokens


def test_a_network_that_prunes():
    torch.manual_seed(0)
    options = dict(dim=16, depth=2, mixers=dict(type="Attention", heads=2), img_size=32)
    network = Halving(**options, num_classes=3)
    image = torch.randn(2, 3, 64, 32, requires_grad=True)
    seen = []
    hook = network.blocks[1].register_forward_pre_hook(lambda block, given: seen.append(tuple(given[0].shape)))
    rows, maps = network.forward_intermediates(image)
    hook.remove()
    assert seen == [(2, 16, 1, 4)]
    assert [tuple(x.shape) for x in maps] == [(2, 16, 4, 2)] * 2
    assert rows.shape == (2, 1 + 2, 16)
    assert torch.equal(maps[1][:, :, 2:], maps[0][:, :, 2:])  # dropped behind the first block
    network(image).sum().backward()
    assert image.grad.abs().sum(1)[:, 32:].any()  # the first block still saw them
    dense = Halving(**options)
    assert [tuple(x.shape) for x in dense(image)] == [(2, 16, 4, 2)] * len(dense.out_indices)


@pytest.mark.slow
def test_ties_in_an_export(tmp_path):
    """ONNX has no stable sort; what stands for it prefers the first of equal scores, too."""
    onnxruntime = pytest.importorskip("onnxruntime")

    class Best(torch.nn.Module):
        def forward(self, scores):
            return best(scores, 5)

    scores = torch.randint(0, 3, (4, 40), generator=torch.Generator().manual_seed(0)).float()
    program = torch.export.export(Best(), (scores,)).run_decompositions(decompositions())
    torch.onnx.export(program, (scores,), tmp_path / "best.onnx", dynamo=True, optimize=False, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "best.onnx", providers=["CPUExecutionProvider"])
    (places,) = session.run(None, {session.get_inputs()[0].name: scores.numpy()})
    assert places.tolist() == best(scores, 5).tolist()
