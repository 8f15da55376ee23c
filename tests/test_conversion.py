"""Conversion of the release's checkpoints, both ways, against the outputs of the release (release_format.py)."""

import argparse
import copy
import enum
import json
import os
import pathlib
import pickle
import re
import shutil
import sys
import types

import pytest
import torch
from conftest import build_chat_model
from release_format import (
    LEVELS,
    PIXEL_LEVELS,
    SIZES,
    depth_logits,
    encode,
    make_depth,
    make_projector,
    make_tokenizer,
    pixels_of,
    prefixed,
    project,
    save_language_model,
    save_tokenizer,
    semantics,
)
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from evotok import EvoTokForConditionalGeneration, EvoTokProcessor, EvoTokVQModel
from evotok.cli import main
from evotok.conversion.sizes import Choices, depth_decoder_config, tokenizer_config
from evotok.conversion.sources import DEPTH_DECODER, TOKENIZER, Piece
from evotok.training.backbones import text_tokenizer
from evotok.training.backbones.text_tokenizer import train_text_tokenizer


TOWER, DEPTH, PROJECTOR = "model.vision_tower.vision_tower.", "model.vision_tower.rqtransformer.", "model.mm_projector."
TEXT = {
    "hidden_size": SIZES["hidden"], "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip


def close(actual, expected):
    """Checks that values differ by at most 1e-4 of the largest one."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def convert(*words):
    return main(["convert", *map(str, words)])


def refuse(capsys, *words):
    capsys.readouterr()
    assert convert(*words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and len(lines[0]) < 500, lines
    return lines[0]


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5)) * 2.4 - 1.2


@pytest.fixture(scope="module")
def state():
    return make_tokenizer()


@pytest.fixture(scope="module")
def converted(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder / "last.pt", state)
    assert convert(folder / "last.pt", "--out", folder / "ours") == 0
    return folder / "ours"


def check_tokenizer(model, state, pixels, size=None):
    codes, pixel_sum, semantic_sum = encode(state, pixels)
    assert len(codes.unique()) > 20 and (codes[0] != codes[1]).any()
    assert torch.equal(model.encode(pixels), codes)
    with torch.no_grad():
        close(model.decode_pixels(codes), pixels_of(state, pixel_sum, size))
        close(model.decode_semantics(codes), semantics(state, semantic_sum))


# --- the tokenizer ----------------------------------------------------------------------------------------------------


def test_tokenizer_equals_the_release(converted, state, pixels):
    model = EvoTokVQModel.from_pretrained(converted)
    check_tokenizer(model, state, pixels)
    config = model.config
    assert config.encoder_config.num_hidden_layers == SIZES["encoder_layers"] - 1 and not config.pixel_resize
    assert (config.codebook_size, config.num_codebooks, config.num_pixel_codebooks) == (61, 16, 4)
    book = model.quantizer.codebooks[3]
    assert torch.equal(book.vector_sum, state["quantize.codebooks.3.embed_ema"]) and book.step == 73


def test_tokenizer_converted_back_is_equal(converted, state, tmp_path, capsys):
    capsys.readouterr()
    assert convert(converted, "--to-reference", "--out", tmp_path / "back", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(tmp_path / "back"), "files": ["last.pt"]}
    with torch.serialization.safe_globals([argparse.Namespace]):
        back = torch.load(tmp_path / "back" / "last.pt", weights_only=True)
    assert back["model"].keys() == state.keys()
    never_run = ("encoder_vqkd.vision_model.encoder.layers.2.", "post_layernorm", "vision_model.head.")
    for name, tensor in state.items():
        assert back["model"][name].shape == tensor.shape and back["model"][name].dtype == tensor.dtype, name
        tensor = tensor[:-1] if "codebooks" in name and name.endswith("weight") else tensor
        if not any(part in name for part in never_run):
            assert torch.equal(back["model"][name][: len(tensor)] if tensor.ndim else back["model"][name], tensor), name
    assert convert(tmp_path / "back", "--out", tmp_path / "again", "--json") == 0
    files = [folder / "model.safetensors" for folder in (converted, tmp_path / "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    numbers = sum(tensor.numel() for tensor in load_file(files[0]).values())
    assert json.loads(capsys.readouterr().out) == {"folder": str(tmp_path / "again"), "numbers": numbers, "fresh": []}


def variants():
    """Returns functions of a state dict that return the content of a file of `torch.save`, by name."""
    parameters = torch.nn.Parameter
    return {
        "ema first": lambda s: {"ema": s, "model": {k: v * 0 for k, v in s.items()}, "args": argparse.Namespace()},
        "ema none": lambda s: {"ema": None, "model": s},
        "state_dict": lambda s: {"state_dict": s, "args": {"teacher": "siglip_64"}},
        "bare": lambda s: s,
        "ddp": lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
        "transformers 5": lambda s: {"model": {k.replace("vision_model.", ""): v for k, v in s.items()}},
        "no step": lambda s: {"model": {k: v for k, v in s.items() if not k.endswith((".step", "_ema"))}},
        "parameters": lambda s: {"model": {k: parameters(v, v.is_floating_point()) for k, v in s.items()}},
        "no constants": lambda s: {
            "model": {k: v for k, v in s.items() if not k.startswith(("scaling", "quantize.c_"))}
        },
    }


@pytest.mark.parametrize("name", variants())
def test_tokenizer_files_of_each_form_are_read(name, state, pixels, tmp_path):
    torch.save(variants()[name](state), tmp_path / "any.pt", _use_new_zipfile_serialization=name != "ddp")
    assert convert(tmp_path / "any.pt", "--out", tmp_path / "ours") == 0
    model = EvoTokVQModel.from_pretrained(tmp_path / "ours")
    assert torch.equal(model.encode(pixels), encode(state, pixels)[0])
    assert model.config.codebook_keeps_sums == (name != "no step")


def test_half_precision_is_widened_exactly(state, pixels, tmp_path):
    half = {name: x.bfloat16() if x.is_floating_point() else x for name, x in state.items()}
    save_tokenizer(tmp_path / "last.pt", half)
    assert convert(tmp_path / "last.pt", "--out", tmp_path / "ours") == 0
    model = EvoTokVQModel.from_pretrained(tmp_path / "ours")
    assert model.dtype == torch.float32
    check_tokenizer(model, {name: x.float() for name, x in half.items()}, pixels)


def test_tokenizer_of_patch_14_resizes_its_reconstructions(tmp_path):
    """3 x 3 positions of 14 px have 48 decoded px, resized to 54, as 27 x 27 positions have 432, resized to 384."""
    state = make_tokenizer(patch=14, image=54)
    save_tokenizer(tmp_path / "last.pt", state, teacher="siglip_54")
    assert convert(tmp_path / "last.pt", "--out", tmp_path / "ours") == 0
    model = EvoTokVQModel.from_pretrained(tmp_path / "ours")
    assert model.config.pixel_resize and (model.config.image_size, model.config.grid_size) == (54, 3)
    check_tokenizer(model, state, torch.rand(2, 3, 54, 54) * 2 - 1, size=54)
    assert convert(tmp_path / "ours", "--to-reference", "--out", tmp_path / "back") == 0
    assert convert(tmp_path / "back", "--out", tmp_path / "again") == 0
    assert EvoTokVQModel.from_pretrained(tmp_path / "again").config.image_size == 54


@pytest.mark.parametrize(
    ("width", "patch", "side", "facts", "choice", "size", "heads"),
    [
        (768, 16, 256, {}, None, 256, 12),
        (1024, 16, 256, {}, None, 256, 16),
        (1152, 14, 378, {}, None, 384, 16),
        (1152, 14, 378, {"teacher": "siglip_384"}, None, 384, 16),
        (1152, 14, 378, {"image_size": 380}, None, 380, 16),
        (1152, 14, 378, {}, 378, 378, 16),
    ],
)
def test_tokenizer_config_has_the_released_sizes(width, patch, side, facts, choice, size, heads):
    """The tensors of the released widths have shapes only."""
    state = make_tokenizer(width=12, patch=patch, image=side, widths=(32,) * 5)
    wide = {
        name.replace("vision_model.", ""): torch.empty([width if n == 12 else n for n in x.shape], device="meta")
        for name, x in state.items()
    }
    choices = Choices(image_size=choice, semantic_heads=16)
    config = tokenizer_config(Piece(TOKENIZER, pathlib.Path("x"), wide, facts), choices)
    assert (config.image_size, config.grid_size, config.pixel_resize) == (size, side // patch, patch == 14)
    assert config.encoder_config.num_attention_heads == heads


def test_assumed_sizes_are_reported(state, converted, tmp_path, capsys):
    """No shape determines the number of heads; with a wrong one the model loads, and its codes are wrong."""
    save_tokenizer(tmp_path / "last.pt", state)
    capsys.readouterr()
    assert convert(tmp_path / "last.pt", "--out", tmp_path / "ours") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert "--encoder-heads 16 --semantic-heads 12 --pixel-levels 4. If they are wrong, the codes are wrong" in line
    assert "a guess" in line, "of no size of the release"
    heads = ["--encoder-heads", 8, "--semantic-heads", 24, "--pixel-levels", 4]
    assert convert(tmp_path / "last.pt", "--out", tmp_path / "eight", *heads, "--json") == 0
    assert "assumed" not in json.loads(capsys.readouterr().out)
    assert convert(tmp_path / "last.pt", "--out", tmp_path / "some", *heads[:2], "--json") == 0
    assert json.loads(capsys.readouterr().out)["assumed"] == {"semantic_heads": 12, "pixel_levels": 4}
    eight = EvoTokVQModel.from_pretrained(tmp_path / "eight")
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    assert (eight.encode(pixels) == EvoTokVQModel.from_pretrained(converted).encode(pixels)).float().mean() < 0.5
    assert convert(tmp_path / "eight", "--to-reference", "--out", tmp_path / "back") == 0
    assert convert(tmp_path / "back", "--out", tmp_path / "again") == 0
    assert torch.equal(EvoTokVQModel.from_pretrained(tmp_path / "again").encode(pixels), eight.encode(pixels))


# --- the whole model --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def release(tmp_path_factory, state):
    """Returns the folders of both models, which share one language model, and their tensors."""
    folder = tmp_path_factory.mktemp("release")
    tokenizer = train_text_tokenizer(["You are a helpful assistant. user what is this? a red cat"] * 2, vocab_size=300)
    torch.manual_seed(3)
    config = Qwen2Config(vocab_size=303, **TEXT, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    model = Qwen2ForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2) if parameter.ndim > 1 else parameter.data.add_(0.3)
    language = {name: x.detach().clone() for name, x in model.state_dict().items()}
    parts = {
        "model": model, "language": language, "tokenizer": state, "depth": make_depth(), "text": tokenizer,
        "understanding": make_projector(SIZES["width"], seed=8), "generation": make_projector(SIZES["dim"], seed=9),
        "folder": folder,
    }  # fmt: skip
    fields = TEXT | {"model_type": "llava_qwen", "architectures": ["LlavaQwenForCausalLM"], "rope_theta": 5e5}
    fields |= {"rope_scaling": None, "torch_dtype": "float32", "mm_projector_type": "mlp2x_gelu"}
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    short = {name: x[:301] if name in tables else x for name, x in language.items()}
    towers = prefixed(TOWER, state)
    shared = short | towers | prefixed(PROJECTOR, parts["understanding"])
    facts = fields | {"vocab_size": 301, "mm_use_im_start_end": False, "mm_hidden_size": SIZES["width"]}
    save_language_model(folder / "understanding", shared, facts)
    tokenizer.add_tokens(["[PAD]"], special_tokens=True)
    tokenizer.save_pretrained(folder / "understanding")
    towers = {name: x for name, x in towers.items() if not name.endswith(".step")}
    own = language | towers | prefixed(PROJECTOR, parts["generation"]) | prefixed(DEPTH, parts["depth"])
    facts = fields | {"vocab_size": 303, "mm_use_im_start_end": True, "mm_hidden_size": SIZES["dim"]}
    save_language_model(folder / "generation", own, facts, form="bin", shards=3)
    tokenizer.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
    tokenizer.save_pretrained(folder / "generation")
    assert len(tokenizer) == 303 and tokenizer.convert_tokens_to_ids("<im_start>") == 301
    return parts


@pytest.fixture(scope="module")
def merged(release):
    out = release["folder"].with_name("merged")
    assert convert(release["folder"] / "understanding", release["folder"] / "generation", "--out", out) == 0
    return out


def load(folder):
    model, info = EvoTokForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


@torch.no_grad()
def check_model(model, release, pixels):
    """Checks the language model's inputs and logits and the depth decoder's logits for an image of either kind."""
    state, language, table = release["tokenizer"], release["model"], release["language"]["model.embed_tokens.weight"]
    codes, pixel_sum, semantic_sum = encode(state, pixels)
    config, n = model.config, codes.shape[1]
    start, end = config.vision_start_token_id, config.vision_end_token_id
    given, written = [config.image_token_id] * n, [config.image_generation_token_id] * n
    ids = torch.tensor([[5, 6, *given, 7, 8, start, *written, end, 9]])
    expected = table[ids.clamp(max=len(table) - 1)].clone()
    expected[0, 2 : 2 + n] = project(release["understanding"], semantics(state, semantic_sum[:1]))[0]
    first = ids[0].tolist().index(written[0])
    expected[0, first : first + n] = project(release["generation"], pixel_sum[1:])[0]
    images = {"pixel_values": pixels[:1], "generation_pixel_values": pixels[1:]}
    close(model.model.embed_inputs(ids, **images).inputs_embeds, expected)
    out = model(ids, **images)
    wanted = language(inputs_embeds=expected, output_hidden_states=True)
    close(out.logits[..., : len(table)], wanted.logits)
    hidden = wanted.hidden_states[-1][0, first - 1 : first - 1 + n]
    mine = codes[1, :, :PIXEL_LEVELS]
    books = [state[f"quantize.codebooks.{level}.weight"] for level in range(PIXEL_LEVELS)]
    vectors = torch.stack([books[level][mine[:, level]] for level in range(PIXEL_LEVELS)], 1)
    close(model.depth_decoder(hidden, vectors).logits, depth_logits(release["depth"], hidden, vectors))
    labels = torch.where(ids == config.image_generation_token_id, ids, -100)
    logits = depth_logits(release["depth"], hidden, vectors)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), mine.flatten())
    close(model(ids, **images, labels=labels).image_loss, loss)


def test_merged_model_equals_both_releases(merged, release, pixels):
    model = load(merged)
    check_tokenizer(model.model.vq_model, release["tokenizer"], pixels)
    check_model(model, release, pixels)
    assert model.lm_head.weight.shape[0] == 303, "no rows beyond the release's"


def test_processor_has_the_layout_of_the_release(merged):
    processor = EvoTokProcessor.from_pretrained(merged)
    image = {"type": "image"}
    chat = [{"role": "user", "content": [image, {"type": "text", "text": " what?"}]}]
    text = processor.apply_chat_template([*chat, {"role": "assistant", "content": [image]}], tokenize=False)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|image_pad|> what?<|im_end|>\n"
        "<|im_start|>assistant\n<im_start><|image_gen|><im_end><|im_end|>\n"
    )
    assert processor.num_image_tokens == 16 and processor.token_ids["vision_start_token_id"] == 301


def test_merged_model_generates_and_answers(merged):
    model, processor = load(merged), EvoTokProcessor.from_pretrained(merged)
    to_tensors = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": "a cat"}], generation_mode="image", **to_tensors
    )
    codes = model.generate(**inputs, generation_mode="image", generator=torch.Generator().manual_seed(0))
    assert codes.shape == (1, 16, PIXEL_LEVELS)
    [image] = processor.post_process_image_generation(model.decode_image_tokens(codes))
    content = [{"type": "image", "image": image}, {"type": "text", "text": "what is this?"}]
    chat = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(chat, add_generation_prompt=True, **to_tensors)
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.parametrize(
    ("specials", "placeholder", "rows"),
    [(("<|image_pad|>", "<|video_pad|>"), "<|video_pad|>", 303), ((), "<|image_gen|>", 305)],
    ids=["as Qwen2.5", "without placeholders"],
)
def test_placeholders_are_unused_tokens_of_the_release(specials, placeholder, rows, release, tmp_path, monkeypatch):
    known = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", *specials)
    monkeypatch.setattr(text_tokenizer, "SPECIAL_TOKENS", known)
    tokenizer = train_text_tokenizer(["You are a helpful assistant. user what is this? a red cat"] * 2, vocab_size=300)
    tokenizer.add_tokens(["[PAD]", "<im_start>", "<im_end>"], special_tokens=True)
    shutil.copytree(release["folder"] / "generation", tmp_path / "lm")
    for path in (tmp_path / "lm").glob("token*"):
        path.unlink()
    tokenizer.save_pretrained(tmp_path / "lm")
    assert convert(tmp_path / "lm", "--out", tmp_path / "ours") == 0
    processor = EvoTokProcessor.from_pretrained(tmp_path / "ours")
    model = load(tmp_path / "ours")
    assert processor.image_generation_token == placeholder and model.lm_head.weight.shape[0] == rows
    assert model.config.image_generation_token_id == processor.image_generation_token_id < rows
    assert convert(tmp_path / "ours", "--to-reference", "--out", tmp_path / "back") == 0
    back = AutoTokenizer.from_pretrained(tmp_path / "back" / "generation")
    assert len(back) == 303 and back.convert_tokens_to_ids(["<im_start>", "<im_end>"]) == [301, 302]
    text = "<|im_start|>what is<im_end>"
    assert back(text)["input_ids"] == tokenizer(text)["input_ids"]


@pytest.fixture(scope="module")
def trained_here(tmp_path_factory):
    """Returns a model trained with EvoTok, its folder in the release's format, and the path that its configs name."""
    folder = tmp_path_factory.mktemp("trained")
    model, processor = build_chat_model()
    model.save_pretrained(folder / "ours")
    text = PreTrainedTokenizerFast(tokenizer_object=processor.tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    EvoTokProcessor.from_parts(text, 32, 16).save_pretrained(folder / "ours")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert convert("ours", "--to-reference", "--out", "back") == 0
    return model, len(processor.tokenizer), folder / "back"


@pytest.mark.parametrize("mode", ["understanding", "generation"])
def test_export_of_a_model_trained_here_appends_the_releases_tokens(trained_here, mode):
    """Start and end of image become the last two rows of both tables."""
    model, size, folder = trained_here
    tensors = load_file(folder / mode / "model.safetensors")
    back = AutoTokenizer.from_pretrained(folder / mode)
    assert len(back) == size + 3 and back.convert_tokens_to_ids("<im_start>") == size + 1
    assert back("what is <im_start>")["input_ids"][-1] == len(back) - 2
    for name, ours in (
        ("model.embed_tokens.weight", model.get_input_embeddings().weight),
        ("lm_head.weight", model.lm_head.weight),
    ):
        assert tensors[name].shape[0] == size + 3 and torch.equal(tensors[name][:size], ours[:size])
        assert torch.equal(tensors[name][-2], ours[model.config.vision_start_token_id])
        assert torch.equal(tensors[name][-1], ours[model.config.vision_end_token_id])


def test_export_has_the_fields_read_by_the_release(trained_here):
    """The fields have no default in that code, and the classes exist in Transformers 4.51."""
    *_, folder = trained_here
    for mode in ("understanding", "generation"):
        config = json.loads((folder / mode / "config.json").read_text())
        assert config["mm_vision_select_layer"] == -2 and config["mm_use_vi_start_end"] is False
        assert config["mm_use_im_patch_token"] is False
        assert config["mm_vision_tower"] == str(folder / "last.pt")
        tokenizer = json.loads((folder / mode / "tokenizer_config.json").read_text())
        assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast" and "extra_special_tokens" not in tokenizer
    with torch.serialization.safe_globals([argparse.Namespace]):
        arguments = torch.load(folder / "last.pt", weights_only=True)["args"]
    assert arguments.depth_heads == 4, "the file of the depth decoder has no arguments"


def test_depth_decoder_config_has_the_heads_of_the_arguments(release):
    piece = Piece(DEPTH_DECODER, pathlib.Path("x"), release["depth"], {})
    for facts, choices, heads in (
        ({}, Choices(), 40),
        ({"depth_heads": 8}, Choices(), 8),
        ({"depth_heads": 8}, Choices(depth_heads=4), 4),
    ):
        assert depth_decoder_config(piece, choices, facts).num_attention_heads == heads


def test_model_converted_back_is_equal(merged, release, pixels, tmp_path):
    back = tmp_path / "back"
    assert convert(merged, "--to-reference", "--out", back) == 0
    files = {mode: load_file(back / mode / "model.safetensors") for mode in ("understanding", "generation")}
    for mode, tensors in files.items():
        config = json.loads((back / mode / "config.json").read_text())
        assert config["vocab_size"] == 303 and config["rope_theta"] == 5e5
        assert config["mm_use_im_start_end"] == config["mm_with_depth_transformer"] == (mode == "generation")
        projector = prefixed(PROJECTOR, release[mode])
        assert torch.load(back / mode / "mm_projector.bin", weights_only=True).keys() == projector.keys()
        for name, tensor in (release["language"] | projector).items():
            assert torch.equal(tensors[name], tensor), name
    depth = torch.load(back / "rqtransformer.bin", weights_only=True)
    assert depth.keys() == {DEPTH + name for name in release["depth"]} <= files["generation"].keys()
    hidden, vectors = torch.randn(3, SIZES["hidden"]), torch.randn(3, PIXEL_LEVELS, SIZES["dim"])
    state = {name.removeprefix(DEPTH): x for name, x in depth.items()}
    assert torch.equal(depth_logits(state, hidden, vectors), depth_logits(release["depth"], hidden, vectors))
    tower = {name.removeprefix(TOWER): x for name, x in files["generation"].items() if name.startswith(TOWER)}
    assert torch.equal(encode(tower, pixels)[0], encode(release["tokenizer"], pixels)[0])
    assert convert(back, "--out", tmp_path / "again") == 0
    check_model(load(tmp_path / "again"), release, pixels)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (merged, tmp_path / "again"))
    assert before == after


def test_stage_one_files_are_merged_with_a_base_model(release, pixels, tmp_path, capsys):
    """The base model's tables are shorter and its tokenizer lacks the start and end tokens; those were trained."""
    table, head = release["language"]["model.embed_tokens.weight"], release["language"]["lm_head.weight"]
    source = tmp_path / "source"
    base = release["language"] | {"model.embed_tokens.weight": table[:300], "lm_head.weight": head[:300]}
    save_language_model(source / "qwen", base, TEXT | {"model_type": "qwen2", "rope_theta": 5e5}, shards=2)
    train_text_tokenizer(["You are a helpful assistant. user what is this? a red cat"] * 2, 300).save_pretrained(
        source / "qwen"
    )
    save_tokenizer(source / "last.pt", release["tokenizer"])
    torch.save(prefixed(DEPTH, release["depth"]), source / "rqtransformer.bin")
    stage = prefixed(PROJECTOR, release["generation"]) | {"model.embed_tokens.weight": table}
    torch.save(stage, source / "mm_projector.bin")
    assert convert(source, "--out", tmp_path / "ours") == 0
    assert "semantic_projector" in capsys.readouterr().out
    model = load(tmp_path / "ours")
    assert torch.equal(model.get_input_embeddings().weight, table) and model.config.vision_start_token_id == 301
    close(model.lm_head.weight[302], head[:300].mean(0))
    torch.save(prefixed(PROJECTOR, release["understanding"]), tmp_path / "other.bin")
    assert convert(source, tmp_path / "other.bin", "--out", tmp_path / "both") == 0
    model = load(tmp_path / "both")
    model.lm_head.weight.data[300:] = head[300:]
    check_model(model, release, pixels)


def test_spare_rows_of_a_base_model_are_cut_off(release, tmp_path):
    """Qwen2.5 has 399 more rows than tokens: the release cuts them off before it appends its three."""
    table, head = release["language"]["model.embed_tokens.weight"], release["language"]["lm_head.weight"]
    spare = {"model.embed_tokens.weight": torch.randn(320, SIZES["hidden"]), "lm_head.weight": torch.randn(320, 24)}
    spare["lm_head.weight"][:300] = head[:300]
    folder = tmp_path / "qwen"
    save_language_model(folder, release["language"] | spare, TEXT | {"model_type": "qwen2", "vocab_size": 320})
    save_tokenizer(tmp_path / "last.pt", release["tokenizer"])
    torch.save(prefixed(DEPTH, release["depth"]), tmp_path / "rqtransformer.bin")
    stage = prefixed(PROJECTOR, release["generation"]) | {"model.embed_tokens.weight": table}
    torch.save(stage, tmp_path / "mm_projector.bin")
    assert convert(tmp_path, "--out", tmp_path / "ours") == 0
    model = load(tmp_path / "ours")
    assert torch.equal(model.get_input_embeddings().weight[:303], table)
    assert torch.equal(model.lm_head.weight[:300], head[:300])
    close(model.lm_head.weight[300:303], head[:300].mean(0).expand(3, -1))


def test_tied_tables_are_converted_without_a_text_tokenizer(release, tmp_path):
    """Placeholders have rows of their own; start and end are the last two of the release's."""
    tensors = {name: x for name, x in release["language"].items() if name != "lm_head.weight"}
    tensors |= prefixed(PROJECTOR, release["generation"]) | prefixed(DEPTH, release["depth"])
    facts = TEXT | {"tie_word_embeddings": True, "rope_theta": 5e5, "mm_use_im_start_end": True}
    save_language_model(tmp_path / "lm", {k: x.bfloat16() for k, x in tensors.items()}, facts)
    save_tokenizer(tmp_path / "last.pt", release["tokenizer"])
    assert convert(tmp_path / "lm", tmp_path / "last.pt", "--out", tmp_path / "ours") == 0
    model = load(tmp_path / "ours")
    assert model.lm_head.weight is model.get_input_embeddings().weight and model.lm_head.weight.shape[0] == 305
    assert model.dtype == torch.float32 and model.depth_decoder.dtype == torch.bfloat16  # images come in fp32
    assert (model.config.vision_start_token_id, model.config.image_token_id) == (301, 303)
    assert convert(tmp_path / "ours", "--to-reference", "--out", tmp_path / "back") == 0
    config = json.loads((tmp_path / "back" / "generation" / "config.json").read_text())
    assert config["vocab_size"] == 303 and config["tie_word_embeddings"] and config["torch_dtype"] == "bfloat16"


def test_different_language_models_require_a_choice(release, tmp_path, capsys):
    folder = tmp_path / "models"
    shutil.copytree(release["folder"], folder)
    path = folder / "understanding" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] += 1
    save_file(tensors, path)
    assert "--language-model generation" in refuse(capsys, folder, "--out", tmp_path / "ours")
    for mode, offset in (("understanding", 1), ("generation", 0)):
        assert convert(folder, "--out", tmp_path / mode, "--language-model", mode) == 0
        model = load(tmp_path / mode)
        close(model.model.language_model.norm.weight, release["language"]["model.norm.weight"] + offset)
        assert torch.equal(model.get_input_embeddings().weight, release["language"]["model.embed_tokens.weight"])


