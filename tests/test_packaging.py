"""The package: version, folders, extras, constraints, licences. Builds nothing."""

import importlib
import json
import re
import runpy
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


ROOT = Path(__file__).resolve().parents[1]
EXTRAS = {"app", "deepspeed", "dev", "docs", "eval", "flash", "lmms", "mini", "onnx", "serve", "train", "vllm"}


@pytest.fixture(scope="module")
def metadata():
    """Returns the arguments of `setup()`."""
    import setuptools

    arguments = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", arguments.update)
        patch.chdir(ROOT)
        runpy.run_path(str(ROOT / "setup.py"))
    return arguments


@pytest.fixture(scope="module")
def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    assert all([s.operator for s in r.specifier] == ["=="] for r in requirements), "constraints are exact"
    return {canonicalize_name(r.name): Version(next(iter(r.specifier)).version) for r in requirements}


def test_version_equals_that_of_evotok(metadata):
    import evotok

    assert metadata["version"] == evotok.__version__
    assert Version(evotok.__version__)


def test_folders_with_code_are_packed(metadata):
    folders = set(metadata["package_dir"].values())
    for top in ("evotok", "modeling_evotok", "processing", "data", "training", "eval"):
        for path in (ROOT / top).rglob("*.py"):
            assert path.parent.relative_to(ROOT).as_posix() in folders, f"{path} would be missing from a wheel"
    assert metadata["package_dir"]["evotok.modeling_evotok"] == "modeling_evotok"
    assert metadata["packages"] == list(metadata["package_dir"])
    assert not any(folder.startswith("tools") for folder in folders)


@pytest.mark.parametrize("top", ["configs", "assets"])
def test_data_files_are_packed(metadata, top):
    folder = ROOT / top
    packed = {path for pattern in metadata["package_data"][f"evotok.{top}"] for path in folder.glob(pattern)}
    tracked = subprocess.run(["git", "ls-files", top], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    for path in map(ROOT.joinpath, tracked.splitlines()):
        assert path in packed or not path.exists(), f"{path.relative_to(ROOT)}: setup.py packs no such files"


def test_assets_are_beside_the_data_of_a_checkout():
    """`assets` is two folders above the world: in the root of a checkout, or in the installed package."""
    from evotok.data.world.icons import World

    assert World().root == ROOT / "assets" / "world"


def test_extras_are_documented(metadata):
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "install.md").read_text(), re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(metadata["extras_require"])


def test_extras_parse_and_are_pinned(metadata, pins):
    assert set(metadata["extras_require"]) == EXTRAS
    unpinned = metadata["extras_require"]["flash"] + metadata["extras_require"]["lmms"]  # `make test` does without
    everything = [r for extra in metadata["extras_require"].values() for r in extra] + metadata["install_requires"]
    for text in everything:
        requirement = Requirement(text)
        if text not in unpinned:
            name = canonicalize_name(requirement.name)
            assert name in pins, f"{name} is installed by make, but not pinned"
            assert pins[name] in requirement.specifier, f"{requirement} excludes the pinned {pins[name]}"


def test_constraints_have_no_accelerator_packages(pins):
    assert pins["torch"] == Version("2.13.0") and pins["torch"].local is None
    assert not [name for name in pins if name.startswith(("nvidia", "cuda", "triton"))]
    assert "torchvision" not in pins


def test_pins_equal_the_installed_versions(pins):
    import torch
    import transformers

    assert Version(torch.__version__.split("+")[0]) == pins["torch"]
    assert Version(transformers.__version__) == pins["transformers"]


def test_matrix_has_the_oldest_and_newest_transformers(metadata, pins):
    oldest, newest = re.search(
        r"^OLDEST := (\S+)\nNEWEST := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    ).groups()
    (requirement,) = (Requirement(r) for r in metadata["install_requires"] if r.startswith("transformers"))
    floor = next(Version(s.version) for s in requirement.specifier if s.operator == ">=")
    assert Version(oldest).release[:2] == floor.release[:2]
    assert Version(newest) == pins["transformers"]
    assert f"requires Transformers {floor} or newer" in (ROOT / "docs" / "install.md").read_text()


def test_notice_has_the_licences_of_embedded_art():
    assert "Apache License" in (ROOT / "LICENSE").read_text() and "Version 2.0" in (ROOT / "LICENSE").read_text()
    notice, world = (ROOT / "NOTICE").read_text(), ROOT / "assets" / "world"
    entries = dict(re.findall(r"^  assets/world/(\S+\.webp) +(.*(?:\n {4,}.*)*)", notice, re.MULTILINE))
    assert entries.keys() == {path.name for path in world.glob("*.webp")}
    styles = json.loads((world / "world.json").read_text())["styles"]
    assert f"{len({style['set'] for style in styles})} icon sets" in entries["icons.webp"]
    licences = {"icons.webp": {style["licence"] for style in styles}}
    beside = (world / "LICENSES.md").read_text()
    rows = re.findall(r"^\| `(\S+\.webp)` \|.*\| (\S+) \|$", beside, re.MULTILINE)
    licences |= {sheet: {licence} for sheet, licence in rows}
    assert licences.keys() == entries.keys()
    for sheet, named in licences.items():
        for licence in named:
            assert licence in entries[sheet], f"{sheet}: NOTICE does not name {licence}"
    for weights in ("assets/vision-mini", "assets/evotok-mini", "EfficientNet-Lite0"):
        assert weights in notice


def test_makefile_has_its_documented_targets():
    text = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^# make ([\w-]+)", text, re.MULTILINE)
    assert {"demo", "test", "lint", "mini"} < set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", text, re.MULTILINE), target
    for recipe in re.findall(r"configs/\S+\.yaml", text):
        assert (ROOT / recipe).is_file(), recipe
    for module in re.findall(r"-m evotok\.(\S+)", text):
        path = f"{module.replace('.', '/')}.py"
        assert (ROOT / "evotok" / path).is_file() or (ROOT / path).is_file(), module


def test_ci_is_executable_bash():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_entry_points_are_importable(metadata):
    plugin = metadata["entry_points"]["lmms_eval.models"]
    assert plugin == ["evotok = evotok.lmms_eval_plugin:manifest"]
    [script] = metadata["entry_points"]["console_scripts"]
    name, target = (part.strip() for part in script.split("="))
    module, function = target.split(":")
    assert name == "evotok" and callable(getattr(importlib.import_module(module), function))
