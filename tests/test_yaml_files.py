"""YAML of recipes: plain values by YAML 1.2, overrides, bases."""

from pathlib import Path

import pytest

from evotok.data.yaml_files import override, read_tree


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("off", "off"), ("yes", "yes"), ("n", "n"), ("'no'", "no"), ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"), ("1_000", "1_000"), ("nan", "nan"),
        ("1e-4", 1e-4), ("1.0e-05", 1e-5), (".5", 0.5), (".inf", float("inf")), ("-3", -3), ("010", 10), ("0x1F", 31),
        ("0o17", 15), ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
    ],
)  # fmt: skip
def test_plain_values_follow_yaml_1_2(tmp_path, text, value):
    (tmp_path / "a.yaml").write_text(f"a: {text}")
    tree = read_tree(tmp_path / "a.yaml")
    override(tree, f"b={text}")
    for read in (tree["a"], tree["b"]):
        assert read == value and type(read) is type(value)


@pytest.mark.parametrize("word", ["data.max_length", "=5", "stage.x=1"])
def test_override_refuses_words_of_another_form(word):
    with pytest.raises(ValueError, match="override"):
        override({"stage": "sft"}, word)


@pytest.mark.parametrize(("text", "message"), [("stage: [\n", "not YAML"), ("- 1\n", "no recipe: give keys")])
def test_read_tree_refuses_other_files(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_tree(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match="no such recipe"):
        read_tree(Path("none.yaml"))
