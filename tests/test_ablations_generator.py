"""The small generator of the ablations: its labels, training data, training and score."""

import math
from collections import Counter

import pytest
import torch
from conftest import TINY_VQ

from evotok import EvoTokVQConfig, EvoTokVQModel
from evotok.data.world.images import scene_pixels
from evotok.data.world.palette import COLORS
from evotok.data.world.scenes import is_held_out_color
from evotok.training.ablations import generator as generator_module
from evotok.training.ablations.generator import (
    PROMPTS,
    SCENES,
    Label,
    LabelGenerator,
    LabelledCodes,
    generated_share,
    nearest_share,
    split_labels,
    training_positions,
)
from evotok.training.tokenizer.variants import VARIANTS


def build(variant=None):
    """Builds a tiny tokenizer for images of the world, or a variant of it, with spread codebooks."""
    torch.manual_seed(0)
    encoder = TINY_VQ["encoder_config"] | {"image_size": 64}
    model = VARIANTS.get(variant, EvoTokVQModel)(EvoTokVQConfig(**TINY_VQ | {"encoder_config": encoder})).eval()
    for name, tensor in model.state_dict().items():
        if ".codebooks." in name and name.endswith("weight"):
            tensor.normal_()
    return model


def test_split_labels_are_disjoint_and_exclude_held_out_pairs(world):
    training, test = split_labels(world)
    assert (len(training), len(test)) == (SCENES, PROMPTS) and not set(training) & set(test)
    assert (training, test) == split_labels(world)
    for label in [*training, *test]:
        assert label.color != label.background and not is_held_out_color(label.thing, COLORS[label.color])
    assert {label.thing for label in training} == set(range(len(world.things)))
    scene = Label(3, 0, 4).scene(world)
    objects = [(o.thing, o.color, o.x, o.y, o.size) for o in scene.objects]
    assert (scene.background, objects) == ("blue", [(3, "red", 16, 16, 32)])


def test_training_positions_include_all_of_the_thing():
    chosen = [training_positions(number, 8) for number in range(6)]
    counts = Counter(position for positions in chosen for position in positions)
    inside = {8 * row + column for row in range(2, 6) for column in range(2, 6)}
    assert {position for position, count in counts.items() if count == 6} == inside
    assert len(counts) == 64 and {count for position, count in counts.items() if position not in inside} == {1}
    assert training_positions(7, 8) == chosen[1] and len(chosen[0]) == 24
    labels, codes = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.arange(2 * 64 * 2).view(2, 64, 2)
    data = LabelledCodes(labels, codes)
    assert len(data) == 48
    for index in (0, 17, 30, 47):
        row = data[index]
        number = labels.tolist().index(row["labels"].tolist())
        assert row["codes"].tolist() == codes[number, row["positions"]].tolist()


@pytest.mark.parametrize(("variant", "levels"), [(None, 2), ("reversed", 4), ("layers", 2), ("branches", 2)])
def test_label_generator_has_the_codebooks_of_the_pixels(variant, levels):
    tokenizer = build(variant)
    model = LabelGenerator(tokenizer, levels, 48)
    codes = tokenizer.encode(torch.rand(2, 3, 64, 64) * 2 - 1)[..., :levels]
    summed = sum(table[own] for table, own in zip(model.codebooks, codes.unbind(-1), strict=True))
    source = tokenizer.pixel_quantizer if variant in ("layers", "branches") else tokenizer.quantizer
    torch.testing.assert_close(summed, source.decode_codes(codes))
    loss = model(torch.tensor([[0, 1, 2], [47, 8, 0]]), torch.tensor([0, 63]), codes[:, 5])["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(math.log(32), rel=0.5)
    assert model.shape_embed.weight.grad[[0, 47 * 64 + 63]].abs().sum(1).min() > 0
    assert model.generate(torch.tensor([[0, 1, 2]])).shape == (1, 64, levels)


def test_nearest_share_counts_scenes_of_the_label(world):
    labels = [Label(thing, color, 8) for thing, color in ((0, 0), (7, 3), (20, 5), (33, 7))]
    scenes = scene_pixels(world, [label.scene(world) for label in labels])
    assert nearest_share(world, labels, scenes + 0.2 * torch.randn_like(scenes)) == 1.0
    assert nearest_share(world, labels, scenes.roll(1, 0)) == 0.0
    other = scene_pixels(world, [label._replace(color=1).scene(world) for label in labels])
    assert nearest_share(world, labels, torch.cat([scenes[:2], other[2:]])) == 0.5


def test_generated_share_depends_on_the_seed_only(world, monkeypatch, tmp_path):
    monkeypatch.setattr(generator_module, "SCENES", 6)
    monkeypatch.setattr(generator_module, "PROMPTS", 3)
    calls = []
    monkeypatch.setattr(generator_module, "nearest_share", lambda *args: calls.append(args) or 0.25)
    tokenizer = build()
    before = {name: tensor.clone() for name, tensor in tokenizer.state_dict().items()}
    for seed in (0, 0, 1):
        assert generated_share(tokenizer, 2, world, 2, seed, tmp_path) == 0.25
    [(_, labels, first), (_, _, same), (_, _, other)] = calls
    assert labels == split_labels(world)[1] and first.shape == (3, 3, 64, 64) and first.abs().max() <= 1
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert all(torch.equal(before[name], tensor) for name, tensor in tokenizer.state_dict().items())
    assert not list(tmp_path.glob("checkpoint-*"))


def test_generator_memorizes_few_labels(world, monkeypatch, tmp_path):
    monkeypatch.setattr(generator_module, "SCENES", 4)
    monkeypatch.setattr(generator_module, "PROMPTS", 2)
    tokenizer, (training, _) = build(), split_labels(world)
    monkeypatch.setattr(generator_module, "split_labels", lambda world: (training, training))
    pixels = scene_pixels(world, [label.scene(world) for label in training])
    expected = tokenizer.decode_pixels(tokenizer.encode(pixels)).clamp(-1, 1)
    shares = []
    monkeypatch.setattr(
        generator_module,
        "nearest_share",
        lambda world, labels, images: shares.append(torch.isclose(images, expected, atol=1e-4).float().mean()),
    )
    for steps in (1, 60):
        generated_share(tokenizer, 2, world, steps, 0, tmp_path)
    assert shares[1] > 0.9 > shares[0]
