"""Measuring a checkpoint, and the card that is made of the results."""

import json
import re
import runpy
from pathlib import Path

import pytest
import torch
import yaml
from conftest import build_chat_model

from evotok import EvoTokConfig, EvoTokVQConfig, measure
from evotok.commands.measure import Section
from evotok.model_card import USAGE, read_results, render_card, write_card
from evotok.suite_sections import COMMANDS, QUESTIONS, UNSEEN, left_out, read_suites


MINI = Path(__file__).resolve().parent.parent / "assets" / "evotok-mini"
SPLITS = ("train", "new_pair")


def results_of_everything():
    """Results in which every number is another one."""
    numbers = (i / 1000 for i in range(101, 999))
    results = {
        "checkpoint_sha256": "ab" * 32,
        "data_sha256": "cd" * 32,
        "data": {"concepts": 1461, "familiar": 200},
        "parameters": {"tokenizer": 4_600_000, "language_model": 5_200_000, "depth_decoder": 2_700_000, "all": 13e6},
        "versions": {"evotok": "9.8.7", "torch": "6.5.4"},
        "sections": {n: {"settings": {"seed": 0}, "finished": True, "seconds": 60.2, "threads": 2} for n in ("a", "b")},
    }
    results |= {f"psnr_new_concept_depth{d}": 18 + d + next(numbers) for d in (1, 2, 3, 4)}
    results |= {f"semantic_cosine_new_concept_depth{d}": next(numbers) for d in (4, 8, 12, 16)}
    results |= {"semantic_cosine_new_concept_baseline": next(numbers), "psnr_new_concept_n": 576}
    results |= {"codebook_usage_min": next(numbers), "codebook_usage_n": 7305}
    for name in measure.TASKS:
        results |= {name: next(numbers), f"{name}_baseline": next(numbers), f"{name}_n": 92}
    results["t2i_top5_chance"] = 5 / 1461
    for split in SPLITS:
        results |= {f"t2i_top{k}_{split}_ceiling": next(numbers) for k in (1, 5)}
        for cell in (f"{split}_cfg1", f"{split}_cfg7.5"):
            results |= {f"t2i_top{k}_{cell}{kind}": next(numbers) for k in (1, 5) for kind in ("", "_same_style")}
            results[f"t2i_top5_{cell}_n"] = 256
    results["t2i_table"] = [
        {"split": split, "guidance_scale": s, "guidance_min_p": p, "images": 128, "top5": next(numbers)}
        for split in SPLITS
        for s in (1.0, 7.5)
        for p in (0.3, 0.0)
    ]
    return results | {f"{name}_target": target for name, target in measure.TARGETS.items()}


@pytest.fixture
def results():
    return results_of_everything()


def test_head_is_that_of_the_hub(results):
    head = yaml.safe_load(render_card(results, EvoTokConfig(), {}).split("---\n")[1])
    assert (head["license"], head["library_name"]) == ("apache-2.0", "transformers")
    assert head["pipeline_tag"] == "any-to-any" and "text-to-image" in head["tags"]


def test_every_figure_stands_in_the_card(results):
    card = render_card(results, EvoTokConfig(), {})
    unshown = re.compile("_target$|_n$|^t2i_top1_.*_same_style$")
    for name, value in results.items():
        if isinstance(value, float) and not unshown.search(name):
            shown = f"{value:.2f}" if name.startswith("psnr") else f"{value:.{4 if 'chance' in name else 3}f}"
            assert shown in card, name
    for row in results["t2i_table"]:
        assert f"{row['top5']:.3f} (n 128)" in card


def test_targets_and_baselines_are_judged(results):
    def row(value):
        card = render_card(results | {"qa_color": value, "qa_color_baseline": 0.2}, EvoTokConfig(), {})
        [line] = [line for line in card.splitlines() if line.startswith("| color |")]
        return [cell.strip() for cell in line.strip("|").split("|")]

    assert row(0.85) == ["color", "92", "0.850", "0.85", "yes", "0.200", "yes"]
    assert row(0.8499) == ["color", "92", "0.850", "0.85", "**no**", "0.200", "yes"]
    assert row(0.2)[-3:] == ["**no**", "0.200", "**no**"], "no better than the commonest answer"


