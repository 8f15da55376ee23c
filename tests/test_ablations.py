"""`evotok eval ablations`: trains all rows once, resumes, and compares them with the paper."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import save_vision_tower

from evotok.cli import main
from evotok.commands.evaluate import read_options
from evotok.data.world.images import WorldImages
from evotok.training.ablations import suite as ablations
from evotok.training.ablations.orderings import Claim, compare, spread, summarize
from evotok.training.ablations.suite import METHOD, ROWS, Options, depends_on
from evotok.training.recipes import read_recipe
from evotok.training.tokenizer import stage as tokenizer_stage


ROOT = Path(__file__).resolve().parents[1]


def test_recipes_differ_in_the_model_only():
    recipes = {name: vars(read_recipe(ROOT / f"configs/ablations/{name}.yaml")) for name in ROWS}
    method = recipes[METHOD]
    variants = {"semantic-to-pixel": "reversed", "layers": "layers", "branches": "branches"}
    for name, recipe in recipes.items():
        for section in ("data", "loss", "optimizer"):
            assert recipe[section] == method[section], (name, section)
        assert recipe["training"] | {"output_dir": method["training"]["output_dir"]} == method["training"], name
        config = method["model"].config | ({"num_codebooks": 4} if name == "entangled" else {})
        expected = vars(method["model"]) | {"config": config, "variant": variants.get(name)}
        assert vars(recipe["model"]) == expected, name
    assert read_options(Options, "ablations", None, []).seeds >= 3, "the shipped budget"


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Writes the recipes with tiny models and a random vision tower, without generators."""
    monkeypatch.setattr(
        ablations, "generated_share", lambda model, levels, world, steps, seed, folder: levels + steps / 10 + seed / 100
    )
    monkeypatch.setattr(tokenizer_stage, "HELD_OUT_SCENES", 4)
    for scale in ("ablations", "mini"):
        (tmp_path / "configs" / scale).mkdir(parents=True)
    for path in (*ROOT.glob("configs/ablations/*.yaml"), ROOT / "configs/mini/tokenizer.yaml"):
        tree = yaml.safe_load(path.read_text())
        if path.stem == METHOD:
            tree["training"] |= {"per_device_train_batch_size": 4, "bf16": False}
            tree["model"]["config"] |= {"codebook_size": 16, "pixel_base_channels": 8, "pixel_latent_channels": 8}
            tree["model"]["config"] |= {"semantic_hidden_size": 24}
        (tmp_path / path.relative_to(ROOT)).write_text(yaml.safe_dump(tree))
    save_vision_tower(tmp_path / "vision")
    return tmp_path


def evaluate(small, *words) -> int:
    options = [f"recipes={small / 'configs/ablations'}", f"work={small / 'work'}", f"encoder={small / 'vision'}"]
    options += ["steps=1", "generator_steps=3", "images=12", *words]
    return main(["eval", "ablations", *options, "--out", str(small / "out"), "--json"])


@pytest.fixture
def trained(monkeypatch):
    """Records the rows of each training, in order: output folder -> rows."""
    seen: dict[str, list[int]] = {}
    get, train = WorldImages.__getitem__, ablations.train

    def recorded_get(self, index):
        next(reversed(seen.values())).append((self.seed, index))
        return get(self, index)

    def recorded_train(recipe):
        seen[recipe.training["output_dir"]] = []
        train(recipe)

    monkeypatch.setattr(WorldImages, "__getitem__", recorded_get)
    monkeypatch.setattr(ablations, "train", recorded_train)
    return seen


