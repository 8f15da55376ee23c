"""The emoji world: sheets, splits, vocabulary, colours, scenes, questions, sets. Uses the committed sheets only."""

import json
import random
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from evotok.training.emoji import vocabulary
from evotok.training.emoji.colors import COLORS, PALETTE, dominant_color
from evotok.training.emoji.dataset import MIXTURE_KINDS, EmojiTrainingSet
from evotok.training.emoji.evaluation import corpus, evaluation_set
from evotok.training.emoji.prompts import caption, describe, plural, prompt, scene_prompt, t2i_record, with_article
from evotok.training.emoji.questions import KINDS, answer_of, ask, ask_scene, conversation, scene_conversation
from evotok.training.emoji.scenes import RELATIONS, Item, Scene, render, sample_scene
from evotok.training.emoji.world import SPLITS, STYLES, Drawing, EmojiWorld


CONCEPTS = 1461


@pytest.fixture(scope="module")
def world():
    return EmojiWorld()


def everything(world):
    return [Drawing(concept, style) for concept in world.concepts for style in STYLES]


def named(world, name, style="noto"):
    return Drawing(next(c for c in world.concepts if c.name == name), style)


# --- the world -------------------------------------------------------------------------------------------------------


def test_every_concept_in_every_style_with_unique_names(world):
    assert len(world.concepts) == CONCEPTS and len(world.groups) == 8
    assert len({c.name for c in world.concepts}) == len({c.hexcode for c in world.concepts}) == CONCEPTS
    assert sum(len(world.drawings(split)) for split in SPLITS) == CONCEPTS * len(STYLES)
    assert all(c.name == c.name.lower() and c.tags and c.subgroup for c in world.concepts)


def test_sheets_have_one_geometry_and_no_empty_cell(world):
    rows = -(-CONCEPTS // world.columns)
    for style in STYLES:
        sheet = Image.open(world.root / world.sheets[style])
        assert sheet.size == (world.columns * 64, rows * 64)
        drawn = [(world.rgba(Drawing(c, style))[..., 3] > 0).mean() for c in world.concepts]
        assert min(drawn) > 0.01, world.concepts[int(np.argmin(drawn))].name
        assert np.mean(drawn) < 0.9  # transparent background kept


def test_image_composites_on_the_background(world):
    drawing = named(world, "pizza")
    white, blue = world.image(drawing), world.image(drawing, (0, 0, 255))
    assert white.mode == "RGB" and white.size == (64, 64)
    clear = world.rgba(drawing)[..., 3] == 0
    opaque = world.rgba(drawing)[..., 3] == 255
    assert (np.asarray(blue)[clear] == (0, 0, 255)).all() and (np.asarray(white)[clear] == 255).all()
    assert (np.asarray(blue)[opaque] == np.asarray(white)[opaque]).all()


def test_drawings_of_one_concept_resemble_each_other_more_than_others(world):
    """A join that shifts one style by a cell would pass every count; pixels catch it."""
    small = {}
    for style in ("noto", "fluent_3d"):
        pictures = [world.image(Drawing(c, style)).resize((8, 8), Image.Resampling.BOX) for c in world.concepts[:600]]
        small[style] = np.stack([np.asarray(p, np.float32).ravel() for p in pictures])
    same = np.abs(small["noto"] - small["fluent_3d"]).mean()
    assert same < 0.85 * np.abs(small["noto"] - np.roll(small["fluent_3d"], 1, axis=0)).mean()


def test_missing_sheets_say_how_to_mend(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"evotok\.training\.emoji\.pack"):
        EmojiWorld(tmp_path)
    (tmp_path / "emoji.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(ValueError, match="format version 99"):
        EmojiWorld(tmp_path)


def test_every_style_has_its_licence(world):
    text = (world.root / "LICENSES.md").read_text(encoding="utf-8")
    sections = {part.split("\n")[0].strip(): part for part in text.split("## ")}
    licences = {"noto": "Apache-2.0", "twemoji": "CC-BY-4.0", "openmoji": "CC-BY-SA-4.0"}
    for style in STYLES:
        section = sections[f"{style}.webp"]
        assert licences.get(style, "MIT") in section and "author: " in section and "@" in section
    assert "emojibase" in sections["emoji.json"] and "Permission is hereby granted" in text


# --- splits and vocabulary -------------------------------------------------------------------------------------------


def test_splits_are_disjoint_and_as_large_as_stated(world):
    parts = {split: set(world.drawings(split)) for split in SPLITS}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values()))
    new = sum(c.new_concept for c in world.concepts) / CONCEPTS
    held = sum(bool(c.new_pair_styles) for c in world.concepts) / sum(not c.new_concept for c in world.concepts)
    assert 0.08 < new < 0.12 and 0.27 < held < 0.33
    assert {d.concept for d in parts["train"]}.isdisjoint({d.concept for d in parts["new_concept"]})
    assert {d.concept for d in parts["new_pair"]} <= {d.concept for d in parts["train"]}
    assert all((d.style == "openmoji") == (world.split_of(d) == "new_style") for d in everything(world))
    with pytest.raises(ValueError, match="unknown split"):
        world.drawings("test")


