"""Finds, checks and loads a checkpoint: a folder, a Hub id, or `mini`."""

import re
import warnings
from collections.abc import Collection
from contextlib import AbstractContextManager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from evotok.commands.terminal import waiting


if TYPE_CHECKING:
    import torch

    from evotok import EvoTokConfig, EvoTokForConditionalGeneration, EvoTokProcessor, EvoTokVQConfig, EvoTokVQModel

MULTIMODAL, TOKENIZER = "evotok", "evotok_vq"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_NO_FOLDER = "Give a checkpoint: a folder with config.json and *.safetensors."
_MISMATCH = "the processor's {}, the model's {}: they are not of one checkpoint. Copy or save it again."
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


class Checkpoint(NamedTuple):
    """A folder with config and weights, or with adapters for the checkpoint `base`, whose config is theirs too."""

    folder: Path
    config: dict[str, Any]
    base: "Checkpoint | None" = None

    @property
    def weights(self) -> list[Path]:
        """Lists the files of its weights, those of its base first."""
        return [*(self.base.weights if self.base else ()), *sorted(self.folder.glob("*.safetensors"))]

    @property
    def kind(self) -> str:
        """Returns its `model_type`: `evotok` or `evotok_vq`."""
        return self.config["model_type"]


def find_asset(name: str) -> Path:
    """Finds a folder of `assets/`, in the checkout or in the installed package.

    Raises:
        ValueError: there is no such folder.
    """
    import evotok

    for base in evotok.__path__:
        if (Path(base) / "assets" / name).is_dir():
            return Path(base) / "assets" / name
    raise ValueError(f"assets/{name} is not there: install from a full checkout, or give the folder of a checkpoint.")