def test_claims_follow_the_numbers(results):
    def card(**changes):
        return render_card(results | changes, EvoTokConfig(), {})

    assert "PSNR rises with every depth" in card()
    assert "PSNR **does not rise**" in card(psnr_new_concept_depth2=1.0)
    assert "against 0.400, better" in card(**{"t2i_top5_train_cfg1": 0.4, "t2i_top5_train_cfg7.5": 0.5})
    assert "against 0.400, **not** better" in card(**{"t2i_top5_train_cfg1": 0.4, "t2i_top5_train_cfg7.5": 0.4})


@pytest.mark.parametrize(("prefix", "title"), [("psnr", "### Image tok"), ("qa", "### Questions"), ("t2i", "### Text")])
def test_what_is_not_measured_is_left_out(results, prefix, title):
    assert title in render_card(results, EvoTokConfig(), {})
    prefixes = {"psnr": ("psnr", "semantic", "codebook")}.get(prefix, (prefix,))
    fewer = {k: v for k, v in results.items() if not k.startswith(prefixes)}
    assert title not in render_card(fewer, EvoTokConfig(), {})


def test_figures_are_those_of_the_issue(results):
    assert set(measure.TARGETS) <= set(results)
    assert measure.TARGETS["t2i_top5_new_pair_cfg7.5"] == 0.3 and measure.TARGETS["psnr_new_concept_depth4"] == 22.5


@pytest.mark.parametrize("text", ["{", "[]", '{"psnr": 1}', None])
def test_files_that_hold_no_results(tmp_path, text):
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json: .*evotok measure"):
        read_results(tmp_path / "results.json")


def test_card_of_a_folder(results, tmp_path):
    EvoTokConfig(vq_config=EvoTokVQConfig(codebook_size=77)).save_pretrained(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(results))
    write_card(tmp_path)
    assert "levels of 77 codes" in (tmp_path / "README.md").read_text()
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".md", ".py"}


def unseen_results(checkpoint_sha256):
    rows = {
        "reconstruction": {"pictures": "stamps", "n": 7, "psnr": 12.3, "ssim": 0.4, "semantic_cosine": 0.5},
        "answers": {"pictures": "stamps", "question": "What is this?", "n": 5, "right": 0.6, "commonest answer": 0.1},
    }
    rows["reconstruction"]["baseline"] = 0.2
    assert {table: list(row) for table, row in rows.items()} == {table: list(row) for table, row in UNSEEN.items()}
    return {
        "suite": "unseen",
        "finished": True,
        "checkpoint_sha256": checkpoint_sha256,
        "tables": {table: [row] for table, row in rows.items()},
        "notes": ["What it is."],
        "versions": {"evotok": "9.8.7"},
    }


def understanding_results(checkpoint_sha256):
    figures = {name: (index + 1) / 10 for index, name in enumerate(QUESTIONS)} | {
        f"{name}_n": 1007 for name in QUESTIONS
    }
    return {
        "suite": "understanding",
        "finished": True,
        "checkpoint_sha256": checkpoint_sha256,
        "figures": figures,
        "versions": {"lmms-eval": "7.6.5"},
    }


