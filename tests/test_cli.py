"""The command line on a tiny random checkpoint: what each command does, and one line for every mistake."""

import ast
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
from evotok.cli import COMMANDS, main
from evotok.commands.checkpoints import load_tokenizer
from evotok.commands.codes import Codes, read_codes, write_codes
from evotok.commands.files import new_files, safe_name
from evotok.commands.recipes import check_recipe, find_recipe
from evotok.training.arguments import read_recipe
from evotok.training.fingerprint import fingerprint
from evotok.training.messages import visible
from evotok.training.text_tokenizer import train_text_tokenizer


ROOT = str(Path(__file__).parents[1])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A full checkpoint: 64 px (the size of the emoji), 8 x 8 positions, 4 levels, 2 of them for pixels."""
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
    build_tiny_model(config, seed=1).model.vq_model.save_pretrained(folder.with_name("other"))
    return folder


@pytest.fixture(scope="module")
def tokenizer_only(checkpoint):
    return checkpoint.with_name("tokenizer")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder with one picture in it."""
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
    """Runs a command that must fail as a user's mistake; returns its one line."""
    capsys.readouterr()
    assert evotok(*words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"evotok {words[0]}: "), lines
    return lines[0]


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- the command line itself ------------------------------------------------------------------------------------------


def test_help_names_every_command(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^. {name} ", text, re.MULTILINE) for name in COMMANDS)
    assert "Exit codes:" in text and "\x1b" not in text, "no colors where nobody looks on"
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("evotok 0.")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_examples_and_says_how_programs_call_it(name, capsys):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f" evotok {name}" in text.split("Examples:")[1]
    assert ("--json" in text) == (name not in ("app", "serve")), "a page says no facts"


def test_exit_codes_and_commands_are_documented(capsys):
    main(["--help"])
    codes = re.findall(r"^ +(\d+)  ", capsys.readouterr().out, re.MULTILINE)
    text = Path(ROOT, "docs", "command-line.md").read_text(encoding="utf-8")
    assert codes == re.findall(r"^\| (\d+) \|", text, re.MULTILINE) == ["0", "1", "2", "130"]
    assert set(re.findall(r"^\| `evotok ([\w-]+)", text, re.MULTILINE)) == set(COMMANDS)


NOT_LOADED = """
import sys, time
from evotok.cli import main
code = main(sys.argv[1:])
print("torch" in sys.modules, time.process_time(), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--help"], 0, ""),
        (["train", "nowhere.yaml"], 2, "no such recipe"),
        (["train", "configs/mini/gne.yaml"], 2, "Did you mean configs/mini/gen.yaml?"),
        (["train", "configs/mini/gen.yaml", "steps"], 2, "section.key=value"),
        (["plan", "configs/mini/gen.yaml", "--gpu", "h1000"], 2, "did you mean 'h100'?"),
        (["data", "check", "nowhere.yaml"], 2, "no such recipe"),
        (["generate", "mni", "--prompt", "a frog"], 2, "Did you mean 'mini'?"),
        (["generate", "mini", "--prompt", "a frog", "--top-p", "0"], 2, "above 0"),
        (["chat", "mini", "--image", "nowhere.png", "--prompt", "hello"], 2, "no such file"),
        (["encode", "mini", "nowhere.png", "--out", "a.safetensors"], 2, "no such file"),
        (["decode", "mini", "nowhere.safetensors", "--out", "a"], 2, "no such file"),
        (["export", "mini", "--out", "red.png"], 2, "give a folder"),
        (["convert", "mini", "--to-reference", "--out", "red.png"], 2, "this is there already"),
        (["eval", "reconstrution", "mini"], 2, "Did you mean 'reconstruction'?"),
        (["eval", "reconstruction", "mini", "--config", "nowhere.yaml"], 2, "no such recipe"),
        (["measure", "--only", "everything"], 2, "not one of"),
        (["bench", "quantizer", "--size", "paper"], 2, "takes full or tiny"),
        (["app", "--host", "no such host"], 2, "cannot listen"),
    ],
)
def test_mistakes_in_arguments_are_reported_before_torch_is_imported(words, code, message, here):
    command = [sys.executable, "-c", NOT_LOADED, *words]
    environment = os.environ | {"PYTHONPATH": ROOT}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    *said, end = result.stderr.splitlines()
    loaded, seconds = end.split()
    assert result.returncode == code and loaded == "False", result.stderr
    assert message in " ".join(said) and len(said) == (code == 2)
    assert float(seconds) < (0.5 if words == ["--help"] else 1)


@pytest.mark.parametrize("folder", ["evotok", "training", "eval"])
def test_every_progress_bar_asks_whether_somebody_looks_on(folder):
    for path in Path(ROOT, folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "tqdm":
                assert "disable" in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"


COMPLETED = [
    ("evotok ge", "generate"),
    ("evotok decode --de", "--depth"),
    ("evotok export mini --out a --dtype fl", "float16 float32"),
    ("evotok chat mi", "mini"),
    ("evotok train configs/mini/tokenizer", "configs/mini/tokenizer-semantics.yaml configs/mini/tokenizer.yaml"),
    ("evotok train configs/mini/gen.yaml training.max_s", "training.max_steps="),
    ("evotok plan configs/mini/gen.yaml --gpu rtx", "rtx3090 rtx4090"),
]


@pytest.mark.parametrize(("typed", "offered"), COMPLETED, ids=[typed for typed, _ in COMPLETED])
def test_completion_answers_the_shell(typed, offered, here):
    """As the script of bash asks: the line typed in the environment, the answer on stdout."""
    environment = os.environ | {"_EVOTOK_COMPLETE": "complete_bash", "COMP_WORDS": typed, "PYTHONPATH": ROOT}
    environment["COMP_CWORD"] = str(len(typed.split()) - 1)
    command = [sys.executable, "-c", "from evotok.cli import main; main()"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert sorted(result.stdout.split()) == offered.split()


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
    ],
)
def test_mistakes_in_the_words_are_one_line(words, message, capsys):
    assert main(words) == 2
    assert capsys.readouterr().err == f"{message}\n"


@pytest.mark.parametrize("words", [["generate", "mini"], ["chat", "mini"]])
@pytest.mark.parametrize("prompt", ["", "  "])
def test_empty_prompts_are_refused(words, prompt, capsys):
    assert main([*words, "--prompt", prompt]) == 2
    assert "'--prompt': the text is empty, write one" in capsys.readouterr().err


def test_options_of_several_words(checkpoint):
    prompts = parse_command(["generate", "--prompt", "a", "b c", "--seed", "1", "mini", "--prompt", "d"])["prompt"]
    assert prompts == ["a", "b c", "d"]
    assert parse_command(["export", "mini", "--out", "x", "--base-model", "a/b", "c/d"])["base_model"] == ["a/b", "c/d"]


def test_a_folder_that_is_not_there_is_not_sought_at_the_hub(here, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asks the Hub"))
    (here / "runs" / "gen").mkdir(parents=True)
    assert "Did you mean 'runs/gen'?" in refuse(capsys, "chat", "runs/gne", "--prompt", "hello")
    assert "no such folder" in refuse(capsys, "train", "configs/mini/gen.yaml", "model.checkpoint=runs/nowhere")


def test_as_a_process_it_leaves_no_traceback(tmp_path):
    command = [sys.executable, "-m", "evotok.cli", "decode", str(tmp_path), "nothing.safetensors", "--out", "x"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1 and "no such file" in result.stderr


def test_traceback_can_be_asked_for():
    with pytest.raises(ValueError, match="no such file"):
        main(["--traceback", "decode", "mini", "nothing.safetensors", "--out", "x"])


# --- what the commands do ---------------------------------------------------------------------------------------------


def test_generate_writes_one_png_for_each_image_and_repeats_by_seed(checkpoint, here, capsys):
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
    assert evotok(*words, "--out", "one") == 0
    assert len(files(here / "one")) == 8, "nothing is overwritten"


def test_generate_takes_sampling_values(checkpoint, here):
    sampling = ["--guidance-scale", 1, "--guidance-min-p", 0.2, "--temperature", 0, "--top-k", 5, "--top-p", 0.5]
    assert evotok("generate", checkpoint, "--prompt", "a", *sampling, "--seed", 1, "--out", "a") == 0
    assert evotok("generate", checkpoint, "--prompt", "a", *sampling, "--seed", 2, "--out", "b") == 0
    assert Image.open("a/a-seed1.png").tobytes() == Image.open("b/a-seed2.png").tobytes(), "temperature 0 draws no lots"


def test_chat_answers_once(checkpoint, here, capsys):
    words = ["chat", checkpoint, "--image", "red.png", "--prompt", "What is this?", "--max-new-tokens", 4]
    assert evotok(*words) == 0
    said = capsys.readouterr().out.strip()
    assert said
    assert evotok(*words, "--json") == 0
    answer = json.loads(capsys.readouterr().out)["answer"]
    assert visible(answer) == said, "a terminal obeys nothing of it"
    assert "shorten the question" in refuse(capsys, *words, "--image", "red.png", "--image", "red.png")


def test_chat_converses(checkpoint, here, capsys, monkeypatch):
    lines = iter(
        ["What is this?", "/image none.png", "/what", "", "/new", "/image red.png", "And this?", "/quit", "no"]
    )
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert evotok("chat", checkpoint, "--max-new-tokens", 3) == 0
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 2 and "no such file" in said.err and "/what is not known" in said.err
    assert next(lines) == "no"


def test_chat_draws_and_remembers(checkpoint, here, capsys, monkeypatch):
    lines = iter(["/help", "/history", "/draw", "/draw a frog", "/image ~/red.png", "And this?", "/history"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, None) or _end())
    monkeypatch.setenv("HOME", str(here))
    assert evotok("chat", checkpoint, "--max-new-tokens", 3, "--out", "mine") == 0
    said = capsys.readouterr()
    [drawn] = (here / "mine").glob("a-frog-seed*.png")
    assert Image.open(drawn).size == (64, 64)
    assert "/draw PROMPT" in said.out and "(nothing yet)" in said.out and f"mine/{drawn.name}" in said.out
    assert "> [image] [image] And this?" in said.out, "the drawing is shown to the model as well"
    assert "wants to know what" in said.err and "--prompt" in refuse(capsys, "chat", checkpoint, "--json")


def _end():
    raise EOFError


def test_what_libraries_print_is_not_beside_the_json(monkeypatch, capsys):
    """As DeepSpeed's logger does, where it is installed."""
    from evotok.cli import Command, root
    from evotok.commands import terminal
    from evotok.commands.options import Json

    def run(as_json: Json = False) -> None:
        print("[INFO] a library is there")
        terminal.say(as_json, {"a": 1}, ["a line"])

    monkeypatch.setattr(root, "registered_commands", [*root.registered_commands])
    root.command("noisy", cls=Command)(run)
    assert evotok("noisy", "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"a": 1} and "a library is there" in said.err
    assert evotok("noisy") == 0
    assert capsys.readouterr().out == "[INFO] a library is there\na line\n"


def test_warnings_for_programmers_are_not_for_people(capsys):
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


def test_json_for_programs(checkpoint, here, capsys):
    def facts(*words):
        capsys.readouterr()
        assert evotok(*words, "--json") == 0
        return json.loads(capsys.readouterr().out)

    drawn = facts("generate", checkpoint, "--prompt", "a frog", "--seed", 5, "--temperature", 0, "--out", "drawn")
    assert drawn["seed"] == 5 and drawn["sampling"]["temperature"] == 0
    assert drawn["images"] == [{"file": str(Path("drawn/a-frog-seed5.png")), "prompt": "a frog"}]
    encoded = facts("encode", checkpoint, "red.png", "--out", "codes.safetensors")
    assert encoded == {"file": "codes.safetensors", "images": ["red.png"], "positions": 64, "levels": 4}
    decoded = facts("decode", checkpoint, "codes.safetensors", "--out", "decoded")
    assert decoded == {"depth": 2, "images": [str(Path("decoded/red-depth2.png"))]}
    exported = facts("export", checkpoint, "--out", "exported")
    assert exported["weights_bytes"] == (here / "exported" / "model.safetensors").stat().st_size


def test_encode_and_decode_with_either_kind_of_checkpoint(checkpoint, tokenizer_only, here, capsys):
    Image.new("L", (9, 9), 90).save("Grey one.png")
    for source, name in ((checkpoint, "a.safetensors"), (tokenizer_only, "b.safetensors")):
        assert evotok("encode", source, "red.png", "Grey one.png", "--out", name) == 0
    one, two = read_codes("a.safetensors"), read_codes("b.safetensors")
    assert one.tokenizer == two.tokenizer and (one.codes == two.codes).all()
    assert one.codes.shape == (2, 64, 4) and one.codes.dtype == "uint16" and one.names == ["red.png", "Grey one.png"]
    assert evotok("decode", checkpoint, "b.safetensors", "--out", "full") == 0
    assert evotok("decode", tokenizer_only, "a.safetensors", "--depth", 1, "--out", "full") == 0
    assert files(here / "full") == [
        "grey-one-depth1.png", "grey-one-depth2.png", "red-depth1.png", "red-depth2.png",
    ]  # fmt: skip


def test_decode_deeper_than_pixels_says_so(tokenizer_only, codes_file, here, capsys):
    assert evotok("decode", tokenizer_only, codes_file, "--depth", 4, "--out", "deep") == 0
    assert "pixels were learned from 2 levels" in capsys.readouterr().err


def test_fingerprint_is_of_the_encoder_and_codebooks_only(tokenizer_only):
    model, _ = load_tokenizer(str(tokenizer_only))
    before = fingerprint(model)
    model.pixel_decoder.conv_out.bias.data.add_(1)
    assert fingerprint(model) == before
    model.quantizer.codebooks[0].weight.data[0, 0].add_(1)
    assert fingerprint(model) != before


def test_demo_writes_its_pictures(checkpoint, here, capsys):
    assert evotok("demo", "--checkpoint", checkpoint, "--out", "demo") == 0
    images, others = files(here / "demo")[:8], files(here / "demo")[8:]
    assert all(path.startswith("images/") for path in images)
    assert others == ["questions.md", "questions.png", "reconstructions.png", "text_to_image.png"]
    assert "of 12 right" in capsys.readouterr().out
    assert all(Image.open(path).width > 800 for path in (here / "demo").glob("*.png"))
    text = (here / "demo" / "questions.md").read_text(encoding="utf-8")
    assert text.count("\n| ") == 13 and "What is this?" in text


def test_train_finds_shipped_recipes_anywhere(here):
    assert find_recipe("configs/mini/tokenizer.yaml").is_file()
    (here / "mine.yaml").write_text("stage: gen")
    assert str(find_recipe("mine.yaml")) == "mine.yaml"


def test_recipes_take_mini_as_a_checkpoint(here):
    _, overrides = check_recipe("configs/mini/gen.yaml", ["model.checkpoint=mini"])
    folder = read_recipe(find_recipe("configs/mini/gen.yaml"), overrides).model.checkpoint
    assert Path(folder, "config.json").is_file()
    (here / "mine.yaml").write_text("stage: gen\nmodel: {checkpoint: mini}\n")
    assert check_recipe("mine.yaml", [])[1] == [f'model.checkpoint="{folder}"']
    assert check_recipe("configs/mini/gen.yaml", [])[1] == [], "a plan can be made before the stage before is trained"


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_train_refuses_misspelled_keys(here, capsys):
    assert "misspeld" in refuse(capsys, "train", "configs/mini/tokenizer.yaml", "misspeld.key=1")
    assert "no such recipe" in refuse(capsys, "train", "nowhere.yaml")
    assert files(here) == ["red.png"]


@pytest.mark.parametrize("command", ["chat", "generate", "encode", "decode"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: [path.unlink() for path in folder.glob("*.safetensors")], "no weights"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'), "not of EvoTok"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"half"), "cannot be loaded"),
        (shutil.rmtree, "no such folder"),
    ],
    ids=["no weights", "no config", "damaged config", "another model", "damaged weights", "no folder"],
)
def test_bad_checkpoints(command, spoil, message, checkpoint, codes_file, here, capsys):
    shutil.copytree(checkpoint, here / "bad" / "copy")
    spoil(here / "bad" / "copy")
    before = files(here)
    words = {
        "chat": ["--image", "red.png", "--prompt", "hello"],
        "generate": ["--prompt", "a", "--out", "new/out"],
        "encode": ["red.png", "--out", "new/out.safetensors"],
        "decode": [codes_file, "--out", "new/out"],
    }[command]
    assert message in refuse(capsys, command, here / "bad" / "copy", *words)
    assert files(here) == before and not (here / "new").exists()


def test_weights_of_another_config(checkpoint, here, capsys):
    shutil.copytree(checkpoint, here / "bad")
    config = json.loads((here / "bad" / "config.json").read_text())
    config["text_config"] |= {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
    (here / "bad" / "config.json").write_text(json.dumps(config))
    assert "not of one checkpoint" in refuse(capsys, "chat", "bad", "--prompt", "hello")


def test_a_tokenizer_alone_cannot_talk(tokenizer_only, here, capsys):
    assert "full checkpoint" in refuse(capsys, "generate", tokenizer_only, "--prompt", "a")
    assert files(here) == ["red.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no image at all", "not an image"), (b"\x89PNG\r\n\x1a\n" + b"cut", "'bad.png'"), (None, "no such file")],
    ids=["text", "cut off", "missing"],
)
def test_bad_images(content, message, checkpoint, here, capsys):
    if content is not None:
        (here / "bad.png").write_bytes(content)
    before = files(here)
    assert message in refuse(capsys, "encode", checkpoint, "red.png", "bad.png", "--out", "new/out.safetensors")
    assert message in refuse(capsys, "chat", checkpoint, "--image", "bad.png", "--prompt", "hello")
    assert files(here) == before and not (here / "new").exists()


def test_image_over_the_size_limit(checkpoint, here, capsys):
    Image.new("1", (8100, 8000)).save("big.png")
    line = refuse(capsys, "encode", checkpoint, "big.png", "--out", "out.safetensors")
    assert "8100 x 8000" in line and "scale the image down" in line
    assert files(here) == ["big.png", "red.png"]


def test_prompt_longer_than_the_context(checkpoint, here, capsys):
    words = " ".join(["frog"] * 300)
    assert "shorten the prompt" in refuse(capsys, "generate", checkpoint, "--prompt", words, "--out", "new/out")
    assert "shorten the question" in refuse(capsys, "chat", checkpoint, "--prompt", words)
    assert files(here) == ["red.png"] and not (here / "new").exists()


@pytest.mark.parametrize("option", ["--num-images", "--guidance-scale", "--temperature", "--top-p", "--guidance-min-p"])
def test_sampling_out_of_range(option, checkpoint, here, capsys):
    refuse(capsys, "generate", checkpoint, "--prompt", "a", option, "-1", "--out", "out")
    assert files(here) == ["red.png"]


@pytest.mark.parametrize("depth", [0, -1, 5])
def test_unknown_depth(depth, tokenizer_only, codes_file, here, capsys):
    line = refuse(capsys, "decode", tokenizer_only, codes_file, "--depth", depth, "--out", "new")
    assert "have 4 levels, give 1 to 4" in line and not (here / "new").exists()


def test_codes_of_another_tokenizer(tokenizer_only, codes_file, here, capsys):
    line = refuse(capsys, "decode", tokenizer_only.with_name("other"), codes_file, "--out", "new")
    assert "another tokenizer" in line and not (here / "new").exists()


def test_codes_out_of_range(tokenizer_only, codes_file, here, capsys):
    content = read_codes(codes_file)
    content.codes[0, 0, 0] = 32
    write_codes(codes_file, content)
    line = refuse(capsys, "decode", tokenizer_only, codes_file, "--out", "new")
    assert "32 entries" in line and not (here / "new").exists()


@pytest.mark.parametrize("kind", ["missing", "text", "weights", "cut off", "wrong shape", "no names"])
def test_bad_files_of_codes(kind, tokenizer_only, codes_file, here, capsys):
    content = read_codes(codes_file)
    if kind == "missing":
        codes_file.unlink()
    elif kind == "text":
        codes_file.write_text("codes")
    elif kind == "weights":
        shutil.copy(tokenizer_only / "model.safetensors", codes_file)
    elif kind == "cut off":
        codes_file.write_bytes(codes_file.read_bytes()[:-9])
    elif kind == "wrong shape":
        write_codes(codes_file, Codes(content.codes[:, :5], content.names, content.tokenizer))
    else:
        write_codes(codes_file, Codes(content.codes, [], content.tokenizer))
    refuse(capsys, "decode", tokenizer_only, codes_file, "--out", "new")
    assert not (here / "new").exists()


def test_places_that_cannot_be_written(checkpoint, codes_file, here, capsys):
    refuse(capsys, "generate", checkpoint, "--prompt", "a", "--out", "red.png")
    refuse(capsys, "decode", checkpoint, codes_file, "--out", "red.png")
    refuse(capsys, "demo", "--checkpoint", checkpoint, "--out", "red.png")
    refuse(capsys, "encode", checkpoint, "red.png", "--out", "codes.txt")
    (here / "folder.safetensors").mkdir()
    refuse(capsys, "encode", checkpoint, "red.png", "--out", "folder.safetensors")
    assert files(here) == ["codes.safetensors", "red.png"]


# --- files ------------------------------------------------------------------------------------------------------------


def test_new_files_come_all_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), new_files(tmp_path / "a" / "b") as reserve:
        reserve("one.txt").write_text("1")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):
        with new_files(tmp_path / "a") as reserve:
            reserve("one.txt").write_text("1")
            reserve("one.txt").write_text("2")
    assert files(tmp_path / "a") == ["one-2.txt", "one-3.txt", "one-4.txt", "one.txt"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a café, 3D!", "a-cafe-3d"), ("../../etc/passwd", "etc-passwd"), ("猫", "image"), ("", "image"),
        ("x" * 99, "x" * 48), ("CON: nul", "con-nul"),
    ],
)  # fmt: skip
def test_safe_names(text, name):
    assert safe_name(text) == name
