"""`evotok eval mini`: figures, resuming, and its judges."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mini_materials import save_mini
from PIL import Image

from evotok.cli import main
from evotok.data.processes import Workers
from evotok.data.world.evaluation import QUESTION_SETS
from evotok.data.world.prompts import TASKS
from evotok.data.world.scenes import render
from evotok.eval import teachers
from evotok.eval.mini import emoji, generation, questions
from evotok.eval.mini.emoji import Gallery, retrieval_ranks
from evotok.eval.mini.generation import Composition, Variant, composition_variants
from evotok.eval.mini.questions import measure_questions
from evotok.eval.mini.targets import TARGETS
from evotok.eval.probes import PatchProbe
from evotok.eval.suite import Evaluation, Report
from evotok.eval.suites import mini
from evotok.eval.teachers import find_teacher, teacher_files
from evotok.eval.text_to_image.images import save_image


pytest.importorskip("sklearn")

FEW = ["scenes=4", "probe_scenes=6", "questions=5", "prompts=2", "emoji=3", "batch_size=8"]


class FewPixels:
    """Stand-in for EfficientNet-Lite0, which is slow for all emoji."""

    def to(self, device):
        return self

    def pooled(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels, 8).flatten(1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, world):
    return save_mini(tmp_path_factory.mktemp("runs"), world)


def test_parts_are_measured_once(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(emoji, "EfficientNetTeacher", FewPixels)
    monkeypatch.setattr(mini.importlib.util, "find_spec", lambda name: name)
    out = tmp_path / "out"
    words = ["eval", "mini", checkpoint, *FEW, "--out", str(out)]
    assert main(words) == 0
    results = json.loads((out / "results.json").read_text())
    figures, tables = results["figures"], results["tables"]
    wanted = [name for name in TARGETS if not name.endswith(("4_16", "share_16", "depth4"))]  # of other sizes here
    wanted += ["psnr_new_style_depth2", "semantic_cosine_depth4", "semantic_gain_2_4", "probe_depth4", "probe_teacher"]
    wanted += ["probe_gain_2_4", "probe_share_4", "probe_continuous", "codebook_usage_min"]
    wanted += [f"{figure}_continuous" for figure in QUESTION_SETS]
    wanted += [f"geneval_{task}{held}" for task in TASKS for held in ("", "_held")]
    wanted += ["geneval_overall_held_cfg1", "geneval_overall_held_no_min_p", "t2i_top5_train_cfg1"]
    assert set(wanted) <= set(figures) and "psnr_new_style_depth3" not in figures
    assert figures["qa_color_n"] == 5 and figures["geneval_overall_n"] == 12 and figures["t2i_top5_train_cfg1_n"] == 3
    assert figures["qa_color_target"] == 0.95 and figures["geneval_counting_held_target"] == 0.75
    assert figures["geneval_detector"] >= 0.9 and figures["t2i_top5_train_chance"] == pytest.approx(5 / 232)
    assert [row["depth"] for row in tables["levels"]] == [1, 2, 3, 4]
    assert {row["figure"] for row in tables["questions"]} == set(QUESTION_SETS)
    assert len(tables["geneval"]) == 4 + 2 * 3 and [row["part"] for row in tables["parameters"]][-1] == "all"
    assert Image.open(out / "held_out.png").width > 500 and "](seen.png)" in (out / "README.md").read_text()
    lines = [json.loads(line) for line in (out / "verdicts_held_out_cfg1.jsonl").read_text().splitlines()]
    assert len(lines) == 12 and lines[-1]["tag"] == "color_attribution"
    assert not (out / "parts").exists() and (out / "pictures/emoji_cfg1/00002/samples/0000.png").is_file()
    monkeypatch.setattr(mini, "run", None)
    assert main(words) == 0, "finished results are not measured again"


def test_measure_continues_an_interrupted_run(checkpoint, tmp_path, capsys, monkeypatch):
    measured = []

    def measure(interrupted, evaluation, world, model, processor, teacher, figure):
        measured.append(figure)
        if figure == interrupted:
            raise KeyboardInterrupt
        return Report({figure: 0.5, f"{figure}_n": evaluation.options.questions}, {"questions": [{"figure": figure}]})

    words = [checkpoint, "parts=[questions]", "questions=7", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(mini, "measure_questions", partial(measure, "qa_color"))
    assert main(["eval", "mini", *words]) == 130
    monkeypatch.setattr(mini, "measure_questions", partial(measure, None))
    assert main(["measure", *words]) == 0
    assert measured.count("qa_color") == 2 and [*dict.fromkeys(measured)] == list(QUESTION_SETS)
    assert len(measured) == len(QUESTION_SETS) + 1
    output = capsys.readouterr()
    assert "qa_color" in output.out and f"an alias of `evotok eval mini {checkpoint}" in output.err
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["suite"] == "mini" and len(results["tables"]["questions"]) == len(QUESTION_SETS)


def test_composition_variants_follow_the_min_p_of_the_checkpoint():
    assert [variant.suffix for variant in composition_variants(0.3)] == ["", "_held", "_held_cfg1", "_held_no_min_p"]
    assert [variant.suffix for variant in composition_variants(0.0)] == ["", "_held", "_held_cfg1"]


class Copies:
    """Image tokenizer that changes the brightness alone."""

    device = "cpu"

    def __init__(self, factor: float):
        self.factor = factor

    def encode(self, pixels):
        return pixels

    def decode_pixels(self, pixels):
        return pixels * self.factor


def evaluation(folder, **options):
    return Evaluation(SimpleNamespace(seed=0, batch_size=4, **options), [], folder, Workers())


def test_composition_counts_right_images(tmp_path, world, monkeypatch):
    """Real scenes replace generated images; those of one task are of another prompt."""
    composition = Composition(evaluation(tmp_path, prompts=3), world)
    prompts = composition.prompts(held_out=True)

    def save_scenes(evaluation, planned):
        [(name, images)] = planned.items()
        for index, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
            shown = prompts[index - 1] if prompt.kind == "counting" else prompt
            save_image(Image.fromarray(render(world, shown.scene)), evaluation.folder / name / image.file)

    monkeypatch.setattr(generation, "generate_missing", save_scenes)
    figures = composition.measure(Variant("variant", "_held", held_out=True)).figures
    right = {task: figures[f"geneval_{task}_held"] for task in TASKS}
    assert right == {task: 0.0 if task == "counting" else 1.0 for task in TASKS}
    assert figures["geneval_overall_held"] == pytest.approx(5 / 6)


def test_composition_measures_detector_and_ceiling(tmp_path, world):
    composition = Composition(evaluation(tmp_path, prompts=3), world)
    report = composition.measure_detector(True, Copies(1.0))
    assert report.figures == {"geneval_detector_held": 1.0, "geneval_ceiling_held": 1.0}
    report = composition.measure_detector(False, Copies(0.0))
    assert report.figures == {"geneval_detector": 1.0, "geneval_ceiling": 0.0}
    assert [row["overall"] for row in report.tables["geneval"]] == [1.0, 1.0, 0.0]


def test_measure_questions_scores_codes_and_continuous_features(tmp_path, world, monkeypatch):
    def answers(model, processor, rows, batch_size, teacher):
        return ["nothing" if teacher else row["answer"] for row in rows]

    monkeypatch.setattr(questions, "answer_questions", answers)
    teacher = torch.nn.Identity()
    report = measure_questions(evaluation(tmp_path, questions=10), world, None, None, teacher, "qa_yes_no")
    expected = {"qa_yes_no": 1.0, "qa_yes_no_continuous": 0.0, "qa_yes_no_baseline": 0.5, "qa_yes_no_n": 10}
    assert report.figures == expected
    kinds = QUESTION_SETS["qa_yes_no"].kinds
    assert [(row["question"], row["n"]) for row in report.tables["questions"]] == [(kind, 2) for kind in kinds]


EAST, NORTH, WEST = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]


@pytest.mark.parametrize(
    ("features", "gallery", "shown", "wanted", "ranks"),
    [
        ([[5.0, 1.0]] * 3, [EAST, NORTH, WEST], [7, 3, 5], [7, 3, 5], [1, 2, 3]),  # emoji in no order
        ([EAST, [1.0, 0.2]], [WEST, [1.0, 0.1], EAST, NORTH], [0, 0, 1, 2], [0, 0], [2, 1]),  # the best image counts
        ([[0.0, 0.0], [float("nan"), 0.0]], [EAST, NORTH, WEST], [0, 1, 2], [1, 1], [3, 3]),  # ties with all
        ([EAST], [EAST, EAST], [0, 1], [0], [2]),  # equal images
    ],
)
def test_retrieval_ranks_count_ties(features, gallery, shown, wanted, ranks):
    tensors = torch.tensor(features), torch.tensor(gallery), torch.tensor(shown), torch.tensor(wanted)
    assert retrieval_ranks(*tensors).tolist() == ranks


def test_gallery_finds_emoji_in_all_styles_and_in_one():
    features = torch.tensor([[9.0, 1.0], [1.0, 9.0], [1.0, 8.0], [8.0, 2.0]])
    gallery = Gallery(features, [0, 1, 0, 1], ["flat", "flat", "round", "round"])
    own = gallery.find(features, [0, 1, 0, 1], gallery.styles)
    assert own == {"top1": 1.0, "top5": 1.0, "top1_same_style": 1.0, "top5_same_style": 1.0}
    # Nearest to the flat 0; among the round ones, to 1.
    assert gallery.find(torch.tensor([[9.0, 0.9]]), [1], ["round"]) == own | {"top1": 0.0}


def test_patch_probe_classifies_patches_with_a_thing():
    generator = torch.Generator().manual_seed(0)
    things = torch.randint(0, 4, (30, 16), generator=generator)
    features = torch.nn.functional.one_hot(things, 4).float() * 3 + torch.randn(30, 16, 4, generator=generator) * 0.3
    probe = PatchProbe.fit(features + 10, things)
    right = probe.right(5 * (features + 10), things)  # the length of features does not count
    assert right.shape == ((things > 0).sum(),) and right.float().mean() > 0.97
    assert set(probe.classes.tolist()) == {1, 2, 3}, "the background is not among them"


def test_find_teacher_searches_checkpoint_then_assets(checkpoint, tmp_path, monkeypatch):
    assert find_teacher("", checkpoint) == str(Path(checkpoint).parent / "vision")
    assert [path.name for path in teacher_files(find_teacher("", checkpoint))] == ["config.json", "model.safetensors"]
    hub_id = "google/siglip2-large-patch16-256"
    assert find_teacher(hub_id, checkpoint) == hub_id and teacher_files(hub_id) == []
    monkeypatch.setattr(teachers, "EMBEDDED_TEACHER", tmp_path / "tower")
    with pytest.raises(ValueError, match=r"no vision tower in assets/tower: give .* teacher=FOLDER"):
        find_teacher("", "mini")
    (tmp_path / "tower").mkdir()
    (tmp_path / "tower/config.json").write_text("{}")
    assert find_teacher("", "mini") == find_teacher("", str(tmp_path / "alone")) == str(tmp_path / "tower")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ["names"]}, "parts: unknown 'names': choose among tokenizer, questions, composition, emoji"),
        ({"prompts": 1}, "prompts=1 must be at least 2"),
        ({"scenes": 0}, "scenes=0 must be at least 1"),
        ({"teacher": "nowhere"}, "teacher: nowhere: no such folder"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mini.check(mini.Options(**options), ["mini"])