def test_rows_are_trained_once_and_compared_with_the_paper(small, trained, capsys, monkeypatch):
    pytest.importorskip("torchmetrics")
    assert evaluate(small, "seeds=1") == 0
    results = json.loads(capsys.readouterr().out)
    first, *others = trained.values()
    assert len(first) >= 4 and others == [first] * 4, "rows of a seed have the same data in the same order"
    assert results["dtype"] == "float32" and results["data"].keys() == {"world", "encoder"}
    tables = results["tables"]
    assert [row["L_sem"] for row in tables["table_4"]] == [4, 4, 16]
    assert [row["GenEval in the paper"] for row in tables["table_4"]] == [0.64, 0.60, 0.67]
    assert [row["rFID in the paper"] for row in tables["table_5"]] == [0.66, 0.59, 0.68, 0.55]
    assert len(tables["orderings"]) == 6 * 3 + 6
    assert sum(results["figures"][f"orderings {verdict}"] for verdict in ("holds", "undecided", "reversed")) == 24
    assert any(note.startswith("Table 4: ") for note in results["notes"])
    assert all(0 <= row["thing"] <= 1 and 0 <= row["color"] <= 1 and row["fd"] > 0 for row in tables["runs"])
    assert [row["generated"] for row in tables["runs"]] == [4.3, 16.3, 4.3, 4.3, 4.3]
    assert {"thing teacher", "color baseline"} <= results["figures"].keys()
    recipes = yaml.safe_load((small / "out/recipes.yaml").read_text())
    assert recipes["branches"]["training"]["max_steps"] == 1
    with (small / "out/runs.csv").open(newline="") as file:
        assert {row["row"] for row in csv.DictReader(file)} == set(ROWS)
    for name in ("ablations.svg", "ablations.png"):
        assert (small / "out" / name).stat().st_size > 5000

    # Interrupted after its rows were trained, the suite trains none of them again, but new ones.
    def refuse(recipe):
        raise AssertionError(f"trained again: {recipe.training['output_dir']}")

    monkeypatch.setattr(ablations, "train", refuse)
    (small / "out/results.json").write_text(json.dumps(results | {"finished": False}))
    assert evaluate(small, "seeds=1") == 0
    assert json.loads(capsys.readouterr().out)["tables"]["runs"] == tables["runs"]
    with pytest.raises(AssertionError, match="trained again: .*entangled-1-"):
        evaluate(small, "seeds=2", "--restart")
    [measured] = (small / "work").glob("layers-0-*/measured.json")
    content = measured.read_text()
    for damaged in ("[]", content[:20]):
        measured.write_text(damaged)
        with pytest.raises(AssertionError, match="trained again: .*layers-0-"):
            evaluate(small, "seeds=1", "--restart")
    measured.write_text(content)
    # Another vision tower or another budget of the generator is another row.
    with pytest.raises(AssertionError, match="trained again: .*entangled-0-"):
        evaluate(small, "seeds=1", "generator_steps=4", "--restart")
    save_vision_tower(small / "vision", seed=1)
    with pytest.raises(AssertionError, match="trained again: .*entangled-0-"):
        evaluate(small, "seeds=1", "--restart")


def test_row_depends_on_data_device_and_releases():
    versions = {"evotok": "1", "torch": "2", "transformers": "3", "python": "4"}
    own = depends_on({"world": "a"}, torch.device("cpu"), versions)
    assert own == depends_on({"world": "a"}, torch.device("cpu", 0), versions | {"python": "5"})
    assert own != depends_on({"world": "b"}, torch.device("cpu"), versions)
    assert own != depends_on({"world": "a"}, torch.device("cuda"), versions)
    assert own != depends_on({"world": "a"}, torch.device("cpu"), versions | {"torch": "9"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seeds=0"], "seeds=0 must be at least 1"),
        (["recipes=nowhere"], "no such recipe"),
        (["mini"], "takes no checkpoint"),
        (["encoder=nowhere"], "encoder=nowhere: no vision tower there: give the folder of one"),
    ],
)
def test_bad_options_are_refused_before_training(words, message, tmp_path, capsys):
    assert main(["eval", "ablations", *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"name": "folder", "path": "x"}}, "layers.yaml: must be of stage tokenizer, on data.name world"),
        ({"loss": {"semantic": 1.0}}, "layers.yaml: loss.semantic is 1.0, in pixel-to-semantic.yaml 2.0: "),
        ({"training": {"weight_decay": 0.5}}, "layers.yaml: training.weight_decay is 0.5, in pixel-to-semantic.yaml"),
    ],
)
def test_unequal_recipes_are_refused(small, capsys, change, message):
    path = small / "configs/ablations/layers.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    assert evaluate(small) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (small / "out").exists()


def test_several_processes_are_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["eval", "ablations", "--out", str(tmp_path / "out")]) == 2
    assert "run it without torchrun" in capsys.readouterr().err


def test_compare_requires_every_seed_for_an_ordering():
    claim = Claim("psnr", "PSNR", {"a": 20.0, "b": 21.0})
    seeds = {"a": [{"psnr": 1.0}, {"psnr": 2.0}]}
    for of_b, verdict in (([1.5, 2.5], "holds"), ([1.5, 1.5], "undecided"), ([0.5, 1.5], "reversed")):
        [row] = compare([claim], seeds | {"b": [{"psnr": value} for value in of_b]})
        assert (row["better in the paper"], row["worse in the paper"], row["verdict"]) == ("b", "a", verdict)
    [row] = compare([Claim("fd", "rFID", claim.paper, higher_is_better=False)], {k: [{"fd": 1.0}] for k in "ab"})
    assert row["better in the paper"] == "a" and row["verdict"] == "reversed"  # equal is not better


def test_summarize_counts_and_lists_orderings():
    claims = [Claim("psnr", "PSNR", {"a": 3.0, "b": 2.0, "c": 1.0})]
    rows = compare(claims, {name: [{"psnr": value}] for name, value in (("a", 2.0), ("b", 3.0), ("c", 1.0))})
    sentences = summarize(rows, "Table 9")
    assert sentences[0] == "Table 9: 2 of the paper's 3 orderings hold in every seed."
    assert "Do not hold" in sentences[2] and "a over b in psnr (2 / 3)" in sentences[2]
    assert spread([1.0, 2.0, 3.0]) == "2 ± 1" and spread([1.0]) == "1"