def test_fluent_flat_and_3d_are_held_out_together(world):
    for concept in world.concepts:
        assert world.split_of(Drawing(concept, "fluent_flat")) == world.split_of(Drawing(concept, "fluent_3d"))
        assert concept.new_pair_styles in ((), *vocabulary.PAIR_HOLDOUTS)


def test_splits_and_vocabulary_repeat_from_their_rules(world):
    manifest = json.loads((world.root / "emoji.json").read_text(encoding="utf-8"))
    assert manifest["split_rule"] == vocabulary.SPLIT_RULE and manifest["familiar_rule"] == vocabulary.FAMILIAR_RULE
    for concept in world.concepts:
        assert vocabulary.split_facts(concept.hexcode) == (concept.new_concept, concept.new_pair_styles)
    assert vocabulary.familiar_hexcodes(manifest["concepts"]) == {c.hexcode for c in world.familiar}


def test_familiar_vocabulary_is_short_seen_and_of_every_group(world):
    assert Counter(c.group for c in world.familiar) == vocabulary.FAMILIAR_QUOTAS
    for concept in world.familiar:
        words = concept.name.split()
        assert not concept.new_concept and len(words) <= 2 and all(w.isalpha() and len(w) <= 10 for w in words)
    held = sum(bool(c.new_pair_styles) for c in world.familiar)
    assert 45 <= held <= 75
    assert {d.concept.familiar for d in world.drawings("train")} == {True, False}
    assert all(d.concept.familiar for d in world.drawings("new_pair", familiar=True))


# --- colours ---------------------------------------------------------------------------------------------------------


