"""The command line on a tiny random checkpoint: the results of each command, and one line for every mistake."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from conftest import TINY_VQ, build_tiny_model, parse_command
from PIL import Image

from evotok import EvoTokConfig, EvoTokProcessor
from evotok.cli import COMMANDS, Command, main, root
from evotok.commands.checkpoints import load_tokenizer
from evotok.commands.codes import read_codes
from evotok.commands.files import new_files, safe_name
from evotok.commands.options import Json
from evotok.commands.recipes import check_recipe, find_recipe
from evotok.data.code_shards import tokenizer_hash
from evotok.data.errors import escape_controls
from evotok.training.backbones.text_tokenizer import train_text_tokenizer
from evotok.training.recipes import read_recipe


ROOT = str(Path(__file__).parents[1])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Returns a full checkpoint: 64 px (the size of the world's images), 8 x 8 positions, 4 levels, 2 of them for
    pixels."""
    texts = ["What is this? A frog, please draw two cats on a blue background, noto style: yes no left right."] * 2
    processor = EvoTokProcessor.from_parts(train_text_tokenizer(texts, 300), image_size=64, num_image_tokens=64)
    tokenizer = processor.tokenizer
    config = EvoTokConfig(
        vq_config=TINY_VQ | {"encoder_config": TINY_VQ["encoder_config"] | {"image_size": 64}},
        depth_decoder_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        },
        text_config={
            "model_type": "qwen2", "vocab_size": 320, "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
            "max_position_embeddings": 160, "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_id=processor.image_token_id,
        image_generation_token_id=processor.image_generation_token_id,
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    model = build_tiny_model(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    model.model.vq_model.save_pretrained(folder.with_name("tokenizer"))
    return folder


@pytest.fixture(scope="module")
def tokenizer_only(checkpoint):
    return checkpoint.with_name("tokenizer")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Creates an empty current folder with one image in it."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), (200, 30, 30)).save("red.png")
    return tmp_path


@pytest.fixture
def codes_file(here, tokenizer_only):
    assert evotok("encode", tokenizer_only, "red.png", "--out", "codes.safetensors") == 0
    return here / "codes.safetensors"


def evotok(*words):
    return main([str(word) for word in words])


def refuse(capsys, *words):
    """Runs a command that must fail as a mistake of the user; returns its error line."""
    capsys.readouterr()
    assert evotok(*words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"evotok {words[0]}: "), lines
    return lines[0]


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- the command line itself ------------------------------------------------------------------------------------------


def test_help_lists_documented_commands_and_exit_codes(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^. {name} ", text, re.MULTILINE) for name in COMMANDS)
    assert "\x1b" not in text, "no colors without a terminal"
    page = Path(ROOT, "docs", "command-line.md").read_text(encoding="utf-8")
    codes = re.findall(r"^ +(\d+)  ", text, re.MULTILINE)
    assert codes == re.findall(r"^\| (\d+) \|", page, re.MULTILINE) == ["0", "1", "2", "130"]
    assert set(re.findall(r"^\| `evotok ([\w-]+)", page, re.MULTILINE)) == set(COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("evotok 0.")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_examples_and_json(name, capsys):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f" evotok {name}" in text.split("Examples:")[1]
    assert ("--json" in text) == (name not in ("app", "serve"))


MISTAKES = [
    ("train nowhere.yaml", "no such recipe"),
    ("train configs/mini/gne.yaml", "Did you mean configs/mini/gen.yaml?"),
    ("train configs/mini/gen.yaml steps", "section.key=value"),
    ("plan configs/mini/gen.yaml --gpu h1000", "did you mean 'h100'?"),
    ("data check nowhere.yaml", "no such recipe"),
    ("generate mni --prompt frog", "Did you mean 'mini'?"),
    ("generate mini --prompt frog --top-p 0", "above 0"),
    ("chat mini --image nowhere.png --prompt hello", "no such file"),
    ("encode mini nowhere.png --out a.safetensors", "no such file"),
    ("decode mini nowhere.safetensors --out a", "no such file"),
    ("export mini --out red.png", "give a folder"),
    ("convert mini --to-reference --out red.png", "this exists already"),
    ("eval reconstrution mini", "Did you mean 'reconstruction'?"),
    ("eval reconstruction mini --config nowhere.yaml", "no such recipe"),
    ("measure mni", "Did you mean 'mini'?"),
    ("bench quantizer --size paper", "takes full or tiny"),
    ("app --host 203.0.113.1", "cannot listen"),
]
WITHOUT_TORCH = """
import sys, time
from evotok.cli import main
assert main(["--help"]) == 0 and time.process_time() < 0.5, time.process_time()
for line in sys.argv[1:]:
    assert main(line.split()) == 2 and "torch" not in sys.modules, line
"""


def test_mistakes_are_reported_before_importing_torch(here):
    command = [sys.executable, "-c", WITHOUT_TORCH, *(line for line, _ in MISTAKES)]
    environment = os.environ | {"PYTHONPATH": ROOT}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    for said, (line, message) in zip(result.stderr.splitlines(), MISTAKES, strict=True):
        assert message in said, line


COMPLETED = [
    ("evotok ge", "generate"),
    ("evotok decode --de", "--depth"),
    ("evotok export mini --out a --dtype fl", "float16 float32"),
    ("evotok chat mi", "mini"),
    ("evotok train configs/mini/tokenizer", "configs/mini/tokenizer.yaml"),
    ("evotok train configs/mini/gen.yaml training.max_s", "training.max_steps="),
    ("evotok plan configs/mini/gen.yaml --gpu rtx", "rtx3090 rtx4090"),
]


@pytest.mark.parametrize(("typed", "completions"), COMPLETED, ids=[typed for typed, _ in COMPLETED])
def test_shell_completion_lists_matching_words(typed, completions, here, monkeypatch, capsys):
    """The script of bash passes the line in the environment and reads the completions from stdout."""
    monkeypatch.setenv("_EVOTOK_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    with pytest.raises(SystemExit):
        main([])
    assert sorted(capsys.readouterr().out.split()) == completions.split()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mesure"], "evotok: No such command 'mesure'. Did you mean 'measure'? (see evotok --help)"),
        (["--bad"], "evotok: No such option: --bad (see evotok --help)"),
        (["generate", "--prompt", "x"], "evotok generate: Missing argument 'CHECKPOINT' (see evotok generate --help)"),
        (["chat", "--promt"], "evotok chat: No such option: --promt. Did you mean --prompt? (see evotok chat --help)"),
        (
            ["decode", "a", "b", "--out", "c", "--depth", "two"],
            "evotok decode: Invalid value for '--depth': Input should be a valid integer, unable to parse string as an "
            "integer (see evotok decode --help)",
        ),
        (
            ["generate", "mini", "--prompt", "--seed", "3"],
            "evotok generate: Option '--prompt' requires an argument (see evotok generate --help)",
        ),
        (
            ["generate", "mini", "--prompt", "  "],
            "evotok generate: Invalid value for '--prompt': the text is empty, write one (see evotok generate --help)",
        ),
    ],
)
def test_usage_errors_are_one_line(words, message, capsys):
    assert main(words) == 2
    assert capsys.readouterr().err == f"{message}\n"


def test_options_accept_several_words():
    prompts = parse_command(["generate", "--prompt", "a", "b c", "--seed", "1", "mini", "--prompt", "d"])["prompt"]
    assert prompts == ["a", "b c", "d"]
    assert parse_command(["export", "mini", "--out", "x", "--base-model", "a/b", "c/d"])["base_model"] == ["a/b", "c/d"]


def test_missing_folder_is_not_downloaded(here, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asks the Hub"))
    (here / "runs" / "gen").mkdir(parents=True)
    assert "Did you mean 'runs/gen'?" in refuse(capsys, "chat", "runs/gne", "--prompt", "hello")
    assert "no such folder" in refuse(capsys, "train", "configs/mini/gen.yaml", "model.checkpoint=runs/nowhere")


def test_traceback_option_raises_the_error():
    with pytest.raises(ValueError, match="no such file"):
        main(["--traceback", "decode", "mini", "nothing.safetensors", "--out", "x"])


def test_json_output_excludes_other_output(monkeypatch, capsys):
    """Libraries such as DeepSpeed print to stdout."""
    from evotok.commands import terminal

    def run(as_json: Json = False) -> None:
        print("[INFO] a library is there")
        terminal.print_results(as_json, {"a": 1}, ["a line"])

    monkeypatch.setattr(root, "registered_commands", [*root.registered_commands])
    root.command("noisy", cls=Command)(run)
    assert evotok("noisy", "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"a": 1} and "a library is there" in printed.err
    assert evotok("noisy") == 0
    assert capsys.readouterr().out == "[INFO] a library is there\na line\n"


def test_quiet_libraries_hides_developer_warnings():
    from transformers import PreTrainedConfig

    from evotok.commands.checkpoints import quiet_libraries

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        PreTrainedConfig(rope_scaling=None)
        assert any("rope_scaling" in str(warning.message) for warning in caught), "there is none any more"
        caught.clear()
        quiet_libraries()
        PreTrainedConfig(rope_scaling=None)
        assert not caught


# --- what the commands do ---------------------------------------------------------------------------------------------


def test_generate_writes_one_png_per_image_and_repeats_by_seed(checkpoint, here, capsys):
    words = ["generate", checkpoint, "--prompt", "a frog", "Two cats / 50%!", "--num-images", 2, "--seed", 3]
    assert evotok(*words, "--out", "one") == 0
    names = ["a-frog-seed3-2.png", "a-frog-seed3.png", "two-cats-50-seed3-2.png", "two-cats-50-seed3.png"]
    assert files(here / "one") == names
    assert sorted(capsys.readouterr().out.split()) == [f"one/{name}" for name in names]
    image = Image.open("one/a-frog-seed3.png")
    assert image.size == (64, 64) and image.info["prompt"] == "a frog" and image.info["seed"] == "3"
    assert evotok(*words, "--out", "two") == 0
    for name in names:
        assert Image.open(f"one/{name}").tobytes() == Image.open(f"two/{name}").tobytes()


def test_generate_accepts_sampling_values_and_keeps_files(checkpoint, here, capsys):
    sampling = ["--guidance-scale", 1, "--guidance-min-p", 0.2, "--temperature", 0, "--top-k", 5, "--top-p", 0.5]
    for seed in (1, 2, 1):
        assert evotok("generate", checkpoint, "--prompt", "a", *sampling, "--seed", seed, "--out", "a", "--json") == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["seed"] == 1 and facts["sampling"]["temperature"] == 0
    assert facts["images"] == [{"file": str(Path("a/a-seed1-2.png")), "prompt": "a"}]
    assert len({Image.open(path).tobytes() for path in (here / "a").iterdir()}) == 1, "temperature 0 is greedy"


def test_chat_with_a_prompt_answers_once(checkpoint, here, capsys):
    words = ["chat", checkpoint, "--image", "red.png", "--prompt", "What is this?", "--max-new-tokens", 4]
    assert evotok(*words) == 0
    printed = capsys.readouterr().out.strip()
    assert evotok(*words, "--json") == 0
    answer = json.loads(capsys.readouterr().out)["answer"]
    assert answer and escape_controls(answer) == printed, "escape sequences are spelled out"
    assert "shorten the question" in refuse(capsys, *words, "--image", "red.png", "--image", "red.png")


def test_chat_runs_its_commands(checkpoint, here, capsys, monkeypatch):
    lines = ["/help", "/history", "What is this?", "/image none.png", "/what", "", "/new", "/draw", "/draw a frog"]
    lines = iter([*lines, "/image ~/red.png", "And this?", "/history", "/quit", "never read"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    monkeypatch.setenv("HOME", str(here))
    assert evotok("chat", checkpoint, "--max-new-tokens", 3, "--out", "mine") == 0
    printed = capsys.readouterr()
    [generated] = (here / "mine").glob("a-frog-seed*.png")
    assert Image.open(generated).size == (64, 64)
    assert "/draw PROMPT" in printed.out and "(nothing yet)" in printed.out and f"mine/{generated.name}" in printed.out
    assert "> [image] [image] And this?" in printed.out and "> What is this?" not in printed.out
    for line, message in zip(
        printed.err.splitlines(), ("no such file", "/what is no command", "a prompt"), strict=True
    ):
        assert message in line
    assert next(lines) == "never read"
    assert "--prompt" in refuse(capsys, "chat", checkpoint, "--json")


def test_encode_and_decode_accept_both_kinds_of_checkpoint(checkpoint, tokenizer_only, here, capsys):
    Image.new("L", (9, 9), 90).save("Grey one.png")
    for source, name in ((checkpoint, "a.safetensors"), (tokenizer_only, "b.safetensors")):
        assert evotok("encode", source, "red.png", "Grey one.png", "--out", name, "--json") == 0
    images = ["red.png", "Grey one.png"]
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts == {"file": "b.safetensors", "images": images, "positions": 64, "levels": 4}
    one, two = read_codes("a.safetensors"), read_codes("b.safetensors")
    assert one.tokenizer == two.tokenizer and (one.codes == two.codes).all()
    assert one.codes.shape == (2, 64, 4) and one.codes.dtype == "uint16" and one.names == images
    assert evotok("decode", checkpoint, "b.safetensors", "--out", "full", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == {"depth": 2, "images": [f"full/{name}-depth2.png" for name in ("red", "grey-one")]}
    assert evotok("decode", tokenizer_only, "a.safetensors", "--depth", 1, "--out", "full") == 0
    assert files(here / "full") == [
        "grey-one-depth1.png", "grey-one-depth2.png", "red-depth1.png", "red-depth2.png",
    ]  # fmt: skip


def test_decode_beyond_the_pixel_levels_prints_a_note(tokenizer_only, codes_file, here, capsys):
    assert evotok("decode", tokenizer_only, codes_file, "--depth", 4, "--out", "deep") == 0
    assert "the first 2 levels code the pixels" in capsys.readouterr().err
    line = refuse(capsys, "decode", tokenizer_only, codes_file, "--depth", 5, "--out", "new")
    assert "have 4 levels, give 1 to 4" in line and not (here / "new").exists()


def test_fingerprint_covers_encoder_and_codebooks_only(tokenizer_only):
    model, _ = load_tokenizer(str(tokenizer_only))
    before = tokenizer_hash(model)
    model.pixel_decoder.conv_out.bias.data.add_(1)
    assert tokenizer_hash(model) == before
    model.quantizer.codebooks[0].weight.data[0, 0].add_(1)
    assert tokenizer_hash(model) != before


def test_demo_writes_its_images(checkpoint, here, capsys):
    assert evotok("demo", "--checkpoint", checkpoint, "--out", "demo") == 0
    images, others = files(here / "demo")[:8], files(here / "demo")[8:]
    assert all(path.startswith("images/") for path in images)
    assert others == ["questions.md", "questions.png", "reconstructions.png", "text_to_image.png"]
    assert "of 12 right" in capsys.readouterr().out
    assert all(Image.open(path).width > 800 for path in (here / "demo").glob("*.png"))
    text = (here / "demo" / "questions.md").read_text(encoding="utf-8")
    assert text.count("\n| ") == 13 and "What is this?" in text


def test_recipes_are_found_anywhere_and_accept_mini(here):
    assert find_recipe("configs/mini/tokenizer.yaml").is_file()
    _, overrides = check_recipe("configs/mini/gen.yaml", ["model.checkpoint=mini"])
    folder = read_recipe(find_recipe("configs/mini/gen.yaml"), overrides).model.checkpoint
    assert Path(folder, "config.json").is_file()
    (here / "mine.yaml").write_text("stage: gen\nmodel: {checkpoint: mini}\n")
    assert str(find_recipe("mine.yaml")) == "mine.yaml"
    assert check_recipe("mine.yaml", [])[1] == [f'model.checkpoint="{folder}"']
    assert check_recipe("configs/mini/gen.yaml", [])[1] == [], "a plan needs no checkpoint of the stage before"


def test_train_prints_a_line_while_loading(here, monkeypatch, capsys):
    printed = []

    def train(recipe, restart):
        printed.append(capsys.readouterr().err)
        return {"stage": "gen", "folder": "runs/gen", "step": 1, "train_loss": 1.0}

    (here / "mine.yaml").write_text("stage: tokenizer\ntraining: {max_steps: 1}\n")
    monkeypatch.setattr("evotok.training.train.train", train)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert evotok("train", "mine.yaml") == 0
    assert "mine.yaml: loading the model and the data ..." in printed[0]


def test_train_refuses_unknown_keys(here, capsys):
    assert "misspeld" in refuse(capsys, "train", "configs/mini/tokenizer.yaml", "misspeld.key=1")
    assert files(here) == ["red.png"]


# --- mistakes; their kinds are in the catalogue of untrusted input ----------------------------------------------------


def test_failed_commands_write_nothing(checkpoint, tokenizer_only, codes_file, here, capsys):
    shutil.copytree(checkpoint, here / "bad" / "copy")
    (here / "bad" / "copy" / "model.safetensors").write_bytes(b"half")
    (here / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"cut")
    (here / "folder.safetensors").mkdir()
    before = files(here)
    bad = here / "bad" / "copy"
    for words, message in (
        (["chat", bad, "--image", "red.png", "--prompt", "hello"], "cannot be loaded"),
        (["generate", bad, "--prompt", "a", "--out", "new/out"], "cannot be loaded"),
        (["encode", bad, "red.png", "--out", "new/out.safetensors"], "cannot be loaded"),
        (["decode", bad, codes_file, "--out", "new/out"], "cannot be loaded"),
        (["encode", checkpoint, "red.png", "cut.png", "--out", "new/out.safetensors"], "'cut.png'"),
        (["chat", checkpoint, "--image", "cut.png", "--prompt", "hello"], "'cut.png'"),
        (["generate", tokenizer_only, "--prompt", "a"], "full checkpoint"),
        (["demo", "--checkpoint", checkpoint, "--out", "red.png"], "this is a file"),
        (["encode", checkpoint, "red.png", "--out", "codes.txt"], ".safetensors"),
        (["encode", checkpoint, "red.png", "--out", "folder.safetensors"], "this is a folder"),
    ):
        assert message in refuse(capsys, *words)
        assert files(here) == before and not (here / "new").exists()


# --- files ------------------------------------------------------------------------------------------------------------


def test_new_files_writes_all_files_or_none(tmp_path):
    with pytest.raises(RuntimeError), new_files(tmp_path / "a" / "b") as reserve:
        reserve("one.txt").write_text("1")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):
        with new_files(tmp_path / "a") as reserve:
            reserve("one.txt").write_text("1")
            reserve("one.txt").write_text("2")
    assert files(tmp_path / "a") == ["one-2.txt", "one-3.txt", "one-4.txt", "one.txt"]


def test_new_files_writes_nothing_on_a_full_disk(tmp_path, monkeypatch):
    def fail(handle):
        raise OSError(errno.ENOSPC, "disk full")

    with pytest.raises(OSError, match="full"), new_files(tmp_path / "a") as reserve:
        reserve("one.txt").write_text("1")
        monkeypatch.setattr(os, "fsync", fail)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "name"),
    [("a café, 3D!", "a-cafe-3d"), ("../../etc/passwd", "etc-passwd"), ("猫", "image"), ("x" * 99, "x" * 48)],
)
def test_safe_name_is_valid_on_every_system(text, name):
    assert safe_name(text) == name
