"""`evotok eval mini`: what it measures, what it keeps when it is cut off, and how it judges."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import build_chat_model
from mini_materials import save_mini
from PIL import Image

from evotok.cli import main
from evotok.data.processes import Workers
from evotok.data.world.evaluation import QUESTION_SETS
from evotok.data.world.prompts import TASKS
from evotok.data.world.scenes import render
from evotok.eval import teachers
from evotok.eval.inference import continuous_features
from evotok.eval.mini import emoji, generation, questions
from evotok.eval.mini.generation import Cell, Composition, composition_cells
from evotok.eval.mini.questions import measure_questions
from evotok.eval.mini.targets import TARGETS, Part, Parts, with_targets
from evotok.eval.probes import PatchProbe
from evotok.eval.suite import Evaluation
from evotok.eval.suites import mini
from evotok.eval.teachers import find_teacher, teacher_files
from evotok.eval.text_to_image.images import save_whole


pytest.importorskip("sklearn")

FEW = ["scenes=4", "probe_scenes=6", "questions=5", "prompts=2", "emoji=3", "batch_size=8"]


class FewPixels:
    """Stands for EfficientNet-Lite0, which takes long for all emoji."""

    def to(self, device):
        return self

    def pooled(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels, 8).flatten(1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, world):
    return save_mini(tmp_path_factory.mktemp("runs"), world)


def test_the_suite_measures_everything_once(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(emoji, "EfficientNetTeacher", FewPixels)
    monkeypatch.setattr(mini.importlib.util, "find_spec", lambda name: name)
    out, folder = tmp_path / "out", ["--out", str(tmp_path / "out"), "--json"]
    capsys.readouterr()
    assert main(["eval", "mini", checkpoint, *FEW, *folder]) == 0
    results = json.loads(capsys.readouterr().out)
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
    assert main(["eval", "mini", checkpoint, *FEW, *folder]) == 0, "what the folder has is not measured again"


def test_what_is_ready_is_kept_when_a_run_is_cut_off(checkpoint, tmp_path, monkeypatch):
    asked = []

    def cut_off_at(figure):
        def measure(model, processor, world, name, options, workers):
            asked.append(name)
            if name == figure:
                raise KeyboardInterrupt
            return Part({name: 0.5, f"{name}_n": options.questions}, {"questions": [{"figure": name}]})

        monkeypatch.setattr(mini, "measure_questions", measure)

    words = ["eval", "mini", checkpoint, "parts=[questions]", "questions=7", "--out", str(tmp_path / "out")]
    cut_off_at("qa_color")
    assert main(words) == 130
    first = asked.copy()
    assert first == list(QUESTION_SETS)[: first.index("qa_color") + 1]
    asked.clear()
    cut_off_at(None)
    assert main(words) == 0
    assert asked == list(QUESTION_SETS)[first.index("qa_color") :]
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert set(results["figures"]) >= set(QUESTION_SETS) and len(results["tables"]["questions"]) == len(QUESTION_SETS)


def test_parts_of_other_options_are_measured_anew(tmp_path):
    def evaluation(**options):
        return Evaluation(SimpleNamespace(**options), [], tmp_path, Workers(), files={"teacher": "a"})

    measured = []

    def measure():
        measured.append(1)
        return Part({"a": 1.0})

    assert Parts(evaluation(seed=0)).get("one", measure) == Parts(evaluation(seed=0)).get("one", measure)
    assert len(measured) == 1
    Parts(evaluation(seed=1)).get("one", measure)
    assert len(measured) == 2
    (tmp_path / "parts/one.json").write_text("{")
    kept = Parts(evaluation(seed=1))
    kept.get("one", measure)
    kept.drop()
    assert len(measured) == 3 and not (tmp_path / "parts").exists()


def test_targets_stand_behind_their_figures():
    found = with_targets({"qa_color": 0.5, "geneval_overall": 0.1, "geneval_position_held": 0.2, "probe_n": 3})
    assert list(found) == [
        *("qa_color", "qa_color_target", "geneval_overall", "geneval_overall_target"),
        *("geneval_position_held", "geneval_position_held_target", "probe_n"),
    ]
    assert (found["geneval_overall_target"], found["geneval_position_held_target"]) == (0.9, 0.75)


def test_the_guard_is_left_out_where_there_is_none():
    assert [cell.suffix for cell in composition_cells(0.3)] == ["", "_held", "_held_cfg1", "_held_no_min_p"]
    assert [cell.suffix for cell in composition_cells(0.0)] == ["", "_held", "_held_cfg1"]


class Copies:
    """An image tokenizer that keeps all but the brightness."""

    device = "cpu"

    def __init__(self, factor: float):
        self.factor = factor

    def encode(self, pixels):
        return pixels

    def decode_pixels(self, pixels):
        return pixels * self.factor


@pytest.fixture
def composition(tmp_path, world):
    options = SimpleNamespace(prompts=3, seed=0, batch_size=4)
    return Composition(Evaluation(options, [], tmp_path, Workers()), world)


@pytest.mark.parametrize("held_out", [False, True])
def test_right_images_count_and_others_do_not(composition, world, monkeypatch, held_out):
    """Real scenes instead of generated ones, those of one task with the colours of another prompt."""
    prompts = composition.prompts(held_out)

    def draw(evaluation, wanted):
        [(name, pictures)] = wanted.items()
        for index, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
            shown = prompts[index - 1] if prompt.kind == "counting" else prompt
            save_whole(Image.fromarray(render(world, shown.scene)), evaluation.folder / name / picture.file)
        return "float32"

    monkeypatch.setattr(generation, "draw_missing", draw)
    suffix = "_held" if held_out else ""
    figures = composition.measure(Cell("cell", suffix, held_out)).figures
    right = {task: figures[f"geneval_{task}{suffix}"] for task in TASKS}
    assert right == {task: 0.0 if task == "counting" else 1.0 for task in TASKS}
    assert figures[f"geneval_overall{suffix}"] == pytest.approx(5 / 6)


def test_the_detector_and_the_ceiling_are_judged(composition):
    figures = composition.measure_detector(True, Copies(1.0)).figures
    assert figures == {"geneval_detector_held": 1.0, "geneval_ceiling_held": 1.0}
    part = composition.measure_detector(False, Copies(0.0))
    assert part.figures == {"geneval_detector": 1.0, "geneval_ceiling": 0.0}
    assert [row["overall"] for row in part.tables["geneval"]] == [1.0, 1.0, 0.0]


def test_codes_and_continuous_features_are_scored_beside_each_other(world, monkeypatch):
    def answers(model, processor, records, batch_size, teacher):
        return ["nothing" if teacher else record["answer"] for record in records]

    monkeypatch.setattr(questions, "answer_questions", answers)
    options = SimpleNamespace(questions=10, seed=0, batch_size=4)
    part = measure_questions(None, None, world, "qa_yes_no", options, Workers(), torch.nn.Identity())
    assert part.figures == {
        "qa_yes_no": 1.0,
        "qa_yes_no_continuous": 0.0,
        "qa_yes_no_baseline": 0.5,
        "qa_yes_no_n": 10,
    }
    assert [(row["question"], row["n"]) for row in part.tables["questions"]] == [
        (kind, 2) for kind in QUESTION_SETS["qa_yes_no"].kinds
    ]


def test_continuous_features_have_the_direction_of_the_tower_and_the_norm_of_decoded_semantics():
    model, _ = build_chat_model()
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    decoded = model.get_image_features(pixels)
    found = continuous_features(model, lambda images: 7 * decoded.last_hidden_state, pixels)
    for name in ("last_hidden_state", "pooler_output"):
        torch.testing.assert_close(found[name], decoded[name])
    other = torch.randn(decoded.last_hidden_state.shape, generator=torch.Generator().manual_seed(1))
    found = continuous_features(model, lambda images: other, pixels).last_hidden_state
    torch.testing.assert_close(found.norm(dim=-1), decoded.last_hidden_state.norm(dim=-1))
    torch.testing.assert_close(torch.cosine_similarity(found, other, dim=-1), torch.ones(2, found.shape[1]))


def test_the_probe_reads_patches_that_show_a_thing():
    generator = torch.Generator().manual_seed(0)
    things = torch.randint(0, 4, (30, 16), generator=generator)
    features = torch.nn.functional.one_hot(things, 4).float() * 3 + torch.randn(30, 16, 4, generator=generator) * 0.3
    probe = PatchProbe.fit(features + 10, things)
    right = probe.right(5 * (features + 10), things)  # the length of features does not count
    assert right.shape == ((things > 0).sum(),) and right.float().mean() > 0.97
    assert set(probe.classes.tolist()) == {1, 2, 3}, "the background is not among them"


def test_the_vision_tower_is_found(checkpoint, tmp_path, monkeypatch):
    assert find_teacher("", checkpoint) == str(Path(checkpoint).parent / "vision")
    assert find_teacher("google/siglip2-large-patch16-256", checkpoint) == "google/siglip2-large-patch16-256"
    assert [path.name for path in teacher_files(find_teacher("", checkpoint))] == ["config.json", "model.safetensors"]
    assert teacher_files("google/siglip2-large-patch16-256") == []
    monkeypatch.setattr(teachers, "EMBEDDED_TEACHER", tmp_path / "tower")
    with pytest.raises(ValueError, match=r"no vision tower in assets/tower: give .* teacher=FOLDER"):
        find_teacher("", "mini")
    (tmp_path / "tower").mkdir()
    (tmp_path / "tower/config.json").write_text("{}")
    assert find_teacher("", "mini") == find_teacher("", str(tmp_path / "alone")) == str(tmp_path / "tower")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["parts=[names]"], "parts: unknown 'names': choose among tokenizer, questions, composition, emoji"),
        (["prompts=1"], "prompts=1 must be at least 2"),
        (["scenes=0"], "scenes=0 must be at least 1"),
        (["teacher=nowhere"], "teacher: nowhere: no such folder"),
    ],
)
def test_mistakes_are_named(checkpoint, words, message, tmp_path, capsys):
    assert main(["eval", "mini", checkpoint, *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_measure_is_another_name_of_the_suite(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        mini, "measure_questions", lambda model, processor, world, name, *rest: Part({name: 0.5, f"{name}_n": 1})
    )
    words = ["parts=[questions]", "--out", str(tmp_path / "out")]
    assert main(["measure", checkpoint, *words]) == 0
    said = capsys.readouterr()
    assert "qa_color" in said.out and f"another name of `evotok eval mini {checkpoint}" in said.err
    assert json.loads((tmp_path / "out/results.json").read_text())["suite"] == "mini"
