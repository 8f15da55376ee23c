"""Checkpoints: damaged, incomplete, of something else; links that lead out, code that would run, sizes that would burst."""

import json
import os
import pickle
import reprlib
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from strangers.case import Case, Group, Place, run_command
from strangers.codes import header
from strangers.images import noise, saved
from strangers.materials import change_json, change_weights, checkpoint


def encode(place: Place, name: str) -> str:
    """The image tokenizer of a checkpoint is used."""
    return run_command(place, ["encode", name, "a.png", "--out", "codes.safetensors"])


def generate(place: Place, name: str) -> str:
    """All of a checkpoint is used."""
    return run_command(place, ["generate", name, "--prompt", "a frog", "--seed", "1", "--out", "out"])


def spoiled(kind: str, given: str, gets: str, spoil: Callable[[Path], Any] | None, good=None) -> Case:
    def make(place: Place) -> str:
        place.write("a.png", saved(noise()))
        return checkpoint(kind, spoil)(place)

    return Case(given, gets, make, good)


def tokenizer(given: str, gets: str, spoil: Callable[[Path], Any] | None, good=None) -> Case:
    return spoiled("tokenizer", given, gets, spoil, good)


def model(given: str, gets: str, spoil: Callable[[Path], Any] | None, good=None) -> Case:
    return spoiled("model", given, gets, spoil, good)


def config(given: str, gets: str, build: Callable, **fields) -> Case:
    return build(given, gets, change_json("config.json", lambda content: content.update(fields)))


def text_config(given: str, gets: str, **fields) -> Case:
    return model(given, gets, change_json("config.json", lambda content: content["text_config"].update(fields)))


def sampling(given: str, gets: str, **fields) -> Case:
    return model(given, gets, change_json("generation_config.json", lambda content: content.update(fields)))


def processor(given: str, gets: str, **fields) -> Case:
    return model(given, gets, change_json("processor_config.json", lambda content: content.update(fields)))


def write(name: str, content: bytes | str):
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(name: str, end: int):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:end])


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def link_out(name: str):
    """Replaces a file by a link to a good one that lies outside."""

    def spoil(folder: Path) -> None:
        outside = folder.parent.parent / "outside"
        if not (outside / name).exists():
            shutil.copy(folder / name, outside)
        (folder / name).unlink()
        os.symlink(outside / name, folder / name)

    return spoil


