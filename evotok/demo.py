"""`evotok demo`: reconstructions, answers and generated images of a checkpoint trained on the embedded world.

Icons are of held-out styles; prompts marked as new are of held-out combinations of thing and color.
"""

import random
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from evotok.commands.checkpoints import find_checkpoint, load_multimodal
from evotok.commands.files import check_folder, new_files, safe_name, save_images
from evotok.commands.options import MAX_SEED, CheckpointOption, Json, require_finite
from evotok.commands.terminal import print_results, progress, waiting


if TYPE_CHECKING:
    from PIL import Image

    from evotok.data.world.icons import World
    from evotok.data.world.scenes import Scene

EXAMPLES = """  evotok demo
  evotok demo --checkpoint runs/mini/gen-counts --out demo-gen --seed 1"""

QUESTIONS = ("name", "name", "name", "which", "color", "background", "count", "count_kind", "place", "relation")
QUESTIONS = (*QUESTIONS, "yes_no_color", "yes_no_relation")
SCENE_PROMPTS = ("counting", "colors", "position_background", "color_attribution")
SEEN, NEW = "seen combination", "new combination"
RECONSTRUCTED = 8
EMOJI = 8


class AnsweredQuestion(NamedTuple):
    """A question about an image, the answer of the model and the right answer."""

    image: "Image.Image"
    question: str
    answer: str
    right: str

    @property
    def is_correct(self) -> bool:
        """Returns whether both answers are equal, but for case and punctuation."""
        from evotok.eval.metrics import normalize_answer

        return normalize_answer(self.answer) == normalize_answer(self.right)


def run(
    folder: Annotated[str, typer.Option("--out", metavar="DIR", help="folder for images and answers")] = "demo",
    checkpoint: CheckpointOption = "mini",
    guidance_scale: Annotated[
        float, typer.Option(metavar="X", min=0, callback=require_finite, help="for the generated images")
    ] = 7.5,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=MAX_SEED, help="of images, questions and prompts")] = 0,
    as_json: Json = False,
) -> None:
    """Run the embedded mini model: reconstruct images, answer questions and generate images."""
    out = check_folder(folder)
    find_checkpoint(checkpoint)
    from rich.console import Console

    from evotok.data.world.icons import load_world
    from evotok.data.world.images import held_out_scenes
    from evotok.data.world.phrases import describe

    started, world = time.perf_counter(), load_world()
    model, processor = load_multimodal(checkpoint)
    scenes = held_out_scenes(world, "test", RECONSTRUCTED, seed=seed)
    originals = [render_image(world, scene) for scene in scenes]
    names = [safe_name(describe(world, scene)) for scene in scenes]
    with waiting("Reconstructing images in styles held out from training"):
        reconstructions = reconstruction_sheet(model, processor, originals)
    with waiting("Answering questions"):
        answers = ask_questions(model, processor, world, seed)
    prompts = choose_prompts(world, seed)
    sheet = generation_sheet(model, processor, prompts, guidance_scale, seed)
    save_images(out / "images", zip(names, originals, strict=True), overwrite=True)  # after all is computed
    _save(out / "reconstructions.png", reconstructions)
    _save(out / "questions.png", question_sheet(answers))
    _save(out / "questions.md", markdown(answers))
    _save(out / "text_to_image.png", sheet)
    seconds = time.perf_counter() - started
    if not as_json:
        Console(highlight=False).print(table(answers))
    facts = {
        "folder": str(out),
        "answers": [
            {"question": a.question, "answer": a.answer, "right": a.right, "correct": a.is_correct} for a in answers
        ],
        "prompts": [prompt for prompt, _ in prompts],
        "seconds": round(seconds, 1),
    }
    lines = [
        f"{out / 'images'}: {len(originals)} scenes in styles held out from training, to ask about with `evotok chat`",
        f"{out / 'reconstructions.png'}: the same from 1, 2, 3, 4 levels of their codes",
        f"{out / 'text_to_image.png'}: {len(prompts)} images generated from text, guidance {guidance_scale:g}",
        f"{out / 'questions.png'}, {out / 'questions.md'}: the table above, with its images",
        f"Done in {seconds:.0f} s.",
    ]
    print_results(as_json, facts, lines)


