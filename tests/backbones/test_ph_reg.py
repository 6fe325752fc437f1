import math

import pytest
import torch
import torch.nn.functional as F
from golden_records import Record
from networks import close

from attlas import backbones
from attlas.backbones import ph_reg
from attlas.backbones.ph_reg import Denoised, Means, PHReg, RegisterDistiller, artefacts, denoise, draw_views
from attlas.backbones.vit import ViT
from attlas.registry import MODELS


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(**options):
    torch.manual_seed(0)
    return PHReg(24, 2, 3, **dict(registers=3, patch_size=4, img_size=24) | options).eval()


# --- views -----------------------------------------------------------------------------------------------------------


def test_views_are_drawn_by_their_generator():
    """The first is the image; the others are in range; nothing else is drawn or seeded."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    offsets, flips = draw_views(10, (20, 12), 0.25, 3, seeded())
    assert torch.equal(torch.get_rng_state(), before)
    assert offsets.shape == (3, 10, 2)
    assert not offsets[:, 0].any()
    assert not flips[:, 0].any()
    assert offsets[..., 0].abs().max() == 5
    assert offsets[..., 1].abs().max() == 3
    assert 0.2 < flips[:, 1:].float().mean() < 0.8
    again = draw_views(10, (20, 12), 0.25, 3, seeded())
    assert all(torch.equal(a, b) for a, b in zip(again, (offsets, flips)))
    assert not torch.equal(draw_views(10, (20, 12), 0.25, 3, seeded(1))[0], offsets)
    assert not torch.equal(offsets[0], offsets[1])


def test_shifts_are_far_apart():
    """Each is a farthest one of those before it, among all candidates."""
    candidates = torch.randint(-9, 10, (100, 2), generator=seeded())
    chosen = ph_reg._far_apart(candidates, 12, seeded(1))
    for i in range(1, 12):
        distances = (candidates[:, None] - chosen[:i]).square().sum(-1).min(1).values
        assert (chosen[:i] - chosen[i]).square().sum(-1).min() == distances.max()


def test_one_view_is_the_plain_network():
    network, image = small(), torch.randn(2, 3, 24, 16)
    offsets, flips = draw_views(1, (6, 4), 0.5, 2)
    for found, expected in zip(denoise(network, image, offsets, flips, 4), network(image)):
        assert torch.equal(found, expected)


def patches(image):
    """An extractor that sees each patch by itself, mirrored or not."""
    return F.avg_pool2d(image, 4) * 16


def test_what_belongs_to_the_patches_stays():
    """Exactly, in whole numbers, where sums do not round."""
    image = torch.randint(-8, 9, (2, 3, 32, 24), generator=seeded()).float()
    offsets, flips = draw_views(9, (8, 6), 0.5, 2, seeded())
    assert torch.equal(denoise(patches, image, offsets, flips, 4, 3.0), patches(image))


def test_what_belongs_to_places_averages_out():
    """The error at a pixel is the mean of the pattern over the places from which the views see it; with more views it
    falls about as their number."""
    image, pattern = torch.randn(1, 3, 32, 24, generator=seeded()), torch.randn(3, 8, 6, generator=seeded(1))

    def extract(x):
        return patches(x) + pattern

    offsets, flips = draw_views(7, (8, 6), 0.5, 1, seeded())
    error = (denoise(extract, image, offsets, flips, 4) - patches(image))[0]
    for row in range(8):
        for column in range(6):
            seen = []
            for (down, along), flip in zip(offsets[0].tolist(), flips[0].tolist()):
                i, j = row - down, column - along
                if 0 <= i < 8 and 0 <= j < 6:
                    seen.append(pattern[:, i, 5 - j if flip else j])
            torch.testing.assert_close(error[:, row, column], torch.stack(seen).mean(0), atol=1e-5, rtol=1e-5)
            assert ph_reg.coverage(offsets, 8, 6)[0, row, column] == len(seen)
    image, pattern = torch.zeros(1, 3, 96, 96), torch.randn(3, 24, 24, generator=seeded(1))
    for count in (1, 4, 16):
        views = draw_views(count, (24, 24), 0.4, 1, seeded(2))
        errors = denoise(extract, image, *views, 4).square()
        assert (errors * ph_reg.coverage(views[0], 24, 24)[:, None]).mean() == pytest.approx(1, rel=0.25)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_chunks_bound_the_memory_and_change_nothing(chunk):
    network, image, sizes = small(), torch.randn(2, 3, 24, 32, generator=seeded()), []
    offsets, flips = draw_views(5, (6, 8), 0.3, 2, seeded())

    def extract(x):
        sizes.append(len(x))
        return network(x)

    expected = denoise(network, image, offsets, flips, 4, (1.0, 2.0, 3.0), chunk=10)
    for found, whole in zip(denoise(extract, image, offsets, flips, 4, (1.0, 2.0, 3.0), chunk), expected):
        torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)
    assert max(sizes) == min(chunk, 10)
    assert sum(sizes) == 10


def test_a_view_by_definition():
    """Shifted, filled, mirrored; a fill for each channel."""
    x = torch.arange(12.0).view(1, 3, 4)
    assert ph_reg.shifted(x, 1, -1, 9).tolist() == [[[9, 4, 5, 6], [9, 8, 9, 10], [9, 9, 9, 9]]]
    assert (ph_reg.shifted(x, 5, 0, 7) == 7).all()
    seen = []
    denoise(
        lambda v: (seen.append(v), v)[1],
        x[None],
        torch.tensor([[[0, 0], [1, -1]]]),
        torch.tensor([[False, True]]),
        1,
        9,
    )
    assert torch.equal(seen[0][1, 0], torch.tensor([[6.0, 5, 4, 9], [10, 9, 8, 9], [9, 9, 9, 9]]))
    close(torch.tensor(ph_reg.white()), torch.tensor([2.2489083, 2.42857143, 2.64]), 1e-6)
    variant = backbones.variant("ph_reg_clip_base_patch16")[1]
    close(torch.tensor(ph_reg.white(variant.mean, variant.std)), torch.tensor([1.93033625, 2.07488384, 2.14589699]))


def test_any_backbone_is_denoised():
    """Maps of several strides, too; in a config, and never in training mode."""
    network = Denoised(small(out_indices=(1, 1), scales=(2, 1)), count=4, chunk=3).train()
    image = torch.randn(2, 3, 24, 32, generator=seeded())
    maps = network(image)
    assert [x.shape[1:] for x in maps] == [(12, 12, 16), (24, 6, 8)]
    assert network.out_strides == (2, 4)
    assert network.map_sizes(24, 32) == [(12, 16), (6, 8)]
    assert not network.backbone.training
    assert not any(p.requires_grad for p in network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(network(image), maps))
    assert not torch.equal(network(image, seeded(3))[1], maps[1])
    offsets, flips = draw_views(4, (6, 8), 0.15, 1, seeded())
    offsets, flips = offsets.expand(2, -1, -1), flips.expand(2, -1)
    close(denoise(network.backbone, image, offsets, flips, 4, ph_reg.white(), 8)[0], maps[0], 1e-4)
    built = MODELS.build(dict(type="Denoised", backbone=dict(type="PHReg", dim=24, depth=1, heads=3), count=2))
    assert built(torch.randn(1, 3, 32, 32))[0].shape == (1, 24, 2, 2)


def test_the_place_in_a_batch_does_not_matter():
    network = Denoised(small(out_indices=(1,)), count=4)
    image = torch.randn(1, 3, 24, 32, generator=seeded())
    (maps,) = network(image.expand(3, -1, -1, -1))
    close(maps, network(image)[0].expand_as(maps), 1e-5)
    (drawn,) = network(image.expand(3, -1, -1, -1), seeded(3))  # each its own
    assert not torch.allclose(drawn[0], drawn[1])


def test_bad_views():
    views = draw_views(2, (4, 4), 0.5, 1)
    for call, message in (
        (
            lambda: denoise(patches, torch.randn(1, 3, 18, 16), *views, 4),
            "image of 18 x 16 pixels: its sides must be mul",
        ),
        (
            lambda: denoise(patches, torch.randn(2, 3, 16, 16), *views, 4),
            r"offsets must be \(2, V, 2\) and flips \(2, V\)",
        ),
        (lambda: denoise(patches, torch.randn(1, 3, 16, 16), *views, 2), "step=2 is no multiple of its stride"),
        (lambda: denoise(patches, torch.randn(1, 3, 16, 16), *views, 4, chunk=0), "chunk must be whole, at least 1"),
        (lambda: draw_views(0, (4, 4)), "count must be whole, at least 1, got 0"),
        (lambda: draw_views(2, (4, 4), 1.5), "shift=1.5 must be a share of the sides, from 0 to 1"),
        (lambda: Denoised(small(), count=0), "count must be whole, at least 1, got 0"),
        (lambda: Denoised(small(), shift=math.nan), "shift=nan must be a share of the sides, from 0 to 1"),
        (lambda: Denoised(small(), chunk=0), "chunk must be whole, at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_artefacts():
    x = F.normalize(torch.ones(2, 8, 6, 6), dim=1)
    assert all(not value.any() for value in artefacts(x).values()) or artefacts(x)["roughness"].abs().max() < 1e-6
    x[1, :, 2, 3] = 5 * torch.tensor([1.0, -1] * 4)
    found = artefacts(x)
    assert found["outliers"].tolist() == pytest.approx([0, 1 / 36])
    assert found["roughness"].tolist() == pytest.approx([0, 4 / 60], abs=1e-6)
    assert artefacts(torch.randn(1, 8, 1, 1))["roughness"] == 0


# --- the student -----------------------------------------------------------------------------------------------------


def test_without_registers_it_is_the_teacher():
    """Bit for bit, and in names."""
    options = dict(patch_size=4, img_size=24, position=dict(offset=0.1), layer_scale=0.1)
    teacher = ViT(24, 2, 3, **options).eval()
    student = small(**options, registers=0)
    student.load_state_dict(teacher.state_dict())
    image = torch.randn(2, 3, 32, 20)
    for found, expected in zip(student(image), teacher(image)):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("name", "params", "trainable"),
    [("ph_reg_dinov2_base", 86_592_768 - 768, 8_606_208), ("ph_reg_clip_base_patch16", 86_656_512, None)],
)
def test_four_groups_are_unlocked(name, params, trainable):
    """The authors' count of DINOv2's holds the mask token."""
    with torch.device("meta"):
        student = backbones.create(name)
    assert sum(p.numel() for p in student.parameters()) == params
    student.unlock()
    learning = {name for name, p in student.named_parameters() if p.requires_grad}
    groups = ("register_tokens.", "position.", "stem.", "blocks.11.")
    if trainable is not None:
        assert learning == {name for name in student.state_dict() if name.startswith(groups)}
        assert sum(p.numel() for p in student.parameters() if p.requires_grad) == trainable
    else:  # of a block of values alone, what is used
        assert {name for name in learning if name.startswith("blocks")} == {
            f"blocks.11.{part}" for part in ("norm1.weight", "norm1.bias", "mixer.qkv.weight", "mixer.qkv.bias")
        } | {"blocks.11.mixer.proj.weight", "blocks.11.mixer.proj.bias"}
        assert {name.split(".")[0] for name in learning} == {"register_tokens", "position", "stem", "blocks"}


def test_registers_begin_small_and_without_position():
    student = PHReg(256, 1, 4, registers=64, img_size=32)
    assert student.register_tokens.weight.detach().std() == pytest.approx(256**-0.5, rel=0.03)
    assert student.position.weight.shape == (1, 1 + 4, 256)
    assert student(torch.randn(1, 3, 64, 48))[0].shape == (1, 256, 4, 3)


def test_values_alone():
    """The last block mixes no pixels."""
    student = small(value_only=True)
    assert len(student.state_dict()) == len(small().state_dict())
    x, tokens = torch.randn(1, 24, 4, 5), torch.randn(1, 4, 24)
    found, others = student.blocks[1](x, tokens)
    x[..., 2, 3] += torch.randn(24)
    changed, same = student.blocks[1](x, tokens)
    assert torch.equal(same, others)
    assert ((changed - found).abs().amax((0, 1)) > 1e-3).nonzero().tolist() == [[2, 3]]


def files():
    """A student's file of each kind, in the authors' names; DINOv2's with the parts that it repeats."""
    dino = Record("ph-reg/dinov2_teacher_student").state_dict()
    own = {
        f"{name.replace('model.embeddings', 'embed').removeprefix('model.')}": value
        for name, value in dino.items()
        if name != "registers"
    }
    return dino | own, Record("ph-reg/clip_student_resized").state_dict()


