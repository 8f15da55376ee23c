"""Pictures for the image tokenizer: CC12M and the train set of ImageNet-1K (Sec. 4.1)."""

from pathlib import Path

from ..image_files import embedded_image
from .source import Source, to_draw


def webdataset_pair(row: dict, folder: Path | None) -> dict:
    """A tar's `KEY.jpg` and `KEY.txt`, as img2dataset writes them (its README) and the cards of pixparse/cc12m-wds
    and BLIP3o/BLIP3o-Pretrain-Short-Caption show; CC12M has a `KEY.json` beside them, which is not looked at."""
    image = next((row[suffix] for suffix in ("jpg", "jpeg", "png", "webp") if suffix in row), None)
    return to_draw(row["__key__"], row["txt"].decode(), image)


def imagenet(row: dict, folder: Path | None) -> dict:
    """`image` and the integer `label`, the columns of ILSVRC/imagenet-1k: its number is all the text there is."""
    image = embedded_image(row["image"], folder)
    name = row["image"].get("path") if isinstance(row["image"], dict) else None
    return to_draw(name or "", f"class {row['label']}", image)


CC12M = Source(
    name="cc12m",
    hub_id="pixparse/cc12m-wds",
    kind="webdataset",
    files=("cc12m-train-*.tar",),
    convert=webdataset_pair,
    task="images",
    num_samples=10_968_539,
    num_bytes=1_400_000_000_000,
    weight=11.0,
    licence="captions and links free for any use with attribution to Google; images their owners'",
)
IMAGENET_1K = Source(
    name="imagenet-1k",
    hub_id="ILSVRC/imagenet-1k",
    kind="parquet",
    files=("data/train-*.parquet",),
    convert=imagenet,
    task="images",
    num_samples=1_281_167,
    num_bytes=146_000_000_000,
    weight=1.28,
    licence="non-commercial research and education, terms to be accepted on the hub",
)