def _save(path: Path, content: Any) -> None:
    with new_files(path.parent, overwrite=True) as reserve:
        if isinstance(content, str):
            reserve(path.name).write_text(content, encoding="utf-8")
        else:
            content.save(reserve(path.name), format="PNG")


def render_image(world: "World", scene: "Scene") -> "Image.Image":
    """Renders a scene as an RGB image of 64 x 64 pixels."""
    from PIL import Image

    from evotok.data.world.scenes import render

    return Image.fromarray(render(world, scene))


def reconstruction_sheet(model, processor, originals: list["Image.Image"]) -> "Image.Image":
    """Lays out images above their reconstructions at depth 1, 2, ..., with the mean PSNR."""
    import torch

    from evotok.data.image_files import to_unit_range
    from evotok.eval.metrics import psnr
    from evotok.eval.plotting.sheets import Cell, draw_sheet

    pixels = processor.image_processor(originals, return_tensors="pt")["pixel_values"].to(model.device)
    tokenizer = model.model.vq_model
    rows, labels = [originals], [("original", "")]
    with torch.inference_mode():
        codes = tokenizer.encode(pixels)
        for depth in range(1, tokenizer.config.num_pixel_codebooks + 1):
            decoded = tokenizer.decode_pixels(codes, depth=depth)
            quality = psnr(to_unit_range(decoded), to_unit_range(pixels)).mean()
            rows.append(processor.post_process_image_generation(decoded))
            labels.append((f"depth {depth}", f"{quality:.1f} dB"))
    return draw_sheet(
        [Cell(image) for row in rows for image in row],
        columns=len(originals),
        title="Images as codes, level by level",
        subtitle=f"Scenes in icon styles held out from training, encoded to {tokenizer.config.num_positions} positions "
        "and decoded from the first levels of their codes. Each level codes the residual of the levels before.",
        side=112,
        row_labels=labels,
    )


def choose_questions(world: "World", seed: int) -> list[tuple["Scene", str, str]]:
    """Samples (scene, question, answer) of each kind of `QUESTIONS`, about icons of held-out styles."""
    from evotok.data.world.questions import QuestionSampler
    from evotok.data.world.scenes import SceneSampler

    questions, sampler = QuestionSampler(world, canonical=True), SceneSampler(world, world.select("test"))
    chosen = []
    for number, kind in enumerate(QUESTIONS):
        rng = random.Random(f"{seed}/question {number}")
        while True:
            scene = sampler.free(rng, 1 if kind == "name" else rng.randint(2, 4))
            if kind in questions.kinds(scene):
                break
        question = questions.sample(rng, scene, kind, truth=number % 2 == 0)
        chosen.append((scene, question.text, question.answer))
    return chosen


def ask_questions(model, processor, world: "World", seed: int) -> list[AnsweredQuestion]:
    """Answers the questions of `choose_questions` in one batch."""
    from evotok.data.world.conversations import question_row
    from evotok.data.world.questions import Question
    from evotok.inference import answer_questions

    chosen = [(render_image(world, scene), text, right) for scene, text, right in choose_questions(world, seed)]
    rows = [question_row(image, [Question("question", text, right)], "question") for image, text, right in chosen]
    answers = answer_questions(model, processor, rows)
    return [
        AnsweredQuestion(image, text, answer, right)
        for (image, text, right), answer in zip(chosen, answers, strict=True)
    ]


def score(answers: list[AnsweredQuestion]) -> str:
    """Returns `9 of 12 right`."""
    return f"{sum(answer.is_correct for answer in answers)} of {len(answers)} right"


