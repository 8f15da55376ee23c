"""Networks that compare images, from files of weights: FID's Inception and LPIPS.

Nothing is downloaded, and a file of weights runs no code: only tensors are read, whatever the format.
"""

import importlib.util
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..data.errors import explain_errors, reason
from ..data.image_files import to_uint8
from .pickle_scan import scan_torch_file


INCEPTION = (
    "weights-inception-2015-12-05-6726825d.pth of github.com/toshas/torch-fidelity/releases, "
    "with `pip install torch-fidelity torchvision`"
)
LPIPS = "vgg16-397923af.pth of download.pytorch.org/models, with `pip install torchvision`"
_OPTIONS = {  # option of a file -> file to give, packages
    "inception_weights": (INCEPTION, ("torch_fidelity", "torchvision")),
    "lpips_weights": (LPIPS, ("torchvision",)),
}


def check_weights(option: str, path: str) -> None:
    """Raises ValueError for a bad file of `inception_weights` or `lpips_weights`, or where its packages are missing."""
    wanted, packages = _OPTIONS[option]
    if not Path(path).is_file():
        raise ValueError(f"{option}={path}: no such file: give {wanted}.")
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{option}={path}: needs the package {package}: give {wanted}.")
    read_weights(path)


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Reads the tensors of a safetensors file or of a file of `torch.save`.

    Raises:
        ValueError: no such file, a damaged one, or one that holds anything but tensors.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        scan_torch_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - an untrusted file raises nearly every type
        raise ValueError(f"{path}: no file of weights ({reason(error)}): fetch it again.") from None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(f"{path}: holds something else than tensors by name: fetch it again.")
    return weights


def load_inception(path: str | Path, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Loads FID's Inception as torch-fidelity defines it: images (B, 3, H, W) in [-1, 1] -> features (B, 2048).

    Images are rounded to 8 bits and resized to 299 x 299 without antialiasing, as in the first implementation of FID.

    Raises:
        ValueError: the file holds other weights, or torch-fidelity cannot be imported.
    """
    weights = BytesIO()
    torch.save(read_weights(path), weights)  # torch-fidelity would unpickle the file itself
    weights.seek(0)
    with explain_errors(str(path), "cannot be used", f": give {INCEPTION}."):
        from torchmetrics.image.fid import NoTrainInceptionV3

        network = NoTrainInceptionV3(
            "inception-v3-compat",
            ["2048"],
            weights,  # pyright: ignore[reportArgumentType]  # an open file serves as well as its name
            antialias=False,
        ).to(device)
    return lambda pixels: network(to_uint8(pixels))


def load_lpips(path: str | Path, device: torch.device) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Loads LPIPS over VGG16 (Zhang et al. 2018): two batches (B, 3, H, W) in [-1, 1] -> distances (B,).

    The trunk is torchvision's VGG16 from `path`; torchmetrics contains the learned weights of the layers.

    Raises:
        ValueError: the file holds other weights, or torchvision cannot be imported.
    """
    trunk = read_weights(path)
    with explain_errors(str(path), "cannot be used", f": give {LPIPS}."):
        from torchmetrics.functional.image.lpips import _LPIPS

        network = _LPIPS(net="vgg", pnet_rand=True)
        for part in network.net.children():
            part.load_state_dict({name: trunk[f"features.{name}"] for name in part.state_dict()})
    network.to(device).eval()
    return lambda images, references: network(images.clamp(-1, 1), references).flatten()
