"""What is promised of every operator, tried on random calls: see `attlas.kernels`."""

import importlib
import inspect
import itertools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from fuzzing import fuzz, tries
from operator_calls import OPERATORS, Draw, agreement, infinite, run, spoiled
from torch import Tensor

from attlas.kernels import ragged
from attlas.kernels.dispatch import compiled

# `make gpu` has little time, and asks for the Triton kernels
OF_THE_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a test of the CPU's paths that takes long")


def call(seed: int, name: str, odd: float = 0.5) -> dict:
    """The keywords of a random call; a share `odd` of them is spoiled."""
    draw = Draw(seed)
    keywords = OPERATORS[name][1](draw)
    return spoiled(keywords, draw) if draw.random() < odd else keywords


def test_every_operator_is_among_them():
    functions = {n for n, f in vars(ragged).items() if inspect.isfunction(f) and f.__module__ == ragged.__name__}
    assert {f"ragged.{n}" for n in functions if not n.startswith("_")} <= OPERATORS.keys()
    assert len(OPERATORS) >= 24


# --- random calls ----------------------------------------------------------------------------------------------------

AT_ONCE = 50
CALLS = tries(1000) // AT_ONCE * AT_ONCE


def attempt(given: list) -> dict:
    """In a child: some calls of an operator; how many were equal, how many refused, and what is wrong."""
    torch.set_num_threads(1)
    name, seeds = given
    results = {seed: agreement(name, call(seed, name)) for seed in range(*seeds)}
    wrong = {seed: result for seed, result in results.items() if result not in ("equal", "refused")}
    return {**Counter(results.values()), "wrong": list(wrong.items())}


@OF_THE_CPU
@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_a_random_call_agrees_with_the_reference_or_is_refused(name, count):
    outcomes = fuzz(attempt, [[name, [start, start + AT_ONCE]] for start in range(0, CALLS, AT_ONCE)])
    assert [outcome for outcome in outcomes if outcome.died or outcome.error] == []
    values = [outcome.value for outcome in outcomes]
    assert [wrong for value in values for wrong in value["wrong"]] == []
    equal, refused = (sum(value.get(what, 0) for value in values) for what in ("equal", "refused"))
    count(f"calls of {name}", f"{CALLS:,} ({equal:,} equal to the reference, {refused:,} refused, 0 died)")
    assert min(equal, refused) > CALLS / 5


@pytest.mark.parametrize("name", OPERATORS)
def test_a_few_random_calls(name):
    """The same in this process, where uninitialized memory holds NaN."""
    results = {seed: agreement(name, call(seed, name, odd=0.2)) for seed in range(1000, 1040)}
    assert {seed: result for seed, result in results.items() if result not in ("equal", "refused")} == {}


# what makes even small tensors be computed in several blocks, or by the trees
BLOCKS = {
    "ball_query": {"neighbors.FEW_QUERIES": 0, "neighbors.BLOCK": 16},
    "bridging_attention": {"bridging_attention.BLOCK": 16},
    "deformable_convolution": {"deformable_convolution.ROWS": 2, "deformable_convolution.CHANNELS": 2},
    "gather_max": {"gather_max.BUFFER": 8},
    "halo_attention": {"halo_attention.BLOCK": 64},
    "knn": {"neighbors.FEW_QUERIES": 0, "neighbors.BLOCK": 16},
    "lightning_attention": {"lightning_attention.BLOCK": 2},
    "nprf_attention": {"nprf_attention.BUFFER": 40, "nprf_attention.FEWEST": 1},
    "outlook_attention": {"outlook_attention.ROWS": 2},
    "residual_norm": {"residual_norm.ROWS": 2},
    "reversed_attention": {"reversed_attention.BLOCK": 64},
    "routed_attention": {"routed_attention.BLOCK": 64},
    "small_kernel_aggregate": {"small_kernel_aggregate.ROWS": 2},
    "sparse_attention": {"sparse_attention.BLOCK": 5},
    "surface_attention": {
        "surface_attention.WHOLE": 0,
        "surface_attention.BLOCK": 16,
        "surface_attention.SMALL_PRODUCT": 20,
    },
    "window_attention": {"halo_attention.BLOCK": 64},
}


