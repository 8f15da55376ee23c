"""A saved folder opens with every Auto class, with this package and without it."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor

from evotok import EvoTokForConditionalGeneration, EvoTokModel, EvoTokProcessor, EvoTokVQModel
from evotok.training.text_tokenizer import train_text_tokenizer


# Run isolated and elsewhere, so that neither the checkout nor an installed package is found.
OPEN_WITHOUT_THE_PACKAGE = """
import importlib.util, json, sys, torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
sys.meta_path.insert(0, type("Absent", (), {"find_spec": staticmethod(
    lambda name, *_: (_ for _ in ()).throw(ModuleNotFoundError(name)) if name.split(".")[0] == "evotok" else None)}))
folder, vq_folder, codes_file = sys.argv[1:]
names = {}
for auto in (AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor):
    opened = auto.from_pretrained(folder, trust_remote_code=True)
    names[auto.__name__] = type(opened).__name__
    if auto is AutoModelForImageTextToText:
        expected = torch.load(codes_file, weights_only=True)
        names["same_codes"] = torch.equal(opened.model.vq_model.encode(torch.zeros(1, 3, 32, 32)), expected)
names["vq"] = type(AutoModel.from_pretrained(vq_folder, trust_remote_code=True)).__name__
print(json.dumps(names))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model.save_pretrained(folder / "model")
    tiny_model.model.vq_model.save_pretrained(folder / "vq")
    tokenizer = train_text_tokenizer(["what is this? a cat"] * 4, 280)
    EvoTokProcessor.from_parts(tokenizer, image_size=32, num_image_tokens=16).save_pretrained(folder / "model")
    return folder


def test_with_the_package(folder):
    assert AutoConfig.from_pretrained(folder / "model").model_type == "evotok"
    assert isinstance(AutoModel.from_pretrained(folder / "model"), EvoTokModel)
    for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        assert isinstance(auto.from_pretrained(folder / "model"), EvoTokForConditionalGeneration)
    assert isinstance(AutoModel.from_pretrained(folder / "vq"), EvoTokVQModel)
    assert isinstance(AutoProcessor.from_pretrained(folder / "model"), EvoTokProcessor)


def test_without_the_package(folder, tiny_model, tmp_path):
    codes_file = tmp_path / "codes.pt"
    torch.save(tiny_model.model.vq_model.encode(torch.zeros(1, 3, 32, 32)), codes_file)
    result = subprocess.run(
        [sys.executable, "-I", "-c", OPEN_WITHOUT_THE_PACKAGE, folder / "model", folder / "vq", codes_file],
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "AutoConfig": "EvoTokConfig",
        "AutoModel": "EvoTokModel",
        "AutoModelForImageTextToText": "EvoTokForConditionalGeneration",
        "AutoModelForMultimodalLM": "EvoTokForConditionalGeneration",
        "AutoProcessor": "EvoTokProcessor",
        "same_codes": True,
        "vq": "EvoTokVQModel",
    }


def test_everything_loads_with_nothing_missing(folder, tiny_model):
    loaded, info = EvoTokForConditionalGeneration.from_pretrained(folder / "model", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
