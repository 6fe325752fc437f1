"""The matcher: any sizes and masks, results in pixels of the images as they were given, losses, a fit."""

import pytest
import torch
from mmengine.dataset import pseudo_collate
from small_matchers import NETWORK, image, matcher

from attlas.dense.matching.matcher import Matcher, as_shares, nearest
from attlas.dense.matching.warps import Frame, middles


def asked(model, *samples):
    with torch.inference_mode():
        return model.test_step(pseudo_collate(list(samples)))


def same(a, b, **tolerance):
    for way in ("there", "back"):
        torch.testing.assert_close(a[way].shares, b[way].shares, **tolerance)
        torch.testing.assert_close(a[way].confidence, b[way].confidence, **tolerance)


def test_sizes_follow_from_the_backbone():
    model = matcher()
    assert model.network.cost_size == (2, 3)
    assert model.network.strides == (1, 2, 4)
    assert model.network.in_channels == (16, 8, 8)
    other = matcher(backbone=dict(type="NamedBackbone", name="shvit_s1", out_indices=(0, 1)), size=(64, 128),
                    network=dict(NETWORK, depths=(1, 1)))  # fmt: skip
    assert other.network.strides == (1, 2)
    with pytest.raises(ValueError, match=r"Matcher.size is \(18, 24\).*Multiples of 8"):
        matcher(size=(18, 24))
    with pytest.raises(ValueError, match="in_channels, which the backbone and the size decide"):
        matcher(network=dict(NETWORK, in_channels=(8, 6, 4)))
    with pytest.raises(ValueError, match="must give maps"):
        matcher(backbone=dict(type="NamedBackbone", name="shvit_s1", num_classes=3))


def test_the_resnet_34_of_the_authors():
    """512 x 16 x 16, 256 x 32 x 32 and 128 x 64 x 64 of an image of 256 x 256: the stem does not pool."""
    backbone = dict(type="NamedBackbone", name="resnet34", strides=(2, 4, 8, 16), out_indices=(1, 2, 3))
    with torch.device("meta"):
        model = Matcher(backbone, dict(type="UFC"), (256, 256))
    assert model.network.cost_size == (16, 16)
    assert model.network.in_channels == (512, 256, 128)
    assert sum(p.numel() for p in model.network.parameters()) == 12_519_792


def test_images_of_any_sizes_share_a_batch():
    model = matcher()
    samples = [
        dict(source=image(20, 31), target=image(40, 17, 1)),
        dict(source=image(16, 24, 2), target=image(9, 50, 3)),
    ]
    both = asked(model, *samples)
    for sample, found in zip(samples, both):
        same(asked(model, sample)[0], found, atol=1e-4, rtol=1e-4)
        assert found["there"].frame == Frame.whole(sample["source"].shape[1:])
        assert found["there"].other == Frame.whole(sample["target"].shape[1:])
        assert found["working_size"] == (16, 24)


def test_a_masked_image_is_a_cropped_one():
    """Its results lie in the whole image."""
    model = matcher()
    source, target = image(30, 40), image(20, 31, 1)
    mask = torch.zeros(30, 40, dtype=torch.bool)
    mask[5:25, 8:33] = True
    masked = asked(
        model, dict(source=source, target=target, source_mask=mask, target_mask=torch.ones(20, 31, dtype=bool))
    )[0]
    cropped = asked(model, dict(source=source[:, 5:25, 8:33], target=target))[0]
    same(masked, cropped)
    shift = torch.tensor([8.0, 5.0])
    somewhere = torch.tensor([[3.0, 4.0], [20.0, 10.0]])
    torch.testing.assert_close(masked["there"].at(somewhere + shift), cropped["there"].at(somewhere))
    torch.testing.assert_close(masked["back"].at(somewhere), cropped["back"].at(somewhere) + shift)


def test_padding_has_no_effect():
    model = matcher()
    source, target = image(30, 40), image(20, 31, 1)
    larger, mask = 255 * torch.ones(3, 50, 64), torch.zeros(50, 64, dtype=torch.bool)
    larger[:, :30, :40], mask[:30, :40] = source, True
    padded = asked(model, dict(source=larger, target=target, source_mask=mask))[0]
    plain = asked(model, dict(source=source, target=target))[0]
    same(padded, plain)
    places = torch.tensor([[3.0, 29.0]])
    torch.testing.assert_close(padded["there"].at(places), plain["there"].at(places))