@pytest.fixture
def folder(results, tmp_path):
    """Of a checkpoint that is measured, with the results of suites beside it."""
    EvoTokConfig().save_pretrained(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(results))
    for name, make in (("unseen", unseen_results), ("understanding", understanding_results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(make(results["checkpoint_sha256"])))
    return tmp_path


def test_results_of_suites_stand_in_the_card(folder):
    write_card(folder)
    card = (folder / "README.md").read_text()
    assert "| stamps | 7 | 12.300 | 0.400 | 0.500 | 0.200 |" in card
    assert "| stamps | What is this? | 5 | 0.600 | 0.100 |" in card and "What it is." in card
    assert "| color | 1,007 | 0.300 |" in card and "lmms-eval) 7.6.5, to which" in card


@pytest.mark.parametrize(("name", "said"), [("unseen", "never saw\n"), ("understanding", "official QA score")])
def test_results_of_other_weights_are_told_of_and_left_out(folder, results, capsys, name, said):
    path = folder / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"checkpoint_sha256": "of other weights"}))
    (folder / "model.safetensors").write_bytes(b"")
    assert measure.main([str(folder), "--card"]) == 0
    told = capsys.readouterr().err
    assert f"{name}.json: of other weights" in told and f"run `{COMMANDS[name]}`" in told and told.count("\n") == 1
    assert said not in (folder / "README.md").read_text()
    path.unlink()
    assert left_out(folder, results["checkpoint_sha256"]) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_damaged_results_of_suites_are_refused(folder, name):
    path = folder / f"{name}.json"
    whole = json.loads(path.read_text())
    parts = [whole | {"finished": False}, whole | {"suite": "trajectory"}, whole | {"figures": {}, "tables": {}}]
    parts += [{key: whole[key] for key in whole if key != missing} for missing in ("checkpoint_sha256", "suite")]
    for text in ("{", "[]", *map(json.dumps, parts)):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"{name}.json: no finished results of `evotok eval {name}"):
            write_card(folder)


@pytest.mark.skipif(not (MINI / "results.json").is_file(), reason="EvoTok-mini is not measured yet")
def test_shipped_card_is_that_of_the_shipped_results():
    results = read_results(MINI / "results.json")
    assert set(measure.TARGETS) <= set(results) and all(s["finished"] for s in results["sections"].values())
    suites = read_suites(MINI, results["checkpoint_sha256"])
    assert suites.keys() == COMMANDS.keys()
    assert (MINI / "README.md").read_text("utf-8") == render_card(results, EvoTokConfig.from_pretrained(MINI), suites)
    assert results["checkpoint_sha256"] == measure.sha256(*sorted(MINI.glob("*.safetensors")))


def test_usage_runs(tmp_path, monkeypatch):
    model, processor = build_chat_model()
    model.save_pretrained(tmp_path / "mini")
    processor.save_pretrained(tmp_path / "mini")
    monkeypatch.chdir(tmp_path)
    code = USAGE.strip().removeprefix("```python").removesuffix("```").replace("assets/evotok-mini", "mini")
    (tmp_path / "usage.py").write_text(code)
    names = runpy.run_path("usage.py")
    assert names["image"].size == (32, 32) and (tmp_path / "frog.png").is_file()
    assert names["codes"].shape == (1, 16, 4) and names["pixels"].shape == (1, 3, 32, 32)


# --- measuring -------------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A function that measures with two stand-ins for sections, and the list of those that ran."""
    model, _ = build_chat_model()
    model.config.vq_config.encoder_config.image_size = 64  # the stand-ins look at no image
    ran = []

    def section(name):
        def measure_it(run):
            ran.append(name)
            run.record({f"{name}_score": 0.5 + len(ran), f"{name}_seed": run.options.seed})
            if name == "t2i" and run.options.images == 13:
                raise KeyboardInterrupt

        return measure_it

    sections = {name: (section(name), (f"{name}_",), ("seed",)) for name in ("qa", "t2i")}
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text('{"model_type": "evotok"}')
    monkeypatch.setattr(measure, "SECTIONS", sections)
    monkeypatch.setattr(measure, "load_multimodal", lambda name: (model, None))
    monkeypatch.setattr(measure, "render_card", lambda results, config, suites: "card")

    def function(*sections, **options):
        keys = {k: options.pop(k) for k in ("out", "restart") if k in options}
        del ran[:]
        return measure.measure(tmp_path, measure.Options(**options), sections or ("qa", "t2i"), **keys)

    function.ran, function.folder = ran, tmp_path
    return function


