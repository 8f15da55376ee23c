"""Images with texts: the five sets of the 22M mixture for generation, CC12M and ImageNet-1K for the image tokenizer
(Sec. 4.1), and data of the user."""

from dataclasses import replace
from pathlib import Path

from ..conversations import MAX_TEXT
from ..image_files import IMAGE_SUFFIXES, resolve_file, row_image
from .source import Source, generation_row, named_images, parse_json


_CAPTIONS = ("caption", "captions", "prompt", "text")


def captioned_parquet(row: dict, folder: Path | None) -> dict:
    """Converts `image` with a caption, a text or a list of which the first is taken.
    LLaVA-OneVision-1.5-Mid-Training-85M calls its columns `id`, `image`, `caption`; ImageNet1K-T2I-QwenVL-QwenImage,
    read as parquet with an `image` by the Tar project's loader, documents no name for the text: the usual ones are
    tried."""
    caption = next((row[name] for name in _CAPTIONS if row.get(name)), None)
    return generation_row(row.get("id", ""), caption, row_image(row["image"], folder))


def prompted_json(row: dict, folder: Path | None) -> dict:
    """Converts `{"input_prompt", "input_image"?, "output_image"}` with paths below the folder: text_to_image.json and
    text_and_image_to_image.json of ShareGPT-4o-Image, gen.json and editing.json of OpenGPT-4o-Image."""
    row = parse_json(row)
    input_images = named_images(row.get("input_image"), folder)
    [image] = named_images(row["output_image"], folder)
    return generation_row(row.get("id", row["output_image"]), row["input_prompt"], image, input_images)


def webdataset_pair(row: dict, folder: Path | None) -> dict:
    """Converts a tar's `KEY.jpg` and `KEY.txt`, as img2dataset writes them (its README) and the cards of
    pixparse/cc12m-wds and BLIP3o/BLIP3o-Pretrain-Short-Caption show; the `KEY.json` of CC12M is not used."""
    image = next((row[suffix] for suffix in ("jpg", "jpeg", "png", "webp") if suffix in row), None)
    return generation_row(row["__key__"], row["txt"].decode(), image)


def imagenet(row: dict, folder: Path | None) -> dict:
    """Converts `image` and the integer `label`, the columns of ILSVRC/imagenet-1k; the text is the label's number."""
    image = row_image(row["image"], folder)
    name = row["image"].get("path") if isinstance(row["image"], dict) else None
    return generation_row(name or "", f"class {row['label']}", image)


def image_file(row: dict, folder: Path | None) -> dict:
    """Converts a file of a folder; its text is `NAME.txt` beside it, or its name with spaces for dashes and
    underscores."""
    path = Path(row["path"]).absolute()
    folder = (folder or path.parent).absolute()
    image, beside = resolve_file(folder, str(path)), path.with_suffix(".txt")
    caption = path.stem.replace("-", " ").replace("_", " ")
    if beside.is_file():
        with open(resolve_file(folder, str(beside), "text"), encoding="utf-8") as file:
            caption = file.read(MAX_TEXT + 1)
    return generation_row(path.relative_to(folder) if path.is_relative_to(folder) else path.name, caption, image)


FOR_TOKENIZER = (
    Source(
        name="cc12m", hub_id="pixparse/cc12m-wds", kind="webdataset", task="images", files=("cc12m-train-*.tar",),
        convert=webdataset_pair, num_rows=10_968_539, num_bytes=1_400_000_000_000, weight=11.0,
        licence="captions and links free for any use with attribution to Google; images their owners'",
    ),
    Source(
        name="imagenet-1k", hub_id="ILSVRC/imagenet-1k", kind="parquet", task="images", files=("data/train-*.parquet",),
        convert=imagenet, num_rows=1_281_167, num_bytes=146_000_000_000, weight=1.28,
        licence="non-commercial research and education, terms to be accepted on the hub",
    ),
)  # fmt: skip
FOR_GENERATION = (
    Source(
        name="imagenet1k-qwenimage", hub_id="csuhan/ImageNet1K-T2I-QwenVL-QwenImage", kind="parquet", task="generation",
        files=("**/*.parquet",), convert=captioned_parquet, num_rows=1_281_167, num_bytes=1_600_000_000_000,
        weight=1.28, licence="images by Qwen-Image and captions by Qwen2.5-VL (apache-2.0), after ImageNet's classes",
    ),
    Source(
        name="blip3o-short", hub_id="BLIP3o/BLIP3o-Pretrain-Short-Caption", kind="webdataset", task="generation",
        files=("*.tar",), convert=webdataset_pair, num_rows=5_000_000, num_bytes=700_000_000_000, weight=5.0,
        licence="apache-2.0 for the captions; images their owners'",
    ),
    Source(
        name="llava-onevision-1.5", hub_id="mvp-lab/LLaVA-OneVision-1.5-Mid-Training-85M", kind="parquet",
        task="generation", files=("*/EN/*/*.parquet",), convert=captioned_parquet, num_rows=65_000_000,
        num_bytes=12_000_000_000_000, weight=15.6, licence="apache-2.0 for the captions; images their owners'",
    ),
    Source(
        name="sharegpt-4o-image", hub_id="FreedomIntelligence/ShareGPT-4o-Image", kind="json", task="generation",
        files=("text_to_image.json", "text_and_image_to_image.json"), convert=prompted_json, num_rows=92_256,
        num_bytes=170_000_000_000, weight=0.09, licence="apache-2.0; images by GPT-4o under OpenAI's terms",
    ),
    Source(
        name="opengpt-4o-image", hub_id="WINDop/OpenGPT-4o-Image", kind="json", task="generation",
        files=("gen.json", "editing.json"), convert=prompted_json, num_rows=80_000, num_bytes=150_000_000_000,
        weight=0.08, licence="apache-2.0; images by GPT-4o under OpenAI's terms",
    ),
)  # fmt: skip
_OWN = Source(
    name="image-folder", hub_id="", kind="images", task="images",
    files=tuple(f"**/*{suffix}" for name in sorted(IMAGE_SUFFIXES) for suffix in (name, name.upper())),
    convert=image_file, num_rows=0, num_bytes=0, weight=1.0, licence="your own",
)  # fmt: skip
OWN = (
    _OWN,
    replace(_OWN, name="webdataset-pairs", kind="webdataset", files=("**/*.tar",), convert=webdataset_pair),
    replace(_OWN, name="parquet-pairs", kind="parquet", files=("**/*.parquet",), convert=captioned_parquet),
)
