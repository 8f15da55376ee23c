"""`evotok eval`: options, provenance, resuming and results, which are the same for every suite."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from evotok.cli import main
from evotok.commands.evaluate import SUITES, WITHOUT_CHECKPOINT, read_options, suite_module
from evotok.data.processes import Workers
from evotok.eval.results import find_finished, markdown_table, write_results
from evotok.eval.suite import Evaluation, Report, SuiteOptions, fingerprints
from evotok.eval.suites import compare


ROOT = Path(__file__).resolve().parents[1]
PROVENANCE = {
    "suite": "reconstruction",
    "checkpoint": "mini",
    "checkpoint_sha256": "abc",
    "options": {"batch_size": 32, "seed": 0},
    "files": {"prompts": "123"},
    "versions": {},
    "device": "cpu",
    "dtype": "float32",
    "processes": 1,
}


def results_in(folder, value, finished=True, name="psnr", **provenance):
    folder.mkdir(exist_ok=True)
    write_results(folder, PROVENANCE | provenance, Report({name: value, f"{name}_target": 22.5}) if finished else None)
    return str(folder)


@pytest.fixture
def folders(tmp_path):
    return [results_in(tmp_path / "a", 20.5), results_in(tmp_path / "b", 25.0)]


def compared(capsys, *words):
    capsys.readouterr()
    assert main(["eval", "compare", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_compare_writes_a_table_a_plot_and_its_provenance(folders, tmp_path, capsys):
    out = tmp_path / "out"
    results = compared(capsys, *folders, "--out", str(out))
    assert results["tables"]["comparison"] == [{"figure": "psnr", folders[0]: 20.5, folders[1]: 25.0}]
    assert results["versions"].keys() > {"evotok", "torch", "transformers", "torchmetrics"}
    assert (out / "comparison.csv").read_text().splitlines()[1] == "psnr,20.5,25.0"
    assert "psnr" in (out / "comparison.svg").read_text()
    assert "| psnr | 20.5 | 25 |" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"suite": "trajectory"}, "different suites"),
        ({"finished": False}, "was interrupted"),
        ({"name": "ssim"}, "no figure is in all of them"),
    ],
)
def test_compare_refuses_results_without_common_figures(folders, tmp_path, second, message):
    results_in(tmp_path / "b", 25.0, **second)
    with pytest.raises(ValueError, match=message):
        compare.check(compare.Options(), folders)


def test_eval_requires_restart_for_changed_files(folders, tmp_path, capsys):
    words = [*folders, "--out", str(tmp_path / "out")]
    compared(capsys, *words)
    results_in(tmp_path / "b", 26.0)
    assert main(["eval", "compare", *words]) == 2
    assert f"has results of other files ({folders[1]})" in capsys.readouterr().err
    assert compared(capsys, *words, "--restart")["tables"]["comparison"][0][folders[1]] == 26.0


@pytest.mark.parametrize("has_image", [False, True])
def test_eval_removes_a_folder_without_images_after_an_error(folders, tmp_path, monkeypatch, has_image):
    def fail(evaluation):
        if has_image:
            (evaluation.folder / "image.png").write_bytes(b"")
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "run", fail)
    assert main(["eval", "compare", *folders, "--out", str(tmp_path / "new/out")]) == 130
    assert (tmp_path / "new").exists() == has_image
    if has_image:
        assert json.loads((tmp_path / "new/out/results.json").read_text())["finished"] is False


def test_find_finished_accepts_equal_provenance_only(tmp_path):
    folder = tmp_path / "a"
    results_in(folder, 20.5)
    assert find_finished(folder, PROVENANCE, restart=False)["figures"]["psnr"] == 20.5
    assert find_finished(folder, PROVENANCE | {"options": PROVENANCE["options"] | {"engine": "a"}}, False)
    for other, message in [
        ({"checkpoint_sha256": "d"}, r"another checkpoint \(abc\): give a new folder with --out, or .* --restart"),
        ({"options": {"batch_size": 1, "seed": 0}}, r"other options \(batch_size\)"),
        ({"files": {"prompts": "123", "skills": "4"}}, r"other files \(skills\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            find_finished(folder, PROVENANCE | other, restart=False)
        assert find_finished(folder, PROVENANCE | other, restart=True) is None
    with pytest.raises(ValueError, match=r"another suite \(reconstruction\): give a new --out"):
        find_finished(folder, PROVENANCE | {"suite": "trajectory"}, restart=True)
    results_in(folder, 0, finished=False)
    assert find_finished(folder, PROVENANCE, restart=False) is None


def test_find_finished_refuses_a_folder_with_other_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"has files, but no results\.json"):
        find_finished(tmp_path, PROVENANCE, restart=False)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no results"):
        find_finished(tmp_path, PROVENANCE, restart=True)


@dataclass
class FileOptions(SuiteOptions):
    prompts: str = "prompts.json"
    data: str = "images"
    scorer: str = "someone/a-model"
    skills: str | None = None


def test_fingerprints_depend_on_names_and_contents_of_files(tmp_path, monkeypatch):
    def changed(change):
        before = found[-1]
        change()
        found.append(fingerprints(FileOptions(), "prompts", "data", "scorer", "skills"))
        return {name for name in before if found[-1][name] != before[name]}

    monkeypatch.chdir(tmp_path)
    image = tmp_path / "images/deep/1.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"1")
    found = [{}]
    assert changed(lambda: Path("prompts.json").write_text("{}")) == set() and found[-1].keys() == {"prompts", "data"}
    assert changed(lambda: None) == set()
    assert changed(lambda: Path("prompts.json").write_text("[]")) == {"prompts"}
    assert changed(lambda: image.rename(image.with_name("2.png"))) == {"data"}
    assert changed(lambda: image.with_name("2.png").write_bytes(b"2")) == {"data"}


def test_measure_part_keeps_a_part_of_the_same_options(tmp_path):
    measured = []

    def measure(seed):
        evaluation = Evaluation(SimpleNamespace(seed=seed), [], tmp_path, Workers(), files={"teacher": "a"})
        report = evaluation.measure_part("one", lambda: measured.append(seed) or Report({"a": 1.0}, {"rows": [{}]}))
        assert report == Report({"a": 1.0}, {"rows": [{}]})
        return evaluation

    for seed in (0, 0, 1):
        measure(seed)
    assert measured == [0, 1]
    (tmp_path / "parts/one.json").write_text("{")
    measure(1).remove_parts()
    assert measured == [0, 1, 1] and not (tmp_path / "parts").exists()


def test_read_options_changes_the_file_and_refuses_mistakes(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("batch_size: 4\n")
    options = read_options(compare.Options, "compare", str(path), ["seed=7"])
    assert (options.batch_size, options.seed) == (4, 7)
    for word, message in [
        ("sed=7", "Did you mean 'seed'"),
        ("seed=x", "seed must be int"),
        ("batch_size=0", "least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_options(compare.Options, "compare", str(path), [word])


@pytest.mark.parametrize("path", sorted((ROOT / "configs/eval").glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_have_options_of_their_suite(path):
    name = max((name for name in SUITES if path.stem.startswith(name)), key=len)
    assert read_options(suite_module(name).Options, name, str(path), [])


@pytest.mark.parametrize("name", SUITES)
def test_suites_have_the_interface(name):
    module = suite_module(name)
    assert module.TAKES in ("checkpoint", "tokenizer", "results", "")
    assert (name in WITHOUT_CHECKPOINT) == (module.TAKES in ("results", ""))
    module.Options()
    assert module.check.__doc__ and callable(module.run)


def test_markdown_table_rounds_numbers_and_escapes_text():
    rows = [(1, 0.123456), ("x|y", "")]
    assert markdown_table(("a", "b"), rows) == "| a | b |\n| --- | --- |\n| 1 | 0.1235 |\n| x\\|y |  |"