def student_of_records(**options):
    return PHReg(32, 2, 4, **dict(registers=4, mlp_ratio=2.0, patch_size=14, img_size=70, layer_scale=1.0) | options)


def test_files_of_students_and_teachers():
    dino, _ = files()
    student = student_of_records()
    account = backbones.load(student, dino)
    assert account.complete, str(account)
    assert torch.equal(student.register_tokens.weight, dino["registers"])
    teacher = {name.removeprefix("model."): value for name, value in dino.items() if name.startswith("model.")}
    student = student_of_records()
    before = student.register_tokens.weight.clone()
    account = backbones.load(student, teacher)
    assert account.missing == ["register_tokens.weight"]
    assert torch.equal(student.register_tokens.weight, before)
    for registers in (0, 2):
        with pytest.raises(ValueError, match=f"The file has 4 register tokens, the network registers={registers}"):
            backbones.load(student_of_records(registers=registers), dino)


def test_files_of_what_was_trained():
    """They hold the four groups alone, and go onto the teacher's weights."""
    dino, _ = files()
    student = student_of_records()
    backbones.load(student, dino)
    expected = {name: value.clone() for name, value in student.state_dict().items()}
    part = ("registers", "model.embeddings.position", "model.embeddings.patch", "model.encoder.layer.1.")
    trained = {name: value + 1 for name, value in dino.items() if name.startswith(part)}
    file = dict(epoch=3, trainable_state_dict=trained)
    account = backbones.load(student, file, container="trainable_state_dict")
    assert not account.unexpected
    groups = ("register_tokens.", "position.", "stem.", "blocks.1.")
    for name, value in student.state_dict().items():
        assert torch.equal(value, expected[name] + name.startswith(groups)), name