@pytest.mark.parametrize("name", BLOCKS)
def test_random_calls_in_small_blocks(name, monkeypatch):
    for constant, value in BLOCKS[name].items():
        module, variable = constant.split(".")
        monkeypatch.setattr(importlib.import_module(f"attlas.kernels.{module}"), variable, value)
    results = {seed: agreement(name, call(seed, name, odd=0.2)) for seed in range(2000, 2000 + tries(150))}
    assert {seed: result for seed, result in results.items() if result not in ("equal", "refused")} == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_random_calls_of_the_triton_kernels(name, device, count):
    """Valid arguments only: a GPU does not look at values."""
    results = {}
    for seed in range(tries(15)):  # the interpreter is slow, and so is the compiler
        keywords = {k: x.to(device) if isinstance(x, Tensor) else x for k, x in call(seed, name, odd=0).items()}
        keywords = {
            k: x.detach().requires_grad_() if isinstance(x, Tensor) and x.requires_grad else x
            for k, x in keywords.items()
        }
        dtypes = {x.dtype for x in keywords.values() if isinstance(x, Tensor)}
        if not {torch.float64, torch.bfloat16} <= dtypes:  # the interpreter does not round the one to the other
            results[seed] = agreement(name, keywords, "triton")
    assert {seed: result for seed, result in results.items() if result not in ("equal", "refused")} == {}
    count(f"calls of {name} by Triton on {device.type}", f"{[*results.values()].count('equal')} equal to the reference")


# --- maps that are smaller than a window -----------------------------------------------------------------------------


def _small_kernel_aggregate(k, height, width):
    return dict(x=torch.randn(1, 4, height, width), weight=torch.randn(1, 2, k * k, height, width)), True


