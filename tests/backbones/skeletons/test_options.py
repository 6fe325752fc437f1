"""An option changes the network that is built, or is refused; nothing is swallowed."""

import inspect

import pytest
import torch
from networks import SYSTEMS, build, fill, image, options_of, tensors

from attlas import backbones
from attlas.backbones.skeletons.options import check_whole, image_sides
from attlas.registry import MODELS

SKELETONS = {"mixers", "mlp_ratio", "layer_scale", "plugins", "strides", "position", "class_token", "registers"}
COMMON = {*inspect.signature(backbones.Backbone.__init__).parameters}  # with tests of their own, for every system

# Another value of an option than the one that `options_of` has; numbers that are not here are doubled.
OTHERS = dict(
    depth=3,
    drop_path_rate=0.3,
    eps=0.1,
    features=32,
    heads=2,
    img_size=96,
    kernel="relu",
    kernel_size=5,
    layer_scale=0.5,
    lepe_kernel=3,
    mlp="swiglu",
    mlp_ratio=2.5,
    plugins="SE",
    pretrain_size=448,
    projection=20,
    registers=2,
    scale=0.5,
    small_kernel=3,
)
SPARSIFINER = dict(
    coef_threshold=0.05, coef_topk=2, img_size=192, keep=0.5, scales=(1, 0.5), score_threshold=0.005, token_keep=0.5
)
OTHERS_OF = dict(
    AFFNet=dict(activation="relu", dropout=0.5, groups=4, norm="pixel", output_stride=16, stem_dims=(8, 16)),
    BalancedMTA=dict(block_size=5, drop_block=0.3, dropout=0.9, plugins="SE", strides=(1, 2, 4, 4)),
    BiFormer=dict(form="nchw", head_dim=16, key_dims=(8, 16, 32, 64), topks=(1, 4, 16, -1)),
    BiFormerSTL=dict(form="nchw", head_dim=16, key_dims=(12, 24, 48, 96), topks=(1, 4, 16, -1)),
    ConViT=dict(heads=3, patch_size=8, scales=(1, 1, 1, 0.5)),
    CrossViT=dict(
        depths=((1, 1), (2, 1)), fusions=2, img_size=(72, 64), patch_size=(12, 24), qk_scale=0.1, strides=(16, 16)
    ),
    DHVT=dict(scales=(1, 0.5)),
    DaViT=dict(heads=(1, 2, 4, 8)),
    DependencyViT=dict(
        fill="zero", join="before", patch_size=8, prune_blocks=(1,), prune_score="received", scales=(1, 0.5)
    ),
    DiNATs=dict(dilations=((1, 2), (1,), (1,), (1,)), heads=(1, 2, 4, 8)),
    DuoFormer=dict(
        img_size=128, pyramid=dict(type="ResNet", dims=(32, 32, 32), depths=(1, 1, 1)), scale_token="channel", scales=2
    ),
    FFNet=dict(head_norm="layer", mixers="FFNifiedAttention", mlp_kernel_sizes=5),
    FFNetSeg=dict(features=(16, 24), mixers="FFNifiedAttention", mlp_kernel_sizes=5),
    HaloNet=dict(
        activation="silu",
        attends=((), (), (), (0,)),
        gate="se",
        group_size=8,
        heads=(4, 8, 8, 4),
        key_dim=4,
        ratio=0.5,
        se_ratio=0.25,
        stem_kernel=3,
    ),
    FAN=dict(class_blocks=1, patch_size=8),
    FANHybrid=dict(class_blocks=1),
    HorNet=dict(filter_sizes=(None, None, (14, 8), (7, 4)), orders=(2, 2, 3, 3)),
    IARED2=dict(
        bound=0.9,
        execution="masked",
        heads=4,
        last_group=0,
        learns=("blocks", 0),
        patch_size=16,
        scales=(1, 0.5),
        threshold=0.6,
    ),
    InLineCSwin=dict(types="S"),
    InLineDeiT=dict(patch_size=8, scales=(1, 0.5)),
    InLineSwin=dict(types="S", window=3),
    L2ViT=dict(heads=(1, 2, 4, 8)),
    LSNet=dict(resolution=5),
    MobileNetV2=dict(expansions=(1, 4, 6, 6, 6, 6, 6), plugin_place="end", strides=(2, 4, 8, 8, 8, 16, 16)),
    NAT=dict(dilations=((1, 2), (1,), (1,), (1,)), heads=(1, 2, 4, 8)),
    NATIsotropic=dict(dilations=(1, 2), heads=6, patch_size=8, scales=(1, 0.5)),
    OverLoCK=dict(dims=(32, 48, 64, 96), heads=(2, 2), kernel_sizes=(15, 13, 7, 7)),
    ResNet=dict(plugin_place="inner"),
    PHReg=dict(heads=6, patch_size=7, position=dict(antialias=True), scales=(1, 0.5)),
    PlainCNN=dict(dropout=0.9),
    RAVLT=dict(flags="l", heads=(1, 1, 2, 4)),
    RVT=dict(masked_blocks=1),
    S2AFormer=dict(local=dict(type="LocalInteraction", kernel_size=5)),
    SHViT=dict(partial_dims=(None, 12, 24)),
    SpaRTAN=dict(mlp_ratio=6),
    Sparsifiner=SPARSIFINER,
    SparsifinerLVViT=SPARSIFINER,
    Terminator=dict(dims=(24, 24), earlier=((), ()), kernel_sizes=(5, 9, 5, 7)),
    TCPA=dict(
        base="shallow",
        class_topk=5,
        coordination="roles",
        dropout=0.9,
        heads=6,
        image_topk=5,
        mask="logits",
        patch_size=8,
        scales=(1, 0.5),
    ),
    TiC=dict(
        border="mask",
        dilations=((2,), (1,), (1,), (1,)),
        dropout=0.5,
        heads=(2, 2, 4, 8),
        pooled="map",
        shift=1,
        shifted="map",
    ),
    TransNeXt=dict(heads=(1, 2, 4, 8), pool_size=2, sr_ratios=(8, 4, 1, 1), window=5),
    ViT=dict(heads=6, patch_size=8, scales=(1, 0.5)),
    VOLO=dict(class_blocks=1, heads=(3, 6, 6, 6), mix_tokens=1.0, stride=1),
)
# Options that count beside another one.
_convolving = dict(attends=((), (), (), ()))
BESIDE = {
    ("DependencyViT", "fill"): dict(prune_blocks=(0,)),
    ("DependencyViT", "prune_ratio"): dict(prune_blocks=(0,)),
    ("DependencyViT", "prune_score"): dict(prune_blocks=(0,)),
    ("HaloNet", "gate"): _convolving,
    ("HaloNet", "group_size"): _convolving,
    ("HaloNet", "project_first"): dict(stem_dims=(8,)),
    ("HaloNet", "se_ratio"): dict(gate="se", **_convolving),
    **{(name, "coef_threshold"): dict(coef_topk=None) for name in ("Sparsifiner", "SparsifinerLVViT")},
    **{(name, "resize"): dict(img_size=(75, 50), coef_topk=2) for name in ("Sparsifiner", "SparsifinerLVViT")},
    ("VOLO", "mix_tokens"): dict(num_classes=5),
    ("MobileNetV2", "plugin_place"): dict(plugins="SE"),
    ("ResNet", "plugin_place"): dict(plugins="SE"),
}
# Options that change what a network takes, or the loss: their tests are those of the system.
ELSEWHERE = dict(Terminator={"any_size", "sequence", "slow_loss", "weight_norm"})


