"""Names of modules that low-rank adapters are put on: plain ones and harmless patterns pass, what could hang is not."""

import re
import time

import pytest

from evotok.training.multimodal.module_names import check_names


OURS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"target_modules": OURS, "modules_to_save": ["semantic_projector"], "rank_pattern": None},
        {"target_modules": ["q_proj", "layers.0.mlp"], "exclude_modules": r".*\.k_proj", "layers_pattern": "layers"},
        {"target_modules": {"q_proj"}, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {}},
    ],
)
def test_plain_names_pass(config):
    check_names(config, "lora")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target_modules", "(a+)+$"),
        ("target_modules", r"(.*)*x"),
        ("target_modules", r"(\w|\w\w)*x"),
        ("target_modules", ".*.*.*.*x"),
        ("target_modules", "a" * 501),
        ("target_modules", ["q_proj", "(a+)+$"]),
        ("target_modules", 3),
        ("exclude_modules", "[a-z]+"),
        ("modules_to_save", [".*"]),
        ("layers_pattern", ".*"),
        ("target_parameters", ["(.*)*"]),
        ("rank_pattern", {"(.+)+x": 4}),
        ("alpha_pattern", {"a b": 1}),
    ],
)
def test_others_are_refused(key, value):
    with pytest.raises(ValueError, match=f"lora: {key} should be plain names of modules, not .*: write them out"):
        check_names({key: value}, "lora")


def test_what_passes_is_matched_in_no_time():
    start = time.process_time()
    for pattern in (OURS, ".*a.*b.*c"):
        check_names({"target_modules": pattern}, "lora")
        assert not re.fullmatch(pattern, "language_model.abc." * 20)
    assert time.process_time() - start < 2
