"""Conversations about images: LLaVA-Pretrain for the projector, the four sets of the 13M mixture for SFT (Sec. 4.1).

RLAIF-V is not the paper's: it holds preferences, for the dpo stage.
"""

from pathlib import Path

from ..conversations import check_length, check_modalities
from ..image_files import row_image
from .source import Source, conversation_row, named_images, parse_json


def llava_json(row: dict, folder: Path | None) -> dict:
    """Converts LLaVA's own format, `{"id", "image"?, "conversations"}`, documented in LLaVA's docs/Data.md;
    Cambrian-10M's JSONL has the same keys and a `source`. Rows without `image` are text alone."""
    row = parse_json(row)
    check_modalities(row)
    return conversation_row(row.get("id", ""), row["conversations"], named_images(row.get("image"), folder))


def llava_parquet(row: dict, folder: Path | None) -> dict:
    """Converts `id`, `image` (null for text alone), `conversations`, `data_source`: the columns in the dataset cards of
    lmms-lab/LLaVA-NeXT-Data and lmms-lab/LLaVA-OneVision-Data."""
    images = [row_image(row["image"], folder)] if row["image"] else []
    return conversation_row(row["id"], row["conversations"], images)


def honeybee(row: dict, folder: Path | None) -> dict:
    """Converts `q_source`, `q_id`, `image_path`, `question`, `cot`, as its card explains them. The card releases
    neither the images (TIGER-Lab/ViRL39K, images.zip) nor most questions: merge them first with its full_data.py.
    OpenThoughts3 rows have no image."""
    if not row["question"] or row["question"] in ("None", "nan"):
        raise ValueError("no question: merge the questions first with the data set's full_data.py")
    images = named_images(row["image_path"], folder)
    # Questions of ViRL have the image mark, generated ones do not.
    llava_messages = [{"from": "human", "value": row["question"]}, {"from": "gpt", "value": row["cot"]}]
    return conversation_row(row["q_id"], llava_messages, images)


def rlaif_v(row: dict, folder: Path | None) -> dict:
    """Converts `image`, `question`, `chosen`, `rejected`, `idx`, which the card of openbmb/RLAIF-V-Dataset explains;
    its other four columns give where a row is from. Other parquet files with these columns are converted, too."""
    for name in ("image", "question", "chosen", "rejected"):
        if not row[name]:  # no text alone: under ZeRO-3 the reference model must run the same modules on all processes
            raise ValueError(f"nothing under {name}")
    llava_messages = [{"from": "human", "value": row["question"]}, {"from": "gpt", "value": row["chosen"]}]
    check_length(row["question"], row["chosen"], row["rejected"])
    images = [row_image(row["image"], folder)]
    return conversation_row(row.get("idx", ""), llava_messages, images) | {"rejected": row["rejected"]}


SOURCES = (
    Source(
        name="llava-pretrain", hub_id="liuhaotian/LLaVA-Pretrain", kind="json", task="understanding",
        files=("blip_laion_cc_sbu_558k.json",), convert=llava_json, num_rows=558_128, num_bytes=27_000_000_000,
        weight=0.558, licence="other: images and captions under the licences of LAION, CC-3M and SBU",
    ),
    Source(
        name="llava-onevision", hub_id="lmms-lab/LLaVA-OneVision-Data", kind="parquet", task="understanding",
        files=("**/*.parquet",), convert=llava_parquet, num_rows=3_940_000, num_bytes=560_000_000_000, weight=3.9,
        licence="apache-2.0 for the collection; each subset under its own",
    ),
    Source(
        name="llava-next", hub_id="lmms-lab/LLaVA-NeXT-Data", kind="parquet", task="understanding",
        files=("data/train-*.parquet",), convert=llava_parquet, num_rows=779_289, num_bytes=92_078_304_318, weight=0.78,
        licence="apache-2.0 for the collection; answers by GPT-4V under OpenAI's terms",
    ),
    Source(
        name="cambrian", hub_id="nyu-visionx/Cambrian-10M", kind="json", task="understanding",
        files=("jsons/Cambrian10M.jsonl", "Cambrian10M.jsonl"), convert=llava_json, num_rows=9_784_414,
        num_bytes=1_500_000_000_000, weight=5.8,
        licence="apache-2.0 for the collection; images and GPT-4V answers under their own",
    ),
    Source(
        name="honeybee", hub_id="facebook/HoneyBee", kind="parquet", task="understanding", files=("**/*.parquet",),
        convert=honeybee, num_rows=2_500_000, num_bytes=20_000_000_000, weight=2.5,
        licence="cc-by-nc-4.0; outputs of Llama 4, whose licence names models trained on them",
    ),
    Source(
        name="rlaif-v", hub_id="openbmb/RLAIF-V-Dataset", kind="parquet", task="understanding", files=("**/*.parquet",),
        convert=rlaif_v, num_rows=83_132, num_bytes=14_000_000_000, weight=0.083,
        licence="cc-by-nc-4.0; images their owners'", preferences=True,
    ),
)  # fmt: skip