def test_what_a_mask_hides_has_no_influence_and_is_not_found():
    model = matcher(size=(32, 48))
    source, target = image(32, 48), image(32, 48, 1)
    mask = torch.ones(32, 48, dtype=torch.bool)
    mask[:, 20:40] = False
    sample = dict(source=source, target=target, target_mask=mask)
    first = asked(model, sample)[0]
    changed = target.clone()
    changed[:, :, 20:40] = 0
    same(first, asked(model, sample | dict(target=changed))[0])
    # with one column of positions left, all lie there
    mask = torch.zeros(32, 48, dtype=torch.bool)
    mask[:, :2] = mask[:1] = mask[-1:] = True
    mask[:1, 2:], mask[-1:, 2:] = False, False
    mask[16:17, 46:] = True
    found = asked(model, dict(source=source, target=target, target_mask=mask))[0]["there"]
    x = found.other.places(found.shares.flatten(1).T)[:, 0]
    assert x.min() >= 0
    assert x.max() <= 48


def points(*rows):
    return torch.tensor(rows)


def test_points_that_fill_up_have_no_effect():
    model = matcher()
    sample = dict(source=image(20, 31), target=image(40, 17, 1), source_points=points((3.0, 4.0), (20.0, 9.0)),
                  target_points=points((5.0, 30.0), (2.0, 8.0)))  # fmt: skip
    padded = dict(sample)
    for key in ("source_points", "target_points"):
        padded[key] = torch.cat([sample[key], torch.full((3, 2), torch.nan)])
    one, other = (model(**model.data_preprocessor(pseudo_collate([s])), mode="loss") for s in (sample, padded))
    assert set(one) == {"loss_flow", "loss_level0", "loss_level1", "loss_level2"}
    for name, value in one.items():
        torch.testing.assert_close(other[name], value)


def test_losses_are_distances_in_pixels_of_the_working_size():
    model = matcher()
    sample = dict(source=image(20, 31), target=image(40, 17, 1), source_points=points((3.0, 4.0), (20.0, 9.0)),
                  target_points=points((5.0, 30.0), (2.0, 8.0)))  # fmt: skip
    loss = model(**model.data_preprocessor(pseudo_collate([sample])), mode="loss")["loss_flow"]
    found = asked(model, sample)[0]
    errors = []
    for way, one, other in (("there", "source", "target"), ("back", "target", "source")):
        warp = found[way]
        moved = warp.other.shares(warp.at(sample[f"{one}_points"])) - warp.other.shares(sample[f"{other}_points"])
        errors.append((moved * torch.tensor([24.0, 16.0])).norm(dim=-1))
    torch.testing.assert_close(loss.detach(), torch.cat(errors).mean(), atol=1e-3, rtol=1e-3)


def test_normalized_places_are_middles_of_cells():
    grid = torch.stack([torch.linspace(-1, 1, 4).expand(3, 4), torch.linspace(-1, 1, 3)[:, None].expand(3, 4)])[None]
    torch.testing.assert_close(as_shares(grid)[0], middles((3, 4), grid))


def test_nearest_neighbors():
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    features = torch.eye(6)
    found = nearest([features.view(1, 6, 2, 3)], [features[:, order].reshape(1, 6, 2, 3)])
    cells = middles((2, 3), found).flatten(1)
    torch.testing.assert_close(found[0].flatten(1), cells[:, order.argsort()])


def test_errors():
    model = matcher()
    good = dict(source=image(20, 31), target=image(40, 17))
    with pytest.raises(ValueError, match="mode='loss' needs known matches"):
        model(**model.data_preprocessor(pseudo_collate([good])), mode="loss")
    with pytest.raises(ValueError, match="target 0 must be"):
        asked(model, good | dict(target=torch.zeros(20, 31)))
    with pytest.raises(ValueError, match="source_mask 0 must be bool"):
        asked(model, good | dict(source_mask=torch.ones(31, 20, dtype=torch.bool)))
    with pytest.raises(ValueError, match="leaves no pixel"):
        asked(model, good | dict(source_mask=torch.zeros(20, 31, dtype=torch.bool)))
    with pytest.raises(ValueError, match="NaN"):
        asked(model, good | dict(source=torch.full((3, 20, 31), torch.nan)))
    with pytest.raises(ValueError, match="fusion is 'max'"):
        model.configure(fusion="max")


@pytest.mark.slow
def test_it_learns_a_pair_by_heart():
    model = matcher(size=(32, 48)).train()
    source = torch.nn.functional.interpolate(image(6, 9)[None], (32, 48), mode="bicubic")[0].clamp(0, 255)
    sample = dict(source=source, target=source.flip(2))
    x, y = torch.meshgrid(torch.arange(3.0, 48, 6), torch.arange(3.0, 32, 6), indexing="xy")
    sample["source_points"] = torch.stack([x.flatten(), y.flatten()], dim=1)
    sample["target_points"] = sample["source_points"] * torch.tensor([-1.0, 1.0]) + torch.tensor([48.0, 0.0])
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    values = []
    for _ in range(40):
        losses = model(**model.data_preprocessor(pseudo_collate([sample])), mode="loss")
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        values.append(float(losses["loss_flow"].detach()))
    assert min(values[-5:]) < 0.5 * values[0], values
