"""`evotok eval`: a suite of measurements on a checkpoint, into a folder of its own."""

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from evotok.commands.checkpoints import find_checkpoint
from evotok.commands.files import check_folder
from evotok.commands.options import Json, complete_checkpoint
from evotok.commands.recipes import find_recipe
from evotok.commands.terminal import say


EXAMPLES = """  evotok eval reconstruction mini
  evotok eval trajectory runs/mini/gen --out results/trajectory
  evotok eval compare results/reconstruction-a results/reconstruction-b
  torchrun --nproc-per-node 2 -m evotok.cli eval reconstruction mini batch_size=64"""
SETTINGS = (  # of a checkpoint, beside its weights; results and a card may lie there, too
    *("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json"),
    *("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"),
)
SUITES = {  # name -> summary; the module is `eval/suites/<name>.py`, with _ for -
    "ablations": "Tables 4 and 5: other arrangements of the tokenizer, trained and measured",
    "compare": "folders of results beside each other",
    "emoji-geneval": "does a model of the emoji world draw things, counts, colours and places as asked?",
    "genai-bench": "does a model that answers questions see what was asked for? your copy of GenAI-Bench",
    "geneval": "are things, counts, colours and places as asked? your copy of GenEval",
    "reconstruction": "PSNR, SSIM, LPIPS, Frechet distances and use of the codebooks, by depth",
    "trajectory": "what each level adds to pixels and semantics (Fig. 3, 5, 6)",
    "understanding": "questions about images, asked and scored by lmms-eval",
    "unseen": "how a model of the emoji world fares on pictures of other kinds",
}


WITHOUT_CHECKPOINT = ("ablations", "compare")
_WIDTH = max(map(len, SUITES))
EPILOG = "\n".join(["Suites:", *(f"  {name:<{_WIDTH}}  {summary}" for name, summary in SUITES.items())])


def run(
    suite: Annotated[Literal[tuple(SUITES)], typer.Argument(metavar="SUITE", help="one of the suites below")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="what is measured, then key=value of its options",
            autocompletion=complete_checkpoint,
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="YAML with options; configs/eval/SUITE.yaml if there is one")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="folder of the results; results/SUITE-CHECKPOINT by default")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="measure again what the folder has already")] = False,
    as_json: Json = False,
) -> None:
    """Measure a checkpoint by a suite: tables, plots and figures in a folder.

    What the folder has already is not measured again.
    """
    names = [word for word in inputs or () if "=" not in word]
    words = [word for word in inputs or () if "=" in word]
    if suite not in WITHOUT_CHECKPOINT:
        if len(names) != 1:
            raise ValueError(f"{len(names)} checkpoints: give one to measure, such as `evotok eval {suite} mini`.")
        find_checkpoint(names[0])
    _read_tree(suite, config, words)
    folder = check_folder(out or Path("results") / _default_name(suite, names))
    results, lines = _measure(suite, names, words, config, folder, restart)
    if results is not None:
        say(as_json, results, lines)


def _default_name(suite: str, names: list[str]) -> str:
    return suite if suite in WITHOUT_CHECKPOINT else f"{suite}-{Path(names[0]).name}".rstrip("-")