# --- untrusted input; more is in the catalogue ------------------------------------------------------------------------


class Payload:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("place", "function", "name"),
    [("weights", os.system, "system"), ("top", eval, "eval"), ("old", pickle.loads, "loads")],
)
def test_pickles_with_calls_are_refused(place, function, name, tmp_path, capsys):
    trace = tmp_path / "ran"
    code = {os.system: f"touch {trace}", eval: f"open({str(trace)!r}, 'w')", pickle.loads: b"cos\nsystem\n."}[function]
    payload = Payload(function, code)
    content = payload if place == "top" else {"model": {"a": payload}}
    torch.save(content, tmp_path / "last.pt", _use_new_zipfile_serialization=place != "old")
    line = refuse(capsys, tmp_path / "last.pt", "--out", tmp_path / "ours")
    assert re.search(rf"last\.pt: calls \w+\.{name}, ", line), line
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_paths_and_enums_in_arguments_are_read(state, tmp_path):
    program = types.ModuleType("a_program_that_is_not_here")
    kind = enum.Enum("Kind", {"EVOTOK": "evotok"}, module=program.__name__)
    program.Kind = kind
    sys.modules[program.__name__] = program
    try:
        save_tokenizer(tmp_path / "last.pt", state, kind=kind.EVOTOK, where=pathlib.Path("/tmp/x"))
    finally:
        del sys.modules[program.__name__]
    assert convert(tmp_path / "last.pt", "--out", tmp_path / "ours") == 0


