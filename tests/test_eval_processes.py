"""`evotok eval` under torchrun: two processes find what one finds, suite by suite.

The suite `reconstruction` is in test_reconstruction_suite.py, `understanding` in test_lmms_eval.py.
"""

import json
import os
import subprocess
import sys

import pytest


pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("sklearn")

SUITES = {
    "trajectory": ["images=40", "tokens=40", "clusters=3", "batch_size=8"],
    "unseen": ["sets=[]", "limit=2", "batch_size=1"],
    "emoji-geneval": ["prompts=2", "batch_size=5"],
}
SCRIPT = """
import sys

from evotok.cli import main
from evotok.eval.suites import emoji_geneval, unseen
from evotok.training import taught_images
from evotok.training.emoji.world import EmojiWorld

taught_images.CALIBRATION_IMAGES = unseen.CALIBRATION = 16


class SmallWorld(EmojiWorld):
    def __init__(self):
        super().__init__()
        self.familiar = self.familiar[::10]

    def drawings(self, split, familiar=None):
        return [drawing for drawing in super().drawings(split, familiar) if drawing.concept in self.familiar]


emoji_geneval.EmojiWorld = SmallWorld
for suite, words in {suites}.items():
    assert main(["eval", suite, "mini", *words, "--out", f"{{sys.argv[1]}}/{{suite}}"]) == 0
"""


def test_two_processes_find_what_one_finds(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(suites=SUITES))
    launchers = {"one": [], "two": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]}
    for folder, launcher in launchers.items():
        command = [sys.executable, *launcher, str(script), str(tmp_path / folder)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as torchrun has it: sums are added in one order
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
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
    verdicts = [(tmp_path / folder / "emoji-geneval/verdicts.jsonl").read_text() for folder in launchers]
    assert verdicts[0] == verdicts[1]
    samples = [(tmp_path / folder / "emoji-geneval/sample.png").read_bytes() for folder in launchers]
    assert samples[0] == samples[1], "the pictures drawn are the same to the last pixel"
