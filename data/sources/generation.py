"""Pictures with the texts they are drawn from: the five sets of the 22M mixture (Sec. 4.1)."""

from pathlib import Path

from ..image_files import embedded_image
from .images import webdataset_pair
from .source import Source, json_row, named_images, to_draw


_CAPTIONS = ("caption", "captions", "prompt", "text")


def captioned_parquet(row: dict, folder: Path | None) -> dict:
    """`image` with a caption, a text or a list of which the first counts. LLaVA-OneVision-1.5-Mid-Training-85M calls
    its columns `id`, `image`, `caption`; ImageNet1K-T2I-QwenVL-QwenImage, read as parquet with an `image` by the Tar
    project's loader, documents no name for the text: the usual ones are tried."""
    caption = next((row[name] for name in _CAPTIONS if row.get(name)), None)
    return to_draw(row.get("id", ""), caption, embedded_image(row["image"], folder))


def prompted_json(row: dict, folder: Path | None) -> dict:
    """`{"input_prompt", "input_image"?, "output_image"}` with paths below the folder: text_to_image.json and
    text_and_image_to_image.json of ShareGPT-4o-Image, gen.json and editing.json of OpenGPT-4o-Image."""
    record = json_row(row)
    given = named_images(record.get("input_image"), folder)
    [image] = named_images(record["output_image"], folder)
    return to_draw(record.get("id", record["output_image"]), record["input_prompt"], image, given)


IMAGENET1K_QWENIMAGE = Source(
    name="imagenet1k-qwenimage",
    hub_id="csuhan/ImageNet1K-T2I-QwenVL-QwenImage",
    kind="parquet",
    files=("**/*.parquet",),
    convert=captioned_parquet,
    task="generation",
    num_samples=1_281_167,
    num_bytes=1_600_000_000_000,
    weight=1.28,
    licence="images by Qwen-Image and captions by Qwen2.5-VL (apache-2.0), after ImageNet's classes",
)
BLIP3O_SHORT = Source(
    name="blip3o-short",
    hub_id="BLIP3o/BLIP3o-Pretrain-Short-Caption",
    kind="webdataset",
    files=("*.tar",),
    convert=webdataset_pair,
    task="generation",
    num_samples=5_000_000,
    num_bytes=700_000_000_000,
    weight=5.0,
    licence="apache-2.0 for the captions; images their owners'",
)
LLAVA_ONEVISION_1_5 = Source(
    name="llava-onevision-1.5",
    hub_id="mvp-lab/LLaVA-OneVision-1.5-Mid-Training-85M",
    kind="parquet",
    files=("*/EN/*/*.parquet",),
    convert=captioned_parquet,
    task="generation",
    num_samples=65_000_000,
    num_bytes=12_000_000_000_000,
    weight=15.6,
    licence="apache-2.0 for the captions; images their owners'",
)
SHAREGPT_4O_IMAGE = Source(
    name="sharegpt-4o-image",
    hub_id="FreedomIntelligence/ShareGPT-4o-Image",
    kind="json",
    files=("text_to_image.json", "text_and_image_to_image.json"),
    convert=prompted_json,
    task="generation",
    num_samples=92_256,
    num_bytes=170_000_000_000,
    weight=0.09,
    licence="apache-2.0; images by GPT-4o under OpenAI's terms",
)
OPENGPT_4O_IMAGE = Source(
    name="opengpt-4o-image",
    hub_id="WINDop/OpenGPT-4o-Image",
    kind="json",
    files=("gen.json", "editing.json"),
    convert=prompted_json,
    task="generation",
    num_samples=80_000,
    num_bytes=150_000_000_000,
    weight=0.08,
    licence="apache-2.0; images by GPT-4o under OpenAI's terms",
)