def test_finished_sections_are_not_measured_again(measured):
    first = measured()
    assert measured.ran == ["qa", "t2i"]
    assert read_results(measured.folder / "results.json") == first
    assert measured() == first and measured.ran == []
    assert measured("t2i", restart=True)["qa_score"] == first["qa_score"] and measured.ran == ["t2i"]
    changed = measured("qa", seed=5)
    assert measured.ran == ["qa"] and changed["qa_seed"] == 5 and changed["t2i_seed"] == 0


def test_a_measurement_cut_off_goes_on(measured):
    with pytest.raises(KeyboardInterrupt):
        measured(images=13)
    left = read_results(measured.folder / "results.json")
    assert left["sections"]["qa"]["finished"] and not left["sections"]["t2i"]["finished"]
    assert (measured.folder / "README.md").read_text() == "card"
    measured()
    assert measured.ran == ["t2i"]


def test_results_of_other_weights_are_dropped(measured):
    measured("qa")
    (measured.folder / "model.safetensors").write_bytes(b"other weights")
    results = measured("t2i")
    assert "qa_score" not in results and list(results["sections"]) == ["t2i"]


def test_results_elsewhere_leave_the_card_alone(measured):
    measured(out=measured.folder / "new" / "quick.json")
    assert {path.name for path in (measured.folder / "new").iterdir()} == {"quick.json"}
    assert not (measured.folder / "README.md").exists()


def test_the_command_offers_the_sections_that_there_are():
    assert [section.value for section in Section] == list(measure.SECTIONS)


def test_bad_options_and_checkpoints(measured, tmp_path, capsys):
    assert measure.main(["--images", "0"]) == 2
    assert "'--images': Input should be greater than or equal to 1" in capsys.readouterr().err
    assert measure.main([str(tmp_path / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert measure.main([str(tmp_path), "--card"]) == 2
    (measured.folder / "results.json").write_text("no JSON")
    assert measure.main([str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "results.json: damaged" in lines[1]


def test_cells_of_the_guidance_table():
    cells = measure.t2i_cells(0.3, measure.Options())
    assert [(c["guidance_scale"], c["guidance_min_p"], c["images"]) for c in cells[:4:2]] == [
        (1.0, 0.3, 256),
        (7.5, 0.3, 256),
    ]
    assert len(cells) == 20 and len({json.dumps(c) for c in cells}) == 20
    assert {c["images"] for c in cells[4:]} == {128}
    assert len(measure.t2i_cells(0.0, measure.Options())) == 10, "without a guard there is one kind"


def test_prompted_drawings():
    world = measure.EmojiWorld()
    train, pairs = (measure.prompted_drawings(world, split, 256) for split in SPLITS)
    assert len({(d.concept.index, d.style) for d in train}) == 256 and all(d.concept.familiar for d in train + pairs)
    known = world.drawings("new_pair", familiar=True)
    assert pairs == (known * 3)[:256] and all(world.split_of(d) == "new_pair" for d in pairs)
    assert {d.style for d in train} == set(measure.GALLERY_STYLES)


def test_average_features_are_a_baseline():
    class Teacher:
        def __call__(self, pixels):
            return pixels.flatten(2).transpose(1, 2)

    calibration = torch.tensor([[1.0, 1.0], [3.0, 1.0]]).view(2, 2, 1, 1)
    batches = iter([torch.tensor([[2.0, 1.0], [-1.0, 2.0]]).view(2, 2, 1, 1)])
    assert measure._cosine_of_mean(Teacher(), calibration, batches) == pytest.approx(0.5)


def test_the_card_says_of_scenes_what_was_measured():
    found = json.loads((MINI.parents[1] / "docs/results/emoji-geneval/results.json").read_text())
    assert found["checkpoint_sha256"] == read_results(MINI / "results.json")["checkpoint_sha256"], (
        "run `evotok eval emoji-geneval mini`"
    )
    single, *scenes = found["tables"]["tasks"]
    assert single["task"] == "single_object" and single["drawn"] > 0.8
    assert len(scenes) == 6 and all(row["drawn"] < 0.3 for row in scenes if row["task"] == "overall")
    assert all(row["drawn"] == 0 and row["ceiling"] < 0.6 for row in scenes if row["task"] != "overall")
