"""`evotok eval`: measures a checkpoint by a suite, into a folder of results."""

import importlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from evotok.commands import checkpoints
from evotok.commands.files import check_folder, create_folder
from evotok.commands.options import Json, complete_checkpoint
from evotok.commands.recipes import find_recipe
from evotok.commands.terminal import print_results


if TYPE_CHECKING:
    from evotok.serving.pool import ServerPool

EXAMPLES = """  evotok eval reconstruction mini
  evotok eval trajectory runs/mini/gen-counts --out results/trajectory
  evotok eval compare results/reconstruction-a results/reconstruction-b
  evotok eval geneval evotok-7b prompts=evaluation_metadata.jsonl ... engine=http://a:8000,http://b:8000
  torchrun --nproc-per-node 2 -m evotok.cli eval reconstruction mini batch_size=64"""
SETTINGS = (  # files of a checkpoint beside its weights; results and a card may be there, too
    *("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json"),
    *("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"),
)
SUITES = {  # name -> summary
    "ablations": "Tables 4 and 5: other arrangements of the tokenizer, trained and measured",
    "compare": "folders of results side by side",
    "genai-bench": "images scored by a model that answers questions; your copy of GenAI-Bench",
    "geneval": "things, counts, colours and places of images; your copy of GenEval",
    "mini": "EvoTok-mini on its world: tokenizer by level, questions, GenEval's tasks, emoji",
    "reconstruction": "PSNR, SSIM, LPIPS, Frechet distances and use of the codebooks, by depth",
    "trajectory": "what each level adds to pixels and semantics (Fig. 3, 5, 6)",
    "understanding": "questions about images, scored by lmms-eval",
}


Config = Annotated[
    str | None, typer.Option(metavar="FILE", help="YAML with options; configs/eval/SUITE.yaml if there is one")
]
Out = Annotated[
    str | None, typer.Option(metavar="DIR", help="folder of the results; results/SUITE-CHECKPOINT by default")
]
Restart = Annotated[bool, typer.Option("--restart", help="measure again, although the folder has results")]
WITHOUT_CHECKPOINT = ("ablations", "compare")
_MODULES = {"ablations": "evotok.training.ablations.suite"}  # it trains; the others are in `eval/suites/`
_WIDTH = max(map(len, SUITES))
EPILOG = "\n".join(["Suites:", *(f"  {name:<{_WIDTH}}  {summary}" for name, summary in SUITES.items())])


def run(
    suite: Annotated[
        Literal[tuple(SUITES)],  # pyright: ignore[reportInvalidTypeForm]  # the names of a table, which Typer reads
        typer.Argument(metavar="SUITE", help="one of the suites below"),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="checkpoint to measure, then key=value of the options",
            autocompletion=complete_checkpoint,
        ),
    ] = None,
    config: Config = None,
    out: Out = None,
    restart: Restart = False,
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
        checkpoints.find_checkpoint(names[0])
    _read_tree(suite, config, words)
    folder = check_folder(out or Path("results") / _default_name(suite, names))
    results, lines = _measure(suite, names, words, config, folder, restart)
    if results is not None:
        print_results(as_json, results, lines)


def suite_module(name: str) -> Any:
    """Imports the module of a suite."""
    return importlib.import_module(_MODULES.get(name, f"evotok.eval.suites.{name.replace('-', '_')}"))


def _default_name(suite: str, names: list[str]) -> str:
    return suite if suite in WITHOUT_CHECKPOINT else f"{suite}-{Path(names[0]).name}".rstrip("-")


