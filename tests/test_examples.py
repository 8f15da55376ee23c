"""What a visitor or a reader tries first: the model does it well, and everybody takes it from one place."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from evotok.app.examples import (
    EMOJI_PICTURES,
    EMOJI_PROMPTS,
    EMOJI_QUESTIONS,
    find_examples,
    has_plain_background,
)
from evotok.cli import COMMANDS, EPILOG


ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "docs").rglob("*.ipynb"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8").replace('\\"', '"') for path in DOCUMENTS}
TEXTS |= {f"evotok {name} --help": module.EXAMPLES for name, module in COMMANDS.items()} | {"evotok --help": EPILOG}
PROMPTS_OF_TEXTS = (
    r'evotok generate mini --prompt ((?:"[^"]*" ?)+)',
    r"printf '/draw ([^\\]*)\\n",
    r'"content": ("[^"]*")',
    r'draw\(("[^"]*")',
    r'generate_images\(model, processor, \[((?:"[^"]*"(?:, )?)+)',
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
NOT_YET = {
    "a sparkling heart, fluent flat style": "has the style of twemoji",
    "two frogs on a blue background, noto style": "has no frogs",
    "What color is the emoji?": "is asked of the rocket, which has no one colour",
    "Which style is this?": "takes the robot of noto for one of twemoji",
}
"""Examples that the embedded model does not do well yet; its successor should, and then they leave this table."""


def judged(example, *values):
    """Parameters of a test of an example, which may fail where that is known."""
    marks = [pytest.mark.xfail(reason=NOT_YET[example], strict=False)] if example in NOT_YET else []
    return pytest.param(example, *values, marks=marks, id=example)


def found(text, patterns):
    """What a text gives as examples."""
    hits = [hit.group(1) for pattern in patterns for hit in re.finditer(pattern, text)]
    return {example for hit in hits for example in (re.findall('"([^"]*)"', hit) or [hit])} - {""}


@pytest.mark.parametrize("name", TEXTS)
def test_documents_and_help_take_their_examples_from_the_page(name):
    if name == "docs/bad_inputs.md":
        return
    assert found(TEXTS[name], PROMPTS_OF_TEXTS) <= set(EMOJI_PROMPTS)
    assert found(TEXTS[name], QUESTIONS_OF_TEXTS) <= set(EMOJI_QUESTIONS)


def test_examples_are_found_in_documents():
    assert found(TEXTS["README.md"], PROMPTS_OF_TEXTS) == {EMOJI_PROMPTS[0]}
    assert found(TEXTS["README.md"], QUESTIONS_OF_TEXTS) == {EMOJI_QUESTIONS[0]}
    assert found(TEXTS["docs/faq.md"], PROMPTS_OF_TEXTS) == set(EMOJI_PROMPTS[:2])
    assert len(found(TEXTS["docs/faq.md"], QUESTIONS_OF_TEXTS)) == 2


# --- what the model makes of them ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    from evotok.training.emoji.world import EmojiWorld

    return EmojiWorld()


@pytest.fixture(scope="module")
def mini():
    from evotok.commands.checkpoints import load_multimodal

    return load_multimodal("mini")


@pytest.fixture(scope="module")
def seen(mini, world):
    """What the detector of `evotok eval emoji-geneval` sees in images of each prompt."""
    pytest.importorskip("efficientnet_lite_pytorch", reason="the detector needs the extra `mini`")
    from evotok.eval.generation import generate_images
    from evotok.eval.suites.emoji_geneval import build_detector

    model, processor = mini
    prompts = [prompt for prompt in EMOJI_PROMPTS for _ in range(SEEDS)]
    images = processor.post_process_image_generation(generate_images(model, processor, prompts, seed=0))
    detector = build_detector(world, torch.device("cpu"))
    return [[detector(image) for image in images[n * SEEDS : (n + 1) * SEEDS]] for n in range(len(EMOJI_PROMPTS))]


NUMBERS = {"two": 2, "three": 3, "four": 4}


def record_of(prompt):
    """The prompt as a record of the suite."""
    from evotok.training.emoji.prompts import STYLE_NAMES

    things, style = re.fullmatch(r"(.*), (.*) style", prompt).groups()
    things, _, background = things.partition(" on a ")
    article, name = things.split(" ", 1)
    count = NUMBERS.get(article, 1)
    record = {"tag": "counting", "prompt": prompt}
    record |= {"include": [{"class": name if count == 1 else name.removesuffix("s"), "count": count}]}
    record |= {"exclude": [{"class": record["include"][0]["class"], "count": count + 1}]}
    record["style"] = next(key for key, said in STYLE_NAMES.items() if said == style)
    return record | ({"background": background.removesuffix(" background")} if background else {})


@pytest.mark.parametrize("prompt", [judged(prompt) for prompt in EMOJI_PROMPTS])
def test_the_model_generates_what_the_example_asks_for(seen, prompt):
    from evotok.eval.suites.emoji_geneval import faults

    wrong = [faults(record_of(prompt), sight) for sight in seen[EMOJI_PROMPTS.index(prompt)]]
    assert sum(not fault for fault in wrong) >= RIGHT, wrong


@pytest.mark.parametrize(
    ("question", "picture"), [judged(*pair) for pair in zip(EMOJI_QUESTIONS, EMOJI_PICTURES, strict=True)]
)
def test_the_model_answers_what_the_example_asks(mini, world, question, picture):
    from evotok.eval.understanding import answer_questions, normalize_answer
    from evotok.training.emoji.prompts import STYLE_NAMES
    from evotok.training.emoji.questions import QUESTIONS, record
    from evotok.training.emoji.world import Drawing

    name, style = picture
    drawing = Drawing(next(concept for concept in world.concepts if concept.name == name), style)
    right = {
        "name": name,
        "group": drawing.concept.group,
        "style": STYLE_NAMES[style],
        "color": world.color(drawing) or "",
    }[next(kind for kind, texts in QUESTIONS.items() if question in texts)]
    asked = record(world.image(drawing), [(question, right)], "name")
    [said] = answer_questions(*mini, [asked])
    assert normalize_answer(said) == normalize_answer(right)


# --- what it knows ---------------------------------------------------------------------------------------------------


def test_examples_fit_the_model(tmp_path):
    general = find_examples(256, tmp_path)
    assert not general.pictures and not list(tmp_path.iterdir())
    emoji = find_examples(64, tmp_path)
    assert len(emoji.pictures) == len(EMOJI_PICTURES)
    assert all(Image.open(path).size == (64, 64) for path in emoji.pictures)


def test_a_model_of_the_emoji_world_knows_its_words_and_no_others(tmp_path):
    scope = find_examples(64, tmp_path).scope
    emoji = [Image.open(path) for path in find_examples(64, tmp_path).pictures]
    assert all(has_plain_background(image) for image in emoji)
    asked = ("Is this an alien monster?", "Is its group food & drink?", "What emoji is that?")
    for question in (*EMOJI_QUESTIONS, *asked):
        assert scope.objection(question, emoji) is None
    for question in ("Who painted the Mona Lisa?", "Translate this into French please"):
        assert "has not learned" in scope.objection(question, emoji)
    assert scope.warning("two frogs on a blue background, noto style") is None
    assert "“eiffel”" in scope.warning("the Eiffel tower at night, oil painting")
    noise = Image.fromarray(torch.randint(256, (64, 64, 3), dtype=torch.uint8).numpy())
    assert "photograph" in scope.objection("What is this?", [noise]) and not has_plain_background(noise)
    assert find_examples(256, tmp_path).scope.objection("Who painted the Mona Lisa?", []) is None
    assert all("\n" not in line and line for line in (scope.chat, scope.draw, scope.inside))
