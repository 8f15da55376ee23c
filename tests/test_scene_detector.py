"""Detector of scenes on scenes whose content is known: clean, blurred and noisy, and changed ones."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from evotok.data.world.evaluation import prompt_set
from evotok.data.world.palette import PALETTE
from evotok.data.world.prompts import KINDS
from evotok.data.world.scenes import Scene, SceneObject, render, tidy_scene
from evotok.eval.mini.scene_detector import SceneDetector, contradict, faults


COUNT = 3


@pytest.fixture(scope="module")
def detector(world):
    return SceneDetector(world)


@pytest.fixture(scope="module")
def prompts(world):
    return [p for held_out in (False, True) for kind in KINDS for p in prompt_set(world, kind, COUNT, held_out)]


def test_real_scenes_are_accepted_and_contradictions_refused(world, detector, prompts):
    for index, prompt in enumerate(prompts):
        seen = detector(Image.fromarray(render(world, prompt.scene)))
        assert set(seen.objects) == set(prompt.scene.objects) and not seen.stray
        assert faults(world, prompt, seen) == [], prompt.text
        wrong = contradict(prompt, prompts[index // COUNT * COUNT + (index + 1) % COUNT])
        assert wrong.kind == prompt.kind and faults(world, wrong, seen), prompt.text


def test_scenes_blurred_as_by_a_tokenizer_are_accepted(world, detector, prompts):
    rng, accepted, errors = np.random.default_rng(0), [], []
    for prompt in prompts:
        pixels = render(world, prompt.scene)
        copy = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1.4)), dtype=float)
        copy = np.clip(copy + rng.normal(0, 8, copy.shape), 0, 255).round().astype(np.uint8)
        errors.append(np.square(pixels / 255 - copy / 255).mean())
        accepted.append(not faults(world, prompt, detector(copy)))
    assert 22 < -10 * np.log10(np.mean(errors)) < 24
    assert np.mean(accepted) >= 0.96


def scene_of(world, *names: str, background: str = "yellow") -> Scene:
    """Builds a scene of `red heart`, ... in the standard places."""
    words = [name.split() for name in names]
    return tidy_scene(world, [(world.thing(thing).index, color) for color, thing in words], background)


def test_faults_names_each_difference(world, detector, prompts):
    scene = scene_of(world, "red heart", "blue star")
    prompt = replace(prompts[0], kind="position", scene=scene)

    def found(scene: Scene, **changed) -> list[str]:
        return faults(world, replace(prompt, **changed), detector(render(world, scene)))

    swapped = scene_of(world, "blue star", "red heart")
    assert found(scene) == found(swapped, kind="two_object") == []
    assert found(swapped) == ["right, not left"]
    assert found(replace(scene, background="white")) == ["background white, not yellow"]
    assert found(scene_of(world, "red heart", "green star")) == ["blue star: 0 of 1", "green star: 1 of 0"]
    assert found(scene_of(world, "red heart", "blue star", "blue star")) == ["blue star: 2 of 1"]
    beside = replace(scene.objects[1], x=24, y=32)  # as far below as it is to the right
    assert found(replace(scene, objects=(replace(scene.objects[0], x=0, y=0), beside))) == [
        "no clear relation, not left"
    ]


def test_unexplained_pixels_are_reported(world, detector):
    pixels = render(world, scene_of(world, "red heart", background="white")).copy()
    pixels[2:9, 50:57] = PALETTE["green"]
    seen = detector(pixels)
    assert seen.stray and [obj.thing for obj in seen.objects] == [world.thing("heart").index]
    assert detector(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).objects == ()
    blank = detector(np.full((64, 64, 3), PALETTE["blue"], dtype=np.uint8))
    assert (blank.background, blank.objects, blank.stray) == ("blue", (), False)
    half = render(world, Scene("white", (SceneObject(4, world.things[4].canonical, "red", 16, 16, 32),))).copy()
    half[:, 32:] = 255
    seen = detector(half)
    assert seen.stray or [obj.thing for obj in seen.objects] != [4]


def test_other_sizes_are_refused(detector):
    with pytest.raises(ValueError, match=r"shape \(32, 32, 3\): give one of 64 x 64"):
        detector(Image.new("RGB", (32, 32)))
