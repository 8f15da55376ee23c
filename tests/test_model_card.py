"""Model card of EvoTok-mini, rendered from the results of suites."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from evotok import EvoTokConfig, EvoTokVQConfig
from evotok.cards.mini import HUB_RESULTS, main, render_card, write_card
from evotok.cards.suites import COMMANDS, FILES, HARNESS, MINI, read_suites
from evotok.data.world.evaluation import QUESTION_SETS
from evotok.data.world.prompts import TASKS
from evotok.eval.mini.targets import TARGETS, with_targets
from evotok.eval.suite import sha256


SHIPPED = Path(__file__).resolve().parent.parent / "assets" / "evotok-mini"


def mini_results(checkpoint_sha256="ab" * 32):
    """Returns results in which every number is different."""
    numbers = (i / 1000 for i in range(101, 999))
    figures = {f"psnr_new_style_depth{d}": 18 + d + next(numbers) for d in (1, 2, 3, 4)} | {"psnr_new_style_n": 512}
    names = ["semantic_cosine_baseline", "probe_teacher", "probe_baseline", "codebook_usage_min"]
    names += ["semantic_gain_4_16", "probe_gain_4_16", "probe_share_16"]
    names += [f"{name}{kind}" for name in QUESTION_SETS for kind in ("", "_continuous", "_baseline")]
    names += [f"geneval_{task}{held}" for held in ("", "_held") for task in ("overall", *TASKS)]
    names += ["geneval_overall_held_cfg1", "geneval_overall_held_no_min_p"]
    names += [f"geneval_{what}{held}" for what in ("detector", "ceiling") for held in ("", "_held")]
    names += [f"t2i_top5_train_{cell}{kind}" for cell in ("cfg7.5", "cfg1") for kind in ("", "_same_style")]
    names += ["t2i_top5_train_ceiling", "t2i_top5_train_chance"]
    figures |= {name: next(numbers) for name in names}
    counted = [*QUESTION_SETS, "t2i_top5_train_cfg7.5", "t2i_top5_train_cfg1"]
    counted += [f"geneval_overall{suffix}" for suffix in ("", "_held", "_held_cfg1", "_held_no_min_p")]
    figures |= {f"{name}_n": 92 for name in counted}
    levels = [
        {"depth": d, "psnr": next(numbers) if d < 5 else "", "semantic_cosine": next(numbers), "probe": next(numbers)}
        for d in range(1, 17)
    ]
    parts = ("image tokenizer", "language model", "depth decoder", "all")
    return {
        "suite": MINI,
        "finished": True,
        "checkpoint_sha256": checkpoint_sha256,
        "figures": with_targets(figures),
        "tables": {"levels": levels, "parameters": [{"part": part, "parameters": 4_600_000} for part in parts]},
        "versions": {"evotok": "9.8.7", "torch": "6.5.4"},
        "options": {"prompts": 128, "teacher": ""},
        "device": "cpu",
        "dtype": "float32",
    }


def harness_results(checkpoint_sha256):
    figures = {name: (index + 1) / 10 for index, name in enumerate(QUESTION_SETS)}
    return {
        "suite": HARNESS,
        "finished": True,
        "checkpoint_sha256": checkpoint_sha256,
        "figures": figures | {f"{name}_n": 1007 for name in QUESTION_SETS},
        "versions": {"lmms-eval": "7.6.5"},
    }


@pytest.fixture
def results():
    return mini_results()


@pytest.fixture
def folder(tmp_path):
    """Returns the folder of a checkpoint, with the results of both suites beside it."""
    EvoTokConfig(vq_config=EvoTokVQConfig(codebook_size=77)).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    weights = sha256(tmp_path / "model.safetensors")
    for suite, make in ((MINI, mini_results), (HARNESS, harness_results)):
        (tmp_path / FILES[suite]).write_text(json.dumps(make(weights)))
    return tmp_path


def card_of(results, **figures):
    return render_card({MINI: results | {"figures": results["figures"] | figures}}, EvoTokConfig())


def test_metadata_has_the_figures_as_results(results):
    data = ModelCard(card_of(results)).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "transformers", "any-to-any")
    assert "text-to-image" in data.tags and data.model_name == "EvoTok-mini"
    found = {result.metric_name: result.metric_value for result in data.eval_results}
    assert found == {name: round(results["figures"][figure], 4) for figure, (_, _, name) in HUB_RESULTS.items()}


def test_card_has_every_figure(results):
    card = card_of(results)
    for name, value in results["figures"].items():
        if isinstance(value, float) and not name.endswith("_target"):
            digits = 2 if name.startswith(("psnr", "codebook")) else 3
            assert f"{value:.{digits}f}" in card, name
    for row in results["tables"]["levels"]:
        assert f"{row['semantic_cosine']:.3f} | {row['probe']:.3f} |" in card


def test_targets_are_compared_with_their_figures(results):
    assert {name for name in TARGETS if f"{name}_target" in results["figures"]} == set(TARGETS)

    def judged(value):
        card = card_of(results, qa_color=value)
        [line] = [line for line in card.splitlines() if line.startswith("| color of a th")]
        return [cell.strip() for cell in line.strip("|").split("|")][2:5], int(re.search(r"(\d+) of \d+ t", card)[1])

    (met, met_count), (missed, missed_count) = judged(0.95), judged(0.9499)
    assert (met, missed) == (["0.950", "0.95", "yes"], ["0.950", "0.95", "**no**"]) and met_count == missed_count + 1


def test_claims_follow_the_numbers(results):
    guided = card_of(results, geneval_overall_held=0.5, geneval_overall_held_cfg1=0.4)
    assert "CFG 7.5 is better than CFG 1 on held-out pairs: 0.500 and 0.400." in guided
    assert "**not** better" in card_of(results, geneval_overall_held=0.4, geneval_overall_held_cfg1=0.4)


def test_sections_without_results_are_left_out(results):
    titles = {"psnr_": "### Image tokenizer, 512 scenes", "qa_": "### Questions"}
    titles |= {"geneval_": "### Text to image, GenEval", "t2i_": "### Text to image, single emoji"}
    whole = card_of(results)
    for prefix, title in titles.items():
        assert title in whole
        fewer = {name: value for name, value in results["figures"].items() if not name.startswith(prefix)}
        tables = {name: rows for name, rows in results["tables"].items() if (prefix, name) != ("psnr_", "levels")}
        card = render_card({MINI: results | {"figures": fewer, "tables": tables}}, EvoTokConfig())
        assert title not in card and len([other for other in titles.values() if other in card]) == 3


def test_main_copies_results_of_the_weights_and_renders_the_card(folder, tmp_path, capsys):
    places = {suite: tmp_path / "results" / suite for suite in FILES}
    for suite, place in places.items():
        place.mkdir(parents=True)
        (folder / FILES[suite]).rename(place / "results.json")
    words = [str(folder), *map(str, places.values())]
    assert main(words) == 0
    card = (folder / "README.md").read_text()
    assert "levels of 77 entries" in card and card.endswith(".\n")
    assert "| color of a thing | 1,007 | 0.400 |" in card and "lmms-eval) 7.6.5, to which" in card
    assert all((folder / name).is_file() for name in FILES.values())
    (folder / "model.safetensors").write_bytes(b"others")
    found = json.loads((places[HARNESS] / "results.json").read_text())
    for message in ("results of other weights", "results of trajectory: the card shows those of mini, understanding"):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        assert message in capsys.readouterr().err
        (places[MINI] / "results.json").write_text(json.dumps(found | {"suite": "trajectory"}))


def test_results_of_other_weights_are_named_and_left_out(folder, capsys):
    path = folder / FILES[HARNESS]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"checkpoint_sha256": "of other weights"}))
    assert main([str(folder)]) == 0
    error = capsys.readouterr().err
    assert "understanding.json: of other weights" in error and COMMANDS[HARNESS] in error and error.count("\n") == 1
    assert "lmms-eval" not in (folder / "README.md").read_text()


@pytest.mark.parametrize("suite", FILES)
def test_damaged_results_are_refused(folder, suite):
    path = folder / FILES[suite]
    whole = json.loads(path.read_text())
    changed = [whole | {"finished": False}, whole | {"suite": "trajectory"}, whole | {"figures": {}}]
    for text in ("{", "[]", *map(json.dumps, changed)):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"{path.name}: no finished results of `evotok eval {suite}"):
            write_card(folder)


def test_missing_results_are_named_with_their_commands(folder, capsys):
    (folder / FILES[MINI]).unlink()
    with pytest.raises(SystemExit, match="2"):
        main([str(folder)])
    again = "run `evotok eval mini CHECKPOINT`, then `python -m evotok.cards.mini"
    assert f"no such file: {again}" in capsys.readouterr().err


@pytest.mark.skipif(not (SHIPPED / "results.json").is_file(), reason="EvoTok-mini is not measured yet")
def test_shipped_card_equals_the_shipped_results():
    suites = read_suites(SHIPPED, sha256(*sorted(SHIPPED.glob("*.safetensors"))))
    assert suites.keys() == FILES.keys() and set(TARGETS) <= suites[MINI]["figures"].keys()
    assert (SHIPPED / "README.md").read_text("utf-8") == render_card(suites, EvoTokConfig.from_pretrained(SHIPPED))
