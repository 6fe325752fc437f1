"""Published weights: the table, and weights by name from a server on this machine."""

import dataclasses

import pytest
import torch
from web import served

from attlas import backbones, checkpoint, download
from attlas.backbones import published
from attlas.registry import MODELS


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server that has the weights of shvit_s1, and says so in the table."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "*")
    with served() as server:
        row = dataclasses.replace(published.weights()["shvit_s1"], url=server.url("/shvit_s1.pth?download=true"))
        monkeypatch.setitem(published.weights(), "shvit_s1", row)
        yield server


def test_the_table():
    known = published.weights()
    assert known.keys() <= {*backbones.list()}
    assert {row.kind for row in known.values()} == {"direct", "page"}
    assert all(row.url.startswith("https://") and row.task.startswith("ImageNet-1k") for row in known.values())
    direct = [row.url for row in known.values() if row.kind == "direct"]
    assert len({*direct}) == len(direct) == 113
    for name, row in known.items():
        facts = backbones.variant(name)[1]
        assert str(facts.size) in row.task or row.task == "ImageNet-1k", name
        if row.top1 and facts.top1:
            assert float(row.top1) == pytest.approx(facts.top1, abs=0.15), name


def test_weights_by_name(server, tmp_path):
    source = backbones.create("shvit_s1")
    torch.save({"model": source.state_dict()}, tmp_path / "file.pth")
    server.files["/shvit_s1.pth"] = (tmp_path / "file.pth").read_bytes()
    network = backbones.create("shvit_s1", pretrained=True)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in network.state_dict().items())
    cfg = dict(type="NamedBackbone", name="shvit_s1", num_classes=5, pretrained="auto")
    assert torch.equal(MODELS.build(cfg).stem[0].conv.weight, source.stem[0].conv.weight)
    assert len(server.asked) == 1
    assert [path.name[:9] for path in (tmp_path / "hub/checkpoints").glob("*.pth")] == ["shvit_s1-"]


def test_what_there_is_instead(server):
    for name, message in (
        ("shvit_s1", r"shvit_s1 \(http://.* the server says 404.*pretrained='FILE'"),
        (
            "biformer_tiny",
            r"biformer_tiny cannot be fetched.*browser from https://1drv\.ms/\S* and .*pretrained='FILE'",
        ),
        ("davit_huge", r"davit_huge are known.*Of its system these have some: davit_tiny, davit_small, davit_base\."),
    ):
        with pytest.raises((ValueError, download.DownloadError), match=message):
            backbones.create(name, pretrained=True)


def test_a_network_says_how_images_are_prepared(tmp_path):
    facts = backbones.create("shvit_s4").variant
    assert (facts.size, facts.crop, facts.interpolation) == (256, 0.875, "bicubic")
    assert backbones.variant("haloregnetz_b")[1].mean == (127.5, 127.5, 127.5)
    assert backbones.systems()["SHViT"]().variant is None


def test_filters_for_another_number_of_channels():
    state = backbones.create("shvit_s1", num_classes=5).state_dict()
    filters = state["stem.0.conv.weight"]
    gray = dict(num_classes=5, in_channels=1)
    with pytest.raises(ValueError, match=r"built with in_channels=1\. .*fit_channels=True\.$"):
        backbones.create("shvit_s1", pretrained=state, **gray)
    network = backbones.create("shvit_s1", pretrained=state, fit_channels=True, **gray)
    assert torch.equal(network.stem[0].conv.weight, filters.sum(1, keepdim=True))
    network = backbones.create("shvit_s1", pretrained=state, fit_channels=True, num_classes=5, in_channels=6)
    image = torch.ones(1, 1, 32, 32)
    expected = torch.conv2d(image.expand(-1, 3, -1, -1), filters)
    torch.testing.assert_close(torch.conv2d(image.expand(-1, 6, -1, -1), network.stem[0].conv.weight), expected)


def test_averaged_weights_by_name_of_their_container():
    network = backbones.create("shvit_s1", num_classes=5)
    raw = network.state_dict()
    averaged = {name: torch.ones_like(value) for name, value in raw.items()}
    compiled = torch.compile(network)
    account = backbones.load(compiled, {"model": raw, "model_ema": averaged}, container="model_ema")
    assert network.head.fc.weight.sum() == network.head.fc.weight.numel()
    assert account.besides == {"model": len(raw)}
    average = torch.optim.swa_utils.AveragedModel(backbones.create("shvit_s1", num_classes=5))
    assert checkpoint.load(network, average.state_dict()).complete
