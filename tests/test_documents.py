"""README and docs: code blocks run, recipes and links exist, the tables of CONTRIBUTING are true, the pages build.

`python` and `bash` blocks are run in order, those of one document in one empty folder with the checkout's `assets` and
`configs` in it; `sh` blocks would take hours or many GPUs and are only parsed.
"""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import parse_command
from PIL import Image
from torch.distributed.run import parse_args as parse_torchrun

from evotok.cli import main
from evotok.commands.evaluate import read_options, suite_module
from evotok.training.recipes import read_recipe


ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
BLOCK = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Options of pip are not checked; targets of make are.
PROGRAMS = ("evotok", "torchrun", "make", "lmms-eval", "curl")


def blocks_of(path: Path) -> list[tuple[str, str]]:
    """Returns (language, code) of every fenced block."""
    return BLOCK.findall(path.read_text(encoding="utf-8"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """Creates a folder like a checkout, and a home folder of its own."""
    for folder in ("assets", "configs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_code_blocks_run(path, workspace, monkeypatch):
    namespace: dict = {"__name__": "__main__"}
    checks = {
        "python": lambda code: exec(compile(code, name(path), "exec"), namespace),  # noqa: S102 - our own pages
        "bash": lambda code: [run_line(line, monkeypatch) for line in code.splitlines()],
        "sh": lambda code: [parse_line(line) for line in code.splitlines()],
        "json": read_json,
        "yaml": read_part_of_a_recipe,
        "text": str,
    }
    for language, code in blocks_of(path):
        checks[language](code)


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_commands_above_recipes_parse(path):
    """A command in the head of a recipe ends before two spaces, which begin a comment."""
    text = re.sub(r" \\\n# +", " ", path.read_text(encoding="utf-8"))
    for line in re.findall(r"^#   ((?:evotok|torchrun) .*?)(?:  .*)?$", text, re.MULTILINE):
        parse_line(line)


def read_json(code: str) -> None:
    """Parses one JSON value, or one a line."""
    try:
        json.loads(code)
    except json.JSONDecodeError:
        for line in code.splitlines():
            json.loads(line)


def run_line(line: str, monkeypatch) -> None:
    """Runs one line as a shell would, without a new process for each `evotok`."""
    if line.startswith("make "):
        parse_line(line)
    else:
        said, _, command = line.rpartition(" | ")
        program, *words = shlex.split(command)
        assert program == "evotok", line
        typed = subprocess.run(["bash", "-c", said], capture_output=True, text=True, check=True).stdout
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        assert main(words) == 0, line


def parse_line(line: str) -> None:
    """Checks that the command exists and accepts these words, and its recipe these changes."""
    program, *words = shlex.split(line)
    assert program in PROGRAMS, line
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), line
    if program == "evotok":
        parse_command(words)
    if program == "curl":
        check_request(*words)
    if program == "torchrun":
        options = parse_torchrun(words)
        assert options.module and options.training_script == "evotok.training.train", line
        if options.nnodes != "1:1":  # otherwise every node has rank 0
            assert options.rdzv_backend == "c10d" and options.rdzv_endpoint, line
    if program == "lmms-eval":
        asked = words[words.index("--tasks") + 1].split(",")
        assert set(asked) <= {benchmark.task for benchmark in read_suite("understanding").figures().values()}, line
        assert words[:3] == ["--model", "evotok", "--model_args"], line
    for index, word in enumerate(words):
        if word.startswith("configs/eval/"):
            assert read_suite(words[1], word), line
        elif re.fullmatch(r"configs/.*\.yaml", word):
            assert read_recipe(ROOT / word, [change for change in words[index + 1 :] if "=" in change])


def check_request(address: str, *words: str) -> None:
    """Checks that the server has the endpoint and accepts the body."""
    from evotok.serving.gate import ENDPOINTS
    from evotok.serving.protocol import ChatBody, ImageBody

    header, content_type, data, body = words
    assert (header, content_type, data) == ("-H", "Content-Type: application/json", "-d")
    path = address.removeprefix("http://127.0.0.1:8000")
    assert path in ENDPOINTS, address
    assert (ChatBody if "chat" in path else ImageBody).model_validate_json(body)


def read_suite(name: str, config: str | None = None):
    """Returns the options of a suite of `evotok eval`, from its own file or another."""
    return read_options(suite_module(name).Options, name, config, [])


def read_part_of_a_recipe(code: str) -> None:
    path = Path("recipe.yaml")
    path.write_text(yaml.safe_dump({"stage": "gen"} | yaml.safe_load(code)), encoding="utf-8")
    read_recipe(path)


WHERE_TO_CHANGE = re.compile(r"^\| [^|]+ \| `([\w/.]+)` \| `(\w+)`(.*)\|$", re.MULTILINE)


def test_contributing_names_the_file_to_change():
    """The first name of a row is defined in the file of the row; other files and folders of the row exist."""
    section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Where to change what")[2]
    table = section.partition("\n## ")[0]
    rows = WHERE_TO_CHANGE.findall(table)
    assert len(rows) == len(re.findall(r"^\| ", table, re.MULTILINE)) - 1 > 5
    for file, defined, rest in rows:
        code = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^ *(class |def )?{defined}\b *[:=(]", code, re.MULTILINE), f"{file}: no {defined}"
        for path in re.findall(r"`([\w.]+/[\w/.]*)`", rest):
            assert (ROOT / path).exists(), path


def walk_to_text(_folder):
    from evotok.commands.checkpoints import load_multimodal
    from evotok.eval.inference import answer

    content = [{"type": "image", "image": Image.new("RGB", (80, 60), "red")}, {"type": "text", "text": "What is this?"}]
    arguments = *load_multimodal("mini"), [[{"role": "user", "content": content}]]
    return lambda: answer(*arguments, max_new_tokens=2)


def walk_to_png(folder):
    return lambda: main(["generate", "mini", "--prompt", "a red heart", "--seed", "0", "--out", str(folder)])


def walk_to_step(folder):
    from evotok.training.stages import STAGES
    from evotok.training.train import training_arguments

    changes = [
        f"model={{checkpoint: {ROOT / 'assets' / 'evotok-mini'}, trainable: {[*STAGES['gen'].trainable]}}}",
        f"training={{output_dir: {folder}, max_steps: 1, per_device_train_batch_size: 2, save_strategy: 'no'}}",
        "data.mixture={t2i: 1.0}",
        "data.sample_prompts=[]",
    ]
    recipe = read_recipe(ROOT / "configs" / "mini" / "gen.yaml", changes)
    return STAGES["gen"].load("build")(recipe, training_arguments(recipe)).train


WALKS = (walk_to_text, walk_to_png, walk_to_step)


def first_calls(run) -> list[tuple[str, str]]:
    """Returns the functions of the repository that `run` calls, as (file, qualified name), in the order of their first
    call."""
    calls: dict[tuple[str, str], None] = {}
    root = f"{ROOT}{os.sep}"

    def notice(frame, event, _argument):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(root):
            calls.setdefault((Path(code.co_filename).relative_to(ROOT).as_posix(), code.co_qualname))

    before = sys.getprofile()
    sys.setprofile(notice)
    try:
        run()
    finally:
        sys.setprofile(before)
    return list(calls)


@pytest.mark.parametrize("number", range(len(WALKS)), ids=[walk.__name__ for walk in WALKS])
def test_walks_list_functions_in_the_order_of_their_first_call(number, tmp_path):
    section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Three walks through the code")[2]
    walks = re.split(r"^(?=1\. )", section.partition("\n## ")[0], flags=re.MULTILINE)[1:]
    assert len(walks) == len(WALKS)
    steps = re.findall(r"^\d+\. `([\w/.]+)`: (.+)$", walks[number], re.MULTILINE)
    assert len(steps) > 15
    calls = iter(first_calls(WALKS[number](tmp_path)))
    for file, names in steps:
        for listed in re.findall(r"`(\w+)`", names):
            called = any(at == file and listed in qualified.split(".") for at, qualified in calls)
            assert called, f"{file}: {listed} is not called, or earlier"


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "CONTRIBUTING.md"], ids=name)
def test_links_and_images_exist(path):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", path.read_text(encoding="utf-8")):
        linked = path.parent / target if target else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors_of(linked), f"{target}#{anchor}"


def anchors_of(path: Path) -> set[str]:
    """Returns the anchors of the headings of a page, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebooks_run(path, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(path, as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code), "store it without outputs"
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    images = [out for cell in code for out in cell.outputs if "image/png" in out.get("data", {})]
    assert len(images) >= 4


def test_site_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ)
    assert result.returncode == 0 and not result.stderr.strip(), result.stderr[-3000:]
    reference = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    for said in ("EvoTokVQModel", "decode_pixels", "guidance_scale", "psnr", "read_recipe"):
        assert said in reference, said