def value_of(system, name):
    """Another value of an option."""
    others = {**OTHERS, **OTHERS_OF.get(system, {})}
    if name in others:
        return others[name]
    value = options_of(system).get(name)
    for base in backbones.systems()[system].__mro__:
        parameter = inspect.signature(base.__init__).parameters.get(name)
        if value is None and parameter is not None:
            value = parameter.default
            break
    if isinstance(value, bool):
        return not value
    return tuple(2 * v for v in value) if isinstance(value, tuple) else 2 * value


def traces(system, **options):
    """What an option can change: names and shapes of weights, their initial values, what the network says of itself,
    and its outputs with other weights, in inference and in training."""
    network = build(system, filled=False, **options)
    found = [str({name: value.shape for name, value in network.state_dict().items()}), str(network)]
    found += [value.float().sum().item() for value in network.state_dict().values()]
    x = image(75, 50)
    for outputs in (fill(network)(x), network.train()(x)):
        found += [(y.shape, y.float().sum().item()) for y in tensors(outputs)]
    return found


@pytest.mark.parametrize("system", SYSTEMS)
@torch.no_grad()
def test_every_option_counts(system):
    """In one of the two forms."""
    elsewhere = COMMON | ELSEWHERE.get(system, set())
    names = [name for name in backbones.systems()[system].options() if name not in elsewhere]
    for form in (dict(), dict(num_classes=5)):
        plain = traces(system, **form)
        for name in tuple(names):
            beside = {**form, **BESIDE.get((system, name), {})}
            before = plain if beside == form else traces(system, **beside)
            if traces(system, **beside, **{name: value_of(system, name)}) != before:
                names.remove(name)
    assert names == []


