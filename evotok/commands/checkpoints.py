"""Finding and loading what a command line calls CHECKPOINT: a folder, a Hub id, or `mini`."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple


if TYPE_CHECKING:
    import torch

    from evotok import EvoTokForConditionalGeneration, EvoTokProcessor, EvoTokVQModel

HELP = "folder of a checkpoint, a Hub id, or `mini` for the embedded model"
MULTIMODAL, TOKENIZER = "evotok", "evotok_vq"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


class Checkpoint(NamedTuple):
    """A folder that holds a config and weights."""

    folder: Path
    config: dict[str, Any]

    @property
    def kind(self) -> str:
        """Its `model_type`: `evotok` or `evotok_vq`."""
        return self.config["model_type"]


def find_asset(name: str) -> Path:
    """A folder of `assets/`, in the checkout or in the installed package.

    Raises:
        ValueError: it is not there.
    """
    import evotok

    for base in evotok.__path__:
        if (Path(base) / "assets" / name).is_dir():
            return Path(base) / "assets" / name
    raise ValueError(f"assets/{name} is not there: install from a full checkout, or give the folder of a checkpoint.")


def find_checkpoint(name: str) -> Checkpoint:
    """The checkpoint that a user means, looked at but not loaded.

    Raises:
        ValueError: no such folder or Hub id, no EvoTok config in it, or no weights.
    """
    folder = find_asset("evotok-mini") if name == "mini" else Path(name)
    if not folder.exists() and _HUB_ID.fullmatch(name):
        folder = _fetch(name)
    if not folder.is_dir():
        raise ValueError(f"{name}: no such folder. A checkpoint is a folder with config.json and *.safetensors.")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except FileNotFoundError:
        raise ValueError(f"{name}: no config.json in this folder. Give the folder that a training saved.") from None
    except (ValueError, AttributeError):
        raise ValueError(f"{name}: config.json is damaged. Copy the checkpoint again.") from None
    if kind not in (MULTIMODAL, TOKENIZER):
        raise ValueError(f"{name}: a checkpoint of {kind!r}, not of EvoTok.")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{name}: config.json but no weights (*.safetensors). Copy or save the checkpoint again.")
    return Checkpoint(folder, config)


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # noqa: BLE001 - offline, unknown, gated: the mend is the same
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{name}: no such folder, and the Hub does not give it ({reason}).") from None


def quiet_libraries() -> None:
    """Warnings and loading bars of Transformers are not for the people at a terminal."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def pick_device() -> "torch.device":
    """The accelerator if there is one, else the CPU."""
    import torch

    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def load_multimodal(name: str) -> tuple["EvoTokForConditionalGeneration", "EvoTokProcessor"]:
    """Model and processor of a full checkpoint.

    Raises:
        ValueError: no such checkpoint, weights that do not fit the config, or a tokenizer alone.
    """
    checkpoint = find_checkpoint(name)
    if checkpoint.kind != MULTIMODAL:
        raise ValueError(
            f"{name}: an image tokenizer alone, which can only encode and decode. Give a full checkpoint, such as mini."
        )
    from evotok import EvoTokForConditionalGeneration, EvoTokProcessor

    quiet_libraries()
    device = pick_device()
    with _loading(name):
        # Half precision saves time on accelerators only.
        model, report = EvoTokForConditionalGeneration.from_pretrained(
            checkpoint.folder, dtype="float32" if device.type == "cpu" else "auto", output_loading_info=True
        )
        processor = EvoTokProcessor.from_pretrained(checkpoint.folder)
    _check_complete(name, report["missing_keys"], report["unexpected_keys"])
    return model.to(device).eval(), processor


def load_tokenizer(name: str) -> tuple["EvoTokVQModel", Any]:
    """Image tokenizer of a checkpoint of either kind, alone, and its image processor.

    Raises:
        ValueError: no such checkpoint, or weights that do not fit the config.
    """
    checkpoint = find_checkpoint(name)
    from transformers import SiglipImageProcessorPil

    from evotok import EvoTokConfig, EvoTokProcessor, EvoTokVQConfig, EvoTokVQModel

    quiet_libraries()
    alone = checkpoint.kind == TOKENIZER
    with _loading(name):
        config = EvoTokVQConfig if alone else EvoTokConfig
        config = config.from_pretrained(checkpoint.folder)
        model = EvoTokVQModel(config if alone else config.vq_config)
        weights = _read_weights(checkpoint.folder, "" if alone else "model.vq_model.")
    wanted = model.state_dict().keys()
    _check_complete(name, wanted - weights.keys(), weights.keys() - wanted)
    with _loading(name):
        model.load_state_dict(weights)
        if alone:
            size = {"height": model.config.image_size, "width": model.config.image_size}
            image_processor = SiglipImageProcessorPil(size=size)
        else:
            image_processor = EvoTokProcessor.from_pretrained(checkpoint.folder).image_processor
    return model.to(pick_device()).eval(), image_processor


def _read_weights(folder: Path, prefix: str) -> dict[str, "torch.Tensor"]:
    """Tensors whose names begin with `prefix`, without it; no others are read."""
    from safetensors import safe_open

    weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - not a dict
            weights |= {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    return weights


def _check_complete(name: str, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    for what, keys in (("lack", missing), ("have", unexpected)):
        if keys:
            raise ValueError(
                f"{name}: the weights {what} {len(keys)} tensors, such as {min(keys)}, "
                f"{'that the config asks for' if what == 'lack' else 'that the config knows nothing of'}: "
                "config.json and weights are not of one checkpoint."
            )


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Whatever goes wrong in loading a checkpoint is a ValueError of one line that names it."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, TypeError, KeyError, ValueError, SafetensorError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name}: cannot be loaded ({reason}). Copy or save the checkpoint again.") from error
