"""A saved folder opens with every Auto class, with this package and, by the code that it carries, without it."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch
from conftest import build_chat_model
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor

from evotok import EvoTokForConditionalGeneration, EvoTokModel, EvoTokProcessor, EvoTokVQModel
from evotok.cli import main


# Uses the folders without the package; `python WITHOUT_PACKAGE MODEL TOKENIZER RESULTS`.
WITHOUT_PACKAGE = """
import importlib.util, json, sys, torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
from transformers import pipeline

assert importlib.util.find_spec("evotok") is None, "this environment is not bare"
folder, vq_folder, results = sys.argv[1:]
opened = {
    auto.__name__: auto.from_pretrained(folder, trust_remote_code=True)
    for auto in (AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor)
}
opened["tokenizer"] = AutoModel.from_pretrained(vq_folder, trust_remote_code=True)
processor, picture = opened["AutoProcessor"], Image.linear_gradient("L").convert("RGB")
tensors = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
question = [{"type": "image", "image": picture}, {"type": "text", "text": "what is this?"}]
question = [{"role": "user", "content": question}]
question = processor.apply_chat_template(question, add_generation_prompt=True, **tensors)
wish = processor.apply_chat_template([{"role": "user", "content": "a cat"}], generation_mode="image", **tensors)
tensors = {"encoded": opened["tokenizer"].encode(question["pixel_values"])}
for name in ("AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
    model = opened[name]
    tensors[f"{name}.text"] = model.generate(**question, max_new_tokens=6, do_sample=False)
    generator = torch.Generator().manual_seed(5)
    tensors[f"{name}.codes"] = model.generate(**wish, generation_mode="image", generator=generator)
    tensors[f"{name}.pixels"] = model.decode_image_tokens(tensors[f"{name}.codes"])
save_file(tensors, results)
names = {name: type(it).__name__ for name, it in opened.items()}
pipe = pipeline("image-text-to-text", model=folder, trust_remote_code=True)
names["pipeline"] = type(pipe.model).__name__
print(json.dumps(names))
"""


@pytest.fixture(scope="module")
def parts():
    return build_chat_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, parts):
    """`model`, as `evotok export` writes it, and `vq`, an image tokenizer alone."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model, processor = parts
    model.save_pretrained(folder / "trained")
    processor.save_pretrained(folder / "trained")
    arguments = ["export", str(folder / "trained"), "--out", str(folder / "model"), "--dtype", "float32"]
    assert main(arguments) == 0
    model.model.vq_model.save_pretrained(folder / "vq")
    return folder


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """The Python of an environment that has all that this one has, but for this package."""
    home = tmp_path_factory.mktemp("bare")
    venv.create(home, symlinks=True, with_pip=False)
    [site] = home.glob("lib/python*/site-packages")
    for entry in map(Path, sys.path):
        if entry.name in ("site-packages", "dist-packages"):
            for path in entry.iterdir():
                ours = "evotok" in path.name.lower()
                if not ours and path.suffix != ".pth" and not (site / path.name).exists():
                    (site / path.name).symlink_to(path)
    return home / "bin" / "python"


def test_with_the_package(folder):
    assert AutoConfig.from_pretrained(folder / "model").model_type == "evotok"
    assert isinstance(AutoModel.from_pretrained(folder / "model"), EvoTokModel)
    for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        assert isinstance(auto.from_pretrained(folder / "model"), EvoTokForConditionalGeneration)
    assert isinstance(AutoModel.from_pretrained(folder / "vq"), EvoTokVQModel)
    assert isinstance(AutoProcessor.from_pretrained(folder / "model"), EvoTokProcessor)


def test_the_folder_carries_all_that_it_needs_and_no_more(folder):
    from evotok import modeling_evotok, processing

    carried = {
        path.name
        for package in (modeling_evotok, processing)
        for path in Path(package.__path__[0]).glob("*_evotok*.py")
    }
    names = {path.name for path in (folder / "model").iterdir()}
    assert {name for name in names if name.endswith(".py")} == carried
    assert names - carried == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_without_the_package(folder, parts, bare_python, tmp_path):
    result = subprocess.run(
        [bare_python, "-c", WITHOUT_PACKAGE, folder / "model", folder / "vq", tmp_path / "results.safetensors"],
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": os.defpath, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "AutoConfig": "EvoTokConfig",
        "AutoModel": "EvoTokModel",
        "AutoModelForImageTextToText": "EvoTokForConditionalGeneration",
        "AutoModelForMultimodalLM": "EvoTokForConditionalGeneration",
        "AutoProcessor": "EvoTokProcessor",
        "tokenizer": "EvoTokVQModel",
        "pipeline": "EvoTokForConditionalGeneration",
    }
    model, processor = parts
    results = load_file(tmp_path / "results.safetensors")
    tensors = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    picture = Image.linear_gradient("L").convert("RGB")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "what is this?"}]
    chat = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(chat, add_generation_prompt=True, **tensors)
    assert torch.equal(results["encoded"], model.model.vq_model.encode(inputs["pixel_values"]))
    text = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    chat = [{"role": "user", "content": "a cat"}]
    inputs = processor.apply_chat_template(chat, generation_mode="image", **tensors)
    codes = model.generate(**inputs, generation_mode="image", generator=torch.Generator().manual_seed(5))
    for name in ("AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
        assert torch.equal(results[f"{name}.text"], text)
        assert torch.equal(results[f"{name}.codes"], codes) and len(codes.unique()) > 4
        torch.testing.assert_close(results[f"{name}.pixels"], model.decode_image_tokens(codes))


def test_everything_loads_with_nothing_missing(folder, parts):
    loaded, info = EvoTokForConditionalGeneration.from_pretrained(folder / "model", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, tensor in parts[0].state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
