"""`import evotok` imports nothing heavy and registers its models with the Auto classes in any order of imports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
LOAD = """
from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoProcessor
folder = "assets/evotok-mini"
config = AutoConfig.from_pretrained(folder)
loaded = [config, AutoModel.from_config(config.vq_config), AutoProcessor.from_pretrained(folder)]
loaded += [AutoModelForMultimodalLM.from_pretrained(folder)]
print(json.dumps([f"{type(thing).__module__}.{type(thing).__name__}" for thing in loaded]))
"""
ORDERS = {
    "package first": f"import json, evotok{LOAD}",
    "Auto classes first": f"import json\nfrom transformers import AutoModel, AutoProcessor\nimport evotok{LOAD}",
    "submodule first": f"import json\nfrom evotok.modeling_evotok.modeling_evotok_vq import EvoTokVQModel{LOAD}",
}


def run_python(code: str) -> str:
    """Runs code in a new interpreter and returns its output."""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.parametrize(
    ("statement", "also"), [("import evotok", {"rich"}), ("from evotok.cli import main; main(['--help'])", set())]
)
def test_import_and_help_load_no_heavy_modules(statement, also):
    loaded = set(run_python(f"import sys\n{statement}\nprint(*sys.modules)").splitlines()[-1].split())
    assert not loaded & ({"torch", "transformers", "numpy", "PIL", "huggingface_hub"} | also)


@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_load_in_any_order(order):
    assert json.loads(run_python(ORDERS[order]).splitlines()[-1]) == [
        "evotok.modeling_evotok.configuration_evotok.EvoTokConfig",
        "evotok.modeling_evotok.modeling_evotok_vq.EvoTokVQModel",
        "evotok.processing.processing_evotok.EvoTokProcessor",
        "evotok.modeling_evotok.modeling_evotok.EvoTokForConditionalGeneration",
    ]


def test_unknown_name_raises_attribute_error():
    import evotok

    assert set(evotok.__all__) <= set(dir(evotok))
    with pytest.raises(AttributeError, match="EvoTokNothing"):
        _ = evotok.EvoTokNothing
