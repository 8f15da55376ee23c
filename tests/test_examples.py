"""Examples of the page, the help and the documents: the model does them well, and they have one source."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_world_prompts import Parser

from evotok.app.examples import WORLD_PROMPTS, WORLD_QUESTIONS, find_examples, has_plain_background, world_scenes
from evotok.cli import COMMANDS, EPILOG
from evotok.data.world.icons import EMOJI_STYLES
from evotok.data.world.prompts import Prompt
from evotok.data.world.questions import WORDINGS, QuestionSampler
from evotok.data.world.scenes import tidy_scene
from evotok.eval.mini.scene_detector import SceneDetector, faults
from evotok.inference import answer_questions, generate_images


ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "docs").rglob("*.ipynb"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8").replace('\\"', '"') for path in DOCUMENTS}
TEXTS |= {f"evotok {name} --help": module.EXAMPLES for name, module in COMMANDS.items()} | {"evotok --help": EPILOG}
PROMPTS_OF_TEXTS = (
    r'evotok generate mini --prompt ((?:"[^"]*" ?)+)',
    r"printf '/draw ([^\\]*)\\n",
    r'"content": ("[^"]*")',
    r'generate_image\(("[^"]*")',
    r'generate_images\(\s*model, processor, \[((?:"[^"]*"(?:, )?)+)',
)
QUESTIONS_OF_TEXTS = (
    r'evotok chat mini .*--prompt ("[^"]*")',
    r"printf '/draw [^\\]*\\n([^\\]*)\\n",
    r'"text": ("[^"]*\?")',
    r'(?:questions = \[|for question in \()((?:"[^"]*"(?:, )?)+)',
)
SEEDS = 3
RIGHT = 2
"""Of so many images of a prompt that many are right."""


def found(text, patterns):
    """Returns the examples in a text."""
    hits = [hit.group(1) for pattern in patterns for hit in re.finditer(pattern, text)]
    return {example for hit in hits for example in (re.findall('"([^"]*)"', hit) or [hit])} - {""}


@pytest.mark.parametrize("name", TEXTS)
def test_documents_use_the_examples_of_the_page(name):
    if name == "docs/bad_inputs.md":
        return
    assert found(TEXTS[name], PROMPTS_OF_TEXTS) <= set(WORLD_PROMPTS)
    assert found(TEXTS[name], QUESTIONS_OF_TEXTS) <= set(WORLD_QUESTIONS)


def test_documents_have_their_examples():
    assert found(TEXTS["README.md"], PROMPTS_OF_TEXTS) == {WORLD_PROMPTS[0]}
    assert found(TEXTS["README.md"], QUESTIONS_OF_TEXTS) == {WORLD_QUESTIONS[1]}
    assert found(TEXTS["docs/inference.md"], PROMPTS_OF_TEXTS) == set(WORLD_PROMPTS[:2])
    assert len(found(TEXTS["docs/inference.md"], QUESTIONS_OF_TEXTS)) == 2


# --- with the model ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini():
    from evotok.commands.checkpoints import load_multimodal

    return load_multimodal("mini")


def find_faults(world, prompt, image):
    """Returns the faults of a generated image of an example; of an emoji image the nearest one by pixels."""
    if emoji := re.fullmatch(r"an? (\w+), (.*) style", prompt):
        shown = [(name, style) for style in EMOJI_STYLES for name in range(len(world.emoji_names))]
        pixels = np.stack([np.asarray(world.emoji_image(*pair)) for pair in shown]).astype(np.float32)
        nearest, style = shown[np.square(pixels - np.asarray(image)).sum((1, 2, 3)).argmin()]
        wanted = world.thing(emoji[1]).emoji
        return [] if nearest == wanted else [f"{world.emoji_names[nearest]} in {EMOJI_STYLES[style]} style"]
    background, items = Parser(world).parse(prompt)
    upright = " above " in prompt or " below " in prompt
    scene = tidy_scene(world, [(thing, color) for thing, color, *_ in items], background, upright)
    kind = "position_background" if re.search(r" (left of|right of|above|below) ", prompt) else "colors"
    return faults(world, Prompt(kind, prompt, scene), SceneDetector(world)(image))


@pytest.mark.parametrize("prompt", WORLD_PROMPTS)
def test_example_prompts_generate_right_images(mini, world, prompt):
    images = generate_images(*mini, [prompt] * SEEDS, seed=0)
    wrong = [find_faults(world, prompt, image) for image in images]
    assert sum(not fault for fault in wrong) >= RIGHT, wrong


@pytest.mark.parametrize("number", range(len(WORLD_QUESTIONS)), ids=WORLD_QUESTIONS)
def test_example_questions_have_right_answers(mini, world, number):
    from evotok.data.world.conversations import question_row
    from evotok.data.world.scenes import render
    from evotok.eval.metrics import normalize_answer

    scene, question = world_scenes(world)[number], WORLD_QUESTIONS[number]
    kind = next(kind for kind, wordings in WORDINGS.items() if question == wordings[0])
    right = QuestionSampler(world, canonical=True).sample(random.Random(0), scene, kind)
    [answer] = answer_questions(*mini, [question_row(render(world, scene), [right], kind)])
    assert normalize_answer(answer) == normalize_answer(right.answer)


# --- scope of the model -----------------------------------------------------------------------------------------------


def test_find_examples_depends_on_the_image_size(tmp_path):
    general = find_examples(256, tmp_path)
    assert not general.images and not list(tmp_path.iterdir())
    icons = find_examples(64, tmp_path)
    assert len(icons.images) == len(WORLD_QUESTIONS)
    assert all(Image.open(path).size == (64, 64) for path in icons.images)


def test_scope_refuses_questions_outside_of_the_world(tmp_path):
    scope = find_examples(64, tmp_path).scope
    icons = [Image.open(path) for path in find_examples(64, tmp_path).images]
    assert all(has_plain_background(image) for image in icons)
    asked = ("Is there a red heart?", "Where is the key, relative to the car?", "Which thing is blue?")
    for question in (*WORLD_QUESTIONS, *asked):
        assert scope.refuse_question(question, icons) is None
    for question in ("Who painted the Mona Lisa?", "Translate this into French please"):
        assert "has not learned" in scope.refuse_question(question, icons)
    assert scope.warn_about_prompt("two hearts on a blue background") is None
    assert "“eiffel”" in scope.warn_about_prompt("the Eiffel tower at night, oil painting")
    noise = Image.fromarray(torch.randint(256, (64, 64, 3), dtype=torch.uint8).numpy())
    assert "photograph" in scope.refuse_question("What is this?", [noise]) and not has_plain_background(noise)
    assert find_examples(256, tmp_path).scope.refuse_question("Who painted the Mona Lisa?", []) is None
    assert all("\n" not in line and line for line in (scope.chat, scope.generate, scope.inside))