def question_sheet(answers: list[AnsweredQuestion]) -> "Image.Image":
    """Lays out the images with question, answer and, where it is wrong, the right answer."""
    from evotok.eval.plotting.sheets import GREEN, GREY, RED, Cell, Line, draw_sheet

    cells = []
    for answer in answers:
        text = textwrap.shorten(answer.answer, 40, placeholder=" ...") or "(nothing)"
        lines = [Line(answer.question, GREY), Line(text, GREEN if answer.is_correct else RED, 22)]
        if not answer.is_correct:
            lines.append(Line(f"right: {answer.right}"))
        cells.append(Cell(answer.image, lines))
    return draw_sheet(
        cells,
        columns=4,
        title="Questions about images",
        subtitle=f"Icons in styles held out from training; {score(answers)}.",
    )


def markdown(answers: list[AnsweredQuestion]) -> str:
    """Renders the answers as a table in Markdown."""
    rows = [
        f"| {number} | {a.question} | {_cell(a.answer)} | {a.right} | {'yes' if a.is_correct else 'no'} |"
        for number, a in enumerate(answers, start=1)
    ]
    head = ["| image | question | the model's answer | right answer | agree |", "|---|---|---|---|---|"]
    title = ["# Questions about held-out images", "", f"{score(answers)}. The images, row by row:", ""]
    return "\n".join([*title, "![questions](questions.png)", "", *head, *rows, ""])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def table(answers: list[AnsweredQuestion]):
    """Renders the answers as a table for the terminal."""
    from rich.table import Table
    from rich.text import Text

    view = Table(title=f"Questions about held-out images: {score(answers)}", title_justify="left")
    for name in ("question", "the model's answer", "right answer"):
        view.add_column(name)
    for answer in answers:
        text = Text(_cell(answer.answer), style="green" if answer.is_correct else "red")
        view.add_row(Text(answer.question), text, Text(answer.right))
    return view


def choose_prompts(world: "World", seed: int) -> list[tuple[str, str]]:
    """Samples 16 pairs of prompt and note: scenes of seen and of held-out combinations, and emoji."""
    from evotok.data.world.icons import TRAIN_EMOJI_STYLES
    from evotok.data.world.prompts import PromptSampler, emoji_prompt

    rng = random.Random(seed)
    prompts: list[tuple[str, str]] = []
    for held_out, note in ((False, SEEN), (True, NEW)):
        sampler = PromptSampler(world, canonical=True, held_out=held_out)
        prompts += [(sampler.sample(rng, kind).text, note) for kind in SCENE_PROMPTS]
    things = rng.sample([thing.index for thing in world.things if thing.emoji is not None], EMOJI)
    styles = [TRAIN_EMOJI_STYLES[number % len(TRAIN_EMOJI_STYLES)] for number in range(EMOJI)]
    return prompts + [
        (emoji_prompt(world, rng, thing, style, canonical=True), "emoji")
        for thing, style in zip(things, styles, strict=True)
    ]


def generation_sheet(
    model, processor, prompts: list[tuple[str, str]], guidance_scale: float, seed: int
) -> "Image.Image":
    """Generates an image of each prompt in one batch, and lays them out."""
    from evotok.eval.plotting.sheets import GREEN, GREY, Cell, Line, draw_sheet
    from evotok.inference import generate_images

    with progress(model.config.vq_config.num_positions, "position", "Generating") as bar:
        images = generate_images(
            model,
            processor,
            [prompt for prompt, _ in prompts],
            seed=seed,
            guidance_scale=guidance_scale,
            callback=lambda *_: bar.update(),
        )
    cells = [
        Cell(image, [Line(prompt), Line(note, GREEN if note == NEW else GREY, 15)])
        for image, (prompt, note) in zip(images, prompts, strict=True)
    ]
    return draw_sheet(
        cells,
        columns=4,
        title="Generated from text",
        subtitle=f"One sample each, classifier-free guidance {guidance_scale:g}. New combination: no training image "
        "shows the thing in this color.",
    )
