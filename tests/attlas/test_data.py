"""Draws repeat, whatever happens around them; and what every data set does is done by their base."""

import random

import numpy as np
import pytest
import torch

from attlas.data import EpochSampler, Items, seeded


def test_seeded_is_pure_and_gives_the_generators_back():
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    def draw(*key):
        with seeded(*key):
            return random.random(), np.random.rand(), torch.rand(()).item()

    before = state()
    first = draw(1, 2, 3)
    assert state() == before
    assert draw(1, 2, 3) == first
    for other in (draw(1, 2, 4), draw(0, 2, 3), draw(1, 0, 3)):
        assert all(a != b for a, b in zip(other, first))
    with pytest.raises(RuntimeError, match="shape"), seeded(5):
        torch.rand(3).view(2)
    assert state() == before


class Boxes(Items):
    """Items without one label: as many boxes as the item's number says, each of one of two classes."""

    def __init__(self, size=4, transforms=(), seed=0):
        super().__init__("train", size, ("cat", "dog"), transforms, seed)

    def get(self, item):
        return dict(boxes=torch.zeros(item, 4), labels=torch.arange(item) % 2, item=item)


def jitter(data):
    data["boxes"] = data["boxes"] + torch.rand(()) + random.random() + np.random.rand()
    return data


def test_a_draw_is_a_function_of_seed_epoch_and_item():
    dataset = Boxes(transforms=[jitter])
    first = dataset[3]["boxes"]
    random.seed(5)
    torch.manual_seed(5)
    assert torch.equal(dataset[3]["boxes"], first)
    assert torch.equal(dataset[-1]["boxes"], first)
    assert torch.equal(Boxes(9, transforms=[jitter])[3]["boxes"], first)
    for other in (dataset[7], dataset[11], Boxes(transforms=[jitter], seed=1)[3]):
        assert other["item"] == 3
        assert not torch.equal(other["boxes"], first)
    assert [data["item"] for data in dataset] == [0, 1, 2, 3]


@pytest.mark.parametrize("index", [slice(2, 4), [2, 3], torch.tensor([2, 3]), np.array([False, False, True, True])])
def test_a_part_keeps_its_draws(index):
    dataset = Boxes(transforms=[jitter])
    part = dataset[index]
    assert len(part) == 2
    assert part.metainfo == dataset.metainfo == dict(classes=("cat", "dog"))
    assert [data["item"] for data in part] == [2, 3]
    assert torch.equal(part[1]["boxes"], dataset[3]["boxes"])
    assert torch.equal(part[2 * 2 + 1]["boxes"], dataset[2 * 4 + 3]["boxes"])  # in the third epoch too
    assert len(dataset) == 4


def test_errors_name_the_item_and_what_may_be():
    def fail(data):
        raise ValueError("no box is left")

    with pytest.raises(ValueError, match=r"^Boxes train\[2\]: no box is left$"):
        Boxes(transforms=[fail])[6]
    with pytest.raises(IndexError, match="index -5 of a data set of 4 items"):
        Boxes()[-5]
    with pytest.raises(ValueError, match="Boxes: split 'train' is empty"):
        Boxes(0)
    with pytest.raises(ValueError, match="seed is -1; it must be an integer of at least 0"):
        Boxes(seed=-1)
    with pytest.raises(TypeError, match="transforms holds 'Jitter'; its entries may be"):
        Boxes(transforms=["Jitter"])


def test_epoch_sampler_repeats_after_a_resumption():
    indices = []
    for _ in range(2):
        sampler = EpochSampler(range(5), shuffle=True, seed=1)
        sampler.set_epoch(7)
        indices.append(list(sampler))
    assert sorted(indices[0]) == [35, 36, 37, 38, 39]
    assert indices[0] == indices[1]
