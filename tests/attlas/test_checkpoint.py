import pickle

import pytest
import torch
from torch import nn

from attlas import checkpoint


class Net(nn.Module):
    checkpoint_rules = [(r"^backbone\.conv", "stem"), (r"^backbone\.", ""), (r"\.running_anchor$", None)]

    def __init__(self, classes: int = 3, table: int = 5):
        super().__init__()
        self.stem = nn.Conv1d(4, 8, 1)
        self.norm = nn.BatchNorm1d(8)
        self.table = nn.Parameter(torch.randn(table, 2))
        self.head = nn.Linear(8, classes)


def authors_state(net: Net) -> dict:
    state = net.state_dict()
    return {
        "backbone.conv.weight": state["stem.weight"][..., 0],  # a linear layer where we have a 1x1 convolution
        "backbone.conv.bias": state["stem.bias"],
        **{f"backbone.{name}": value for name, value in state.items() if not name.startswith("stem")},
        "backbone.running_anchor": torch.zeros(1),
    }


def same(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(value, other[name]) for name, value in a.state_dict().items())


@pytest.mark.parametrize("wrap", ["{}", "state_dict", "model", "module", "ema", "state_dict_ema"])
def test_authors_file_loads_by_the_rules_of_the_network(tmp_path, wrap):
    source, target = Net(), Net()
    state = {f"module.{name}": value for name, value in authors_state(source).items()}
    torch.save(state if wrap == "{}" else {wrap: state, "epoch": 3}, tmp_path / "authors.pth")
    account = checkpoint.load(target, tmp_path / "authors.pth")
    assert same(source, target)
    assert account.complete
    assert account.renamed["backbone.conv.weight"] == "stem.weight"
    assert account.ignored == ["backbone.running_anchor"]
    assert account.resized == {"stem.weight": ((8, 4), (8, 4, 1))}
    assert "10 of the network's 10 tensors loaded (10 of them renamed, 1 resized)" in str(account)


@pytest.mark.parametrize("whole", ["model.", "encoder.", "module.model.", "module.encoder."])
def test_a_part_of_a_larger_module(whole):
    """What stands before every name goes, unless the network's own names begin so."""
    source, target = Net(), Net()
    state = {f"{whole}{name}": value for name, value in authors_state(source).items()}
    account = checkpoint.load(target, state)
    assert account.complete
    assert same(source, target)
    with pytest.raises(ValueError, match="nothing was loaded"):
        checkpoint.load(Net(), state | {"decoder.weight": torch.zeros(1)})
    inner = whole.removeprefix("module.").rstrip(".")
    outer = nn.ModuleDict({inner: Net()})
    assert checkpoint.load(outer, {f"{whole}{name}": value for name, value in source.state_dict().items()}).complete
    assert same(outer[inner], source)


def test_rules_of_a_part_are_for_the_names_below_it():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.neck = Net(), nn.Linear(3, 3)

    source, target = Detector(), Detector()
    state = {f"backbone.{name}": value for name, value in authors_state(source.backbone).items()}
    account = checkpoint.load(target, {**state, **{f"neck.{k}": v for k, v in source.neck.state_dict().items()}})
    assert same(source, target)
    assert account.complete
    assert account.renamed["backbone.backbone.conv.weight"] == "backbone.stem.weight"
    assert account.ignored == ["backbone.backbone.running_anchor"]
    assert checkpoint.left_over(target, state | {f"neck.{k}": v for k, v in source.neck.state_dict().items()}) == 0


def test_rules_leave_our_own_files_alone(tmp_path):
    class Shifted(Net):
        checkpoint_rules = [(r"^norm\.", "moved."), (r"^head\.", "norm.")]  # would break names that fit already

    source, target = Shifted(), Shifted()
    checkpoint.save(tmp_path / "ours.safetensors", source.state_dict(), {"classes": "a,b"})
    account = checkpoint.load(target, tmp_path / "ours.safetensors")
    assert same(source, target)
    assert account.complete
    assert not account.renamed
    assert checkpoint.read(tmp_path / "ours.safetensors")["meta"] == {"classes": "a,b"}


def test_missing_and_unexpected_names_are_counted():
    state = Net().state_dict()
    del state["head.bias"], state["norm.num_batches_tracked"]
    state["tail.weight"] = torch.zeros(2)
    account = checkpoint.load(Net(), state)
    assert account.missing == ["head.bias"]
    assert account.unexpected == ["tail.weight"]
    assert not account.complete
    assert "missing from the file (1): head.bias" in str(account)


def test_averaged_weights_beside_raw_ones():
    raw, averaged, target = Net(), Net(), Net()
    file = {"model": raw.state_dict(), "model_ema": {"state_dict": averaged.state_dict(), "decay": 0.9}, "epoch": 3}
    account = checkpoint.load(target, file)
    assert same(raw, target)
    assert account.besides == {"model_ema": 10}
    assert "holds model_ema besides, with 10 tensors; to take that: container='model_ema'" in str(account)
    account = checkpoint.load(target, file, container="model_ema")
    assert same(averaged, target)
    assert account.besides == {"model": 10}
    checkpoint.load(target, {"teacher": raw.state_dict()}, container="teacher")
    assert same(raw, target)
    with pytest.raises(ValueError, match=r"container='ema' is not in the checkpoint\. In it: model, model_ema\."):
        checkpoint.load(target, file, container="ema")
    with pytest.raises(ValueError, match=r"under one of teacher: container=NAME"):
        checkpoint.load(target, {"teacher": raw.state_dict()})