# --- distillation ----------------------------------------------------------------------------------------------------


def distiller(**options):
    torch.manual_seed(0)
    same = dict(dim=24, depth=2, heads=3, patch_size=4, img_size=24, out_indices=(1,))
    model = RegisterDistiller(
        dict(type="ViT", **same), dict(type="PHReg", registers=3, **same), count=4, shift=0.3, **options
    )
    with torch.no_grad():  # an artefact of places
        model.teacher.backbone.position.weight += torch.randn_like(model.teacher.backbone.position.weight)
    model.init_weights()
    return model


def test_losses():
    student, teacher = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    found = ph_reg.distillation_losses(student.bfloat16(), teacher, 2.0)
    student = student.bfloat16().float()
    cosine = F.cosine_similarity(student, teacher, dim=1)
    close(found["loss_cosine"], 1 - cosine.mean(), 1e-5)
    close(found["loss_mse"], 2 * (student - teacher).square().mean(), 1e-5)


def test_a_training():
    """It begins as the teacher; the loss falls; only the four groups change."""
    model = distiller().train()
    for name, value in model.teacher.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value), name
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.AdamW(learning, 1e-2), []
    images = torch.randn(4, 3, 24, 24, generator=seeded())
    for _ in range(40):
        loss, numbers = model.parse_losses(model(images, mode="loss"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert math.fsum(losses[-5:]) < 0.92 * math.fsum(losses[:5])
    assert {"loss_cosine", "loss_mse", "student_outliers", "student_roughness"} <= set(numbers)
    groups = tuple(f"backbone.{name}" for name in ("register_tokens.", "position.", "stem.", "blocks.1."))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith(groups), name
    metric = Means()
    with torch.no_grad():
        metric.process({}, model.eval()(images, mode="predict"))
    found = metric.evaluate(4)
    assert found["denoised_roughness"] < found["plain_roughness"]
    assert 0 <= found["distance"] < 1
    assert model(images).shape == (4, 24, 6, 6)


def test_bad_distillations():
    plain = dict(type="ViT", dim=24, depth=2, heads=3, img_size=32)
    with pytest.raises(ValueError, match="backbone must be a PHReg, got ViT"):
        RegisterDistiller(plain, plain)
    with pytest.raises(ValueError, match="teacher must give one map, got 2"):
        RegisterDistiller(plain, dict(plain, type="PHReg", out_indices=(1,)))
    plain = dict(plain, patch_size=8, out_indices=(1,))
    for options, message in (
        (dict(dim=48), r"teacher must have the out_channels=\(24,\) of the backbone, got \(48,\)"),
        (dict(projection=12), r"out_channels=\(24,\) of the backbone, got \(12,\)"),
        (dict(patch_size=16), r"out_strides=\(8,\) of the backbone, got \(16,\)"),
        (dict(out_indices=(0,)), r"out_indices=\(1,\) of the backbone, got \(0,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            RegisterDistiller(dict(plain, **options), dict(plain, type="PHReg"))