def roads(system):
    """The three ways to build a network."""
    network = backbones.systems()[system]
    name = next(iter(network.variants))
    return [
        network,
        lambda **options: backbones.create(name, **options),
        lambda **options: MODELS.build(dict(type=system, **options)),
        lambda **options: MODELS.build(dict(type="NamedBackbone", name=name, **options)),
    ]


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_a_class_does_not_use_is_refused(system):
    used = backbones.systems()[system].options()
    for unused in SKELETONS - set(used):
        message = f"{system} (does not use the option|has no option) '{unused}'. (It has|Near it:) "
        for road in roads(system):
            with pytest.raises(ValueError, match=message):
                road(**{unused: 1})


def test_which_options_systems_do_not_use():
    for unused, systems in (
        ("mlp_ratio", ["HaloNet", "LSNet", "OverLoCK", "SHViT"]),
        (
            "layer_scale",
            [
                "AFFNet",
                "CASViT",
                "CrossViT",
                "DHVT",
                "DaViT",
                "FAN",
                "HaloNet",
                "L2ViT",
                "LSNet",
                "OverLoCK",
                "S2AFormer",
                "SHViT",
                "TransNeXt",
            ],
        ),
        *((n, ["BalancedMTA", "MobileNetV2", "PlainCNN", "ResNet"]) for n in ("mlp_ratio", "layer_scale")),
        ("mixers", [name for name in SYSTEMS if name not in ("FFNet", "FFNetSeg")]),  # whose paper leaves them free
        ("plugins", ["OverLoCK"]),
    ):
        assert not [name for name in systems if unused in backbones.systems()[name].options()]


def test_near_names():
    for road in roads("SHViT"):
        for wrong, near in (
            ("in_chans", "in_channels"),
            ("nun_classes", "num_classes"),
            ("with_cp", "grad_checkpointing"),
            (
                "pretrained_",
                "It has dims, depths, partial_dims, key_dim, distilled, drop_path_rate, plugins, num_classes, ",
            ),
            ("embed_dim", "dims"),
        ):
            with pytest.raises(ValueError, match=rf"SHViT has no option '{wrong}'\. (Near it: )?{near}"):
                road(**{wrong: 1})
    with pytest.raises(ValueError, match=r"SHViT has no option 'pretrained'\. Near it: init_cfg"):
        backbones.systems()["SHViT"](pretrained="shvit_s1.pth")


def test_the_abstract_class_is_no_type():
    with pytest.raises(KeyError, match=r"type='Backbone' is not a registered model.\nNear names: NamedBackbone"):
        MODELS.build(dict(type="Backbone", name="shvit_s1"))


