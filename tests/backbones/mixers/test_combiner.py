"""What characterizes the mixer of Combiner: every pixel is reached, whatever the form, the length and the options."""

import pytest
import torch
from networks import fill

from attlas.backbones.mixers.combiner import ROW_SUMMARIES, CombinerAttention
from attlas.registry import MIXERS

FORMS = [
    dict(form="fixed"),
    dict(form="fixed", transform="relu", pooling="mean"),
    dict(form="fixed", transform="deepset", pooling="sum", segment=5),
    dict(form="fixed", causal=True, segment=4),
    dict(form="logsparse", causal=True),
    *(dict(form="rowmajor", row_summary=name) for name in ROW_SUMMARIES),
    dict(form="rowmajor", row_summary="proj", causal=True),
    dict(form="rowmajor", segment=5),
    dict(form="mixture"),
    dict(form="mixture", pooling="max", segment=5),
    dict(form="mixture", empty="mean"),
    dict(form="mixture", causal=True),
]
IDS = [", ".join(map(str, options.values())) for options in FORMS]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(**options):
    return fill(CombinerAttention(12, heads=2, **options)).double()


@pytest.mark.parametrize("options", FORMS, ids=IDS)
def test_every_pixel_is_reached(options):
    """The maps are the weights of the values: they sum to 1, and give the output. 18 pixels are no multiple of 5."""
    mixer, x = filled(**options), normal(2, 12, 3, 6)
    _, _, v = mixer._split(x.flatten(2).mT)
    y = mixer(x)
    for place in ((0, 0), (1, 4), (2, 5)):
        with torch.inference_mode():
            maps = mixer.attention_maps(x, place)
        assert maps.shape == (2, 2, 3, 6)
        seen = maps.flatten(2) > 0
        number = place[0] * 6 + place[1]
        assert seen[..., : number + 1].all()
        assert seen.all() != options.get("causal", False) or number == 17
        rows = maps.flatten(2)
        torch.testing.assert_close(rows.sum(2), torch.ones_like(rows[..., 0]))
        out = (rows[:, :, None] @ v).squeeze(2).flatten(1)
        torch.testing.assert_close(mixer.proj(out), y[:, :, place[0], place[1]])


@pytest.mark.parametrize("options", [o for o in FORMS if o.get("causal")])
def test_causal_in_the_order_of_rows(options):
    mixer, x = filled(**options), normal(1, 12, 3, 4)
    jacobian = torch.autograd.functional.jacobian(lambda x: mixer(x).sum(1).flatten(), x)
    seen = jacobian.abs().sum((1, 2)).flatten(1) > 1e-12
    assert torch.equal(seen, torch.ones(12, 12).tril().bool())


@pytest.mark.parametrize("options", FORMS, ids=IDS)
def test_every_parameter_counts(options):
    mixer = filled(**options).train()
    (mixer(normal(2, 12, 3, 6)) * normal(2, 12, 3, 6, seed=1)).sum().backward()
    assert [n for n, p in mixer.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("form", ["rowmajor", "mixture"])
def test_a_map_is_its_rows(form):
    """A segment of the width is the default; a map of one row is plain attention, to itself once more."""
    mixer, x = filled(form=form), normal(2, 12, 4, 5)
    segmented = filled(form=form, segment=5)
    torch.testing.assert_close(segmented(x), mixer(x))
    assert not torch.allclose(filled(form=form, segment=4)(x), mixer(x))


def test_lengths_that_must_be_exact():
    mixer = filled(form="fixed", segment=5, pad=False)
    assert mixer(normal(1, 12, 5, 4)).shape == (1, 12, 5, 4)
    with pytest.raises(ValueError, match="segment must divide the 18 places of q unless pad is set, got 5"):
        mixer(normal(1, 12, 3, 6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", FORMS, ids=IDS)
def test_half_types(options, dtype):
    mixer, x = fill(CombinerAttention(12, heads=2, **options)), torch.randn(2, 12, 3, 6)
    expected = mixer(x)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(mixer(x).float(), expected, atol=0.05, rtol=0.05)
    got = mixer.to(dtype)(x.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(form="axial"), r"CombinerAttention: form='axial' must be one of \('fixed', 'logsparse', 'rowmajor', "),
        (dict(form="logsparse"), "form='logsparse' must be causal, got causal=False"),
        (dict(segment=0), "CombinerAttention.segment must be whole, at least 1, got 0"),
        (dict(segment=2.5), "CombinerAttention.segment must be whole, at least 1, got 2.5"),
        (
            dict(form="logsparse", causal=True, segment=4),
            "segment=4 is of form='fixed' or 'rowmajor' or 'mixture', got",
        ),
        (dict(pooling="max"), "pooling='max' is of form='fixed' or 'mixture', got 'rowmajor'"),
        (dict(form="fixed", pooling="min"), r"pooling='min' must be one of \('max', 'sum', 'mean'\)"),
        (dict(transform="relu"), "transform='relu' is of form='fixed', got 'rowmajor'"),
        (dict(row_summary="mean"), r"row_summary='mean' must be one of \('none', 'wsum', 'proj', 'wsum_proj'\)"),
        (dict(form="mixture", causal=True, empty="mean"), "empty='mean' is of a mixture that is not causal"),
        (dict(heads=5), "CombinerAttention: dim=12 is not divisible by heads=5"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        MIXERS.build(dict(type="CombinerAttention", dim=12, **options))


SLOW = pytest.mark.slow  # the first alone is in every run


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        *(
            pytest.param(options, marks=SLOW)
            for options in (
                dict(form="fixed", transform="deepset", pooling="sum", segment=5),
                dict(form="logsparse", causal=True),
                dict(form="rowmajor", row_summary="wsum_proj"),
                dict(form="mixture", empty="mean"),
                dict(form="mixture", causal=True),
            )
        ),
    ],
    ids=str,
)
def test_exports(options, tmp_path):
    """With a free height and width, but where the mixer says that an export fixes them."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from attlas.kernels.dispatch import decompositions

    mixer, x = fill(CombinerAttention(32, **options)).eval(), torch.randn(1, 32, 9, 7)
    inputs = {
        suffix: torch.randn(1, 32, *((9, 7) if suffix in mixer.fixed_sizes else (8, 12)))
        for suffix in (".pt2", ".onnx")
    }
    free = [{2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}]
    program = torch.export.export(mixer, (x,), dynamic_shapes=None if ".pt2" in mixer.fixed_sizes else free)
    torch.testing.assert_close(program.module()(inputs[".pt2"]), mixer(inputs[".pt2"]))
    if ".onnx" in mixer.fixed_sizes:
        program = torch.export.export(mixer, (x,))
    program = program.run_decompositions(decompositions())
    torch.onnx.export(program, (x,), tmp_path / "mixer.onnx", dynamo=True, optimize=False, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "mixer.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: inputs[".onnx"].numpy()})
    torch.testing.assert_close(torch.from_numpy(got), mixer(inputs[".onnx"]), atol=1e-4, rtol=1e-4)


def test_what_fixes_the_size_of_an_export():
    assert CombinerAttention(12).fixed_sizes == {}
    assert CombinerAttention(12, form="mixture").fixed_sizes == {}
    assert CombinerAttention(12, form="mixture", causal=True).fixed_sizes.keys() == {".onnx"}
    assert CombinerAttention(12, form="logsparse", causal=True).fixed_sizes.keys() == {".onnx", ".pt2"}
