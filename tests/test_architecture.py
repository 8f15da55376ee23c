"""The rules of the house that a linter does not know: who may import whom, and what library code does not do."""

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
}
OURS = {*LIBRARY, "evotok", "configs", "assets", "tests"}
LIGHT = ("evotok/cli.py", "evotok/demo.py", "evotok/commands")


def sources(*folders: str) -> list[Path]:
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return paths + [ROOT / name for name in folders if name.endswith(".py")]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(path: Path) -> Iterator[tuple[ast.stmt, str]]:
    """Every import of a file, wherever it stands, as (statement, absolute name as in the folder tree)."""
    folder = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else ()
            yield node, ".".join([*base, *([node.module] if node.module else [a.name for a in node.names])])


def top_folder(module: str) -> str | None:
    """Which folder of ours a module lies in; None for others' modules."""
    first, *rest = module.split(".")
    if first == "evotok" and rest and rest[0] in LIBRARY:
        return rest[0]
    return first if first in OURS else None


@pytest.mark.parametrize("folder", LIBRARY)
def test_arrows(folder):
    for path in sources(folder):
        for node, module in imported_modules(path):
            target = top_folder(module)
            assert target is None or target in MAY_IMPORT[folder], f"{name(path)}:{node.lineno} imports {module}"


@pytest.mark.parametrize("folder", ["data", "training", "eval"])
def test_data_training_and_eval_import_ours_relatively(folder):
    for path in sources(folder):
        for node, module in imported_modules(path):
            absolute = isinstance(node, ast.Import) or not node.level
            assert not (absolute and top_folder(module)), f"{name(path)}:{node.lineno}: write it relatively"


@pytest.mark.parametrize("folder", ["evotok", "tests"])
def test_face_and_tests_import_absolutely(folder):
    for path in sources(folder):
        for node, _ in imported_modules(path):
            assert not getattr(node, "level", 0), f"{name(path)}:{node.lineno}: write `from evotok...`"


@pytest.mark.parametrize("folder", CARRIED)
def test_carried_files_are_flat_and_import_siblings_by_name(folder):
    """A saved checkpoint carries them into one folder, and Transformers finds siblings by a regular expression."""
    for path in sources(folder):
        if path.name == "__init__.py":
            assert not path.read_text(encoding="utf-8").strip(), f"{name(path)} is not carried: keep it empty"
            continue
        assert path.parent == ROOT / folder and path.stem.split("_evotok")[0] != path.stem, name(path)
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and node.level:
                sibling = path.parent / f"{node.module}.py"
                assert node.level == 1 and node.module and sibling.is_file(), f"{name(path)}:{node.lineno}"
        text = path.read_text(encoding="utf-8")
        for forbidden in ("from evotok", "import evotok", "from . import", "from .."):
            assert forbidden not in text, f"{name(path)}: `{forbidden}`, even in a comment, breaks remote code"


def test_carried_files_have_names_of_their_own():
    names = [path.name for path in sources(*CARRIED) if path.name != "__init__.py"]
    assert len(names) == len(set(names)), "carried into one folder, one would overwrite the other"


def test_carried_classes_can_be_loaded_remotely():
    for path in sources(*CARRIED):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                assert "Tokenizer" not in node.name, f"{name(path)}: {node.name} would be written to auto_map as a list"
            if isinstance(node, ast.Call):
                registers = ast.unparse(node.func).endswith((".register", ".register_for_auto_class"))
                assert not registers, f"{name(path)}:{node.lineno}: register in the package face"


@pytest.mark.parametrize("path", sources(*LIBRARY), ids=name)
def test_library_code_does_not(path):
    tree = tree_of(path)
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


@pytest.mark.parametrize("path", sources(*LIGHT), ids=name)
def test_command_line_modules_import_nothing_heavy(path):
    """`evotok --help` must not wait for torch."""
    for node in tree_of(path).body:
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        for module in modules:
            first = module.split(".")[0]
            fine = first in (*sys.stdlib_module_names, "typer") or module.startswith("evotok.commands")
            fine = fine or module == "evotok.app.examples"
            fine = fine or (path.name == "cli.py" and module in ("evotok", "rich.markup"))
            assert fine, f"{name(path)}:{node.lineno} imports {module} at once"


def test_no_file_is_a_drawer():
    for path in sources("evotok", *LIBRARY):
        assert path.stem not in ("utils", "util", "helpers", "misc", "common"), name(path)


def test_nothing_speaks_of_one_machine():
    """Paths of somebody's machine, in any text file of ours."""
    folders = ("evotok", *LIBRARY, "configs", "tests", ".ci")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    paths += [path for path in ROOT.iterdir() if path.is_file() and path.suffix in ("", ".py", ".toml", ".md", ".txt")]
    marks = [f"/{top}/" for top in ("home", "root", "work", "Users")]
    for path in paths:
        if "__pycache__" in path.parts or path == Path(__file__):
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        assert not any(f'"{mark}' in text or f" {mark}" in text for mark in marks), name(path)
