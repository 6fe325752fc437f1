"""What is caught of layers: calls, tuples, tokens, operations in place; and that looking changes nothing."""

import pytest
import torch
from networks import SYSTEMS, build, image
from torch import nn

from attlas.backbones.inspection.capture import (
    TokenGrid,
    default_layers,
    look,
    swapped,
    token_grid,
    unchanged,
)
from attlas.backbones.inspection.targets import logit


class Odd(nn.Module):
    """A ReLU in place that runs twice, a tuple of maps, rows with a prefix, an idle part."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.idle = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1)
        self.split, self.mixer, self.fc = Split(), nn.Linear(6, 6), nn.Linear(6, 4)
        self.eval()

    def forward(self, x):
        one, two = self.split(self.relu(self.conv(x)))
        rows = torch.cat([one.new_ones(len(x), 2, 6), (one + 2 * two).flatten(2).transpose(1, 2)], 1)
        y = self.relu(self.mixer(rows))
        return self.fc(y.mean(1) + y[:, 0])


class Split(nn.Module):
    def forward(self, x):
        return x.sin(), x.cos()


GRID = TokenGrid(2, 5, 7)


def test_an_operation_in_place_changes_nothing_that_was_caught():
    network, x = Odd(), image(5, 7)
    (seen,) = look(network, x, logit(1), "conv")
    torch.testing.assert_close(seen.activation, network.conv(x))
    assert (seen.activation < 0).any()
    (behind,) = look(network, x, logit(1), "relu#0")
    assert (behind.activation >= 0).all()
    torch.testing.assert_close(seen.gradient, behind.gradient * (seen.activation > 0))


def test_calls_of_one_module_are_told_apart():
    network, x = Odd(), image(5, 7)
    with pytest.raises(ValueError, match=r"relu ran 2 times.*relu#0 to relu#1"):
        look(network, x, logit(1), "relu")
    with pytest.raises(ValueError, match="relu#2: the module ran 2 times, #0 to #1"):
        look(network, x, logit(1), "relu#2")
    (second,) = look(network, x, logit(1), "relu#1", GRID)
    (before,) = look(network, x, logit(1), "mixer", GRID)
    torch.testing.assert_close(second.activation, before.activation.relu())
    first, last = look(network, x, logit(1), ["relu#0", "conv"])
    assert first.activation.shape == last.activation.shape == (2, 6, 5, 7)


def test_tuples_ask_for_a_choice():
    network, x = Odd(), image(5, 7)
    with pytest.raises(ValueError, match=r"split gives 2 things, 2 of them maps: say which, such as split\[0\]"):
        look(network, x, logit(1), "split")
    one, two = look(network, x, logit(1), ["split[0]", "split[1]"])
    torch.testing.assert_close(two.gradient, 2 * one.gradient)
    with pytest.raises(ValueError, match=r"split\[2\]: the module gives 2 things"):
        look(network, x, logit(1), "split[2]")
    with pytest.raises(ValueError, match=r"conv\[0\]: the module gives one tensor"):
        look(network, x, logit(1), "conv[0]")


def test_the_grid_of_tokens_is_never_guessed():
    network, x = Odd(), image(5, 7)
    with pytest.raises(ValueError, match=r"mixer \(Linear\) gives shape \(2, 37, 6\), and nothing.*TokenGrid"):
        look(network, x, logit(1), "mixer")
    with pytest.raises(ValueError, match=r"1 prefix tokens and a grid of 5 x 7 are rows \(B, 36, C\).*\(2, 37, 6\)"):
        look(network, x, logit(1), "mixer", TokenGrid(1, 5, 7))
    (seen,) = look(network, x, logit(1), "mixer", GRID)
    assert seen.activation.shape == (2, 6, 5, 7)
    rows = network.mixer(torch.cat([torch.ones(2, 2, 6), _rows(network, x)], 1))
    torch.testing.assert_close(seen.activation[:, :, 2, 3], rows[:, 2 + 2 * 7 + 3])
    with pytest.raises(ValueError, match=r"grid must give maps \(B, C, ...\) of mixer"):
        look(network, x, logit(1), "mixer", lambda rows: rows.sum(1))


def _rows(network, x):
    y = network.conv(x).relu()
    return (y.sin() + 2 * y.cos()).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("registers", [0, 4])
def test_a_plain_transformer_says_its_grid(registers):
    """Class and register tokens are counted, at any rectangle, for layers of rows; and blocks give maps as they are."""
    network = build("ViT", num_classes=5, registers=registers, depth=2)
    assert token_grid(network, 64, 95) == (1 + registers, 4, 6)
    rows = {}
    network.norm.register_forward_hook(lambda module, args, out: rows.update(norm=out))
    x = image(64, 95)
    (seen,) = look(network, x, logit([1, 2]), "norm")
    assert seen.activation.shape == (2, 48, 4, 6)
    network(x)
    assert torch.equal(seen.activation[:, :, 3, 5], rows["norm"][:, -1])
    assert not seen.gradient.any()  # the head reads the class token
    assert look(network, x, logit(1), "blocks.0")[0].activation.shape == (2, 48, 4, 6)


@pytest.mark.slow  # to import
def test_vits_of_transformers_say_their_grid():
    transformers = pytest.importorskip("transformers")
    options = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32)
    torch.manual_seed(0)

    class Classifier(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.fc = model, nn.Linear(24, 3)
            self.eval()

        def forward(self, x):
            return self.fc(self.model(x).last_hidden_state.mean(1))

    vit = Classifier(transformers.ViTModel(transformers.ViTConfig(patch_size=8, **options)))
    dino = transformers.Dinov2WithRegistersConfig(patch_size=8, num_register_tokens=3, **options)
    registers = Classifier(transformers.Dinov2WithRegistersModel(dino))
    for network, prefix, size in ((vit, 1, (32, 32)), (registers, 4, (32, 48))):
        x = image(*size)
        height, width = size[0] // 8, size[1] // 8
        assert token_grid(network, *size) == (prefix, height, width)
        first = ("0.layernorm_before", "0.norm1")  # as ViT and DINOv2 call the first norm
        name = next(name for name, _ in network.named_modules() if name.endswith(first))
        (seen,) = look(network, x, logit(1), name)
        assert seen.activation.shape == (2, 24, height, width)


def test_channels_last_of_linear_layers_and_norms():
    network = nn.Sequential(Last(), nn.Linear(3, 5), nn.LayerNorm(5), Mean()).eval()
    for layer in ("1", "2"):
        assert look(network, image(4, 6), logit(0), layer)[0].activation.shape == (2, 5, 4, 6)


class Last(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class Mean(nn.Module):
    def forward(self, x):
        return x.square().mean((1, 2))


def test_pixels_that_are_left_are_no_map():
    network = build("SparsifinerLVViT", num_classes=5, depth=4, token_keep=(1, 0.5, 0.5, 0.5))
    x = image(64, 96)
    with pytest.raises(ValueError, match=r"blocks\.2 gives 12 pixels that are left of 4 x 6"):
        look(network, x, logit(0), "blocks.2")
    assert look(network, x, logit(0), "blocks.0")[0].activation.shape[2:] == (4, 6)


# --- which layers ----------------------------------------------------------------------------------------------------


def check_default_layer(system):
    """The answer is made of the default layer: every pixel of its map has a gradient, another one for another class."""
    network, x = build(system, num_classes=5), image(64, 96)
    (layer,) = default_layers(network)
    found = [look(network, x, logit(c), layer)[0] for c in (1, 3)]
    assert found[0].activation.ndim == 4
    share = (found[0].gradient.abs().sum(1) > 0).float().mean()
    assert share == 1 or (system == "IARED2" and share > 0.3), share  # which drops patches
    assert not torch.allclose(found[0].gradient, found[1].gradient, rtol=1e-3)
    names = default_layers(network, 9)
    assert names[-1] == layer
    assert len(look(network, x, logit(1), names)) == len(names)


@pytest.mark.parametrize("system", ["ViT", "ResNet", "CrossViT", "FANHybrid", "IARED2", "DuoFormer", "SHViT"])
def test_default_layer(system):
    check_default_layer(system)


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_default_layer_of_every_system(system):
    check_default_layer(system)


def test_no_default_is_guessed():
    with pytest.raises(ValueError, match=r"layers must be given: .*it has none"):
        default_layers(Odd())
    with pytest.raises(ValueError, match="it has 0, 1"):
        default_layers(nn.Sequential(build("ViT"), build("ViT")))


# --- nothing changes -------------------------------------------------------------------------------------------------


def test_looking_leaves_no_gradients_hooks_or_graphs():
    network, x = Odd(), image(5, 7)
    x.requires_grad_()
    network.conv.weight.requires_grad_(False)
    before = {name: (id(p), p._version, p.requires_grad) for name, p in network.named_parameters()}
    with torch.inference_mode():
        seen = look(network, x, logit(1), ["conv", "input"])
    assert before == {name: (id(p), p._version, p.requires_grad) for name, p in network.named_parameters()}
    assert all(p.grad is None for p in network.parameters())
    assert x.grad is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert not any(part.activation.requires_grad or part.gradient.requires_grad for part in seen)
    (plain,) = torch.autograd.grad(network(x)[:, 1].sum(), x)
    torch.testing.assert_close(seen[1].gradient, plain)


class Counting(nn.Module):
    """A network that changes itself in inference."""

    def __init__(self, what):
        super().__init__()
        self.what, self.fc = what, nn.Conv2d(3, 2, 1)
        self.register_buffer("seen", torch.zeros(1))
        self.eval()

    def forward(self, x):
        if self.what == "buffer":
            self.seen += 1
        elif self.what == "weight":
            with torch.no_grad():
                self.fc.bias.add_(1)
        elif self.what == "mode":
            self.fc.train()
        elif self.what == "error":
            raise KeyError("inside")
        return self.fc(x).mean((2, 3))


@pytest.mark.parametrize(("what", "said"), [("buffer", "seen"), ("weight", r"fc\.bias"), ("mode", "the mode of fc")])
def test_a_network_that_changes_itself_is_caught(what, said):
    with pytest.raises(RuntimeError, match=f"changed it: {said}"):
        look(Counting(what), image(4, 6), logit(0), "fc")


def test_an_error_leaves_everything_as_it_was():
    network = Counting("error")
    weights = dict(network.named_parameters())
    with pytest.raises(KeyError, match="inside"):
        look(network, image(4, 6), logit(0), "fc")
    assert all(p is weights[name] for name, p in network.named_parameters())
    assert not network.fc._forward_hooks
    with unchanged(network):
        with swapped(network, lambda name, p: p * 0):
            assert not network.fc.weight.any()
        assert network.fc.weight.any()


# --- bad input -------------------------------------------------------------------------------------------------------


def test_bad_input():
    network, x = Odd(), image(5, 7)
    for layers, said in (
        ("convv", r"convv: the network has no such module; near are conv"),
        ([], "layers must be names"),
        (["conv", "conv"], "each once"),
        ("idle", "idle did not run"),
    ):
        with pytest.raises(ValueError, match=said):
            look(network, x, logit(1), layers)
    with pytest.raises(ValueError, match="inputs are empty"):
        look(network, x[:0], logit(1), "conv")
    with pytest.raises(TypeError, match="must be a tensor of floats"):
        look(network, x.int(), logit(1), "conv")
    with pytest.raises(ValueError, match=r"does not depend on fc"):
        look(network, x, lambda output: x.sum((1, 2, 3)), "fc", lambda y: y[:, :, None])
    network.relu.train()
    with pytest.raises(ValueError, match=r"relu is in training mode; .*eval\(\)"):
        look(network, x, logit(1), "conv")
