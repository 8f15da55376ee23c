"""`evotok eval ablations`: trains all rows, goes on where it was, and says what holds."""

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
from evotok.eval.probes import linear_probe
from evotok.training.ablations import suite as ablations
from evotok.training.ablations.orderings import Claim, compare, plainly, spread
from evotok.training.ablations.suite import METHOD, ROWS, Options, depends_on
from evotok.training.recipes import read_recipe
from evotok.training.tokenizer import stage as tokenizer_stage


ROOT = Path(__file__).resolve().parents[1]


def test_recipes_differ_from_the_method_by_what_they_compare():
    recipes = {name: vars(read_recipe(ROOT / f"configs/ablations/{name}.yaml")) for name in ROWS}
    method = recipes[METHOD]
    for name, recipe in recipes.items():
        for section in ("data", "loss", "optimizer"):
            assert recipe[section] == method[section], (name, section)
        training = recipe["training"] | {"output_dir": method["training"]["output_dir"]}
        assert training == method["training"], name
    variants = {"entangled": None, "semantic-to-pixel": "reversed", METHOD: None}
    variants |= {"layers": "layers", "branches": "branches"}
    for name, recipe in recipes.items():
        config = method["model"].config | ({"num_codebooks": 4} if name == "entangled" else {})
        model = {"config": config, "variant": variants[name]}
        assert vars(recipe["model"]) == vars(method["model"]) | model, name