def _measure(
    name: str, inputs: list[str], words: list[str], config: str | None, out: Path, restart: bool
) -> tuple[dict[str, Any] | None, list[str]]:
    """What the folder holds in the end, and the lines that say it; nothing on processes that did not write it."""
    import evotok
    from evotok.commands.checkpoints import load_multimodal, load_tokenizer
    from evotok.eval.suite import Evaluation, begin, sha256, versions
    from evotok.eval.workers import Workers

    suite = importlib.import_module(f"evotok.eval.suites.{name.replace('-', '_')}")
    settings = read_options(suite.Options, name, config, words)
    circumstances: dict[str, Any] = {"suite": name, "checkpoint": None, "checkpoint_sha256": None}
    load, files = None, {}
    if suite.TAKES in ("checkpoint", "tokenizer"):
        checkpoint = find_checkpoint(inputs[0])
        folder = checkpoint.folder
        circumstances |= {"checkpoint": inputs[0], "checkpoint_sha256": sha256(*checkpoint.weights)}
        files["checkpoint_settings"] = sha256(*(folder / name for name in SETTINGS if (folder / name).is_file()))
        loader = {"checkpoint": load_multimodal, "tokenizer": load_tokenizer}[suite.TAKES]
        load = _noting_dtype(partial(loader, inputs[0]), circumstances)
    elif bool(inputs) != bool(suite.TAKES):
        raise ValueError(f"{name}: " + ("give the folders of results." if suite.TAKES else "takes no checkpoint."))
    files |= suite.check(settings, inputs)

    workers = Workers()
    circumstances |= {
        "options": vars(settings),
        "files": files,
        "versions": versions(evotok.__version__),
        "device": workers.state.device.type,
        "dtype": None,  # of the model, once it is loaded
        "processes": workers.count,
    }
    results = begin(out, circumstances, restart)
    workers.wait()  # until all have looked: the first one writes now
    if results is None:
        started = time.perf_counter()
        with _begun(out, circumstances) if workers.is_main else nullcontext():
            workers.wait()
            known = {key: circumstances[key] for key in ("versions", "checkpoint_sha256")}
            report = suite.run(Evaluation(settings, inputs, out, workers, load, files, **known))
        circumstances["seconds"] = round(time.perf_counter() - started, 1)
        if workers.is_main:
            results = _write(out, circumstances, report)
    if not workers.is_main:
        return None, []
    lines = [f"{figure:40} {value:10.4g}" for figure, value in results["figures"].items()]
    return results, [*lines, f"{out / 'README.md'}"]


def read_options(cls: type, suite: str, config: str | None, words: list[str]) -> Any:
    """The options of a suite: of its YAML file, changed by words like `seed=1`.

    Raises:
        ValueError: no such file, an unknown option, or a value of the wrong type.
    """
    from evotok.training.yaml_reading import build_section

    tree, where = _read_tree(suite, config, words)
    return build_section(cls, tree, where)


def _read_tree(suite: str, config: str | None, words: list[str]) -> tuple[dict[str, Any], str]:
    """The options as YAML says them, not checked yet, and the name of the file that they are from."""
    from evotok.training.yaml_reading import override, read_tree

    path = find_recipe(config or f"configs/eval/{suite}.yaml")
    has_file = config or path.is_file()
    tree = read_tree(path) if has_file else {}
    for word in words:
        override(tree, word)
    return tree, str(path) if has_file else suite


def _noting_dtype(load: Callable[[], tuple[Any, Any]], circumstances: dict[str, Any]) -> Callable[[], tuple[Any, Any]]:
    """`load`, which notes in what precision the model computes."""

    def load_and_note() -> tuple[Any, Any]:
        model, processor = load()
        circumstances["dtype"] = str(model.dtype).removeprefix("torch.")
        return model, processor

    return load_and_note


@contextmanager
def _begun(out: Path, circumstances: dict[str, Any]) -> Iterator[None]:
    """Results that say that work has begun; after an error they go again, unless there is more in the folder."""
    from evotok.commands.files import made_folder
    from evotok.eval.suite import RESULTS

    with made_folder(out):
        _write(out, circumstances, None)
        try:
            yield
        except BaseException:
            if [path.name for path in out.iterdir()] == [RESULTS]:
                (out / RESULTS).unlink()
            raise


def _write(out: Path, circumstances: dict[str, Any], report: Any) -> dict[str, Any]:
    """Write the results, or that work has begun; pictures are there already."""
    import json

    from evotok.commands.files import new_files
    from evotok.eval.suite import RESULTS, as_json, as_markdown, write_csv

    text = as_json(circumstances, report)
    results = json.loads(text)
    with new_files(out, overwrite=True) as reserve:
        reserve(RESULTS).write_text(text, encoding="utf-8")
        if report is not None:
            reserve("README.md").write_text(as_markdown(f"EvoTok: {results['suite']}", results), encoding="utf-8")
            for name, rows in report.tables.items():
                write_csv(reserve(f"{name}.csv"), rows)
    return results