def _measure(
    name: str, inputs: list[str], words: list[str], config: str | None, out: Path, restart: bool
) -> tuple[dict[str, Any] | None, list[str]]:
    """Runs a suite where its folder has no finished results; returns the results as a dict and as lines.

    On processes that do not write the results, returns None and no lines.
    """
    import evotok
    from evotok.data.processes import Workers
    from evotok.eval.results import find_finished, write_results
    from evotok.eval.suite import Evaluation, sha256, versions

    suite = suite_module(name)
    options = read_options(suite.Options, name, config, words)
    provenance: dict[str, Any] = {"suite": name, "checkpoint": None, "checkpoint_sha256": None}
    load, files = None, {}
    if suite.TAKES in ("checkpoint", "tokenizer"):
        checkpoint = checkpoints.find_checkpoint(inputs[0])
        provenance |= {"checkpoint": inputs[0], "checkpoint_sha256": sha256(*checkpoint.weights)}
        settings = (checkpoint.folder / name for name in SETTINGS)
        files["checkpoint_settings"] = sha256(*(path for path in settings if path.is_file()))
        load = partial(_load, suite.TAKES, inputs[0], provenance)
    elif bool(inputs) != bool(suite.TAKES):
        raise ValueError(f"{name}: " + ("give the folders of results." if suite.TAKES else "takes no checkpoint."))
    files |= suite.check(options, inputs)

    workers = Workers()
    provenance |= {
        "options": vars(options),
        "files": files,
        "versions": versions(evotok.__version__),
        "device": workers.state.device.type,
        "dtype": None,  # set by `_load`
        "processes": workers.count,
    }
    results = find_finished(out, provenance, restart)
    workers.wait()  # all have read the folder before the main process writes to it
    if results is None:
        started = time.perf_counter()
        with _unfinished(out, provenance) if workers.is_main else nullcontext():
            workers.wait()
            evaluation = Evaluation(
                options,
                inputs,
                out,
                workers,
                load,
                files,
                versions=provenance["versions"],
                checkpoint_sha256=provenance["checkpoint_sha256"],
                servers=_servers(options),
            )
            report = suite.run(evaluation)
        provenance["seconds"] = round(time.perf_counter() - started, 1)
        if workers.is_main:
            results = write_results(out, provenance, report)
    if results is None or not workers.is_main:
        return None, []
    lines = [f"{figure:40} {value:10.4g}" for figure, value in results["figures"].items()]
    return results, [*lines, f"{out / 'README.md'}"]


def _load(takes: str, checkpoint: str, provenance: dict[str, Any]) -> tuple[Any, Any]:
    """Loads a checkpoint or its tokenizer, and records the dtype."""
    load = checkpoints.load_multimodal if takes == "checkpoint" else checkpoints.load_tokenizer
    model, processor = load(checkpoint)
    provenance["dtype"] = str(model.dtype).removeprefix("torch.")
    return model, processor


def _servers(options: Any) -> "ServerPool | None":
    """Connects to the servers of the option `engine`."""
    addresses = getattr(options, "engine", None)
    if addresses is None:
        return None
    from evotok.serving.pool import ServerPool

    return ServerPool([url.strip() for url in addresses.split(",")], os.environ.get("EVOTOK_API_KEY"))


def read_options(cls: type, suite: str, config: str | None, words: list[str]) -> Any:
    """Reads the options of a suite from its YAML file, with overrides such as `seed=1`.

    Raises:
        ValueError: no such file, an unknown option, or a value of the wrong type.
    """
    from evotok.data.yaml_files import build_section

    tree, where = _read_tree(suite, config, words)
    return build_section(cls, tree, where)


def _read_tree(suite: str, config: str | None, words: list[str]) -> tuple[dict[str, Any], str]:
    """Reads the options without checking them; returns them with the name of their file, for messages."""
    from evotok.data.yaml_files import override, read_tree

    path = find_recipe(config or f"configs/eval/{suite}.yaml")
    has_file = config or path.is_file()
    tree = read_tree(path) if has_file else {}
    for word in words:
        override(tree, word)
    return tree, str(path) if has_file else suite


@contextmanager
def _unfinished(out: Path, provenance: dict[str, Any]) -> Iterator[None]:
    """Marks the results as unfinished; after an error the mark is removed, unless the folder has other files."""
    from evotok.eval.results import RESULTS, write_results

    with create_folder(out):
        write_results(out, provenance, None)
        try:
            yield
        except BaseException:
            if [path.name for path in out.iterdir()] == [RESULTS]:
                (out / RESULTS).unlink()
            raise
