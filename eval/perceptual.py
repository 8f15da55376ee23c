"""Networks of others that images are compared with, from weights on a disk: FID's Inception and LPIPS.

Nothing is downloaded, and no file of weights gets to run code: whatever its kind, only tensors are read.
"""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import torch
from safetensors.torch import load_file

from .pickle_scan import scan_torch_file


INCEPTION = (
    "weights-inception-2015-12-05-6726825d.pth of github.com/toshas/torch-fidelity/releases, "
    "with `pip install torch-fidelity torchvision`"
)
LPIPS = "vgg16-397923af.pth of download.pytorch.org/models, with `pip install torchvision`"


def check_inception(path: str) -> None:
    """Raises ValueError unless `load_inception` will find packages and a file of weights."""
    _check(path, "inception_weights", INCEPTION, ("torch_fidelity", "torchvision"))


def check_lpips(path: str) -> None:
    """Raises ValueError unless `load_lpips` will find packages and a file of weights."""
    _check(path, "lpips_weights", LPIPS, ("torchvision",))


def _check(path: str, option: str, wanted: str, packages: tuple[str, ...]) -> None:
    if not Path(path).is_file():
        raise ValueError(f"{option}={path}: no such file: give {wanted}.")
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{option}={path}: needs the package {package}: give {wanted}.")
    read_weights(path)


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors by name, of a safetensors file or one of `torch.save`.

    Raises:
        ValueError: no such file, a damaged one, or one with anything but tensors.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        scan_torch_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - an untrusted file raises nearly every type there is
        raise ValueError(
            f"{path}: no file of weights ({' '.join(str(error).split())[:120]}): fetch it again."
        ) from None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(f"{path}: holds something else than tensors by name: fetch it again.")
    return weights


def load_inception(path: str | Path, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """FID's own network, as torch-fidelity has it: images (B, 3, H, W) in [-1, 1] -> features (B, 2048).

    Images are rounded to 8 bits and resized to 299 x 299 the way the first implementation did, without antialiasing.

    Raises:
        ValueError: the file holds other weights, or torch-fidelity does not work here.
    """
    weights = BytesIO()
    torch.save(read_weights(path), weights)  # torch-fidelity would unpickle the file itself
    weights.seek(0)
    with _loading(path, INCEPTION):
        from torchmetrics.image.fid import NoTrainInceptionV3

        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], weights, antialias=False).to(device)
    return lambda pixels: network(_to_bytes(pixels))


def load_lpips(path: str | Path, device: torch.device) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """LPIPS over VGG16 (Zhang et al. 2018): two batches (B, 3, H, W) in [-1, 1] -> distances (B,).

    The trunk is read from `path`, torchvision's VGG16; the learned weights of the layers come with torchmetrics.

    Raises:
        ValueError: the file holds other weights, or torchvision does not work here.
    """
    trunk = read_weights(path)
    with _loading(path, LPIPS):
        from torchmetrics.functional.image.lpips import _LPIPS

        network = _LPIPS(net="vgg", pnet_rand=True)
        for part in network.net.children():
            part.load_state_dict({name: trunk[f"features.{name}"] for name in part.state_dict()})
    network.to(device).eval()
    return lambda images, references: network(images.clamp(-1, 1), references).flatten()


@contextmanager
def _loading(path: str | Path, wanted: str) -> Iterator[None]:
    """Whatever goes wrong in building a network of others is a ValueError of one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{path}: cannot be used ({reason}): give {wanted}.") from error


def _to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """[-1, 1] -> uint8."""
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte()
