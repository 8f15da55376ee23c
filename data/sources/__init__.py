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
        *generation.FOR_TOKENIZER,
        *understanding.SOURCES,
        *generation.FOR_GENERATION,
        *generation.OWN,
    )
}
