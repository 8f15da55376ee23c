"""The data sets the paper names (Sec. 4.1), each behind one small adapter that turns its rows into our record.

A record is what `EvoTokCollator` takes: `{"id", "messages", "images"}`. An adapter says where the rows lie (hub id,
files), what one row becomes, how many there are, how often it is drawn beside the others, and under which licence.

One more is of preferences, `rlaif-v`; its records also have `rejected`, an answer that is worse than the last one.

Three, `image-folder`, `webdataset-pairs` and `parquet-pairs`, take what you bring yourself.

    data:
      name: mixture
      sources:
        - {source: llava-next}                                        # the hub's copy, its own weight
        - {source: cambrian, path: data/Cambrian-10M, weight: 3.0}    # a folder
"""

from .generation import BLIP3O_SHORT, IMAGENET1K_QWENIMAGE, LLAVA_ONEVISION_1_5, OPENGPT_4O_IMAGE, SHAREGPT_4O_IMAGE
from .images import CC12M, IMAGENET_1K
from .own import IMAGE_FOLDER, PARQUET_PAIRS, WEBDATASET_PAIRS
from .source import Source
from .understanding import CAMBRIAN, HONEYBEE, LLAVA_NEXT, LLAVA_ONEVISION, LLAVA_PRETRAIN, RLAIF_V


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        CC12M,
        IMAGENET_1K,
        LLAVA_PRETRAIN,
        LLAVA_ONEVISION,
        LLAVA_NEXT,
        CAMBRIAN,
        HONEYBEE,
        RLAIF_V,
        IMAGENET1K_QWENIMAGE,
        BLIP3O_SHORT,
        LLAVA_ONEVISION_1_5,
        SHAREGPT_4O_IMAGE,
        OPENGPT_4O_IMAGE,
        IMAGE_FOLDER,
        WEBDATASET_PAIRS,
        PARQUET_PAIRS,
    )
}

__all__ = ["SOURCES", "Source"]
