"""`evotok eval`: what every suite can rely on."""

import json

import pytest

from evotok.cli import main
from evotok.commands.evaluate import SUITES, read_options
from evotok.eval.suite import Report, as_json, begin, markdown_table
from evotok.eval.suites import compare
from evotok.eval.workers import Workers


CIRCUMSTANCES = {
    "suite": "reconstruction",
    "checkpoint": "mini",
    "checkpoint_sha256": "abc",
    "options": {"batch_size": 32, "seed": 0},
    "versions": {},
    "device": "cpu",
    "processes": 1,
}


def results_in(folder, psnr, finished=True, **circumstances):
    folder.mkdir()
    report = Report({"psnr": psnr, "psnr_target": 22.5}) if finished else None
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
    [({"suite": "trajectory"}, "different suites"), ({"finished": False}, "cut off")],
)
def test_compare_refuses_what_cannot_be_compared(tmp_path, second, message, capsys):
    folders = [results_in(tmp_path / "a", 20.5), results_in(tmp_path / "b", 25.0, **second)]
    assert main(["eval", "compare", *folders, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_keeps_to_its_suite_checkpoint_and_options(tmp_path):
    folder = tmp_path / "a"
    results_in(folder, 20.5)
    assert begin(folder, CIRCUMSTANCES, restart=False)["figures"]["psnr"] == 20.5
    assert begin(folder, CIRCUMSTANCES, restart=True) is None
    other = CIRCUMSTANCES | {"options": {"batch_size": 1, "seed": 0}}
    assert begin(folder, other, restart=True) is None
    for circumstances, message in [
        (CIRCUMSTANCES | {"suite": "trajectory"}, "another suite"),
        (CIRCUMSTANCES | {"checkpoint_sha256": "def"}, "another checkpoint"),
        (other, "another options"),
    ]:
        with pytest.raises(ValueError, match=message):
            begin(folder, circumstances, restart=False)


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


def test_workers_keep_the_order():
    assert Workers().map(lambda x: x * x, range(5), "squares") == [0, 1, 4, 9, 16]


def test_tables():
    assert (
        markdown_table([{"a": 1, "b": 0.123456}, {"a": "x|y"}])
        == "| a | b |\n| --- | --- |\n| 1 | 0.1235 |\n| x\\|y |  |"
    )


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_keeps_the_form(suite):
    import importlib

    module = importlib.import_module(f"evotok.eval.suites.{suite.replace('-', '_')}")
    assert module.TAKES in ("checkpoint", "tokenizer", "results", "")
    module.Options()
    assert module.check.__doc__ and callable(module.run)