def _deformable_convolution(k, height, width):
    """With padding, so that every map fits."""
    offset, mask = torch.randn(1, 4 * k * k, height, width) * k, torch.rand(1, 2 * k * k, height, width)
    maps = dict(x=torch.randn(1, 4, height, width), offset=offset, mask=mask)
    return dict(**maps, weight=torch.randn(2, 4, k, k), padding=k // 2), True


def _neighborhood_aggregate(k, height, width):
    maps = dict(logits=torch.randn(1, height, width, 2, k * k), v=torch.randn(1, height, width, 2, 3))
    bias = torch.randn(2, 2 * k - 1, 2 * k - 1)
    return dict(**maps, bias=bias, kernel_size=k), k <= min(height, width)


def _neighborhood_attention(k, height, width):
    dilation = 1 + (height + width) % 2
    maps = {name: torch.randn(1, height, width, 2, 3) for name in "qkv"}
    options = dict(kernel_size=k, dilation=dilation, stride=1 + height % k)
    return dict(**maps, **options, bias=torch.randn(2, 2 * k - 1, 2 * k - 1)), k * dilation <= min(height, width)


def _halo_attention(k, height, width):
    """Windows of `k`, of the largest blocks that they can have if the halo is about half a block."""
    block, halo = k - 2 * (k // 3), k // 3
    maps = {name: torch.randn(1, height, width, 2, 3) for name in "qkv"}
    tables = {name: torch.randn(2 * k - 1, 3) for name in ("height_rel", "width_rel")}
    return dict(**maps, **tables, block_size=block, halo_size=halo), not (height % block or width % block)


def _routed_attention(k, height, width):
    """k x k regions."""
    maps = {name: torch.randn(1, height, width, 2, 3) for name in "qkv"}
    index = torch.randint(k * k, (1, k * k, 2))
    return dict(**maps, index=index, regions=(k, k)), not (height % k or width % k)


WINDOWS = {
    "deformable_convolution": (_deformable_convolution, (1, 3, 5)),
    "small_kernel_aggregate": (_small_kernel_aggregate, (1, 3, 5, 7, 9, 11)),
    "neighborhood_aggregate": (_neighborhood_aggregate, (1, 3, 5, 7, 9)),
    "neighborhood_attention": (_neighborhood_attention, (2, 3, 4, 5, 7)),
    "halo_attention": (_halo_attention, (1, 3, 4, 7, 9)),
    "routed_attention": (_routed_attention, (1, 2, 3, 5)),
}


@pytest.mark.parametrize(
    ("name", "k"),
    [
        pytest.param(name, k, marks=[pytest.mark.slow] if k > 5 else [])
        for name, (_, sides) in WINDOWS.items()
        for k in sides
    ],
)
def test_maps_of_every_size_up_to_two_windows(name, k):
    """Values and gradients of the CPU's path; what an operator does not define for a small map, it refuses."""
    wrong = {}
    for size in itertools.product(range(1, 2 * k + 1), repeat=2):
        keywords, fits = WINDOWS[name][0](k, *size)
        keywords = {
            n: x.requires_grad_(x.is_floating_point()) if isinstance(x, Tensor) else x for n, x in keywords.items()
        }
        result = agreement(name, keywords)
        if result != ("equal" if fits else "refused"):
            wrong[size] = result
    assert wrong == {}


# --- infinities and NaN ----------------------------------------------------------------------------------------------

# those whose floating-point arguments are not coordinates of points
BOXES = ["bbox_overlaps", "box_iou_rotated", "nms", "nms_match", "nms_rotated", "soft_nms"]
VALUES = [
    "carafe", "deform_roi_pool", "deformable_attention", "deformable_convolution", "gather_max", "gather_neighbors",
    "halo_attention", "lightning_attention", "lightning_attention_both_ways", "lightning_attention_step",
    "local_cross_attention", "neighbor_moments", "neighborhood_aggregate", "neighborhood_attention",
    "outlook_attention", "position_relation", "psa_mask", "residual_norm", "reversed_attention", "roi_align",
    "roi_pool", "routed_attention", "scatter_neighbors", "sigmoid_focal_loss", "small_kernel_aggregate",
    "softmax_focal_loss", "sparse_attention", "surface_attention", "three_interpolate", "window_attention",
]  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_an_infinity_or_nan_reaches_what_it_reaches_in_the_reference(name):
    results = {}
    for seed in range(100):
        draw = Draw(seed)
        keywords = OPERATORS[name][1](draw)
        floats = [n for n, x in keywords.items() if isinstance(x, Tensor) and x.is_floating_point() and x.numel()]
        if floats:
            n = draw.choice(floats)
            results[seed] = agreement(name, {**keywords, n: infinite(keywords[n], draw)})
    assert [*results.values()].count("equal") > 30
    assert {seed: result for seed, result in results.items() if result not in ("equal", "refused")} == {}


def in_order(x: Tensor) -> Tensor:
    """A contiguous copy: other strides would round otherwise."""
    return x.detach().clone(memory_format=torch.contiguous_format).requires_grad_(x.requires_grad)


SHARED = ("bias", "height_rel", "slopes", "width_rel", "weight")  # by the images or clouds of a batch


POOLED = ("deform_roi_pool", "roi_align", "roi_pool")


# residual_norm has statistics of all rows, boxes meet each other, and pooled rows are of boxes in any order
@pytest.mark.parametrize("name", sorted(set(VALUES) - {"residual_norm", *BOXES, *POOLED}))
def test_an_infinity_or_nan_stays_in_its_image_or_cloud(name):
    tried = 0
    for seed in range(300):
        draw = Draw(seed)
        keywords = OPERATORS[name][1](draw)
        maps = [x for n, x in keywords.items() if isinstance(x, Tensor) and n not in SHARED and x.dtype != torch.bool]
        batch = max(map(len, maps))
        keywords = {n: x.detach() if n in SHARED and isinstance(x, Tensor) else x for n, x in keywords.items()}
        keywords = {n: in_order(x) if isinstance(x, Tensor) else x for n, x in keywords.items()}
        maps = [n for n, x in keywords.items() if isinstance(x, Tensor) and x.requires_grad and x.numel()]
        if batch < 2 or not maps:
            continue
        n, tried = draw.choice(maps), tried + 1
        changed = {**keywords, n: infinite(keywords[n][:1], draw, keywords[n])}
        (outputs, gradients), (clean, clean_gradients) = run(name, changed, "auto"), run(name, keywords, "auto")
        for x, y in zip((*outputs, *gradients), (*clean, *clean_gradients)):
            assert x is y is None or torch.equal(x[1:], y[1:]), (name, seed, n)  # boxes get no gradient
    assert tried > 30


# --- bounds ----------------------------------------------------------------------------------------------------------

# Numba reads it when it compiles, and keeps what it compiled on disk: hence a child with a cache of its own.
FILES = sorted(path.name for path in Path(__file__).parent.glob("test_*.py"))


@compiled(fastmath={"contract", "reassoc"})
def _beyond(values, place):
    return values[place]


def test_bounds_are_not_checked_here():
    """Nor should they: it costs time. The child below shows that there they are."""
    if os.environ.get("NUMBA_BOUNDSCHECK") == "1":
        with pytest.raises(IndexError, match="out of bounds"):
            _beyond(torch.zeros(3).numpy(), 3)
    else:
        _beyond(torch.zeros(4)[:3].numpy(), 3)


@pytest.fixture(scope="session")
def checked_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("numba")


@OF_THE_CPU
@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_no_loop_leaves_its_arrays(file, checked_cache):
    """The tests of the CPU's paths once more, with Numba's check of every subscript."""
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(checked_cache)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "not slow",
        "-k",
        "not triton and not [reference and not -reference",
    ]
    done = subprocess.run(
        [*command, "-p", "no:xdist", str(Path(__file__).with_name(file))],
        env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
