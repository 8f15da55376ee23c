"""`evotok demo`: what a checkpoint trained on the emoji world can do, as pictures, questions and answers.

Everything shown was held out from training but the prompts that are marked as seen.
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
from evotok.commands.terminal import progress, say, waiting


if TYPE_CHECKING:
    from PIL import Image

    from evotok.training.emoji.world import Drawing, EmojiWorld

EXAMPLES = """  evotok demo
  evotok demo --checkpoint runs/mini/gen --out demo-gen --seed 1"""

# kind of question, split, how many
QUESTIONS = (
    ("name", "new_pair", 4),
    ("group", "new_concept", 2),
    ("color", "new_pair", 1),
    ("yes_no", "new_pair", 2),
    ("count", "new_pair", 2),
    ("position", "new_pair", 1),
)
SEEN, UNSEEN = "seen in training", "never seen in this style"
HELD_OUT = 8
TRAINED_STYLES = ("noto", "twemoji", "fluent_flat", "fluent_3d")


class Answer(NamedTuple):
    """A question about a picture, what the model says, and what is right."""

    image: "Image.Image"
    question: str
    answer: str
    right: str

    @property
    def correct(self) -> bool:
        """Whether the two agree, case and punctuation aside."""
        from evotok.eval.understanding import normalize_answer

        return normalize_answer(self.answer) == normalize_answer(self.right)


def run(
    folder: Annotated[str, typer.Option("--out", metavar="DIR", help="folder for images and answers")] = "demo",
    checkpoint: CheckpointOption = "mini",
    guidance_scale: Annotated[
        float, typer.Option(metavar="X", min=0, callback=require_finite, help="for the generated images")
    ] = 7.5,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=MAX_SEED, help="another choice of everything")] = 0,
    as_json: Json = False,
) -> None:
    """See what the embedded mini model can do: images, questions and answers."""
    out = check_folder(folder)
    find_checkpoint(checkpoint)
    from rich.console import Console

    from evotok.training.emoji.world import EmojiWorld

    started, world = time.perf_counter(), EmojiWorld()
    model, processor = load_multimodal(checkpoint)
    drawings = pick_drawings(random.Random(seed), world.drawings("new_concept"), HELD_OUT)
    originals = [world.image(drawing) for drawing in drawings]
    names = [safe_name(f"{drawing.concept.name} {drawing.style}") for drawing in drawings]
    with waiting("Reconstructing images that it never saw"):
        trajectories = reconstructions(model, processor, originals)
    with waiting("Answering questions"):
        answers = ask_questions(model, processor, world, seed)
    prompts = choose_prompts(world, seed)
    sheet = draw_prompts(model, processor, prompts, guidance_scale, seed)
    save_images(out / "images", zip(names, originals, strict=True), overwrite=True)  # nothing is written before all is
    _save(out / "reconstructions.png", trajectories)
    _save(out / "questions.png", question_sheet(answers))
    _save(out / "questions.md", markdown(answers))
    _save(out / "text_to_image.png", sheet)
    seconds = time.perf_counter() - started
    if not as_json:
        Console(highlight=False).print(table(answers))
    facts = {
        "folder": str(out),
        "answers": [
            {"question": a.question, "answer": a.answer, "right": a.right, "correct": a.correct} for a in answers
        ],
        "prompts": [prompt for prompt, _ in prompts],
        "seconds": round(seconds, 1),
    }
    lines = [
        f"{out / 'images'}: {len(originals)} images that it never saw, to ask about with `evotok chat`",
        f"{out / 'reconstructions.png'}: the same from 1, 2, 3, 4 levels of their codes",
        f"{out / 'text_to_image.png'}: {len(prompts)} images drawn from text at guidance {guidance_scale:g}",
        f"{out / 'questions.png'}, {out / 'questions.md'}: the table above, with its images",
        f"Done in {seconds:.0f} s.",
    ]
    say(as_json, facts, lines)


def _save(path: Path, content: Any) -> None:
    with new_files(path.parent, overwrite=True) as reserve:
        if isinstance(content, str):
            reserve(path.name).write_text(content, encoding="utf-8")
        else:
            content.save(reserve(path.name), format="PNG")


def pick_drawings(rng: random.Random, drawings: list["Drawing"], count: int) -> list["Drawing"]:
    """`count` drawings of different concepts, the trained styles in turn."""
    pool, chosen, concepts = rng.sample(drawings, len(drawings)), [], set()
    styles = [style for style in TRAINED_STYLES if any(d.style == style for d in drawings)]
    for index in range(count):
        style = styles[index % len(styles)]
        drawing = next((d for d in pool if d.style == style and d.concept.index not in concepts), None)
        if drawing is not None:
            chosen.append(drawing)
            concepts.add(drawing.concept.index)
    return chosen


def reconstructions(model, processor, originals: list["Image.Image"]) -> "Image.Image":
    """Sheet of images above their reconstructions from 1, 2, ... levels, with the mean PSNR."""
    import torch

    from evotok.eval.metrics import psnr
    from evotok.eval.sheets import Cell, draw_sheet

    pixels = processor.image_processor(originals, return_tensors="pt")["pixel_values"].to(model.device)
    tokenizer = model.model.vq_model
    rows, labels = [originals], [("original", "")]
    with torch.inference_mode():
        codes = tokenizer.encode(pixels)
        for depth in range(1, tokenizer.config.num_pixel_codebooks + 1):
            decoded = tokenizer.decode_pixels(codes, depth=depth)
            quality = psnr((decoded + 1) / 2, (pixels + 1) / 2).mean()
            rows.append(processor.post_process_image_generation(decoded))
            labels.append((f"depth {depth}", f"{quality:.1f} dB"))
    return draw_sheet(
        [Cell(image) for row in rows for image in row],
        columns=len(originals),
        title="Images as codes, level by level",
        subtitle=f"Emoji that the tokenizer never saw, encoded to {tokenizer.config.num_positions} positions and "
        "decoded from the first levels of their codes. Each level adds what the ones before left over.",
        side=112,
        row_labels=labels,
    )


def choose_questions(world: "EmojiWorld", seed: int) -> list[dict[str, Any]]:
    """Records of questions about held-out images, several kinds."""
    from evotok.training.emoji.evaluation import evaluation_set

    records = []
    for kind, split, count in QUESTIONS:
        records += evaluation_set(world, kind, split, 3 * count, seed)[::3]  # counts and yes/no alternate
    return records


def ask_questions(model, processor, world: "EmojiWorld", seed: int) -> list[Answer]:
    """The model's answers to `choose_questions`, all in one batch."""
    from evotok.eval.understanding import answer_questions

    records = choose_questions(world, seed)
    answers = []
    for record, text in zip(records, answer_questions(model, processor, records), strict=True):
        question = record["messages"][0]["content"][-1]["text"]
        answers.append(Answer(record["images"][0], question, text, record["answer"]))
    return answers


