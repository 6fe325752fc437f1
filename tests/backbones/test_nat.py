"""What characterises neighborhood attention: κ² real pixels for every pixel, and nothing kept for each pair."""

import pytest
import torch
import torch.nn.functional as F
from golden_records import parameter
from levels import norms_reach

from attlas import backbones
from attlas.backbones.layers import Attention
from attlas.backbones.nat import NAT, DiNATs, NATIsotropic, NeighborhoodAttention, PatchMerging


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def build(*args, **options):
    torch.manual_seed(0)
    mixer = NeighborhoodAttention(*args, **options).double()
    if mixer.rpb is not None:
        torch.nn.init.normal_(mixer.rpb)  # large enough to be seen
    return mixer


def seen(size, kernel, dilation, i):
    """The keys of pixel i of an axis: of those as far off as a multiple of δ, the κ that are nearest."""
    group = [j for j in range(size) if (j - i) % dilation == 0]
    place = group.index(i)
    start = min(max(place - kernel // 2, 0), len(group) - kernel)
    return group[start : start + kernel]


def dense(mixer, x):
    """The same among all pixels, with a mask and a bias for every pair."""
    height, width = x.shape[-2:]
    kernel, dilation = mixer.kernel_size, mixer.dilation
    mask = torch.full((mixer.heads, height * width, height * width), -torch.inf, dtype=x.dtype)
    pairs = [
        (i * width + j, y * width + z, (y - i) // dilation + kernel - 1, (z - j) // dilation + kernel - 1)
        for i in range(height)
        for j in range(width)
        for y in seen(height, kernel, dilation, i)
        for z in seen(width, kernel, dilation, j)
    ]
    query, key, down, right = torch.tensor(pairs).T
    mask = mask.index_put((torch.arange(mixer.heads)[:, None], query, key), mixer.rpb[:, down, right])
    qkv = mixer.qkv(x.flatten(2).mT).unflatten(-1, (3, mixer.heads, -1)).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(*qkv, attn_mask=mask)
    return mixer.proj(y.transpose(1, 2).flatten(2)).mT.unflatten(2, (height, width))


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (3, 2), (4, 1)])
def test_equals_dense_attention_with_a_mask(kernel, dilation):
    """With all gradients."""
    mixer, x = build(8, 2, kernel, dilation), normal(2, 8, 7, 9).requires_grad_()
    y = mixer(x)
    expected = dense(mixer, x)
    torch.testing.assert_close(y, expected)
    cotangent = normal(*y.shape)
    leaves = [x, *mixer.parameters()]
    for got, wanted in zip(torch.autograd.grad(y, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent)):
        torch.testing.assert_close(got, wanted)


def test_scale():
    """It multiplies the products, and not the bias; NAT hands it on."""
    mixer, x = build(8, 2, kernel_size=3, scale=0.3), normal(1, 8, 5, 6)
    expected = mixer(x)
    plain = build(8, 2, kernel_size=3)
    plain.load_state_dict(mixer.state_dict())
    plain.qkv.weight.data[:8] *= 0.3 * 4**0.5
    plain.qkv.bias.data[:8] *= 0.3 * 4**0.5
    torch.testing.assert_close(plain(x), expected)
    torch.testing.assert_close(plain.attention_maps(x, (1, 2)), mixer.attention_maps(x, (1, 2)))
    network = NAT((32, 64), (1, 1), (1, 2), dilations=((1,), (1,)), scale=0.3)
    assert [stage.blocks[0].mixer.scale for stage in network.stages] == [0.3, 0.3]


def test_sees_as_many_pixels_everywhere():
    """κ² of its dilation group, also in the corners; maps are the weights of the output."""
    mixer, x = build(8, 2, 3, 2), normal(1, 8, 7, 8)
    values = mixer.qkv(x.permute(0, 2, 3, 1))[..., 16:].unflatten(-1, (2, 4))
    y = mixer(x)
    for i in range(7):
        for j in range(8):
            maps = mixer.attention_maps(x, (i, j))
            rows, columns = torch.tensor(seen(7, 3, 2, i)), torch.tensor(seen(8, 3, 2, j))
            assert (maps[:, :, rows[:, None], columns] > 0).all()
            assert maps.count_nonzero() == 2 * 9
            out = mixer.proj(torch.einsum("bhyx,byxhd->bhd", maps, values).flatten(1))
            torch.testing.assert_close(out, y[:, :, i, j])


def test_dilation_groups_do_not_see_each_other():
    mixer, x = build(8, 2, 3, 2), normal(1, 8, 7, 8)
    changed = x.clone()
    changed[:, :, 1::2, ::2] += 1
    differs = (mixer(changed) != mixer(x)).any(1)
    assert differs[:, 1::2, ::2].all()
    assert differs.count_nonzero() == 3 * 4


def test_a_kernel_of_the_whole_map_is_global_attention():
    mixer, everywhere = build(8, 2, 7, bias=False), Attention(8, 2).double()
    everywhere.load_state_dict(mixer.state_dict())
    x = normal(2, 8, 7, 7)
    torch.testing.assert_close(mixer(x), everywhere(x))


@pytest.mark.parametrize("dilation", [1, 2])
def test_equivariant_to_translation_in_the_interior(dilation):
    mixer, x = build(8, 2, 3, dilation), normal(1, 8, 16, 17)
    moved = mixer(x.roll((2 * dilation, dilation), (2, 3)))
    edge = 3 * dilation  # the shift, and half of the kernel
    expected = mixer(x).roll((2 * dilation, dilation), (2, 3))
    torch.testing.assert_close(moved[..., edge:-edge, edge:-edge], expected[..., edge:-edge, edge:-edge])
    assert not torch.allclose(moved, expected)  # the borders have windows of their own


def test_small_maps_are_filled_as_by_the_authors():
    """With zeros before the projection, whose bias is then attended."""
    mixer, x = build(8, 2, 3, 2), normal(2, 8, 4, 9)
    filled = F.pad(x, (0, 0, 0, 2))
    torch.testing.assert_close(mixer(x), mixer(filled)[:, :, :4])
    torch.testing.assert_close(mixer(x), dense(mixer, filled)[:, :, :4])
    maps = mixer.attention_maps(x, (3, 8))
    torch.testing.assert_close(maps, mixer.attention_maps(filled, (3, 8))[:, :, :4])
    assert (maps.sum((2, 3)) < 1).all()


def test_memory_does_not_grow_with_the_kernel():
    """What a training step keeps for the backward pass, beside the parameters."""
    kept = []
    for kernel in (3, 13):
        mixer, x = NeighborhoodAttention(8, 2, kernel), torch.randn(1, 8, 14, 15)
        sizes = {}

        def pack(tensor, sizes=sizes, rpb=mixer.rpb):
            if tensor.data_ptr() != rpb.data_ptr():
                sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = mixer(x)
        kept.append(sum(sizes.values()))
        del y
    assert kept[0] == kept[1] > 0


def test_patches_merge_in_the_order_of_swin():
    """(0, 0), (1, 0), (0, 1), (1, 1) as (row, column); the filling of odd sizes is zero."""
    merge, x = PatchMerging(1, 4).double(), normal(1, 1, 3, 2)
    torch.nn.init.eye_(merge.reduction.weight)
    merge.norm = torch.nn.Identity()
    (a, b), (c, d), (e, f) = x[0, 0]
    torch.testing.assert_close(
        merge(x)[0, :, :, 0], torch.stack([a, c, b, d, e, 0 * e, f, 0 * f]).unflatten(0, (2, 4)).mT
    )


def test_dilations_of_the_variants():
    """Each fills the map of its level at the size of the variant, 7 pixels at stride 32 but for a remainder."""
    for name in backbones.list("dinat*"):
        with torch.device("meta"):
            network, found = backbones.create(name), backbones.variant(name)[1]
        if isinstance(network, NATIsotropic):
            assert [block.mixer.dilation for block in network.blocks] == [1, 2] * 6
            continue
        for level, stage in enumerate(network.stages):
            mixers = [block.mixer for block in stage.blocks]
            largest = found.size // 4 // 2**level // mixers[0].kernel_size
            assert [m.dilation for m in mixers] == [largest if i % 2 else 1 for i in range(len(mixers))], (name, level)


@pytest.mark.parametrize("network", [NAT, DiNATs])
def test_the_dense_form(network):
    """Norms are of the outputs alone; strides round up, and small maps are filled in their attentions."""
    dense = network((32, 64), (2, 1), (1, 2), 3, ((1, 4), (1,)), mlp_ratio=2).double().eval()
    x = normal(1, 3, 27, 50)
    assert norms_reach(dense, x) == {0: [0], 1: [1]}
    assert [tuple(y.shape[-2:]) for y in dense(x)] == [(7, 13), (4, 7)]
    assert {norm.eps for norm in dense.norms.values()} == {1e-5}
    higher = network((32, 64), (2, 1), (1, 2), 3, ((1, 4), (1,)), mlp_ratio=2, out_indices=(1,)).double().eval()
    account = backbones.load(higher, dense.state_dict())
    assert account.complete, str(account)
    assert account.ignored == ["norms.0.weight", "norms.0.bias"]
    assert torch.equal(higher(x)[0], dense(x)[1])


def test_dilations_of_the_authors_dense_networks():
    """As the docstring of `NAT` has them, in the lists of all blocks that the authors' configs have."""
    dilations = ((1, 28), (1, 7, 1, 14), (1, 3, 1, 5, 1, 7), (1, 3))
    with torch.device("meta"):
        network = backbones.create("dinat_mini", out_indices=(0, 1, 2, 3), dilations=dilations)
    got = [[block.mixer.dilation for block in stage.blocks] for stage in network.stages]
    assert got == [[1, 28, 1], [1, 7, 1, 14], [1, 3, 1, 5, 1, 7], [1, 3, 1, 3, 1]]


def test_official_names_of_plain_networks():
    network = NATIsotropic(32, 2, 1, 3, num_classes=3)
    state = network.state_dict()
    official = {
        name.replace("stem.0.", "patch_embed.proj.")
        .replace("stem.1.", "patch_embed.norm.")
        .replace("blocks.", "layers.")
        .replace(".mixer.", ".attn.")
        .replace("head.fc.", "head."): value
        for name, value in state.items()
    }
    assert {"layers.1.attn.rpb", "layers.0.norm1.weight", "patch_embed.norm.bias", "head.weight"} <= official.keys()
    account = backbones.load(NATIsotropic(32, 2, 1, 3, num_classes=3), official)
    assert account.complete, str(account)
    account = backbones.load(NATIsotropic(32, 2, 1, 3), official)
    assert account.complete, str(account)
    assert account.ignored == ["head.fc.weight", "head.fc.bias"]


def test_official_names_of_swin_wiring():
    network = DiNATs((32, 64), (2, 1), (1, 2), 3, ((1, 2), (1,)), out_indices=(0, 1))
    ours = network.state_dict()

    def official(name):
        name = name.replace("stages.1.downsample", "layers.0.downsample").replace("stages.", "layers.")
        name = name.replace("stem.0.", "patch_embed.proj.").replace("stem.1.", "patch_embed.norm.")
        return name.replace(".mixer.", ".attn.").replace("norms.", "norm")

    state = {official(name): parameter(name, value.shape) for name, value in ours.items()}
    assert {"layers.0.downsample.reduction.weight", "layers.1.blocks.0.attn.rpb", "norm1.bias"} <= state.keys()
    account = backbones.load(network, state)
    assert account.complete, str(account)
    assert all(torch.equal(value, parameter(name, value.shape)) for name, value in network.state_dict().items())


def test_initial_weights():
    """0.02 is for linear layers; convolutions keep PyTorch's initial weights."""
    torch.manual_seed(0)
    network = NAT((32, 64), (1, 1), heads=(1, 2), dilations=((1,), (1,)))
    bound = (3 * 3 * 32) ** -0.5
    assert network.stages[1].downsample[0].weight.abs().max() <= bound
    assert network.stages[1].downsample[0].weight.std() > bound / 2
    assert 0.018 < network.stages[1].blocks[0].mlp.fc1.weight.std() < 0.022


def test_bad_arguments():
    with pytest.raises(ValueError, match="heads must have one entry for each of the 2 stages"):
        NAT((32, 64), (1, 1))
    with pytest.raises(ValueError, match="dilations must have one entry for each of the 2 stages"):
        NAT((32, 64), (1, 1), heads=(1, 2))
    with pytest.raises(ValueError, match="kernel_size must be at least 2 and dilation at least 1, got 1, 1"):
        NeighborhoodAttention(32, kernel_size=1)
