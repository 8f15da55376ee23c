"""An exported checkpoint loads with every Auto class, with this package and, by the code in it, without."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from evotok import EvoTokForConditionalGeneration, EvoTokModel, EvoTokProcessor, EvoTokVQModel
from evotok import modeling_evotok as modeling
from evotok import processing as processing_package
from evotok.cli import main
from evotok.commands.checkpoints import find_asset


# Loads and uses the checkpoints: `python -c WITHOUT_PACKAGE MODEL TOKENIZER RESULTS`.
WITHOUT_PACKAGE = """
import importlib.util, json, sys, torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
from transformers import pipeline

assert importlib.util.find_spec("evotok") is None, "this environment has the package"
folder, vq_folder, results = sys.argv[1:]
loaded = {
    auto.__name__: auto.from_pretrained(folder, trust_remote_code=True)
    for auto in (AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor)
}
loaded["tokenizer"] = AutoModel.from_pretrained(vq_folder, trust_remote_code=True)
processor, image = loaded["AutoProcessor"], Image.linear_gradient("L").convert("RGB")
to_tensors = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
content = [{"type": "image", "image": image}, {"type": "text", "text": "What is this?"}]
question = [{"role": "user", "content": content}]
question = processor.apply_chat_template(question, add_generation_prompt=True, **to_tensors)
prompt = processor.apply_chat_template([{"role": "user", "content": "a cat"}], generation_mode="image", **to_tensors)
tensors = {"encoded": loaded["tokenizer"].encode(question["pixel_values"])}
for name in ("AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
    model = loaded[name].float()
    tensors[f"{name}.text"] = model.generate(**question, max_new_tokens=6, do_sample=False)
    generator = torch.Generator().manual_seed(5)
    tensors[f"{name}.codes"] = model.generate(**prompt, generation_mode="image", generator=generator)
    tensors[f"{name}.pixels"] = model.decode_image_tokens(tensors[f"{name}.codes"])
save_file(tensors, results)
names = {name: type(it).__name__ for name, it in loaded.items()}
names["pipeline"] = type(pipeline("image-text-to-text", model=folder, trust_remote_code=True).model).__name__
print(json.dumps(names))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Exports the embedded checkpoint to `model` and its image tokenizer to `vq`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    assert main(["export", "mini", "--out", str(folder / "model")]) == 0
    EvoTokForConditionalGeneration.from_pretrained(folder / "model").model.vq_model.save_pretrained(folder / "vq")
    return folder


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """Returns the Python of an environment with all packages of this one except EvoTok."""
    home = tmp_path_factory.mktemp("bare")
    venv.create(home, symlinks=True, with_pip=False)
    [site] = home.glob("lib/python*/site-packages")
    for entry in map(Path, sys.path):
        if entry.name in ("site-packages", "dist-packages"):
            for path in entry.iterdir():
                if "evotok" not in path.name.lower() and path.suffix != ".pth" and not (site / path.name).exists():
                    (site / path.name).symlink_to(path)
    return home / "bin" / "python"


def test_exported_checkpoint_loads_with_the_package(folder):
    assert AutoConfig.from_pretrained(folder / "model").model_type == "evotok"
    assert isinstance(AutoModel.from_pretrained(folder / "model"), EvoTokModel)
    assert isinstance(AutoModelForImageTextToText.from_pretrained(folder / "model"), EvoTokForConditionalGeneration)
    assert isinstance(AutoModel.from_pretrained(folder / "vq"), EvoTokVQModel)
    assert isinstance(AutoProcessor.from_pretrained(folder / "model"), EvoTokProcessor)
    loaded, expected = (load_file(each / "model.safetensors") for each in (folder / "model", find_asset("evotok-mini")))
    assert loaded.keys() == expected.keys() and all(loaded[name].equal(expected[name]) for name in loaded)


def test_exported_checkpoint_carries_its_code_and_nothing_else(folder):
    code = {path.name for top in (modeling, processing_package) for path in Path(top.__path__[0]).glob("*_evotok*.py")}
    names = {path.name for path in (folder / "model").iterdir()}
    assert {name for name in names if name.endswith(".py")} == code
    assert names - code == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_exported_checkpoint_works_without_the_package(folder, bare_python, tmp_path):
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
    results = load_file(tmp_path / "results.safetensors")
    model = EvoTokForConditionalGeneration.from_pretrained(find_asset("evotok-mini"), dtype=torch.float32)
    processor = EvoTokProcessor.from_pretrained(find_asset("evotok-mini"))
    to_tensors = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    image = Image.linear_gradient("L").convert("RGB")
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What is this?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, **to_tensors
    )
    assert torch.equal(results["encoded"], model.model.vq_model.encode(inputs["pixel_values"]))
    text = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    chat = [{"role": "user", "content": "a cat"}]
    inputs = processor.apply_chat_template(chat, generation_mode="image", **to_tensors)
    codes = model.generate(**inputs, generation_mode="image", generator=torch.Generator().manual_seed(5))
    assert len(codes.unique()) > 4, "equal codes would prove nothing"
    for name in ("AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
        assert torch.equal(results[f"{name}.text"], text) and torch.equal(results[f"{name}.codes"], codes)
        torch.testing.assert_close(results[f"{name}.pixels"], model.decode_image_tokens(codes))