def score(answers: list[Answer]) -> str:
    """`9 of 12 right`."""
    return f"{sum(answer.correct for answer in answers)} of {len(answers)} right"


def question_sheet(answers: list[Answer]) -> "Image.Image":
    """Sheet of the images with question, answer and, where the answer is wrong, the right one."""
    from evotok.eval.sheets import GREEN, GREY, RED, Cell, Line, draw_sheet

    cells = []
    for answer in answers:
        said = textwrap.shorten(answer.answer, 40, placeholder=" ...") or "(nothing)"
        lines = [Line(answer.question, GREY), Line(said, GREEN if answer.correct else RED, 22)]
        if not answer.correct:
            lines.append(Line(f"right: {answer.right}"))
        cells.append(Cell(answer.image, lines))
    return draw_sheet(
        cells,
        columns=4,
        title="Questions about images",
        subtitle=f"Emoji in styles and of kinds held out from training, the model's answers: {score(answers)}.",
    )


def markdown(answers: list[Answer]) -> str:
    """The answers as a table in Markdown."""
    rows = [
        f"| {number} | {a.question} | {_cell(a.answer)} | {a.right} | {'yes' if a.correct else 'no'} |"
        for number, a in enumerate(answers, start=1)
    ]
    head = ["| image | question | the model's answer | right answer | agree |", "|---|---|---|---|---|"]
    title = ["# Questions about held-out images", "", f"{score(answers)}. The images, row by row:", ""]
    return "\n".join([*title, "![questions](questions.png)", "", *head, *rows, ""])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def table(answers: list[Answer]):
    """The answers as a table for the terminal."""
    from rich.table import Table
    from rich.text import Text

    view = Table(title=f"Questions about held-out images: {score(answers)}", title_justify="left")
    for name in ("question", "the model's answer", "right answer"):
        view.add_column(name)
    for answer in answers:
        said = Text(_cell(answer.answer), style="green" if answer.correct else "red")
        view.add_row(Text(answer.question), said, Text(answer.right))
    return view


def choose_prompts(world: "EmojiWorld", seed: int) -> list[tuple[str, str]]:
    """Sixteen (prompt, kind): drawings seen in training, and styles that are new for their concept."""
    from evotok.training.emoji.prompts import caption

    rng = random.Random(seed)
    prompts = []
    for split, kind, count in (("train", SEEN, 12), ("new_pair", UNSEEN, 4)):
        drawings = [d for d in world.drawings(split, familiar=True) if d.concept.group != "symbols"]
        prompts += [(caption(drawing), kind) for drawing in pick_drawings(rng, drawings, count)]
    return prompts


def draw_prompts(model, processor, prompts: list[tuple[str, str]], guidance_scale: float, seed: int) -> "Image.Image":
    """Contact sheet of one picture for each prompt, drawn in one batch."""
    from evotok.eval.generation import generate_images
    from evotok.eval.sheets import GREEN, GREY, Cell, Line, draw_sheet

    colors = {SEEN: GREY, UNSEEN: GREEN}
    with progress(model.config.vq_config.num_positions, "position", "Drawing") as bar:
        pixels = generate_images(
            model,
            processor,
            [prompt for prompt, _ in prompts],
            guidance_scale,
            seed=seed,
            callback=lambda *_: bar.update(),
        )
    images = processor.post_process_image_generation(pixels)
    cells = [
        Cell(image, [Line(prompt), Line(kind, colors[kind], 15)])
        for image, (prompt, kind) in zip(images, prompts, strict=True)
    ]
    return draw_sheet(
        cells,
        columns=4,
        title="Drawn from text",
        subtitle=f"One try each, classifier-free guidance {guidance_scale:g}.",
    )