def test_the_shipped_budget_has_three_seeds():
    assert read_options(Options, "ablations", None, []).seeds >= 3


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The recipes, with hardly anything to learn, a vision tower of random weights, and no generators."""
    monkeypatch.setattr(
        ablations, "generated_share", lambda model, levels, world, steps, seed, folder: levels + steps / 10 + seed / 100
    )
    monkeypatch.setattr(tokenizer_stage, "HELD_OUT_SCENES", 4)
    for scale in ("ablations", "mini"):
        (tmp_path / "configs" / scale).mkdir(parents=True)
    for path in (*ROOT.glob("configs/ablations/*.yaml"), ROOT / "configs/mini/tokenizer.yaml"):
        copy = tmp_path / path.relative_to(ROOT)
        tree = yaml.safe_load(path.read_text())
        if path.stem == METHOD:
            tree["training"] |= {"per_device_train_batch_size": 4, "bf16": False}
            tree["model"]["config"] |= {"codebook_size": 16, "pixel_base_channels": 8, "pixel_latent_channels": 8}
            tree["model"]["config"] |= {"semantic_hidden_size": 24}
        copy.write_text(yaml.safe_dump(tree))
    save_vision_tower(tmp_path / "vision")
    return tmp_path


def evaluate(small, *words) -> int:
    options = [f"recipes={small / 'configs/ablations'}", f"work={small / 'work'}", f"encoder={small / 'vision'}"]
    options += ["steps=1", "generator_steps=3", "images=12", *words]
    return main(["eval", "ablations", *options, "--out", str(small / "out"), "--json"])


@pytest.fixture
def order(monkeypatch):
    """Training -> the samples that it took, in order."""
    seen: dict[str, list[int]] = {}
    get, train = WorldImages.__getitem__, ablations.train

    def noting(self, index):
        next(reversed(seen.values())).append((self.seed, index))
        return get(self, index)

    def begin(recipe):
        seen[recipe.training["output_dir"]] = []
        train(recipe)

    monkeypatch.setattr(WorldImages, "__getitem__", noting)
    monkeypatch.setattr(ablations, "train", begin)
    return seen


def test_all_rows_are_trained_once_and_laid_beside_the_paper(small, order, capsys, monkeypatch):
    pytest.importorskip("torchmetrics")
    assert evaluate(small, "seeds=1") == 0
    results = json.loads(capsys.readouterr().out)
    first, *others = order.values()
    assert len(first) >= 4 and others == [first] * 4, "the samples come in an order of the seed's"
    assert results["dtype"] == "float32" and results["data"].keys() == {"world", "encoder"}
    tables = results["tables"]
    assert [row["L_sem"] for row in tables["table_4"]] == [4, 4, 16]
    assert [row["rFID in the paper"] for row in tables["table_5"]] == [0.66, 0.59, 0.68, 0.55]
    assert len(tables["orderings"]) == 6 * 3 + 6
    assert sum(results["figures"][f"orderings {verdict}"] for verdict in ("holds", "undecided", "reversed")) == 24
    assert any(note.startswith("Table 4: ") for note in results["notes"])
    assert all(0 <= row["thing"] <= 1 and 0 <= row["color"] <= 1 and row["fd"] > 0 for row in tables["runs"])
    assert [row["generated"] for row in tables["runs"]] == [4.3, 16.3, 4.3, 4.3, 4.3]
    assert [row["GenEval in the paper"] for row in tables["table_4"]] == [0.64, 0.60, 0.67]
    assert {"thing teacher", "color baseline"} <= results["figures"].keys()
    method, reverse = (
        next(r for r in tables["runs"] if r["row"] == name) for name in ("pixel-to-semantic", "entangled")
    )
    assert method["parameters"] > reverse["parameters"]
    recipes = yaml.safe_load((small / "out/recipes.yaml").read_text())
    assert recipes["branches"]["training"]["max_steps"] == 1
    with (small / "out/runs.csv").open(newline="") as file:
        assert {row["row"] for row in csv.DictReader(file)} == set(ROWS)
    for name in ("ablations.svg", "ablations.png"):
        assert (small / "out" / name).stat().st_size > 5000

    # Cut off after its rows were trained, it trains none of them again, but others.
    def refuse(recipe):
        raise AssertionError(f"trained again: {recipe.training['output_dir']}")

    monkeypatch.setattr(ablations, "train", refuse)
    (small / "out/results.json").write_text(json.dumps(results | {"finished": False}))
    assert evaluate(small, "seeds=1") == 0
    assert json.loads(capsys.readouterr().out)["tables"]["runs"] == tables["runs"]
    with pytest.raises(AssertionError, match="trained again: .*entangled-1-"):
        evaluate(small, "seeds=2", "--restart")
    [measured] = (small / "work").glob("layers-0-*/measured.json")
    whole = measured.read_text()
    assert ablations._measured(measured) == json.loads(whole)
    for damaged in ("[]", "{}", whole[:20]):
        measured.write_text(damaged)
        assert ablations._measured(measured) is None
    with pytest.raises(AssertionError, match="trained again: .*layers-0-"):
        evaluate(small, "seeds=1", "--restart")
    measured.write_text(whole)

    # Another vision tower, another budget of the generator, or other releases: other rows.
    with pytest.raises(AssertionError, match="trained again: .*entangled-0-"):
        evaluate(small, "seeds=1", "generator_steps=4", "--restart")
    whole = (small / "vision/model.safetensors").read_bytes()
    save_vision_tower(small / "vision", seed=1)
    with pytest.raises(AssertionError, match="trained again: .*entangled-0-"):
        evaluate(small, "seeds=1", "--restart")
    (small / "vision/model.safetensors").write_bytes(whole)
    monkeypatch.setattr("evotok.__version__", "9")
    with pytest.raises(AssertionError, match="trained again: .*entangled-0-"):
        evaluate(small, "seeds=1", "--restart")


def test_a_row_depends_on_device_and_releases():
    versions = {"evotok": "1", "torch": "2", "transformers": "3", "python": "4"}
    own = depends_on({"world": "a"}, torch.device("cpu"), versions)
    assert own == depends_on({"world": "a"}, torch.device("cpu", 0), versions | {"python": "5"})
    others = [depends_on({"world": "b"}, torch.device("cpu"), versions)]
    others.append(depends_on({"world": "a"}, torch.device("cuda"), versions))
    others += [
        depends_on({"world": "a"}, torch.device("cpu"), versions | {name: "9"})
        for name in ("evotok", "torch", "transformers")
    ]
    assert own not in others


def test_a_row_that_fails_leaves_those_before_it(small, order, monkeypatch):
    """As after a kill: rows that are finished stay, the one that was at work is trained from its beginning."""
    train = ablations.train

    def fail_at_the_third(recipe):
        if len(order) == 2:
            raise KeyboardInterrupt
        train(recipe)

    monkeypatch.setattr(ablations, "train", fail_at_the_third)
    assert evaluate(small, "seeds=1") == 130
    finished = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (small / "work").glob("*/*.*")}
    assert len([path for path in finished if path.name == "measured.json"]) == 2
    monkeypatch.setattr(ablations, "train", train)
    assert evaluate(small, "seeds=1") == 0
    assert [Path(folder).name.rsplit("-", 2)[0] for folder in order] == list(ROWS), "each was trained once"
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished} == finished


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seeds=0"], "seeds=0 must be at least 1"),
        (["recipes=nowhere"], "no such recipe"),
        (["step=3"], "Did you mean 'steps'"),
        (["mini"], "takes no checkpoint"),
        (["encoder=nowhere"], "encoder=nowhere: no vision tower there: give the folder of one"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(words, message, tmp_path, capsys):
    assert main(["eval", "ablations", *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_kind_of_recipe_is_refused(small, capsys):
    path = small / "configs/ablations/layers.yaml"
    path.write_text(path.read_text() + "data: {name: folder, path: x}\n")
    assert evaluate(small) == 2
    assert "layers.yaml: must be of stage tokenizer, on data.name world" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        "data: {mixture: {scene: 1.0}}",
        "loss: {semantic: 1.0}",
        "optimizer: {matrix_learning_rate: 0.01}",
        "training: {output_dir: x, learning_rate: 0.5}",
        "training: {output_dir: x, weight_decay: 0.5}",
    ],
)
def test_rows_that_differ_in_more_than_the_model_are_refused(small, capsys, change):
    path = small / "configs/ablations/layers.yaml"
    tree = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(tree | yaml.safe_load(change)))
    assert evaluate(small) == 2
    said = capsys.readouterr().err
    key = change.replace("{output_dir: x, ", "").split(": ")
    assert f"layers.yaml: {key[0]}.{key[1].lstrip('{')} is " in said and "in pixel-to-semantic.yaml" in said
    assert "make them equal" in said and said.count("\n") == 1 and not (small / "out").exists()


@pytest.mark.parametrize(("bf16", "dtype"), [(False, "float32"), (True, "bfloat16 autocast")])
def test_the_precision_is_that_of_the_recipes(bf16, dtype):
    recipe = read_recipe(ROOT / f"configs/ablations/{METHOD}.yaml", [f"training.bf16={str(bf16).lower()}"])
    assert ablations._dtype(recipe) == dtype


def test_several_processes_are_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["eval", "ablations", "--out", str(tmp_path / "out")]) == 2
    assert "run it without torchrun" in capsys.readouterr().err


def test_an_ordering_holds_if_every_seed_has_it():
    claim = Claim("psnr", "PSNR", {"a": 20.0, "b": 21.0})
    seeds = {"a": [{"psnr": 1.0}, {"psnr": 2.0}]}
    for of_b, verdict in (([1.5, 2.5], "holds"), ([1.5, 1.5], "undecided"), ([0.5, 1.5], "reversed")):
        [row] = compare([claim], seeds | {"b": [{"psnr": value} for value in of_b]})
        assert (row["better in the paper"], row["worse in the paper"], row["verdict"]) == ("b", "a", verdict)
    [row] = compare([Claim("fd", "rFID", claim.paper, higher_is_better=False)], {k: [{"fd": 1.0}] for k in "ab"})
    assert row["better in the paper"] == "a" and row["verdict"] == "reversed"  # equal is not better


def test_orderings_are_said_plainly():
    claims = [Claim("psnr", "PSNR", {"a": 3.0, "b": 2.0, "c": 1.0})]
    rows = compare(claims, {name: [{"psnr": value}] for name, value in (("a", 2.0), ("b", 3.0), ("c", 1.0))})
    said = plainly(rows, "Table 9")
    assert said[0] == "Table 9: 2 of the paper's 3 orderings hold in every seed."
    assert "Do not hold" in said[2] and "a over b in psnr (2 / 3)" in said[2]
    assert spread([1.0, 2.0, 3.0]) == "2 ± 1" and spread([1.0]) == "1"


def test_probes_read_what_is_there():
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(4, 16, generator=generator) * 3
    labels = torch.arange(80) % 4
    near = centers[labels] + torch.randn(80, 16, generator=generator)
    far = torch.randn(80, 16, generator=generator)
    assert linear_probe(near[:40], labels[:40], near[40:], labels[40:]) > 0.95
    assert linear_probe(far[:40], labels[:40], far[40:], labels[40:]) < 0.6