def patch(*colors):
    rgba = np.full((8, 8, 4), 255, np.uint8)
    for i, color in enumerate(colors):
        rgba[i * 8 // len(colors) :, :, :3] = color
    return rgba


@pytest.mark.parametrize("name", COLORS)
def test_palette_patches_are_measured_as_named(name):
    assert dominant_color(patch(PALETTE[name])) == name


def test_unclear_colors_are_none():
    assert dominant_color(patch(PALETTE["red"], PALETTE["blue"])) is None  # half and half
    assert dominant_color(patch((0, 165, 140))) is None  # teal: between green and blue
    clear = patch(PALETTE["red"])
    clear[..., 3] = 0
    assert dominant_color(clear) is None
    clear[:3, :, 3] = 255  # only what is opaque counts
    clear[3:, :, :3] = PALETTE["green"]
    assert dominant_color(clear) == "red"


def test_colors_of_well_known_things(world):
    expected = {"red apple": "red", "frog": "green", "blue circle": "blue", "yellow heart": "yellow"}
    assert {name: world.color(named(world, name, "twemoji")) for name in expected} == expected


# --- scenes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mixed", "same", "pair"])
def test_scene_boxes_lie_inside_and_apart(world, kind):
    drawings = world.drawings("train", familiar=True)
    counts = set()
    for seed in range(150):
        scene = sample_scene(random.Random(seed), world, drawings, kind=kind)
        counts.add(len(scene.items))
        for i, item in enumerate(scene.items):
            assert min(item.x, item.y) >= 0 and item.x + item.size <= 64 and item.y + item.size <= 64
            assert not any(item.overlaps(other) for other in scene.items[:i])
        if kind == "pair":
            assert scene.relation() in RELATIONS and scene.items[0].drawing.concept != scene.items[1].drawing.concept
        if kind == "same":
            assert len({item.drawing for item in scene.items}) == 1
    assert counts == ({2} if kind == "pair" else {1, 2, 3, 4})


def test_relations_are_all_sampled_and_true():
    cat, dog = Drawing(None, "noto"), Drawing(None, "noto")
    places = {"left": (0, 30, 40, 28), "right": (40, 30, 0, 28), "above": (20, 0, 22, 40), "below": (20, 40, 22, 0)}
    for relation, (x1, y1, x2, y2) in places.items():
        assert Scene("white", (Item(cat, x1, y1, 20), Item(dog, x2, y2, 20))).relation() == relation
    assert Scene("white", (Item(cat, 0, 0, 20), Item(dog, 40, 40, 20))).relation() is None


def test_render_shows_background_and_every_item(world):
    scene = sample_scene(random.Random(3), world, world.drawings("train"), count=4)
    pixels = np.asarray(render(scene, world))
    background = pixels == PALETTE[scene.background]
    for item in scene.items:
        assert not background[item.y : item.y + item.size, item.x : item.x + item.size].all()
    outside = np.ones((64, 64), bool)
    for item in scene.items:
        outside[item.y : item.y + item.size, item.x : item.x + item.size] = False
    assert background[outside].all()


def test_scene_arguments_are_checked(world):
    drawings = world.drawings("train")
    with pytest.raises(ValueError, match="count 1 to 4"):
        sample_scene(random.Random(0), world, drawings, count=5)
    with pytest.raises(ValueError, match="pass more"):
        sample_scene(random.Random(0), world, drawings[:1], kind="pair")


# --- questions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "count"), [("mixed", 1), ("same", 2), ("pair", None), ("mixed", 3), ("same", 4)])
def test_a_tidy_scene_holds_nothing_that_its_prompt_does_not_tell(world, kind, count):
    drawings = world.drawings("train", familiar=True)[:40]
    places = {}
    for seed in range(60):
        scene = sample_scene(random.Random(seed), world, drawings, count=count, kind=kind, tidy=True)
        assert not any(a.overlaps(b) for i, a in enumerate(scene.items) for b in scene.items[:i])
        places.setdefault(scene.relation(), set()).add(tuple((item.x, item.y, item.size) for item in scene.items))
    assert all(len(found) == 1 for found in places.values())
    assert set(places) == set(RELATIONS) if kind == "pair" else len(places) == 1


def test_answers_say_what_the_drawing_is(world):
    rng, drawing = random.Random(0), named(world, "frog", "twemoji")
    answers = {kind: answer_of(ask(rng, world, drawing, kind)) for kind in KINDS if kind != "yes_no"}
    assert answers == {"name": "frog", "group": "animals & nature", "style": "twemoji", "color": "green"}
    entry = ask(rng, world, drawing, "name", canonical=True)
    assert entry["messages"][0]["content"] == [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    assert len(entry["images"]) == 1 and entry["kind"] == "name"


def test_yes_no_is_balanced_and_true(world):
    drawings = world.drawings("train", familiar=True)
    rng, answers = random.Random(1), Counter()
    for i in range(1000):
        drawing = drawings[i % len(drawings)]
        entry = ask(rng, world, drawing, "yes_no", canonical=True)
        question, answer = entry["messages"][0]["content"][1]["text"], answer_of(entry)
        answers[answer] += 1
        facts = (
            f"Is this {with_article(drawing.concept.name)}?",
            f"Is its group {drawing.concept.group}?",
            f"Is the emoji {world.color(drawing)}?",
        )
        assert (question in facts) == (answer == "yes"), (question, answer, drawing.concept.name)
    assert 0.45 < answers["yes"] / 1000 < 0.55


def test_impossible_questions_are_refused(world):
    rare = next(d for d in world.drawings("train", familiar=False) if world.color(d) is None)
    for kind in ("name", "color", "size"):
        with pytest.raises(ValueError, match=kind):
            ask(random.Random(0), world, rare, kind)
    crowd = sample_scene(random.Random(0), world, world.drawings("train"), count=3)
    with pytest.raises(ValueError, match="position needs"):
        ask_scene(random.Random(0), world, crowd, "position")


def test_scene_answers(world):
    rng, drawings = random.Random(2), world.drawings("train", familiar=True)
    for _ in range(40):
        scene = sample_scene(rng, world, drawings)
        assert answer_of(ask_scene(rng, world, scene, "count")) == str(len(scene.items))
        assert answer_of(ask_scene(rng, world, scene, "color")) == scene.background
        pair = sample_scene(rng, world, drawings, kind="pair")
        entry = ask_scene(rng, world, pair, "position", canonical=True)
        first, second = (item.drawing.concept.name for item in pair.items)
        assert entry["messages"][0]["content"][1]["text"] == f"Where is the {first}, relative to the {second}?"
        assert answer_of(entry) == pair.relation()


def test_conversations_have_several_turns_and_one_image(world):
    entry = conversation(random.Random(0), world, named(world, "frog"))
    roles = [message["role"] for message in entry["messages"]]
    assert roles == ["user", "assistant"] * (len(roles) // 2) and 6 <= len(roles) <= 14
    images = [part for message in entry["messages"] for part in message["content"] if part["type"] == "image"]
    assert len(images) == len(entry["images"]) == 1


def test_scene_conversations_ask_all_that_a_scene_allows(world):
    drawings = world.drawings("train", familiar=True)
    for kind, answers in (("pair", 3), ("same", 2)):
        scene = sample_scene(random.Random(1), world, drawings, kind=kind)
        entry = scene_conversation(random.Random(0), world, scene)
        given = [m["content"][0]["text"] for m in entry["messages"] if m["role"] == "assistant"]
        wanted = {str(len(scene.items)), scene.background} | ({scene.relation()} if kind == "pair" else set())
        assert len(given) == answers and set(given) == wanted


def test_prompts(world):
    frog, owl = named(world, "frog", "fluent_3d"), named(world, "owl")
    assert caption(frog) == "a frog, fluent 3d style" and caption(owl) == "an owl, noto style"
    assert [plural(n) for n in ("wolf", "fox", "nerd face", "books", "cherry")] == [
        "wolves", "foxes", "nerd faces", "books", "cherries"]  # fmt: skip
    wordings = {prompt(random.Random(i), frog) for i in range(200)}
    assert len(wordings) == 7 and any("style" not in w and "3d" not in w for w in wordings)
    scene = Scene("blue", tuple(Item(owl, x, 0, 20) for x in (0, 21, 42)))
    assert scene_prompt(random.Random(0), scene, canonical=True) == "three owls on a blue background, noto style"
    pair = Scene("blue", (Item(owl, 0, 20, 20), Item(frog, 42, 20, 20)))
    assert describe(pair) == "an owl left of a frog"
    entry = t2i_record(random.Random(0), world, frog, canonical=True)
    assert entry["messages"][1] == {"role": "assistant", "content": [{"type": "image"}]} and entry["kind"] == "t2i"
    assert np.array_equal(np.asarray(entry["images"][0]), np.asarray(world.image(frog)))


# --- sets ------------------------------------------------------------------------------------------------------------


def test_evaluation_sets_are_fixed_held_out_and_balanced(world):
    asked = [("name", "new_pair"), ("group", "new_concept"), ("color", "new_concept"), ("position", "new_pair")]
    for kind, split in [*asked, ("yes_no", "new_pair"), ("count", "new_pair")]:
        one, two = (evaluation_set(world, kind, split, 40, seed=5) for _ in range(2))
        assert [(e["messages"], e["answer"]) for e in one] == [(e["messages"], e["answer"]) for e in two]
        assert [e["images"][0].tobytes() for e in one] == [e["images"][0].tobytes() for e in two]
        assert len(one) == 40 and all(e["answer"] == answer_of(e) and e["kind"] == kind for e in one)
        if kind in ("yes_no", "count"):
            assert len(set(Counter(e["answer"] for e in one).values())) == 1
    names = evaluation_set(world, "name", "new_pair", 10_000)
    assert len(names) == len(world.drawings("new_pair", familiar=True))
    assert Counter(e["answer"] for e in names) == Counter(d.concept.name for d in world.drawings("new_pair", True))
    with pytest.raises(ValueError, match="can be asked"):
        evaluation_set(world, "name", "new_concept", 10)


def test_training_set_depends_on_seed_and_index_only(world):
    mixture = dict.fromkeys(MIXTURE_KINDS, 1.0)
    first = EmojiTrainingSet(world, 60, mixture, seed=7)
    second = EmojiTrainingSet(EmojiWorld(), 1000, mixture, seed=7)
    for index in reversed(range(60)):
        one, two = first[index], second[index]
        assert one["messages"] == two["messages"]
        assert [i.tobytes() for i in one["images"]] == [i.tobytes() for i in two["images"]]
    other = EmojiTrainingSet(world, 60, mixture, seed=8)
    assert sum(first[i]["messages"] == other[i]["messages"] for i in range(60)) < 10
    assert len(list(first)) == len(first) == 60
    with pytest.raises(IndexError):
        first[60]
    with pytest.raises(ValueError, match="unknown kind 'names'"):
        EmojiTrainingSet(world, 1, {"names": 1})


def test_training_records_show_no_held_out_drawing(monkeypatch):
    """Watches the one door to the pixels, whatever the kind of record."""
    world, shown = EmojiWorld(), []
    true_rgba = world.rgba
    monkeypatch.setattr(world, "rgba", lambda drawing: (shown.append(drawing), true_rgba(drawing))[1])
    dataset = EmojiTrainingSet(world, 1500, dict.fromkeys(MIXTURE_KINDS, 1.0), augment_t2i=True)
    kinds = Counter(dataset[i]["kind"] for i in range(1500))
    assert set(kinds) == set(MIXTURE_KINDS) and min(kinds.values()) > 75
    assert {world.split_of(drawing) for drawing in shown} == {"train"}
    names = EmojiTrainingSet(world, 100, {"name": 1.0, "t2i": 1.0})
    shown.clear()
    assert len([names[i] for i in range(100)]) == 100
    assert shown and all(drawing.concept.familiar for drawing in shown)


def test_corpus_holds_what_the_model_must_read_and_write(world):
    lines = list(corpus(world))
    text = set(lines)
    assert {"What is this?", "yes", "left", "food & drink", "a frog, noto style", "Is this a frog?"} <= text
    assert all(concept.name in text for concept in world.concepts)
    assert list(islice(corpus(world), 3000)) == lines[:3000]
    words = {word for line in lines for word in line.replace(",", " ").replace("?", " ").split()}
    dataset = EmojiTrainingSet(world, 300, dict.fromkeys(MIXTURE_KINDS, 1.0))
    for i in range(300):
        parts = [p for m in dataset[i]["messages"] for p in m["content"] if p["type"] == "text"]
        spoken = {w for p in parts for w in p["text"].replace(",", " ").replace("?", " ").split()}
        assert spoken <= words, spoken - words


def test_blocks_of_records_all_draw_or_all_answer(world):
    mixture = {"t2i": 0.5, "t2i_scene": 0.2, "name": 0.3}
    records = EmojiTrainingSet(world, 400, mixture, block=8)
    kinds = [records[i]["kind"] for i in range(400)]
    blocks = [{kind == "name" for kind in kinds[i : i + 8]} for i in range(0, 400, 8)]
    assert all(len(block) == 1 for block in blocks) and 5 < sum(block == {True} for block in blocks) < 25
    assert {"t2i", "t2i_scene"} <= set(kinds)
    with pytest.raises(ValueError, match="block=0"):
        EmojiTrainingSet(world, 1, block=0)