def test_averages_and_compiled_networks():
    source, target = Net(), Net()
    average = torch.optim.swa_utils.AveragedModel(source)
    assert "n_averaged" in average.state_dict()
    for state in (average.state_dict(), {"ema_state_dict": {**average.state_dict(), "steps": torch.zeros(())}}):
        assert checkpoint.load(torch.compile(target), state).complete
        assert same(source, target)
        target = Net()


def test_prefix_takes_a_part():
    source, target = Net(), Net()
    state = {f"backbone.{name}": value for name, value in source.state_dict().items()} | {"neck.weight": torch.ones(1)}
    assert checkpoint.load(target, state, prefix="backbone.").complete
    assert same(source, target)
    with pytest.raises(ValueError, match=r"no name begins with prefix='bone\.'.*backbone\.table"):
        checkpoint.load(target, state, prefix="bone.")


def test_tables_are_resized_by_the_function_given():
    def longer(tensor, shape):
        return nn.functional.interpolate(tensor.T[None], shape[0], mode="linear", align_corners=True)[0].T

    source, target = Net(table=5), Net(table=9)
    account = checkpoint.load(target, source.state_dict(), resize={r"^table$": longer})
    assert account.resized == {"table": ((5, 2), (9, 2))}
    assert torch.equal(target.table[::8], source.table[::4])


def test_another_shape_is_an_error_unless_allowed():
    state, target = Net(classes=7).state_dict(), Net()
    before = target.head.weight.clone()
    with pytest.raises(ValueError, match=r"2 of 10 tensors(.|\n)*ignore_mismatched") as raised:
        checkpoint.load(target, state, ignore_mismatched=["^stem"])
    assert "head.weight: (7, 8) in the file, (3, 8) in the network" in str(raised.value)
    account = checkpoint.load(target, state, ignore_mismatched=[r"^head\."])
    assert account.mismatched.keys() == {"head.weight", "head.bias"}
    assert torch.equal(target.head.weight, before)
    assert torch.equal(target.table, state["table"])


def test_a_file_of_which_nothing_fits_is_an_error():
    with pytest.raises(ValueError, match=r"nothing was loaded(.|\n)*file has +a\.b, c\n +the network has +table, stem"):
        checkpoint.load(Net(), {"a.b": torch.ones(1), "c": torch.ones(2)})
    with pytest.raises(ValueError, match=r"holds no tensors.*epoch"):
        checkpoint.load(Net(), {"epoch": 3})


def test_two_names_that_become_one_are_an_error():
    state = {"a": torch.ones(5, 2), "b": torch.zeros(5, 2)}
    with pytest.raises(ValueError, match="two names into 'table'"):
        checkpoint.load(Net(), state, rules=[(r"^[ab]$", "table")])


def test_broken_and_absent_files_name_themselves(tmp_path):
    (tmp_path / "best.pth").write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(ValueError, match=r"best\.pth cannot be read"):
        checkpoint.read(tmp_path / "best.pth")
    (tmp_path / "best.safetensors").write_bytes(b"\x00" * 10)
    with pytest.raises(ValueError, match=r"best\.safetensors cannot be read"):
        checkpoint.read(tmp_path / "best.safetensors")
    with pytest.raises(FileNotFoundError, match=r"Near it: .*best\.pth"):
        checkpoint.read(tmp_path / "bets.pth")
    (tmp_path / "data.pth").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"data\.pth"):
        checkpoint.read(tmp_path / "data.pth")


def test_save_is_whole_or_nothing(tmp_path):
    path = tmp_path / "net.safetensors"
    tied = torch.arange(4.0)
    checkpoint.save(path, {"a": tied, "b": tied[::2]})  # shared and strided memory
    assert torch.equal(checkpoint.read(path)["state_dict"]["b"], torch.tensor([0.0, 2.0]))
    before = path.read_bytes()
    with pytest.raises(Exception, match=r"metadata|argument|str"):
        checkpoint.save(path, {"a": tied}, {"epoch": 3})  # metadata must be text
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        checkpoint.save(tmp_path / "net.pth", {})


def test_parts_of_a_larger_model():
    """What a network calls its part of a file counts alone; the rest is said. Files without one are as they are."""

    class Tower(nn.Linear):
        checkpoint_parts = ("visual.",)

    file = {"visual.weight": torch.ones(2, 2), "visual.bias": torch.ones(2), "weight": torch.zeros(2, 2)}
    tower = Tower(2, 2)
    account = checkpoint.load(tower, file)
    assert account.complete
    assert account.ignored == ["weight"]
    assert torch.equal(tower.weight, torch.ones(2, 2))
    assert checkpoint.load(tower, {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}).complete
    assert not tower.weight.any()


def test_a_part_that_was_saved_twice():
    """Under two names that become one: the second is ignored, and the account says so."""
    twice = torch.randn(2, 2)
    file = {"weight": twice, "again.weight": twice.clone(), "bias": torch.zeros(2)}
    account = checkpoint.load(nn.Linear(2, 2), file, rules=[(r"^again\.", "")])
    assert account.complete
    assert account.ignored == ["again.weight"]