def checkpoint_folder(name: str) -> Path:
    """Finds the folder of a checkpoint; that of a Hub id is downloaded, unless its first part is a local folder.

    Raises:
        ValueError: no such folder or Hub id; the message has the most similar name.
    """
    folder = find_asset("evotok-mini") if name == "mini" else Path(name)
    if not folder.exists() and HUB_ID.fullmatch(name) and not folder.parent.is_dir():
        folder = _fetch(name)
    if not name or not folder.is_dir():
        beside = [str(path) for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        near = get_close_matches(name, ["mini", *beside], n=1)
        hint = f"Did you mean {near[0]!r}?" if near else _NO_FOLDER
        raise ValueError(f"{name!r}: no such folder. {hint}")
    return folder


def find_checkpoint(name: str, above: tuple[Path, ...] = ()) -> Checkpoint:
    """Finds a checkpoint and checks its files, without loading its weights.

    Args:
        above: folders of adapters that were trained on it.

    Raises:
        ValueError: no such folder or Hub id, no EvoTok config in it, or no weights; adapters without their checkpoint.
    """
    from evotok.training.checkpoint_configs import check_configs, read_config

    folder = checkpoint_folder(name)
    check_files(name, folder)
    if (folder / "adapter_config.json").is_file():
        return _find_adapters(name, folder, above)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{name}: no config.json in this folder. Give the folder that a training saved.")
    config = read_config(folder / "config.json", name)
    kind = config.get("model_type")
    if kind not in (MULTIMODAL, TOKENIZER):
        raise ValueError(f"{name}: a checkpoint of {str(kind)[:80]!r}, not of EvoTok. Give one of EvoTok.")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{name}: config.json but no weights (*.safetensors). Copy or save the checkpoint again.")
    check_configs(folder, name)
    _check_shards(name, folder)
    return Checkpoint(folder, config)


def _find_adapters(name: str, folder: Path, above: tuple[Path, ...]) -> Checkpoint:
    """Finds the checkpoint that LoRA adapters were trained on, which may be adapters itself."""
    from evotok.training.checkpoint_configs import check_configs, read_config

    base = read_config(folder / "adapter_config.json", name).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise ValueError(f"{name}: adapters without the name of their checkpoint. Give the checkpoint itself.")
    if not (folder / "adapter_model.safetensors").is_file():
        raise ValueError(f"{name}: adapter_config.json but no adapter_model.safetensors. Copy or save it again.")
    check_configs(folder, name)
    if folder.resolve() in above:
        raise ValueError(f"{name}: adapters that were trained on themselves. Copy the folder again.")
    try:
        below = find_checkpoint(base, (*above, folder.resolve()))
    except ValueError as error:
        raise ValueError(f"{name}: adapters, which need the checkpoint that they were trained on: {error}") from None
    return Checkpoint(folder, below.config, below)


def check_files(name: str, folder: Path) -> None:
    """Checks that a folder holds files and folders only; those of the Hub's cache are links to the blobs beside it.

    Args:
        name: of the folder in messages.

    Raises:
        ValueError: a pipe, a device, or a link that leads out.
    """
    home = folder.resolve()
    home = home.parent.parent if home.parent.name == "snapshots" else home
    for path in folder.iterdir():
        try:
            inside = path.resolve().is_relative_to(home)
        except (OSError, RuntimeError):  # a circular link
            inside = False
        if not inside:
            raise ValueError(f"{name}: {path.name} is a link that leads out of the folder. Copy the file itself there.")
        if not path.is_file() and not path.is_dir():
            raise ValueError(f"{name}: {path.name} is no file. Copy the checkpoint again.")


def _check_shards(name: str, folder: Path) -> None:
    """Checks that all shards of an index are in the folder."""
    from evotok.training.checkpoint_configs import read_config

    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    shards = read_config(index, name).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError(f"{name}: {index.name} is damaged. Copy the checkpoint again.")
    for shard in sorted(set(shards.values())):
        if Path(shard).name != shard:
            raise ValueError(f"{name}: {index.name} names {shard!r}, outside the folder. Copy the checkpoint again.")
        if not (folder / shard).is_file():
            raise ValueError(f"{name}: {shard} is missing. Copy the checkpoint again.")


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download

    from evotok.data.errors import reason

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # noqa: BLE001 - offline, unknown, gated: the correction is the same
        raise ValueError(
            f"{name}: no such folder, and it cannot be downloaded from the Hub ({reason(error, 120)})."
        ) from None


def quiet_libraries() -> None:
    """Disables warnings and progress bars of Transformers, which are for programmers."""
    from transformers.utils import logging

    # Such as for fields of older configs.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\b")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def pick_device() -> "torch.device":
    """Returns the accelerator if there is one, else the CPU."""
    import torch

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if device is None else device


def load_multimodal(name: str) -> tuple["EvoTokForConditionalGeneration", "EvoTokProcessor"]:
    """Loads model and processor of a full checkpoint, the model in evaluation mode on the accelerator.

    Raises:
        ValueError: no such checkpoint, weights that do not fit the config, or a tokenizer alone.
    """
    checkpoint = find_checkpoint(name)
    if checkpoint.kind != MULTIMODAL:
        raise ValueError(
            f"{name}: an image tokenizer alone, which can only encode and decode. Give a full checkpoint, such as mini."
        )
    from evotok import EvoTokProcessor

    quiet_libraries()
    device = pick_device()
    # The CPU is no faster in half precision, except with int8 weights: their kernel reads activations in bfloat16.
    on_cpu = "bfloat16" if "quantization_config" in checkpoint.config else "float32"
    model = _load_model(name, checkpoint, on_cpu if device.type == "cpu" else "auto")
    with _loading(name):
        processor = EvoTokProcessor.from_pretrained(checkpoint.folder)
    _check_finite(name, model.state_dict())
    _check_processor(name, model.config, processor)
    return model.to(device).eval(), processor


def _load_model(name: str, checkpoint: Checkpoint, dtype: str) -> "EvoTokForConditionalGeneration":
    """Loads the model of a full checkpoint, and merges adapters into it."""
    if checkpoint.base is not None:
        from evotok.training.multimodal.lora import merge_adapters

        model = _load_model(name, checkpoint.base, dtype)
        with waiting("Merging the adapters"), _loading(name):
            return merge_adapters(model, checkpoint.folder)
    import torch

    from evotok import EvoTokConfig, EvoTokForConditionalGeneration
    from evotok.training.checkpoint_configs import check_counts

    with waiting("Loading the model"), _loading(name):
        found = _read_shapes(checkpoint.folder)
        check_counts(checkpoint.config, len(found))
        config = EvoTokConfig.from_pretrained(checkpoint.folder)
        with torch.device("meta"):  # sizes are compared before memory is taken for them
            skeleton = EvoTokForConditionalGeneration(config)
    _check_shapes(name, {key: tuple(tensor.shape) for key, tensor in skeleton.state_dict().items()}, found)
    with _loading(name):
        loaded = EvoTokForConditionalGeneration.from_pretrained(
            checkpoint.folder, dtype=dtype, output_loading_info=True
        )
        model, report = cast("tuple[EvoTokForConditionalGeneration, dict[str, list[str]]]", loaded)
    _check_complete(name, report["missing_keys"], report["unexpected_keys"])
    return model


def load_tokenizer(name: str) -> tuple["EvoTokVQModel", Any]:
    """Loads the image tokenizer of a checkpoint of either kind, without the rest, and its image processor.

    Raises:
        ValueError: no such checkpoint, or weights that do not fit the config.
    """
    checkpoint = _below_adapters(name, find_checkpoint(name))
    import torch
    from transformers import SiglipImageProcessorPil

    from evotok import EvoTokConfig, EvoTokProcessor, EvoTokVQConfig, EvoTokVQModel
    from evotok.training.checkpoint_configs import check_counts

    quiet_libraries()
    alone = checkpoint.kind == TOKENIZER
    with waiting("Loading the image tokenizer"), _loading(name):
        prefix = "" if alone else "model.vq_model."
        shapes = _read_shapes(checkpoint.folder)
        check_counts(checkpoint.config, len(shapes))
        if alone:
            config = EvoTokVQConfig.from_pretrained(checkpoint.folder)
        else:
            config = EvoTokConfig.from_pretrained(checkpoint.folder).vq_config
        with torch.device("meta"):  # sizes are compared before memory is taken for them
            wanted = {key: tuple(tensor.shape) for key, tensor in EvoTokVQModel(config).state_dict().items()}
    found = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
    _check_complete(name, wanted.keys() - found.keys(), found.keys() - wanted.keys())
    _check_shapes(name, wanted, found)
    with _loading(name):
        model = EvoTokVQModel(config)
        weights = _read_weights(checkpoint.folder, prefix)
        model.load_state_dict(weights)
        if alone:
            size = {"height": model.config.image_size, "width": model.config.image_size}
            image_processor = SiglipImageProcessorPil(size=size)
        else:
            image_processor = EvoTokProcessor.from_pretrained(checkpoint.folder).image_processor
    _check_finite(name, weights)
    _check_image_size(name, model.config, image_processor)
    return model.to(pick_device()).eval(), image_processor


def _below_adapters(name: str, checkpoint: Checkpoint) -> Checkpoint:
    """Returns the checkpoint below adapters, which has the tokenizer: no stage trains adapters on it."""
    while checkpoint.base is not None:
        if any("vq_model" in key for key in _read_shapes(checkpoint.folder)):
            raise ValueError(f"{name}: adapters on the image tokenizer. `evotok export` it first, and give the result.")
        checkpoint = checkpoint.base
    return checkpoint


def _read_weights(folder: Path, prefix: str) -> dict[str, "torch.Tensor"]:
    """Reads the tensors whose names begin with `prefix`, and removes it."""
    from safetensors import safe_open

    weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - not a dict
            weights |= {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    return weights


def _read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Reads the name and shape of every tensor from the headers of the files."""
    from safetensors import safe_open

    shapes = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a dict
    return shapes


def _check_shapes(name: str, wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    for key in sorted(wanted.keys() & found.keys()):
        if found[key] != wanted[key]:
            raise ValueError(
                f"{name}: the tensor {key} has shape {found[key]}, but {wanted[key]} by the config: config.json "
                "and weights are not of one checkpoint. Copy or save it again."
            )


def _check_finite(name: str, weights: dict[str, "torch.Tensor"]) -> None:
    for key, tensor in weights.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name}: the tensor {key} holds NaN or infinite values. Save the checkpoint again.")


def _check_image_size(name: str, config: "EvoTokVQConfig", image_processor: Any) -> None:
    theirs = (image_processor.size["height"], image_processor.size["width"])
    ours = (config.image_size, config.image_size)
    if theirs != ours:
        raise ValueError(f"{name}: {_MISMATCH.format(f'image size is {theirs}', ours)}")


def _check_processor(name: str, config: "EvoTokConfig", processor: "EvoTokProcessor") -> None:
    """Checks that image size, image tokens and vocabulary of the processor are the model's."""
    _check_image_size(name, config.vq_config, processor.image_processor)
    pairs = {"num_image_tokens": (processor.num_image_tokens, config.vq_config.num_positions)}
    pairs |= {key: (token_id, getattr(config, key)) for key, token_id in processor.token_ids.items()}
    for key, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise ValueError(f"{name}: {_MISMATCH.format(f'{key} is {theirs}', ours)}")
    size = 1 + max(processor.tokenizer.get_vocab().values(), default=-1)
    if size > config.text_config.vocab_size:
        words = f"vocabulary has {size} tokens"
        raise ValueError(f"{name}: {_MISMATCH.format(words, config.text_config.vocab_size)}")


def _check_complete(name: str, missing: Collection[str], unexpected: Collection[str]) -> None:
    for difference, keys in (("lack {} tensors of", missing), ("have {} tensors more than", unexpected)):
        if keys:
            raise ValueError(
                f"{name}: the weights {difference.format(len(keys))} the config, such as {min(keys)}: config.json and "
                "weights are not of one checkpoint. Copy or save it again."
            )


def _loading(name: str) -> AbstractContextManager[None]:
    """Returns a context of loading a checkpoint, whose errors become ValueErrors of one line."""
    from evotok.data.errors import explain_errors

    return explain_errors(name, "cannot be loaded", ". Copy or save the checkpoint again.")
