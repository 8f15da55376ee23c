"""Transformers' own common tests on every class, by `make test-hf`, which downloads them; no part of this suite.

The source distribution of Transformers has the mixins but not all modules that they import; missing ones are replaced
below. It has no tests of generation, for which there is `test_common_generation.py`. With the tests of a checkout of
Transformers nothing is missing: `make test-hf HF_TESTS_FROM=/path/to/transformers/tests`.
"""

import functools
import importlib
import sys
import tempfile
import unittest
from pathlib import Path
from types import ModuleType
from unittest import mock

from common_testers import DepthDecoderTester, MultimodalTester, VQModelTester
from conftest import build_chat_model
from PIL import Image
from torch import nn
from transformers.models.auto import modeling_auto

from evotok import (
    EvoTokConfig,
    EvoTokDepthDecoderConfig,
    EvoTokProcessor,
    EvoTokVQConfig,
)


SAMPLE = str(Path(tempfile.mkdtemp()) / "sample.png")
Image.effect_noise((40, 30), 60).convert("RGB").save(SAMPLE)


def replace_missing(name: str, **contents):
    """Creates a module with `contents`, unless there is one of that name."""
    package, *rest = name.split(".")
    for part in rest:
        package = f"{package}.{part}"
        try:
            importlib.import_module(package)
        except ModuleNotFoundError:
            sys.modules[package] = module = ModuleType(package)
            vars(module).update(contents if package == name else {"__path__": []})


replace_missing("transformers_tests.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
replace_missing("transformers_tests.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
replace_missing(
    "transformers_tests.utils.test_configuration_utils",
    config_common_kwargs={
        "return_dict": False,
        "output_hidden_states": True,
        "output_attentions": True,
        "dtype": "float16",
        "chunk_size_feed_forward": 5,
        "architectures": ["BertModel"],
        "id2label": {0: "label"},
        "label2id": {"label": "0"},
        "problem_type": "regression",
    },
)
# The processor's tests load images from the Hub.
sys.modules["fetch_hub_objects_for_ci"] = ModuleType("fetch_hub_objects_for_ci")
sys.modules["fetch_hub_objects_for_ci"].url_to_local_path = lambda url: SAMPLE

# The mixins find here which models have a loss.
modeling_auto.MODEL_MAPPING_NAMES.update(
    evotok="EvoTokModel", evotok_vq="EvoTokVQModel", evotok_depth_decoder="EvoTokDepthDecoder"
)
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.update(evotok="EvoTokForConditionalGeneration")

from transformers_tests.generation.test_utils import GenerationTesterMixin  # noqa: E402
from transformers_tests.test_configuration_common import ConfigTester  # noqa: E402
from transformers_tests.test_modeling_common import ModelTesterMixin  # noqa: E402
from transformers_tests.test_processing_common import ProcessorTesterMixin  # noqa: E402


class ModelTest(ModelTesterMixin):
    """Common tests of the classes of one tester."""

    tester: type
    config_class: type

    @property
    def all_model_classes(self) -> tuple:
        return self.tester.model_classes

    def setUp(self):
        self.model_tester = self.tester(self)
        self.config_tester = ConfigTester(self, config_class=self.config_class, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()


class VQModelTest(ModelTest, unittest.TestCase):
    tester = VQModelTester
    config_class = EvoTokVQConfig
    test_resize_embeddings = False  # no vocabulary

    def test_model_get_set_embeddings(self):
        """Checks a convolution of patches, as for Transformers' vision models."""
        model = self.all_model_classes[0](self.model_tester.get_config())
        self.assertIsInstance(model.get_input_embeddings(), nn.Conv2d)
        self.assertIsNone(model.get_output_embeddings())


class DepthDecoderTest(ModelTest, unittest.TestCase):
    tester = DepthDecoderTester
    config_class = EvoTokDepthDecoderConfig
    test_resize_embeddings = False  # no vocabulary
    additional_model_inputs = ["code_embeddings"]


class MultimodalTest(ModelTest, GenerationTesterMixin, unittest.TestCase):
    tester = MultimodalTester
    config_class = EvoTokConfig
    _is_composite = True


class ProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = EvoTokProcessor

    @classmethod
    def _setup_from_components(cls) -> EvoTokProcessor:
        return build_chat_model()[1]

    @staticmethod
    def prepare_processor_dict() -> dict:
        return {"num_image_tokens": 16}

    def test_chat_template_save_loading(self):
        """Loads other chat templates, which `EvoTokProcessor` refuses by default."""
        trusting = functools.partial(EvoTokProcessor.from_pretrained, trust_chat_template=True)
        with mock.patch.object(EvoTokProcessor, "from_pretrained", trusting):
            super().test_chat_template_save_loading()
