"""The demo's world: sprites, where they are drawn, what lies behind them, and mixtures of two."""

from __future__ import annotations

import colorsys
from dataclasses import fields, replace

import pytest
import torch
from gtr_pack.demo import data, sprites

LABELS = torch.arange(48) % 12


@pytest.fixture(scope="module")
def draw() -> data.Draw:
    return data.choose(LABELS, torch.Generator().manual_seed(1))


def test_every_sprite_has_a_file_and_a_class():
    assert len(sprites.SPRITE_NAMES) == len(set(sprites.SPRITE_NAMES)) == 48
    assert all(len(members) == sprites.PER_CLASS for members in sprites.SPRITES.values())
    assert {path.name for path in sprites.FOLDER.glob("*.webp")} == set(map(sprites.file_name, sprites.SPRITE_NAMES))
    assert "Copyright (c) Microsoft Corporation" in (sprites.FOLDER / "LICENSE").read_text()


def test_sprites_are_premultiplied():
    pixels = sprites.sprites(96)
    assert pixels.shape == (48, 4, 96, 96)
    assert (pixels[:, :3] <= pixels[:, 3:]).all() and 0 <= pixels.min() and pixels.max() <= 1
    assert (pixels[:, 3].mean((1, 2)) > 0.15).all()


def test_sprites_of_a_class_differ():
    """In the same place and size at least a tenth of the covered pixels differ clearly."""
    pixels = sprites.sprites(96).view(12, sprites.PER_CLASS, 4, 96, 96)
    for members in pixels:
        for one in range(sprites.PER_CLASS):
            for other in range(one):
                gap = (members[one] - members[other]).abs().amax(0)
                cover = torch.maximum(members[one, 3], members[other, 3])
                assert (gap > 0.25).float().sum() > 0.3 * cover.sum()


def test_choices_cover_all_values(draw):
    generator = torch.Generator().manual_seed(2)
    many = data.choose(torch.arange(12).repeat(200), generator)
    for name, count in data.FACTORS.items():
        assert torch.equal(getattr(many, name).unique(), torch.arange(count))
    assert torch.equal(many.sprite // sprites.PER_CLASS, torch.arange(12).repeat(200))


def test_same_seed_same_images():
    one, other = (data.batch(6, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert one[0].shape == (6, 3, 128, 128) and one[0].abs().max() <= 1


def test_colours_are_those_of_the_standard_library():
    values = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    wanted = torch.tensor([colorsys.hsv_to_rgb(*row) for row in values.tolist()])
    assert torch.allclose(data.rgb(*values.unbind(1)), wanted, atol=1e-6)


def test_places_are_whole_tokens(draw):
    """A step to the right moves the sprite by exactly one token."""
    places = torch.zeros_like(draw.across)
    left, right = (data.placed(replace(draw, across=places + place)) for place in (0, 1))
    assert torch.allclose(left[..., : -data.STEP], right[..., data.STEP :], atol=1e-4)
    above, below = (data.placed(replace(draw, down=places + place)) for place in (0, 1))
    assert torch.allclose(above[..., : -data.STEP, :], below[..., data.STEP :, :], atol=1e-4)


def test_a_mirrored_sprite_is_a_mirror_image(draw):
    middle = replace(draw, across=torch.full_like(draw.across, data.ACROSS // 2))
    one, other = (data.placed(replace(middle, mirror=torch.full_like(draw.mirror, value))) for value in (0, 1))
    assert torch.allclose(one, other.flip(-1), atol=1e-4)


def test_a_quarter_turn_of_a_sprite(draw):
    """Positive angles turn clockwise; shadows turn with their sprite."""
    upright = replace(
        draw,
        across=torch.full_like(draw.across, data.ACROSS // 2),
        mirror=torch.zeros_like(draw.mirror),
        down=torch.full_like(draw.down, data.DOWN // 2),
    )
    turned = replace(upright, tilt=torch.full_like(draw.tilt, 90.0))
    assert torch.allclose(data.placed(turned), data.placed(upright).rot90(-1, (-2, -1)), atol=1e-3)


def test_the_background_is_a_gradient(draw):
    """Where neither sprite nor shadow is, each row has the colour between above and below."""
    images, bare = (data.render(draw) + 1) / 2, data.placed(draw)[:, 3:].amax(1) == 0
    height = (torch.arange(128) + 0.5) / 128
    for image, free, (hue, saturation, value, shift) in zip(images, bare, draw.colour.tolist()):
        saturation, value = 0.2 + 0.3 * saturation, 0.82 + 0.18 * value
        above, below = (
            torch.tensor(colorsys.hsv_to_rgb(*colour))
            for colour in ((hue, saturation, value), ((hue + 0.2 * (shift - 0.5)) % 1, saturation, 0.75 * value))
        )
        wanted = torch.lerp(above[:, None], below[:, None], height)[..., None].expand_as(image)
        assert free.float().mean() > 0.1 and torch.allclose(image[:, free], wanted[:, free], atol=1e-5)


def test_every_choice_shows(draw):
    """What has one value only today (size, say) is not a choice."""
    first = data.Draw(*(getattr(draw, field.name)[:12] for field in fields(draw)))
    seen = data.render(first)
    for name, count in data.FACTORS.items():
        if name != "hue":
            values = getattr(first, name)
            other = values ^ 1 if name == "sprite" else (values + 1) % count
            assert ((data.render(replace(first, **{name: other})) - seen).abs().amax((1, 2, 3)) > 0.05).all(), name
    turned = replace(first, colour=(first.colour + 0.5) % 1)
    assert ((data.render(turned) - seen).abs().amax((1, 2, 3)) > 0.05).all()


def test_a_rival_is_another_sprite_of_the_class(draw):
    same_pose = torch.arange(48) < 24
    rival = data.rivals(draw, same_pose, torch.Generator().manual_seed(3))
    assert torch.equal(rival.sprite // sprites.PER_CLASS, LABELS) and (rival.sprite != draw.sprite).all()
    for name in ("size", "across", "down", "mirror"):
        assert torch.equal(getattr(rival, name)[same_pose], getattr(draw, name)[same_pose])
    assert torch.equal(rival.colour, draw.colour) and torch.equal(rival.brightness, draw.brightness)


def test_mixtures_of_nothing_and_of_everything(draw):
    rival = data.rivals(draw, torch.ones(48, dtype=torch.bool), torch.Generator().manual_seed(3))
    for value, shown, wanted in ((False, draw, 0.0), (True, rival, 1.0)):
        images, share = data.mixtures(draw, rival, torch.full((48, 16, 16), value))
        assert torch.equal(images, data.render(shown)) and torch.allclose(share, torch.full((48,), wanted))


def test_the_share_of_a_mixture_is_area(draw):
    """A sprite against itself: one token's share is the alpha there over all alpha."""
    tokens = torch.zeros(48, 16, 16, dtype=torch.bool)
    tokens[:, 8, 8] = True
    _, share = data.mixtures(draw, draw, tokens)
    alpha = data.placed(draw)[:, 3]
    assert torch.allclose(share, alpha[:, 64:72, 64:72].sum((1, 2)) / alpha.sum((1, 2)), atol=1e-6)
