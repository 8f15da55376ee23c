"""The detector of scenes, over scenes whose content is known: clean, blurred and noisy, and changed ones."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from evotok.data.world.evaluation import prompt_set
from evotok.data.world.palette import PALETTE
from evotok.data.world.prompts import KINDS
from evotok.data.world.scenes import Scene, SceneObject, render, tidy_scene
from evotok.eval.text_to_image.scene_detector import SceneDetector, contradict, faults


COUNT = 3


@pytest.fixture(scope="module")
def detector(world):
    return SceneDetector(world)


@pytest.fixture(scope="module")
def prompts(world):
    return [p for held_out in (False, True) for kind in KINDS for p in prompt_set(world, kind, COUNT, held_out)]


def blurred(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """About 23 dB from the original: blur and noise."""
    image = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1.4)), dtype=float)
    return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).round().astype(np.uint8)


def test_real_scenes_are_accepted_and_contradictions_refused(world, detector, prompts):
    for index, prompt in enumerate(prompts):
        sight = detector(Image.fromarray(render(world, prompt.scene)))
        assert set(sight.objects) == set(prompt.scene.objects) and not sight.stray
        assert faults(world, prompt, sight) == [], prompt.text
        wrong = contradict(prompt, prompts[index // COUNT * COUNT + (index + 1) % COUNT])
        assert wrong.kind == prompt.kind and faults(world, wrong, sight), prompt.text


def test_scenes_as_a_tokenizer_blurs_them_are_accepted(world, detector, prompts):
    rng, accepted, errors = np.random.default_rng(0), [], []
    for prompt in prompts:
        pixels = render(world, prompt.scene)
        copy = blurred(pixels, rng)
        errors.append(np.square(pixels / 255 - copy / 255).mean())
        accepted.append(not faults(world, prompt, detector(copy)))
    assert 22 < -10 * np.log10(np.mean(errors)) < 24
    assert np.mean(accepted) >= 0.96


def scene_of(world, *names: str, background: str = "yellow") -> Scene:
    """`red heart`, ... in the slots."""
    words = [name.split() for name in names]
    return tidy_scene(world, [(world.thing(thing).index, color) for color, thing in words], background)


def test_each_fault_is_named(world, detector, prompts):
    scene = scene_of(world, "red heart", "blue star")
    prompt = replace(prompts[0], kind="position", scene=scene)

    def found(scene: Scene) -> list[str]:
        return faults(world, prompt, detector(render(world, scene)))

    assert found(scene) == []
    assert found(replace(scene, background="white")) == ["background white, not yellow"]
    assert found(scene_of(world, "red heart", "green star")) == ["blue star: 0 of 1", "green star: 1 of 0"]
    assert found(scene_of(world, "red heart")) == ["blue star: 0 of 1"]
    assert found(scene_of(world, "red heart", "blue star", "blue star")) == ["blue star: 2 of 1"]
    assert found(scene_of(world, "blue star", "red heart")) == ["right, not left"]
    beside = replace(scene.objects[1], x=24, y=32)  # as far below as it is to the right
    assert found(replace(scene, objects=(replace(scene.objects[0], x=0, y=0), beside))) == [
        "no clear relation, not left"
    ]
    assert (
        faults(
            world,
            replace(prompt, kind="two_object"),
            detector(render(world, replace(scene, objects=scene.objects[::-1]))),
        )
        == []
    )


def test_what_is_no_drawing_is_something_else(world, detector):
    scene = scene_of(world, "red heart", background="white")
    pixels = render(world, scene).copy()
    pixels[2:9, 50:57] = PALETTE["green"]
    sight = detector(pixels)
    assert sight.stray and [obj.thing for obj in sight.objects] == [world.thing("heart").index]
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert detector(noise).objects == ()
    blank = detector(np.full((64, 64, 3), PALETTE["blue"], dtype=np.uint8))
    assert (blank.background, blank.objects, blank.stray) == ("blue", (), False)


def test_half_a_drawing_is_not_enough(world, detector):
    pixels = render(world, Scene("white", (SceneObject(4, world.things[4].canonical, "red", 16, 16, 32),))).copy()
    pixels[:, 32:] = 255
    sight = detector(pixels)
    assert sight.stray or [obj.thing for obj in sight.objects] != [4]


def test_other_sizes_are_refused(detector):
    with pytest.raises(ValueError, match=r"shape \(32, 32, 3\): give one of 64 x 64"):
        detector(Image.new("RGB", (32, 32)))