def damages():
    """Returns changes of a state dict with the message of each, by name."""
    book = "quantize.codebooks.5."
    return {
        "missing": (lambda s: s.pop("decoder_vqkd.fc_norm.bias"), "lacks decoder_vqkd.fc_norm.bias"),
        "unknown": (lambda s: s.update({"decoder_vqkd.extra": torch.zeros(1)}), "decoder_vqkd.extra"),
        "part of another": (lambda s: s.update({"somewhere.else": torch.zeros(1)}), "somewhere.else"),
        "shape": (lambda s: s.update({book + "weight": torch.zeros(60, 8)}), book + "weight has shape (60, 8)"),
        "a level less": (lambda s: [s.pop(k) for k in list(s) if k.startswith(book)], "numbers"),
        "no tensor": (lambda s: s.update({"post_quant_conv.bias": [1.0]}), "post_quant_conv.bias is a list"),
        "rank": (lambda s: s.update({"decoder_vqkd.cls_token": torch.zeros(())}), "cls_token"),
        "scaling": (lambda s: s["scaling_layer.scale"].fill_(1), "not 0.5"),
        "grid": (
            lambda s: s.update({"encoder_vqkd.vision_model.embeddings.position_embedding.weight": torch.zeros(15, 32)}),
            "no square grid",
        ),
        "heads": (lambda s: s.update({"decoder_vqkd.blocks.0.attn.q_bias": torch.zeros(30)}), "--semantic-heads"),
        "huge": (lambda s: s.update({"decoder.conv_out.bias": torch.zeros(1).expand(2**40)}), "decoder.conv_out.bias"),
    }