def test_one_value_or_one_for_each_stage():
    for system in SYSTEMS:
        if "mlp_ratio" in backbones.systems()[system].options():
            options = options_of(system)
            stages = options.get("depth") or sum(options.get("groups", ())) or len(options.get("dims", range(4)))
            one, each = (build(system, filled=False, mlp_ratio=ratio) for ratio in (2, (2,) * stages))
            assert str(one) == str(each)
            with pytest.raises(
                ValueError, match=f"mlp_ratio must have one entry for each of the {stages} (stages|branches|blocks)"
            ):
                build(system, mlp_ratio=(2,) * (stages + 1))
    narrow, wide = (build("BiFormer", mlp_ratio=(3, 2, last, 4)).stages[2].blocks[0].mlp.fc1 for last in (3, 4))
    assert narrow.out_features * 4 == wide.out_features * 3


def test_a_subclass_says_what_it_uses():
    """Options go up along the bases as far as each passes keywords on."""

    class Plain(backbones.Pyramid):
        unused = ("layer_scale",)

    class Own(Plain):
        def __init__(self, width, *, layer_scale=1.0, **common):
            super().__init__((width,), (1,), **common)

    class Closed(Own):
        def __init__(self):
            super().__init__(8)

    assert {"mixers", "dims", "mlp_ratio"} < set(Plain.options())
    assert "layer_scale" not in Plain.options()
    assert {"width", "layer_scale", "mlp_ratio", "num_classes"} < set(Own.options())
    assert not {"mixers", "dims"} & set(Own.options())
    assert Closed.options() == []
    assert Own(8, layer_scale=0.1).dims == Closed().dims == (8,)


def test_values_that_no_network_has():
    """They are named before a class computes with them, however it is called."""
    systems, both = backbones.systems(), "dims and depths must have one entry for each stage"
    for make, message in (
        (lambda: systems["SpaRTAN"](depths=(-1, 1, 1, 1)), "depths must be whole, at least 0, got -1"),
        (lambda: systems["SpaRTAN"](depths=3), "depths must have one entry for each stage, got 3"),
        (lambda: systems["S2AFormer"](64), "dims must have one entry for each stage, got 64"),
        (lambda: backbones.create("hornet_tiny_7x7", depths=(2, 3, 18.0, 2)), "depths must be whole, .*, got 18.0"),
        (lambda: backbones.Pyramid((16, 32), (1, 1, 1)), both),
        (lambda: backbones.Pyramid((16, 32), (1, 1), mlp_ratio=(4, 0)), r"mlp_ratio must be .* above 0, .* \(4, 0\)"),
        (lambda: backbones.Isotropic(mlp_ratio=-1), "mlp_ratio must be a number above 0, .*, got -1"),
        (lambda: backbones.Isotropic(16, 1, mlp_ratio=0.01), r"fc1.weight has shape \(0, 16\): .* leave no channels"),
        (lambda: backbones.Pyramid((1, 8), (1, 1)), r"stem.0.conv.weight has shape \(0, 3, 3, 3\)"),
        (lambda: systems["DHVT"](patch_size=4.0), "patch_size must be whole, at least 1, got 4.0"),
        (lambda: systems["DHVT"](patch_size=(4, 4)), r"patch_size must be whole, at least 1, got \(4, 4\)"),
        (lambda: systems["DHVT"](num_classes=3, scales=(1, 2)), r"scales=\(1, 2\) are of the maps, and num_classes"),
        (lambda: systems["SpaRTAN"](mlp_ratio=(2, 2, 2.5, 2)), r"mlp_ratio=\(2, 2, 2.5, 2\) must be whole in stage 2"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("value", [True, 2.0, "2", 0])
def test_whole_numbers(value):
    """A bool is none, though Python counts with it."""
    with pytest.raises(ValueError, match=f"depth must be whole, at least 1, got {value!r}"):
        check_whole("depth", [1, value])
    with pytest.raises(ValueError, match="must be a number of pixels"):
        image_sides((value, 32))