def split_weights(change: Callable[[dict], Any], second: bool = True):
    """The weights in two shards with an index, changed before it is written."""

    def spoil(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
        index = {"metadata": {"total_size": 1}, "weight_map": {n: shard for shard, ns in shards.items() for n in ns}}
        for shard, members in shards.items():
            if second or shard == "model-1.safetensors":
                save_file({n: tensors[n] for n in members}, folder / shard, metadata={"format": "pt"})
        change(index)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return spoil


def adapters(given: str, gets: str, content: str, weights: bool = True) -> Case:
    """A model's folder as if it held adapters."""

    def spoil(folder: Path) -> None:
        write("adapter_config.json", content)(folder)
        if weights:
            shutil.copy(folder / "model.safetensors", folder / "adapter_model.safetensors")

    return model(given, gets, spoil)


class Evil:
    """Unpickled, it would touch a file."""

    def __reduce__(self):
        return (os.system, ("touch pickled",))


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weights": Evil()}))


def hostile_code(name: str, auto_map: dict, where: str | None = None):
    """Code beside the weights that must not run, and a config that asks for it."""

    def spoil(folder: Path) -> None:
        (folder / "evil.py").write_text("raise SystemExit('it ran')\n")
        change_json(name, lambda content: (content[where] if where else content).update(auto_map=auto_map))(folder)

    return spoil


def first(tensors: dict, ending: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(ending))


def reshape(tensors: dict) -> None:
    name = first(tensors, "to_latent.linear_2.weight")
    tensors[name] = tensors[name][:, :4].contiguous()


def poison(ending: str, value: float):
    return lambda tensors: tensors[first(tensors, ending)].fill_(value)


def has_written(printed: str) -> None:
    assert printed.strip(), "nothing was said to be written"


CODE = {
    "AutoConfig": "evil.Evil",
    "AutoModel": "evil.Evil",
    "AutoProcessor": "evil.Evil",
    "AutoTokenizer": ["evil.Evil", None],
}
OTHERS_CODE = dict.fromkeys(("AutoConfig", "AutoModel", "AutoProcessor"), "somebody/evil--evil.Evil")


def encode_ready(place: Place) -> None:
    place.write("a.png", saved(noise()))


def cached(place: Place) -> str:
    """A checkpoint as the Hub's cache keeps it."""
    encode_ready(place)
    snapshot = "hub/models--somebody--model/snapshots/0123abc"
    for path in (place.materials.folder / "tokenizer").iterdir():
        place.write(f"hub/models--somebody--model/blobs/{path.stem}", path.read_bytes())
        place.link(f"{snapshot}/{path.name}", f"../../blobs/{path.stem}")
    return snapshot


PARTS = [
    Case(
        "no such folder",
        "evotok encode: 'missing': no such folder. Give a checkpoint: a folder with config.json and *.safetensors.",
        lambda place: "missing",
    ),
    Case(
        "file instead of a folder",
        "evotok encode: 'model': no such folder. Give a checkpoint: a folder with config.json and *.safetensors.",
        lambda place: place.write("model", "x"),
    ),
    Case(
        "empty folder",
        "evotok encode: model: no config.json in this folder. Give the folder that a training saved.",
        lambda place: (place.path / "model").mkdir() or "model",
    ),
    Case(
        "link to itself",
        "evotok encode: 'model': no such folder. Give a checkpoint: a folder with config.json and *.safetensors.",
        lambda place: place.link("model", "model"),
    ),
    Case(
        "empty name",
        "evotok encode: '': no such folder. Give a checkpoint: a folder with config.json and *.safetensors.",
        lambda place: "",
    ),
    tokenizer(
        "no config.json",
        "evotok encode: tokenizer: no config.json in this folder. Give the folder that a training saved.",
        remove("config.json"),
    ),
    tokenizer(
        "config.json cut short",
        "evotok encode: tokenizer: config.json is damaged. Copy the checkpoint again.",
        cut("config.json", 40),
    ),
    tokenizer(
        "config.json that is empty",
        "evotok encode: tokenizer: config.json is damaged. Copy the checkpoint again.",
        write("config.json", ""),
    ),
    tokenizer(
        "config.json that is a list",
        "evotok encode: tokenizer: config.json is damaged. Copy the checkpoint again.",
        write("config.json", "[]"),
    ),
    tokenizer(
        "config.json that is text",
        "evotok encode: tokenizer: config.json is damaged. Copy the checkpoint again.",
        write("config.json", '"evotok"'),
    ),
    tokenizer(
        "config.json that is not UTF-8",
        "evotok encode: tokenizer: config.json is damaged. Copy the checkpoint again.",
        write("config.json", b"\xff\xfe{}"),
    ),
    tokenizer(
        "config.json nested very deeply",
        "evotok encode: tokenizer: config.json is damaged. Copy the checkpoint again.",
        write("config.json", "[" * 100_000),
    ),
    tokenizer(
        "config.json 3,000 deep",
        "evotok encode: tokenizer: config.json is damaged. Copy the checkpoint again.",
        write("config.json", '{"a":' * 3000 + "1" + "}" * 3000),
    ),
    tokenizer(
        "config.json that is a folder",
        "evotok encode: tokenizer: no config.json in this folder. Give the folder that a training saved.",
        lambda f: (f / "config.json").unlink() or (f / "config.json").mkdir(),
    ),
    tokenizer(
        "config.json that is a pipe",
        "evotok encode: tokenizer: config.json is no file. Copy the checkpoint again.",
        lambda f: (f / "config.json").unlink() or os.mkfifo(f / "config.json"),
    ),
    config(
        "model of another kind",
        "evotok encode: tokenizer: a checkpoint of 'llama', not of EvoTok. Give one of EvoTok.",
        tokenizer,
        model_type="llama",
    ),
    config(
        "model_type that is a list",
        "evotok encode: tokenizer: a checkpoint of \"['evotok_vq']\", not of EvoTok. Give one of EvoTok.",
        tokenizer,
        model_type=["evotok_vq"],
    ),
    config(
        "model_type that is null",
        "evotok encode: tokenizer: a checkpoint of 'None', not of EvoTok. Give one of EvoTok.",
        tokenizer,
        model_type=None,
    ),
    config(
        "codebook size that is text",
        "evotok encode: tokenizer: cannot be loaded (…). Copy or save the checkpoint again.",
        tokenizer,
        codebook_size="many",
    ),
    config(
        "codebook size under 0",
        "evotok encode: tokenizer: cannot be loaded (…). Copy or save the checkpoint again.",
        tokenizer,
        codebook_size=-1,
    ),
    config(
        "codebook size of a billion",
        "evotok encode: tokenizer: config.json: codebook_size is 1e+09, over the limit of any size. Copy or save the checkpoint again.",
        tokenizer,
        codebook_size=10**9,
    ),
    config(
        "a billion levels",
        "evotok encode: tokenizer: config.json: num_codebooks is 1e+09, over the limit of any size. Copy or save the checkpoint again.",
        tokenizer,
        num_codebooks=10**9,
    ),
    config(
        "a billion layers",
        "evotok encode: tokenizer: config.json: semantic_num_hidden_layers is 1e+09, over the limit of any size. Copy or save the checkpoint again.",
        tokenizer,
        semantic_num_hidden_layers=10**9,
    ),
    config(
        "more levels for pixels than there are",
        "evotok encode: tokenizer: cannot be loaded (…). Copy or save the checkpoint again.",
        tokenizer,
        num_pixel_codebooks=5,
    ),
    config(
        "a level less than the weights have",
        "evotok encode: tokenizer: the weights have 3 tensors more than the config, such as quantizer.codebooks.3.cluster_size: config.json and weights are not of one checkpoint. Copy or save it again.",
        tokenizer,
        num_codebooks=3,
    ),
    config(
        "groups that do not divide the channels",
        "evotok encode: tokenizer: cannot be loaded (num_channels (8) must be divisible by num_groups (5)). Copy or save the checkpoint again.",
        tokenizer,
        pixel_norm_groups=5,
    ),
    config(
        "multipliers that are text",
        "evotok encode: tokenizer: cannot be loaded (…). Copy or save the checkpoint again.",
        tokenizer,
        pixel_channel_multipliers="1124",
    ),
    config(
        "encoder that is a number",
        "evotok encode: tokenizer: cannot be loaded (…). Copy or save the checkpoint again.",
        tokenizer,
        encoder_config=3,
    ),
    config(
        "encoder that does not exist",
        "evotok encode: tokenizer: cannot be loaded (…). Copy or save the checkpoint again.",
        tokenizer,
        encoder_config={"model_type": "nothing"},
    ),
    tokenizer(
        "encoder of an image of a million pixels a side",
        "evotok encode: tokenizer: the tensor semantic_decoder.position_embedding has shape (1, 17, 16), but (1, 17179869185, 16) by the config: config.json and weights are not of one checkpoint. Copy or save it again.",
        change_json("config.json", lambda content: content["encoder_config"].update(image_size=2**20)),
    ),
    tokenizer(
        "encoder without heads",
        "evotok encode: tokenizer: cannot be loaded (…). Copy or save the checkpoint again.",
        change_json("config.json", lambda content: content["encoder_config"].update(num_attention_heads=0)),
    ),
    tokenizer(
        "no weights",
        "evotok encode: tokenizer: config.json but no weights (*.safetensors). Copy or save the checkpoint again.",
        remove("model.safetensors"),
    ),
    tokenizer(
        "pickled weights only",
        "evotok encode: tokenizer: config.json but no weights (*.safetensors). Copy or save the checkpoint again.",
        only_pickle,
    ),
    tokenizer(
        "pickle named .safetensors",
        "evotok encode: tokenizer: cannot be loaded (…). Copy or save the checkpoint again.",
        write("model.safetensors", pickle.dumps({"weights": Evil()})),
    ),
    tokenizer(
        "weights that are empty",
        "evotok encode: tokenizer: cannot be loaded (…). Copy or save the checkpoint again.",
        write("model.safetensors", b""),
    ),
    tokenizer(
        "weights cut in their header",
        "evotok encode: tokenizer: cannot be loaded (…). Copy or save the checkpoint again.",
        cut("model.safetensors", 100),
    ),
    tokenizer(
        "weights cut in the middle",
        "evotok encode: tokenizer: cannot be loaded (…). Copy or save the checkpoint again.",
        cut("model.safetensors", 20_000),
    ),
    tokenizer(
        "weights cut by one byte",
        "evotok encode: tokenizer: cannot be loaded (…). Copy or save the checkpoint again.",
        cut("model.safetensors", -1),
    ),
    tokenizer(
        "weights whose header is no JSON",
        "evotok encode: tokenizer: cannot be loaded (…). Copy or save the checkpoint again.",
        write("model.safetensors", header(b"{weights}")),
    ),
    tokenizer(
        "weights whose header is 2^63 bytes long",
        "evotok encode: tokenizer: cannot be loaded (…). Copy or save the checkpoint again.",
        write("model.safetensors", struct.pack("<Q", 2**63) + b"{}"),
    ),
    tokenizer(
        "weights without tensors",
        "evotok encode: tokenizer: cannot be loaded (num_hidden_layers is 1 but the weights are only 0 tensors). Copy or save the checkpoint again.",
        write("model.safetensors", header(b"{}      ")),
    ),
    tokenizer(
        "weights that lack a tensor",
        "evotok encode: tokenizer: the weights lack 1 tensors of the config, such as semantic_decoder.class_token: config.json and weights are not of one checkpoint. Copy or save it again.",
        change_weights(lambda t: t.pop(first(t, "class_token"))),
    ),
    tokenizer(
        "weights with a tensor too many",
        "evotok encode: tokenizer: the weights have 1 tensors more than the config, such as extra: config.json and weights are not of one checkpoint. Copy or save it again.",
        change_weights(lambda t: t.update(extra=torch.zeros(2))),
    ),
    tokenizer(
        "weights with a tensor of another shape",
        "evotok encode: tokenizer: the tensor to_latent.linear_2.weight has shape (8, 4), but (8, 16) by the config: config.json and weights are not of one checkpoint. Copy or save it again.",
        change_weights(reshape),
    ),
    tokenizer(
        "weights with NaN",
        "evotok encode: tokenizer: the tensor to_latent.linear_2.bias holds NaN or infinite values. Save the checkpoint again.",
        change_weights(poison("to_latent.linear_2.bias", float("nan"))),
    ),
    tokenizer(
        "weights with an infinite value",
        "evotok encode: tokenizer: the tensor quantizer.codebooks.0.weight holds NaN or infinite values. Save the checkpoint again.",
        change_weights(poison("codebooks.0.weight", float("inf"))),
    ),
    tokenizer(
        "weights that are a pipe",
        "evotok encode: tokenizer: model.safetensors is no file. Copy the checkpoint again.",
        lambda f: (f / "model.safetensors").unlink() or os.mkfifo(f / "model.safetensors"),
    ),
    tokenizer(
        "shard that is missing",
        "evotok encode: tokenizer: model-2.safetensors is missing. Copy the checkpoint again.",
        split_weights(lambda index: None, second=False),
    ),
    tokenizer(
        "shard that lies outside",
        "evotok encode: tokenizer: model.safetensors.index.json names '../../outside/model.safetensors', outside the folder. Copy the checkpoint again.",
        split_weights(
            lambda index: index["weight_map"].update(
                {first(index["weight_map"], "class_token"): "../../outside/model.safetensors"}
            )
        ),
    ),
    tokenizer(
        "shard with an absolute path",
        "evotok encode: tokenizer: model.safetensors.index.json names '/etc/passwd', outside the folder. Copy the checkpoint again.",
        split_weights(
            lambda index: index["weight_map"].update({first(index["weight_map"], "class_token"): "/etc/passwd"})
        ),
    ),
    tokenizer(
        "index of shards that is a list",
        "evotok encode: tokenizer: model.safetensors.index.json is damaged. Copy the checkpoint again.",
        split_weights(lambda index: index.update(weight_map=[])),
    ),
    tokenizer(
        "index of shards that are numbers",
        "evotok encode: tokenizer: model.safetensors.index.json is damaged. Copy the checkpoint again.",
        split_weights(lambda index: index.update(weight_map={"a": 3})),
    ),
    tokenizer(
        "config.json that is a link leading out",
        "evotok encode: tokenizer: config.json is a link that leads out of the folder. Copy the file itself there.",
        link_out("config.json"),
    ),
    tokenizer(
        "weights that are a link leading out",
        "evotok encode: tokenizer: model.safetensors is a link that leads out of the folder. Copy the file itself there.",
        link_out("model.safetensors"),
    ),
    tokenizer(
        "weights that are a link to themselves",
        "evotok encode: tokenizer: model.safetensors is a link that leads out of the folder. Copy the file itself there.",
        lambda f: ((f / "model.safetensors").unlink(), os.symlink("model.safetensors", f / "model.safetensors")),
    ),
    tokenizer(
        "code that would run, in config.json", "the code is not run", hostile_code("config.json", CODE), has_written
    ),
    tokenizer(
        "code of somebody else, in config.json",
        "the code is not fetched",
        hostile_code("config.json", OTHERS_CODE),
        has_written,
    ),
    tokenizer(
        "code that would run, for the encoder",
        "the code is not run",
        hostile_code("config.json", CODE, "encoder_config"),
        has_written,
    ),
    tokenizer("weights in two shards", "they are read", split_weights(lambda index: None), has_written),
    Case(
        "folder that is a link",
        "it is followed: it is what was given",
        lambda place: (encode_ready(place), checkpoint("tokenizer")(place), place.link("link", "tokenizer"))[-1],
        has_written,
    ),
    Case("folder in the Hub's cache, whose files are links to its blobs", "it is read", cached, has_written),
]


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
CALLS = "{% macro a(n) %}{{ a(n) }}{{ a(n) }}{% endmacro %}{{ a(1) }}"
FOREIGN_TEMPLATE = "evotok generate: model: cannot be loaded (its chat template is not EvoTok's, and could run without end: remove chat_template.jinja, or pass trust_chat_template=True.). Copy or save the checkpoint again."
ADAPTERS = {"base_model_name_or_path": "mini", "peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}


def odd_adapters(given: str, gets: str, **fields) -> Case:
    """Adapters whose config has other fields, on weights that are none."""
    said = (
        f"evotok generate: model: cannot be loaded (…adapter_config.json: {gets}). Copy or save the checkpoint again."
    )
    return adapters(given, said, json.dumps(ADAPTERS | fields))


def text_tokenizer(given: str, gets: str, **fields) -> Case:
    return model(given, gets, change_json("tokenizer.json", lambda content: content.update(fields)))


def settings(name: str, given: str, key: str, value) -> Case:
    """A setting that is refused because of its value."""
    *sections, last = key.split(".")

    def change(content: dict) -> None:
        for section in sections:
            content = content[section]
        content[last] = value

    said = f"evotok generate: model: {name}: {last} should not be {reprlib.repr(value)}. Save the checkpoint again, or remove the key."
    return model(given, said, change_json(name, change))


NAMES = "should be plain names of modules, not …: write them out."
BOMBS = [
    odd_adapters("adapters whose names hang", f"target_modules {NAMES}", target_modules="(a+)+$"),
    odd_adapters("adapters whose names of others hang", f"exclude_modules {NAMES}", exclude_modules="(.*)*x"),
    odd_adapters("adapters whose names of parts hang", f"modules_to_save {NAMES}", modules_to_save=["(.+)+x"]),
    odd_adapters("adapters whose names of layers hang", f"layers_pattern {NAMES}", layers_pattern="(.+)+x"),
    odd_adapters("adapters whose ranks' names hang", f"rank_pattern {NAMES}", rank_pattern={"(.+)+x": 4}),
    odd_adapters(
        "adapters of a rank of millions", "r should not be 1000000: train the adapters again without it.", r=10**6
    ),
    odd_adapters(
        "adapters that ask for a module of Python's",
        "megatron_core should not be 'os': train the adapters again without it.",
        megatron_core="os",
        megatron_config={"a": 1},
    ),
    odd_adapters(
        "adapters that repeat layers",
        "layer_replication should not be [[0, 100000]]: train the adapters again without it.",
        layer_replication=[[0, 10**5]],
    ),
    text_config(
        "ten million layers by another name",
        "evotok generate: model: cannot be loaded (n_layer is 10000000 but the weights are only 236 tensors). Copy or save the checkpoint again.",
        n_layer=10**7,
    ),
    text_config(
        "a billion layers by another name",
        "evotok generate: model: config.json: num_layers is 1e+09, over the limit of any size. Copy or save the checkpoint again.",
        num_layers=10**9,
    ),
    text_tokenizer(
        "text tokenizer that pads to a billion",
        "evotok generate: model: tokenizer.json: Fixed is 1e+09, over the limit of any size. Copy or save the checkpoint again.",
        padding={"strategy": {"Fixed": 10**9}, "direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": "a"},
    ),
    text_tokenizer(
        "text tokenizer that pads to a million",
        "evotok generate: model: tokenizer.json: padding.strategy should not be {'Fixed': 1000000}. Save the checkpoint again, or remove the key.",
        padding={"strategy": {"Fixed": 10**6}, "direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": "a"},
    ),
    settings("tokenizer_config.json", "texts as long as a multiple of ten million", "pad_to_multiple_of", 10**7),
    settings("generation_config.json", "a million beams", "num_beams", 10**6),
    settings("generation_config.json", "no image at all", "num_return_sequences", 0),
    settings("generation_config.json", "an image less than none", "num_return_sequences", -1),
    settings("generation_config.json", "one and a half images", "num_return_sequences", 1.5),
    settings("generation_config.json", "tokens to end with that are text", "eos_token_id", "a"),
    settings("generation_config.json", "a setting that nobody knows", "evil_setting", 3),
    settings("generation_config.json", "a watermark", "watermarking_config", {"bias": 1}),
    settings("processor_config.json", "pixels divided by nothing", "image_processor.image_std", 0),
    settings("processor_config.json", "pixels of two channels", "image_processor.image_mean", [0.5, 0.5]),
    settings("processor_config.json", "a filter that does not exist", "image_processor.resample", 99),
    settings("processor_config.json", "pixels scaled by text", "image_processor.rescale_factor", "much"),
    settings("processor_config.json", "a crop", "image_processor.crop_size", {"height": 9, "width": 9}),
    processor(
        "image token that is code of a template",
        "evotok generate: model: cannot be loaded (… should be a token such as '<|image_pad|>'.). Copy or save the checkpoint again.",
        image_token="' + 7 * 7 + '",
    ),
    model("chat template of nested loops", FOREIGN_TEMPLATE, write("chat_template.jinja", LOOPS)),
    model(
        "chat template of one word of gigabytes",
        FOREIGN_TEMPLATE,
        write("chat_template.jinja", "{{ '%2000000000d' % 1 }}"),
    ),
    model("chat template that divides by nothing", FOREIGN_TEMPLATE, write("chat_template.jinja", "{{ 1 / 0 }}")),
    model("chat template that calls itself", FOREIGN_TEMPLATE, write("chat_template.jinja", CALLS)),
]

WHOLE = [
    adapters(
        "adapters whose config is cut short",
        "evotok generate: model: adapter_config.json is damaged. Copy the checkpoint again.",
        '{"base_model',
    ),
    adapters(
        "adapters on nothing",
        "evotok generate: model: adapters without the name of their checkpoint. Give the checkpoint itself.",
        '{"base_model_name_or_path": null}',
    ),
    adapters(
        "adapters on what is not there",
        "evotok generate: model: adapters, and what they were trained on is needed too: '/nowhere': no such folder. Give a checkpoint: a folder with config.json and *.safetensors.",
        '{"base_model_name_or_path": "/nowhere"}',
    ),
    adapters(
        "adapters on themselves",
        "evotok generate: model: adapters, and what they were trained on is needed too: model: adapters that were trained on themselves. Copy the folder again.",
        '{"base_model_name_or_path": "model"}',
    ),
    adapters(
        "adapters without weights",
        "evotok generate: model: adapter_config.json but no adapter_model.safetensors. Copy or save it again.",
        '{"base_model_name_or_path": "mini"}',
        weights=False,
    ),
    adapters(
        "adapters of a kind that nobody knows",
        "evotok generate: model: cannot be loaded (…). Copy or save the checkpoint again.",
        '{"base_model_name_or_path": "mini", "peft_type": "EVIL"}',
    ),
    Case(
        "tokenizer alone, where a model is needed",
        "evotok generate: tokenizer: an image tokenizer alone, which can only encode and decode. Give a full checkpoint, such as mini.",
        checkpoint("tokenizer"),
    ),
    config(
        "parts that do not agree",
        "evotok generate: model: cannot be loaded (…). Copy or save the checkpoint again.",
        model,
        depth_decoder_config={"model_type": "evotok_depth_decoder", "codebook_size": 7},
    ),
    config(
        "language model that is a number",
        "evotok generate: model: cannot be loaded (…). Copy or save the checkpoint again.",
        model,
        text_config=3,
    ),
    config(
        "language model that does not exist",
        "evotok generate: model: cannot be loaded (…). Copy or save the checkpoint again.",
        model,
        text_config={"model_type": "nothing"},
    ),
    text_config(
        "a billion layers",
        "evotok generate: model: config.json: num_hidden_layers is 1e+09, over the limit of any size. Copy or save the checkpoint again.",
        num_hidden_layers=10**9,
    ),
    text_config(
        "layers that are text",
        "evotok generate: model: cannot be loaded (…). Copy or save the checkpoint again.",
        num_hidden_layers="two",
    ),
    text_config(
        "layer less than the weights have",
        "evotok generate: model: the weights have 12 tensors more than the config, such as model.language_model.layers.0.input_layernorm.weight: config.json and weights are not of one checkpoint. Copy or save it again.",
        num_hidden_layers=0,
        layer_types=[],
    ),
    text_config(
        "heads that do not divide the width",
        "evotok generate: model: the tensor model.language_model.layers.0.self_attn.k_proj.bias has shape (8,), but (5,) by the config: config.json and weights are not of one checkpoint. Copy or save it again.",
        num_attention_heads=3,
    ),
    text_config(
        "vocabulary smaller than the weights'",
        "evotok generate: model: cannot be loaded (…). Copy or save the checkpoint again.",
        vocab_size=200,
    ),
    text_config(
        "vocabulary of a trillion words",
        "evotok generate: model: config.json: vocab_size is 1e+12, over the limit of any size. Copy or save the checkpoint again.",
        vocab_size=10**12,
    ),
    text_config(
        "another width",
        "evotok generate: model: cannot be loaded (…). Copy or save the checkpoint again.",
        hidden_size=32,
    ),
    config(
        "image token that is not the processor's",
        "evotok generate: model: the processor's image_token_id is 298, the model's 3: they are not of one checkpoint. Copy or save it again.",
        model,
        image_token_id=3,
    ),
    config(
        "image token outside the vocabulary",
        "evotok generate: model: the processor's vision_start_token_id is 296, the model's 1000000: they are not of one checkpoint. Copy or save it again.",
        model,
        vision_start_token_id=10**6,
    ),
    model(
        "weights cut in the middle",
        "evotok generate: model: cannot be loaded (…). Copy or save the checkpoint again.",
        cut("model.safetensors", 20_000),
    ),
    model(
        "weights that lack a tensor",
        "evotok generate: model: the weights lack 1 tensors of the config, such as model.semantic_projector.linear_1.bias: config.json and weights are not of one checkpoint. Copy or save it again.",
        change_weights(lambda t: t.pop(first(t, "semantic_projector.linear_1.bias"))),
    ),
    model(
        "weights with a tensor of another shape",
        "evotok generate: model: the tensor model.vq_model.to_latent.linear_2.weight has shape (8, 4), but (8, 16) by the config: config.json and weights are not of one checkpoint. Copy or save it again.",
        change_weights(reshape),
    ),
    model(
        "weights with NaN",
        "evotok generate: model: the tensor model.pixel_projector.linear_1.weight holds NaN or infinite values. Save the checkpoint again.",
        change_weights(poison("pixel_projector.linear_1.weight", float("nan"))),
    ),
    model(
        "shard that is missing",
        "evotok generate: model: model-2.safetensors is missing. Copy the checkpoint again.",
        split_weights(lambda index: None, second=False),
    ),
    model(
        "shard that lies outside",
        "evotok generate: model: model.safetensors.index.json names '../../outside/model.safetensors', outside the folder. Copy the checkpoint again.",
        split_weights(
            lambda index: index["weight_map"].update(
                {first(index["weight_map"], "class_token"): "../../outside/model.safetensors"}
            )
        ),
    ),
    model(
        "no processor",
        "evotok generate: model: cannot be loaded (…). Copy or save the checkpoint again.",
        remove("processor_config.json"),
    ),
    model(
        "processor_config.json cut short",
        "evotok generate: model: processor_config.json is damaged. Copy the checkpoint again.",
        cut("processor_config.json", 30),
    ),
    model(
        "processor_config.json that is a list",
        "evotok generate: model: processor_config.json is damaged. Copy the checkpoint again.",
        write("processor_config.json", "[]"),
    ),
    processor(
        "a billion positions an image",
        "evotok generate: model: processor_config.json: num_image_tokens is 1e+09, over the limit of any size. Copy or save the checkpoint again.",
        num_image_tokens=10**9,
    ),
    processor(
        "positions that are text",
        "evotok generate: model: the processor's num_image_tokens is many, the model's 16: they are not of one checkpoint. Copy or save it again.",
        num_image_tokens="many",
    ),
    model(
        "images of a million pixels a side",
        "evotok generate: model: the processor's image size is (1000000, 1000000), the model's (32, 32): they are not of one checkpoint. Copy or save it again.",
        change_json(
            "processor_config.json",
            lambda content: content["image_processor"].update(size={"height": 10**6, "width": 10**6}),
        ),
    ),
    model(
        "no text tokenizer",
        "evotok generate: model: the processor's vision_start_token_id is 3, the model's 296: they are not of one checkpoint. Copy or save it again.",
        remove("tokenizer.json"),
    ),
    model(
        "tokenizer.json cut short",
        "evotok generate: model: tokenizer.json is damaged. Copy the checkpoint again.",
        cut("tokenizer.json", 500),
    ),
    model(
        "tokenizer.json that is a list",
        "evotok generate: model: tokenizer.json is damaged. Copy the checkpoint again.",
        write("tokenizer.json", "[]"),
    ),
    model(
        "tokenizer_config.json that is text",
        "evotok generate: model: tokenizer_config.json is damaged. Copy the checkpoint again.",
        write("tokenizer_config.json", '"a"'),
    ),
    model(
        "chat template that does not parse",
        FOREIGN_TEMPLATE,
        write("chat_template.jinja", "{% for %}"),
    ),
    model(
        "chat template that reaches for the interpreter",
        FOREIGN_TEMPLATE,
        write("chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    ),
    model(
        "chat template that counts without end",
        FOREIGN_TEMPLATE,
        write("chat_template.jinja", "{% for i in range(10**9) %}{% endfor %}"),
    ),
    model(
        "chat template that is a link leading out",
        "evotok generate: model: chat_template.jinja is a link that leads out of the folder. Copy the file itself there.",
        link_out("chat_template.jinja"),
    ),
    model(
        "tokenizer.json that is a link leading out",
        "evotok generate: model: tokenizer.json is a link that leads out of the folder. Copy the file itself there.",
        link_out("tokenizer.json"),
    ),
    model(
        "generation_config.json cut short",
        "evotok generate: model: generation_config.json is damaged. Copy the checkpoint again.",
        cut("generation_config.json", 30),
    ),
    model(
        "generation_config.json that is a list",
        "evotok generate: model: generation_config.json is damaged. Copy the checkpoint again.",
        write("generation_config.json", "[]"),
    ),
    sampling(
        "guidance that is text",
        "evotok generate: guidance_scale=strong must be a number, at least 0.",
        guidance_scale="strong",
    ),
    sampling(
        "guidance under 0", "evotok generate: guidance_scale=-1.0 must be a number, at least 0.", guidance_scale=-1.0
    ),
    sampling(
        "guidance without end",
        "evotok generate: guidance_scale=inf must be a number, at least 0.",
        guidance_scale=float("inf"),
    ),
    sampling(
        "temperature under 0", "evotok generate: temperature=-1.0 must be a number, at least 0.", image_temperature=-1.0
    ),
    sampling(
        "top-k that is a fraction", "evotok generate: top_k=0.5 must be a whole number, 0 or more.", image_top_k=0.5
    ),
    sampling("top-p above 1", "evotok generate: top_p=7.0 must be in (0, 1].", image_top_p=7.0),
    model("code that would run, in config.json", "the code is not run", hostile_code("config.json", CODE), has_written),
    model(
        "code that would run, for the language model",
        "the code is not run",
        hostile_code("config.json", CODE, "text_config"),
        has_written,
    ),
    model(
        "code that would run, for the processor",
        "the code is not run",
        hostile_code("processor_config.json", CODE),
        has_written,
    ),
    model(
        "code that would run, for the text tokenizer",
        "the code is not run",
        hostile_code("tokenizer_config.json", CODE),
        has_written,
    ),
    model(
        "code of somebody else, everywhere",
        "the code is not fetched",
        lambda folder: [
            hostile_code(name, OTHERS_CODE)(folder)
            for name in ("config.json", "processor_config.json", "tokenizer_config.json")
        ],
        has_written,
    ),
    model(
        "pickle beside the weights",
        "the pickle is not opened",
        lambda folder: (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil())),
        has_written,
    ),
]

GROUPS = [
    Group("Checkpoints, for their image tokenizer", "`evotok encode`", encode, PARTS, refusal="exit 2"),
    Group("Checkpoints, for all that is in them", "`evotok generate`", generate, WHOLE, refusal="exit 2"),
    Group("Checkpoints that would burst or hang", "`evotok generate`", generate, BOMBS, refusal="exit 2"),
]