@pytest.mark.parametrize("name", damages())
def test_damaged_tokenizers_are_refused(name, state, tmp_path, capsys):
    spoil, message = damages()[name]
    state = copy.deepcopy(state)
    spoil(state)
    save_tokenizer(tmp_path / "last.pt", state)
    assert message in refuse(capsys, tmp_path / "last.pt", "--out", tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("content", [b"no pickle", "cut"])
def test_damaged_files_are_refused(content, state, tmp_path, capsys):
    path = tmp_path / "last.pt"
    save_tokenizer(path, state)
    path.write_bytes(path.read_bytes()[:5000] if content == "cut" else content)
    assert "last.pt" in refuse(capsys, path, "--out", tmp_path / "ours")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "pytorch_model-00002-of-00003.bin").unlink(), "00002-of-00003.bin: this shard is missing"),
        (lambda f: (f / "pytorch_model.bin.index.json").write_text("{"), "damaged"),
        (lambda f: (f / "config.json").write_text("[1]"), "config.json"),
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: torch.save({"model.layers.9.x": torch.ones(1)}, f / "pytorch_model-00001-of-00003.bin"), "lacks"),
    ],
    ids=["shard", "index", "config", "no config", "other shard"],
)
def test_damaged_folders_are_refused(spoil, message, release, tmp_path, capsys):
    shutil.copytree(release["folder"] / "generation", tmp_path / "lm")
    spoil(tmp_path / "lm")
    assert message in refuse(capsys, tmp_path / "lm", "--out", tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["lm"]


def test_convert_refuses_bad_arguments(release, converted, tmp_path, capsys):
    last = tmp_path / "last.pt"
    save_tokenizer(last, release["tokenizer"])
    assert "no such file" in refuse(capsys, "nowhere", "--out", tmp_path / "x")
    assert "exists already" in refuse(capsys, last, "--out", tmp_path)
    assert "--encoder-heads" in refuse(capsys, last, "--out", tmp_path / "x", "--encoder-heads", 5)
    assert "EvoTok already" in refuse(capsys, converted, "--out", tmp_path / "x")
    assert "--image-size 128" in refuse(capsys, last, "--out", tmp_path / "x", "--image-size", 128)
    assert "greater than or equal to 1" in refuse(capsys, last, "--out", tmp_path / "x", "--depth-heads", "-3")
    assert "one checkpoint" in refuse(capsys, converted, converted, "--to-reference", "--out", tmp_path / "x")
    torch.save(prefixed(DEPTH, release["depth"]), tmp_path / "rqtransformer.bin")
    assert "last.pt" in refuse(capsys, tmp_path / "rqtransformer.bin", "--out", tmp_path / "x")
    assert "no language model" in refuse(capsys, tmp_path, "--out", tmp_path / "x")
    assert "--pixel-levels" in refuse(capsys, last, "--out", tmp_path / "x", "--pixel-levels", LEVELS + 1)
    assert not (tmp_path / "x").exists()
