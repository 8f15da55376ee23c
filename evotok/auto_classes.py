"""Introduces this package's classes to the Auto classes of Transformers, without importing either.

`AutoModel.register` wants the classes themselves, and so torch, at once. The tables behind the Auto classes hold names
only, and a class is looked up in `transformers.models.<model_type>` when it is asked for. Ours are written into these
tables in the same way, with the package `evotok` to be found under these names; a table that is not there yet is filled
as soon as it is imported.

Measured on two busy cores: `import evotok` 0.02 s, `import transformers`, which is lazy too, 0.6 s, `AutoConfig` with
torch 2 s, `AutoModel` with `AutoProcessor` 5 s.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


CONFIGS = {
    "evotok": "EvoTokConfig",
    "evotok_vq": "EvoTokVQConfig",
    "evotok_depth_decoder": "EvoTokDepthDecoderConfig",
}
MODELS = {"evotok": "EvoTokModel", "evotok_vq": "EvoTokVQModel", "evotok_depth_decoder": "EvoTokDepthDecoder"}
GENERATES = {"evotok": "EvoTokForConditionalGeneration"}
PROCESSORS = {"evotok": "EvoTokProcessor"}

AUTO = "transformers.models.auto"
# module -> its tables -> model_type -> name of the class
TABLES = {
    f"{AUTO}.configuration_auto": {"CONFIG_MAPPING": CONFIGS},
    f"{AUTO}.modeling_auto": {
        "MODEL_MAPPING": MODELS,
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING": GENERATES,
        "MODEL_FOR_MULTIMODAL_LM_MAPPING": GENERATES,
    },
    f"{AUTO}.processing_auto": {"PROCESSOR_MAPPING": PROCESSORS},
}


def introduce() -> None:
    """Fill the tables that are imported, now, and the others when they are."""
    for model_type in CONFIGS:
        sys.modules[f"transformers.models.{model_type}"] = sys.modules["evotok"]
    for name in TABLES:
        if name in sys.modules:
            fill_tables(sys.modules[name])
    if not all(name in sys.modules for name in TABLES):
        sys.meta_path.insert(0, TableFinder)


def fill_tables(module: ModuleType) -> None:
    """Write our names into the tables of one module of `TABLES`."""
    for table_name, names in TABLES[module.__name__].items():
        table = getattr(module, table_name)
        if names is CONFIGS:
            table._mapping.update(names)
        else:
            table._model_mapping.update(names)
            table._reverse_config_mapping.update({CONFIGS[model_type]: model_type for model_type in names})


class TableFinder:
    """Finds the modules of `TABLES` as Python does, and has their tables filled after they have run."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in TABLES else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_fill(module: ModuleType) -> None:
                execute(module)
                fill_tables(module)

            spec.loader.exec_module = execute_and_fill
        return spec
