"""The entry point `lmms_eval.models`: tells the lmms-eval harness of a model `evotok`, without loading anything."""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> "ModelManifest":
    """What the harness finds under the name `evotok`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    models = "evotok.lmms_eval_models"
    return ModelManifest("evotok", simple_class_path=f"{models}.Simple", chat_class_path=f"{models}.Chat")
