"""Registers EvoTok with the Auto classes of Transformers, without importing Transformers or torch.

`AutoModel.register` takes the classes, and so imports torch at once. The tables of the Auto classes hold names; a class
is imported from `transformers.models.<model_type>` when it is first used. This module adds the names to the tables, and
the package `evotok` under these module names; a table that is not imported yet is filled when it is.

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
CONDITIONAL_GENERATION = {"evotok": "EvoTokForConditionalGeneration"}
PROCESSORS = {"evotok": "EvoTokProcessor"}

AUTO = "transformers.models.auto"
# module -> its tables -> model_type -> name of the class
TABLES = {
    f"{AUTO}.configuration_auto": {"CONFIG_MAPPING": CONFIGS},
    f"{AUTO}.modeling_auto": {
        "MODEL_MAPPING": MODELS,
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING": CONDITIONAL_GENERATION,
        "MODEL_FOR_MULTIMODAL_LM_MAPPING": CONDITIONAL_GENERATION,
    },
    f"{AUTO}.processing_auto": {"PROCESSOR_MAPPING": PROCESSORS},
}


def register() -> None:
    """Fills the tables that are imported now, and the others when they are imported."""
    for model_type in CONFIGS:
        sys.modules[f"transformers.models.{model_type}"] = sys.modules["evotok"]
    for name in TABLES:
        if name in sys.modules:
            fill_tables(sys.modules[name])
    if not all(name in sys.modules for name in TABLES):
        sys.meta_path.insert(0, TableFinder)


def fill_tables(module: ModuleType) -> None:
    """Adds the names to the tables of one module of `TABLES`."""
    for table_name, names in TABLES[module.__name__].items():
        table = getattr(module, table_name)
        if names is CONFIGS:
            table._mapping.update(names)
        else:
            table._model_mapping.update(names)
            table._reverse_config_mapping.update({CONFIGS[model_type]: model_type for model_type in names})


class TableFinder:
    """Import hook that finds the modules of `TABLES` as Python does, and fills their tables after they have run."""

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
