"""The data sets of the paper (Sec. 4.1) as sources: each converts its rows to `{"id", "messages", "images"}`.

`rlaif-v` has preferences: its rows also have `rejected`, a worse answer than the last one. `image-folder`,
`webdataset-pairs` and `parquet-pairs` read data of the user.

    data:
      name: mixture
      sources:
        - {source: llava-next}                                        # from the Hub, with its own weight
        - {source: cambrian, path: data/Cambrian-10M, weight: 3.0}    # from a folder
"""

from . import generation, understanding
from .source import Source


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        generation.CC12M,
        generation.IMAGENET_1K,
        understanding.LLAVA_PRETRAIN,
        understanding.LLAVA_ONEVISION,
        understanding.LLAVA_NEXT,
        understanding.CAMBRIAN,
        understanding.HONEYBEE,
        understanding.RLAIF_V,
        generation.IMAGENET1K_QWENIMAGE,
        generation.BLIP3O_SHORT,
        generation.LLAVA_ONEVISION_1_5,
        generation.SHAREGPT_4O_IMAGE,
        generation.OPENGPT_4O_IMAGE,
        generation.IMAGE_FOLDER,
        generation.WEBDATASET_PAIRS,
        generation.PARQUET_PAIRS,
    )
}
