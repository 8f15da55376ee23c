"""`evotok eval`: what every suite can rely on."""

import hashlib
import importlib
import json
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from evotok.cli import main
from evotok.commands.evaluate import SUITES, WITHOUT_CHECKPOINT, read_options
from evotok.data.processes import Workers
from evotok.eval import suite
from evotok.eval.suite import Report, SuiteOptions, as_json, begin, fingerprints, markdown_table
from evotok.eval.suites import compare


ROOT = Path(__file__).resolve().parents[1]
CIRCUMSTANCES = {
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


def results_in(folder, value, finished=True, name="psnr", **circumstances):
    folder.mkdir(exist_ok=True)
    report = Report({name: value, f"{name}_target": 22.5}) if finished else None
    (folder / "results.json").write_text(as_json(CIRCUMSTANCES | circumstances, report))
    return str(folder)


def test_compare_writes_one_table_and_one_plot(tmp_path, capsys):
    folders = [results_in(tmp_path / "a", 20.5), results_in(tmp_path / "b", 25.0)]
    assert main(["eval", "compare", *folders, "--out", str(tmp_path / "out"), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["tables"]["comparison"] == [{"figure": "psnr", folders[0]: 20.5, folders[1]: 25.0}]
    assert (tmp_path / "out/comparison.csv").read_text().splitlines()[1] == "psnr,20.5,25.0"
    assert "psnr" in (tmp_path / "out/comparison.svg").read_text()
    assert "| psnr | 20.5 | 25 |" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"suite": "trajectory"}, "different suites"),
        ({"finished": False}, "cut off"),
        ({"name": "ssim"}, "no figure is in all of them"),
    ],
)
def test_compare_refuses_what_cannot_be_compared(tmp_path, second, message, capsys):
    folders = [results_in(tmp_path / "a", 20.5), results_in(tmp_path / "b", 25.0, **second)]
    assert main(["eval", "compare", *folders, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_compare_tells_other_results_from_those_it_had(tmp_path, capsys):
    out = str(tmp_path / "out")
    folders = [results_in(tmp_path / "a", 20.5), results_in(tmp_path / "b", 25.0)]
    assert main(["eval", "compare", *folders, "--out", out]) == 0
    results_in(tmp_path / "b", 26.0)
    for others in (folders, [folders[0], results_in(tmp_path / "c", 27.0)]):
        capsys.readouterr()
        assert main(["eval", "compare", *others, "--out", out]) == 2
        assert f"has results of other files ({folders[1]}" in capsys.readouterr().err
    assert main(["eval", "compare", *folders, "--out", out, "--restart", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tables"]["comparison"][0][folders[1]] == 26.0


def test_a_folder_keeps_to_its_suite_checkpoint_options_and_files(tmp_path):
    folder = tmp_path / "a"
    results_in(folder, 20.5)
    assert begin(folder, CIRCUMSTANCES, restart=False)["figures"]["psnr"] == 20.5
    assert begin(folder, CIRCUMSTANCES, restart=True) is None
    other = CIRCUMSTANCES | {"options": {"batch_size": 1, "seed": 0}}
    changed = CIRCUMSTANCES | {"files": {"prompts": "456"}}
    retrained = CIRCUMSTANCES | {"checkpoint_sha256": "def"}
    for circumstances in (other, changed, retrained):
        assert begin(folder, circumstances, restart=True) is None
    for restart in (False, True):
        with pytest.raises(ValueError, match=r"another suite \(reconstruction\): give a new --out"):
            begin(folder, CIRCUMSTANCES | {"suite": "trajectory"}, restart)
    for circumstances, message in [
        (retrained, r"another checkpoint \(abc\): give a new folder with --out, or measure anew with --restart"),
        (other, r"other options \(batch_size\)"),
        (changed, r"other files \(prompts\)"),
        (CIRCUMSTANCES | {"files": {"prompts": "123", "skills": "4"}}, r"other files \(skills\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            begin(folder, circumstances, restart=False)


def test_fingerprints_are_of_the_content(tmp_path):
    @dataclass
    class Options(SuiteOptions):
        prompts: str = str(tmp_path / "prompts.json")
        data: str = str(tmp_path / "images")
        scorer: str = "someone/a-model"
        skills: str | None = None

    names = ("prompts", "data", "scorer", "skills")
    (tmp_path / "prompts.json").write_text("{}")
    (tmp_path / "images/deep").mkdir(parents=True)
    (tmp_path / "images/deep/1.png").write_bytes(b"1")
    first = fingerprints(Options(), *names)
    assert first.keys() == {"prompts", "data"} and first == fingerprints(Options(), *names)
    (tmp_path / "prompts.json").write_text("[]")
    second = fingerprints(Options(), *names)
    (tmp_path / "images/deep/1.png").rename(tmp_path / "images/deep/2.png")
    third = fingerprints(Options(), *names)
    (tmp_path / "images/deep/2.png").write_bytes(b"2")
    fourth = fingerprints(Options(), *names)
    assert len({each["prompts"] for each in (first, second)}) == 2 and second["data"] == first["data"]
    assert len({each["data"] for each in (second, third, fourth)}) == 3 and fourth["prompts"] == second["prompts"]


def test_one_process_reads_what_all_need_the_fingerprint_of(tmp_path, monkeypatch):
    @dataclass
    class Options(SuiteOptions):
        data: str = str(tmp_path)

    class Second(Workers):
        is_main = False

        def gather(self, value):
            assert value is None
            return [{"data": "of the first"}, value]

    monkeypatch.setattr(suite, "Workers", Second)
    monkeypatch.setattr(suite, "sha256", None)
    assert fingerprints(Options(), "data") == {"data": "of the first"}


def test_many_files_are_told_of_by_a_bar(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(suite, "tqdm", lambda paths, *words, disable, **more: shown.append(disable) or paths)
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_text(path.name)
    assert suite.sha256(*paths) == hashlib.sha256(b"ab").hexdigest() and suite.sha256(paths[0])
    assert shown == [None, True]


def test_versions_are_of_what_is_installed(monkeypatch):
    def version(name):
        if name == "torch-fidelity":
            raise PackageNotFoundError
        return f"{name} 1"

    monkeypatch.setattr(suite, "version", version)
    found = suite.versions("0.0")
    assert (found["evotok"], found["scipy"]) == ("0.0", "scipy 1") and "torch-fidelity" not in found
    assert {"torch", "transformers", "torchmetrics", "scikit-learn", "lmms-eval", "datasets"} < found.keys()


def test_after_an_error_nothing_is_left_unless_there_is_more_than_a_beginning(tmp_path, monkeypatch):
    folders = [results_in(tmp_path / "a", 20.5), results_in(tmp_path / "b", 25.0)]

    def fail(evaluation, more):
        if more:
            (evaluation.folder / "picture.png").write_bytes(b"")
        raise KeyboardInterrupt

    for more in (False, True):
        monkeypatch.setattr(compare, "run", lambda evaluation, more=more: fail(evaluation, more))
        assert main(["eval", "compare", *folders, "--out", str(tmp_path / "new/out")]) == 130
        assert (tmp_path / "new").exists() == more
    assert json.loads((tmp_path / "new/out/results.json").read_text())["finished"] is False


def test_work_that_was_cut_off_goes_on(tmp_path):
    results_in(tmp_path / "a", 0, finished=False)
    assert begin(tmp_path / "a", CIRCUMSTANCES, restart=False) is None


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"has files, but no results\.json"):
        begin(tmp_path, CIRCUMSTANCES, restart=False)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no results"):
        begin(tmp_path, CIRCUMSTANCES, restart=True)


def test_options_of_a_suite(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("batch_size: 4\n")
    options = read_options(compare.Options, "compare", str(path), ["seed=7"])
    assert (options.batch_size, options.seed) == (4, 7)
    for words, message in [
        (["sed=7"], "Did you mean 'seed'"),
        (["seed=x"], "seed must be int"),
        (["batch_size=0"], "at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_options(compare.Options, "compare", str(path), words)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/eval").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_of_its_suite(path):
    suite = max((name for name in SUITES if path.stem.startswith(name)), key=len)
    module = importlib.import_module(f"evotok.eval.suites.{suite.replace('-', '_')}")
    assert isinstance(read_options(module.Options, suite, str(path), []), module.Options)


def test_workers_keep_the_order():
    assert Workers().map(lambda x: x * x, range(5), "squares") == [0, 1, 4, 9, 16]


def test_tables():
    assert (
        markdown_table([{"a": 1, "b": 0.123456}, {"a": "x|y"}])
        == "| a | b |\n| --- | --- |\n| 1 | 0.1235 |\n| x\\|y |  |"
    )


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_keeps_the_form(suite):
    module = importlib.import_module(f"evotok.eval.suites.{suite.replace('-', '_')}")
    assert module.TAKES in ("checkpoint", "tokenizer", "results", "")
    assert (suite in WITHOUT_CHECKPOINT) == (module.TAKES in ("results", ""))
    module.Options()
    assert module.check.__doc__ and callable(module.run)
