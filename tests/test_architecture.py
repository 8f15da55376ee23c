"""Rules of the code that a linter does not have: layers of imports, forbidden calls, names of test files."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
CARRIED = ("modeling_evotok", "processing")
LIBRARY = (*CARRIED, "data", "training", "eval")
MAY_IMPORT = {
    "modeling_evotok": {"modeling_evotok"},
    "processing": {"processing"},
    "data": {"data", *CARRIED},
    "eval": {"eval", "data", *CARRIED},
    "training": set(LIBRARY),
    "evotok": {"evotok", *LIBRARY},
}
OURS = {*MAY_IMPORT, "configs", "assets", "tools", "tests"}
LIGHT = ("evotok/cli.py", "evotok/demo.py", "evotok/conversation.py", "evotok/commands")
# Tests of more than one module, or of none: of a promise.
PROMISES = {
    *("architecture", "documents", "embedded_checkpoint", "packaging", "shipped_results"),
    *("common_generation", "common_modeling"),
    *("device_map", "pipelines", "quantization_configs", "remote_code", "transformers_serve", "trl"),
    *("untrusted_input", "untrusted_fuzz", "fault_drills", "power_cut", "training_stops"),
    *("lora_checkpoints", "plan_serving", "streaming", "world_held_out"),
    *("eval_command", "generated_images", "generation_suites", "lmms_eval", "model_card"),
    *("page_browser", "serving_load", "serving_process", "vllm_plugin", "vllm_reading", "vllm_requests"),
}


def source_files(*folders: str) -> list[Path]:
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return paths + [ROOT / name for name in folders if name.endswith(".py")]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(path: Path) -> Iterator[tuple[ast.stmt, str]]:
    """Yields every import of a file as (statement, absolute name as in the folder tree)."""
    folder = path.relative_to(ROOT).parent.parts
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else ()
            yield node, ".".join([*base, *([node.module] if node.module else [a.name for a in node.names])])


def top_folder(module: str) -> str | None:
    """Returns the folder of this repository that a module is in; None for other packages."""
    first, *rest = module.split(".")
    if first == "evotok" and rest and rest[0] in LIBRARY:
        return rest[0]
    return first if first in OURS else None


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_layers_import_allowed_layers_only(folder):
    for path in source_files(folder):
        for node, module in imported_modules(path):
            target = top_folder(module)
            assert target is None or target in MAY_IMPORT[folder], f"{name(path)}:{node.lineno} imports {module}"


@pytest.mark.parametrize("folder", ["data", "training", "eval"])
def test_imports_within_the_library_are_relative(folder):
    for path in source_files(folder):
        for node, module in imported_modules(path):
            absolute = isinstance(node, ast.Import) or not node.level
            assert not (absolute and top_folder(module)), f"{name(path)}:{node.lineno}: write it relatively"


@pytest.mark.parametrize("folder", ["evotok", "tests"])
def test_imports_of_evotok_and_tests_are_absolute(folder):
    for path in source_files(folder):
        for node, _ in imported_modules(path):
            assert not getattr(node, "level", 0), f"{name(path)}:{node.lineno}: write `from evotok...`"


@pytest.mark.parametrize("folder", CARRIED)
def test_carried_files_are_flat_and_import_siblings_only(folder):
    """A checkpoint holds them in one folder, and Transformers finds siblings by a regular expression."""
    for path in source_files(folder):
        if path.name == "__init__.py":
            assert not path.read_text(encoding="utf-8").strip(), f"{name(path)} is not carried: keep it empty"
            continue
        assert path.parent == ROOT / folder and path.stem.split("_evotok")[0] != path.stem, name(path)
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ImportFrom) and node.level:
                sibling = path.parent / f"{node.module}.py"
                assert node.level == 1 and node.module and sibling.is_file(), f"{name(path)}:{node.lineno}"
        text = path.read_text(encoding="utf-8")
        for forbidden in ("from evotok", "import evotok", "from . import", "from .."):
            assert forbidden not in text, f"{name(path)}: `{forbidden}`, even in a comment, breaks remote code"


def test_carried_files_have_unique_names():
    names = [path.name for path in source_files(*CARRIED) if path.name != "__init__.py"]
    assert len(names) == len(set(names)), "carried into one folder, one would overwrite the other"


def test_carried_classes_load_as_remote_code():
    for path in source_files(*CARRIED):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef):
                assert "Tokenizer" not in node.name, f"{name(path)}: {node.name} would be written to auto_map as a list"
            if isinstance(node, ast.Call):
                registers = ast.unparse(node.func).endswith((".register", ".register_for_auto_class"))
                assert not registers, f"{name(path)}:{node.lineno}: register in evotok/auto_classes.py"


@pytest.mark.parametrize("path", source_files(*LIBRARY), ids=name)
def test_library_code_has_no_forbidden_calls(path):
    tree = parse(path)
    mains = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    may_print = {id(node) for main in mains for node in ast.walk(main)}
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"line {node.lineno}: bare except"
        if not isinstance(node, ast.Call):
            continue
        function, where = ast.unparse(node.func), f"line {node.lineno}: {ast.unparse(node)[:80]}"
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert function != "print" or id(node) in may_print, f"{where}: libraries log"
        assert function != "torch.load" or keywords.get("weights_only") == "True", f"{where}: needs weights_only=True"
        assert function == "zip" or keywords.get("strict") != "False", f"{where}: load all of it or fail"
        assert not function.startswith("sys.path"), f"{where}: no edits of sys.path"


@pytest.mark.parametrize("path", source_files(*LIGHT), ids=name)
def test_command_modules_import_torch_in_functions_only(path):
    """`evotok --help` takes less than 0.5 s."""
    for node in parse(path).body:
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        for module in modules:
            first = module.split(".")[0]
            is_light = first in (*sys.stdlib_module_names, "typer") or module.startswith("evotok.commands")
            is_light = is_light or module in ("evotok.app.examples", "evotok.conversation")
            is_light = is_light or (path.name == "cli.py" and module in ("evotok", "rich.markup"))
            assert is_light, f"{name(path)}:{node.lineno} imports {module} at the top"


def test_module_names_exclude_utils():
    for path in source_files("evotok", *LIBRARY):
        assert path.stem not in ("utils", "util", "helpers", "misc", "common"), name(path)


def test_files_have_no_paths_of_one_machine():
    folders = ("evotok", *LIBRARY, "configs", "tests", ".ci")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    paths += [path for path in ROOT.iterdir() if path.is_file() and path.suffix in ("", ".py", ".toml", ".md", ".txt")]
    marks = [f"/{top}/" for top in ("home", "root", "work", "Users")]
    for path in paths:
        if "__pycache__" in path.parts or path in (Path(__file__), ROOT / ".git"):
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        assert not any(f'"{mark}' in text or f" {mark}" in text for mark in marks), name(path)


@pytest.mark.parametrize("folder", ["evotok", *LIBRARY])
def test_progress_bars_are_disabled_without_a_terminal(folder):
    for path in source_files(folder):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "tqdm":
                assert "disable" in {keyword.arg for keyword in node.keywords}, f"{name(path)}:{node.lineno}"


def test_test_files_are_named_for_a_module_or_a_promise():
    """`test_x.py` is for `x.py`, for `folder/x.py` as `folder_x` or `x_folder`, for a folder `x`, or in `PROMISES`."""
    known = set()
    for path in source_files("evotok", *LIBRARY, "tools"):
        *folders, stem = path.relative_to(ROOT).with_suffix("").parts
        if stem == "__init__":
            stem = folders.pop()
        folder = folders[-1] if folders else ""
        known |= {stem, stem.removesuffix("_evotok"), f"{folder}_{stem}", f"{stem}_{folder.removesuffix('s')}"}
    tested = {path.stem.removeprefix("test_") for path in source_files("tests") if path.stem.startswith("test_")}
    assert tested - known == PROMISES
