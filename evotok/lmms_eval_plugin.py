"""Entry point `lmms_eval.models`, which registers the model `evotok` with the lmms-eval harness."""

# lmms-eval is not installed where types are checked.
# pyright: reportMissingImports=false

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> "ModelManifest":
    """Returns the classes of the model `evotok`, which are imported when it is used."""
    from lmms_eval.models.registry_v2 import ModelManifest

    models = "evotok.lmms_eval_models"
    return ModelManifest("evotok", simple_class_path=f"{models}.Simple", chat_class_path=f"{models}.Chat")
