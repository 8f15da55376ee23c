"""`evotok eval` under torchrun: two processes have the results of one, suite by suite.

The suite `reconstruction` is in test_reconstruction_suite.py, `understanding` in test_lmms_eval.py.
"""

import json
import subprocess
import sys

import pytest
from mini_materials import save_mini


pytest.importorskip("sklearn")

SUITES = {
    "trajectory": ["images=40", "probe_scenes=24", "tokens=40", "clusters=3", "batch_size=8"],
    "mini": [
        "parts=[tokenizer,questions,composition]",
        *("scenes=6", "probe_scenes=24", "questions=6", "prompts=2", "batch_size=5"),
    ],
}
SCRIPT = """
import sys

from evotok.cli import main

checkpoint, out = sys.argv[1:]
for suite, words in {suites}.items():
    assert main(["eval", suite, checkpoint, *words, "--out", f"{{out}}/{{suite}}"]) == 0
"""


def test_two_processes_equal_one(world, tmp_path):
    checkpoint, script = save_mini(tmp_path / "runs", world), tmp_path / "script.py"
    script.write_text(SCRIPT.format(suites=SUITES))
    launchers = {"one": [], "two": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]}
    for folder, launcher in launchers.items():
        command = [sys.executable, *launcher, str(script), checkpoint, str(tmp_path / folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    for suite in SUITES:
        one, two = (json.loads((tmp_path / folder / suite / "results.json").read_text()) for folder in launchers)
        assert (one["processes"], two["processes"]) == (1, 2)
        assert list(two["figures"]) == list(one["figures"]), suite
        for name, value in one["figures"].items():
            assert two["figures"][name] == pytest.approx(value, rel=1e-6), (suite, name)
        assert two["data"] == one["data"] and two["pictures"] == one["pictures"]
        tables = {path.name for path in (tmp_path / "one" / suite).glob("*.csv")}
        assert tables and tables == {path.name for path in (tmp_path / "two" / suite).glob("*.csv")}
    for name in ("verdicts_held_out.jsonl", "held_out.png"):
        one, two = ((tmp_path / folder / "mini" / name).read_bytes() for folder in launchers)
        assert one == two, "the generated images are the same to the last pixel"
