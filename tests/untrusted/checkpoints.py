"""Checkpoints: damaged, of huge sizes, with code, settings or regular expressions, with links that lead out."""

import json
import os
import pickle
import reprlib
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from untrusted.case import Group, Workspace, case, kind, run_command
from untrusted.images import noise, saved
from untrusted.materials import DEEP, Change, change_json, change_weights, copy, cut, link_out, pipe, write


def encode(make: Callable[[Workspace], str]):
    """Uses the image tokenizer of a checkpoint."""

    def build(workspace: Workspace) -> list[str]:
        workspace.write("a.png", saved(noise()))
        return ["encode", make(workspace), "a.png", "--out", "codes.safetensors"]

    return build


def tokenizer(change: Change):
    """Uses a changed image tokenizer."""
    return encode(copy("tokenizer", "folder", change))


def model(change: Change):
    """Uses all of a changed checkpoint."""
    make = copy("model", "folder", change)
    return lambda workspace: ["generate", make(workspace), "--prompt", "a frog", "--seed", "1", "--out", "out"]


def config(keys: str = "", **fields) -> Change:
    return change_json("config.json", keys, **fields)


def split_weights(change: Callable[[dict], Any]) -> Change:
    """Splits the weights into two shards; `change` is applied to the index before it is written."""

    def split(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
        for shard, members in shards.items():
            save_file({name: tensors[name] for name in members}, folder / shard, metadata={"format": "pt"})
        places = {name: shard for shard, members in shards.items() for name in members}
        change(places)
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return split


class Evil:
    """Object that runs a command when it is unpickled."""

    def __reduce__(self):
        return (os.system, ("touch pickled",))


PICKLE = pickle.dumps({"weights": Evil()})


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").write_bytes(PICKLE)


LOCAL_CODE = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
OTHER_CONFIGS = "processor_config.json", "tokenizer_config.json"
HUB_CODE = dict.fromkeys(("AutoConfig", "AutoModel", "AutoProcessor"), "somebody/evil--evil.Evil")


def code(auto_map: dict, part: str, *others: str) -> Change:
    """Puts code beside the weights, and names it in config.json, in a part of it, and in other files."""

    def change(folder: Path) -> None:
        (folder / "evil.py").write_text("raise SystemExit('it ran')\n")
        config(part, auto_map=auto_map)(folder)
        for name in ("config.json", *others):
            change_json(name, auto_map=auto_map)(folder)

    return change


def adapters(weights: bool = True, **fields):
    """Makes a folder of LoRA adapters, whose weights are not those of adapters."""
    known = {"base_model_name_or_path": "mini", "peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}

    def change(folder: Path) -> None:
        (folder / "adapter_config.json").write_text(json.dumps(known | fields))
        if weights:
            shutil.copy(folder / "model.safetensors", folder / "adapter_model.safetensors")

    return model(change)


def without_token(tensors: dict) -> None:
    del tensors["semantic_decoder.class_token"]


def half_latent(tensors: dict) -> None:
    tensors["to_latent.linear_2.weight"] = tensors["to_latent.linear_2.weight"][:, :4].contiguous()


def setting(name: str, key: str, value, keys: str = ""):
    """Returns a case of a setting that is refused because of its value."""
    words = name, key, reprlib.repr(value)
    return case(f"{key} of {name}", model(change_json(name, keys, **{key: value})), *words)


def hub_cache(workspace: Workspace) -> str:
    """Lays a checkpoint out as the cache of the Hub."""
    snapshot = "hub/models--somebody--model/snapshots/0123abc"
    for path in (workspace.materials.folder / "tokenizer").iterdir():
        workspace.write(f"hub/models--somebody--model/blobs/{path.stem}", path.read_bytes())
        workspace.link(f"{snapshot}/{path.name}", f"../../blobs/{path.stem}")
    return snapshot


def is_written(printed: str) -> None:
    assert printed.strip(), "no output is named"


AGAIN = "Copy or save the checkpoint again."
SHAPE = "tensor {} has shape {}, but {} by the config"
SIZE = "{} is 1e+09, over the limit of any size"
LARGE = {"height": 10**6, "width": 10**6}
TEMPLATE = f"folder: cannot be loaded (its chat template is not EvoTok's, and could run without end: remove chat_template.jinja, or pass trust_chat_template=True.). {AGAIN}"
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
PADDING = {"strategy": {"Fixed": 10**9}, "direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
KINDS = [
    kind("JSON that is damaged or nested deeply", "folder: {} is damaged. Copy the checkpoint again.")(
        case("config.json", tokenizer(write("config.json", DEEP)), "config.json"),
        case("processor_config.json", model(cut("processor_config.json", 30)), "processor_config.json"),
        case("tokenizer.json", model(write("tokenizer.json", "[]")), "tokenizer.json"),
        case("adapter_config.json", model(write("adapter_config.json", '{"base')), "adapter_config.json"),
        case("index", tokenizer(split_weights(lambda index: index.update(a=3))), "model.safetensors.index.json"),
    ),
    kind("pipe, or link that leads out", "folder: {}.")(
        case("pipe", tokenizer(pipe("config.json")), "config.json is no file. Copy the checkpoint again"),
        *(
            case(f"link for {name}", make(link_out(name)), f"{name} is a link that leads out of the folder. Copy the file itself there")
            for make, name in ((tokenizer, "config.json"), (tokenizer, "model.safetensors"), (model, "tokenizer.json"))
        ),
    ),
    kind("shards that are missing or lie outside", "folder: model{}. Copy the checkpoint again.")(
        case("missing", tokenizer(split_weights(lambda index: index.update(a="model-3.safetensors"))), "-3.safetensors is missing"),
        case(
            "outside",
            model(split_weights(lambda index: index.update(a="../../outside/model.safetensors"))),
            ".safetensors.index.json names '../../outside/model.safetensors', outside the folder",
        ),
    ),
    kind("no folder, or no weights", "{}.")(
        case("no folder", encode(lambda _: "missing"), "'missing': no such folder. Give a checkpoint: a folder with config.json and *.safetensors"),
        case("pickled weights alone", tokenizer(only_pickle), "folder: config.json but no weights (*.safetensors). Copy or save the checkpoint again"),
    ),
    kind("damaged weights", f"folder: cannot be loaded (…). {AGAIN}")(
        case("pickle named .safetensors", tokenizer(write("model.safetensors", PICKLE))),
        case("header of 2^63 bytes", tokenizer(write("model.safetensors", struct.pack("<Q", 2**63) + b"{}"))),
        case("cut in the middle", model(cut("model.safetensors", 20_000))),
    ),
    kind("weights of another config", "folder: the {}: config.json and weights are not of one checkpoint. Copy or save it again.")(
        case("missing tensor", tokenizer(change_weights(without_token)), "weights lack 1 tensors of the config, such as semantic_decoder.class_token"),
        case("shape of a tensor", tokenizer(change_weights(half_latent)), SHAPE.format("to_latent.linear_2.weight", "(8, 4)", "(8, 16)")),
        case(
            "image of a million pixels a side",
            tokenizer(config("encoder_config", image_size=2**20)),
            SHAPE.format("semantic_decoder.position_embedding", "(1, 17, 16)", "(1, 17179869185, 16)"),
        ),
    ),
    kind("weights that are not finite", "folder: the tensor to_latent.linear_2.bias holds NaN or infinite values. Save the checkpoint again.")(
        tokenizer(change_weights(lambda tensors: tensors["to_latent.linear_2.bias"].fill_(float("nan"))))
    ),
    kind("size in a config", f"folder: {{}}. {AGAIN}", limit="10⁸, number of tensors")(
        case("entries", tokenizer(config(codebook_size=10**9)), SIZE.format("config.json: codebook_size")),
        case("layers by another name", model(config("text_config", num_layers=10**9)), SIZE.format("config.json: num_layers")),
        case("positions", model(change_json("processor_config.json", num_image_tokens=10**9)), SIZE.format("processor_config.json: num_image_tokens")),
        case("padding", model(change_json("tokenizer.json", padding=PADDING)), SIZE.format("tokenizer.json: Fixed")),
        case("layers without weights", model(config("text_config", n_layer=10**7)), "cannot be loaded (n_layer is 10000000 but … only 264 tensors)"),
    ),
    kind("config that no model can be built of", f"folder: cannot be loaded (…{{}}…). {AGAIN}")(
        case("text for a number", tokenizer(config(codebook_size="many")), "codebook_size"),
        case("unknown encoder", tokenizer(config(encoder_config={"model_type": "nothing"})), "nothing"),
        case(
            "token that is a template", model(change_json("processor_config.json", image_token="' + 7 * 7 + '")), "should be a token such as '<|image_pad|>'."
        ),
    ),
    kind("processor of another model", "folder: the processor's {}: they are not of one checkpoint. Copy or save it again.")(
        case("token", model(config(image_token_id=3)), "image_token_id is 297, the model's 3"),
        case(
            "size of images",
            model(change_json("processor_config.json", "image_processor", size=LARGE)),
            "image size is (1000000, 1000000), the model's (32, 32)",
        ),
    ),
    kind("setting that would hang or fail later", "folder: {}: {} should not be {}. Save the checkpoint again, or remove the key.")(
        setting("generation_config.json", "num_return_sequences", 0),
        setting("generation_config.json", "unknown_setting", 3),
        setting("processor_config.json", "image_std", 0, "image_processor"),
        setting("tokenizer_config.json", "pad_to_multiple_of", 10**7),
    ),
    kind("sampling value", "guidance_scale=strong must be a number, at least 0.")(model(change_json("generation_config.json", guidance_scale="strong"))),
    kind("chat template of others", TEMPLATE)(
        case("nested loops", model(write("chat_template.jinja", LOOPS))),
        case("word of gigabytes", model(write("chat_template.jinja", "{{ '%2000000000d' % 1 }}"))),
        case("access to the interpreter", model(write("chat_template.jinja", "{{ ''.__class__.__mro__ }}"))),
    ),
    kind("adapters", "folder: adapter{}.")(
        case("on themselves", adapters(base_model_name_or_path="folder"), "s, …: folder: adapters that were trained on themselves. Copy the folder again"),
        case("without weights", adapters(weights=False), "_config.json but no adapter_model.safetensors. Copy or save it again"),
    ),
    kind("config of adapters", f"folder: cannot be loaded (…adapter_config.json: {{}}.). {AGAIN}", limit="rank, plain names")(
        case("regular expression that hangs", adapters(target_modules="(a+)+$"), "target_modules should be plain names of modules, not …: write them out"),
        case("rank of a million", adapters(r=10**6), "r should not be 1000000: train the adapters again without it"),
        case("module of Python", adapters(megatron_core="os", megatron_config={}), "megatron_core should not be 'os': train the adapters again without it"),
    ),
    kind("code or pickles beside the weights", "loaded; the code is neither run nor fetched")(
        case("image tokenizer", tokenizer(code(LOCAL_CODE, "encoder_config")), check=is_written),
        case("model", model(code(LOCAL_CODE, "text_config", *OTHER_CONFIGS)), check=is_written),
        case("code of the Hub", model(code(HUB_CODE, "text_config", *OTHER_CONFIGS)), check=is_written),
        case("pickle", model(write("pytorch_model.bin", PICKLE)), check=is_written),
    ),
    kind("shards, and links within the cache of the Hub", "loaded")(
        case("two shards", tokenizer(split_weights(lambda _: None)), check=is_written), case("cache of the Hub", encode(hub_cache), check=is_written)
    ),
]

GROUPS = [Group("Checkpoints", "`evotok encode`, `generate`", run_command, KINDS)]
