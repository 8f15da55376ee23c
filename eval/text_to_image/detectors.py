"""Networks of GenEval: instance segmentation for things, zero-shot classification for colours.

GenEval detects with Mask2Former (Swin-S, COCO instances), here Transformers' version, and classifies colours with CLIP
ViT-L/14; SigLIP can be used, too. Both are loaded from folders.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForUniversalSegmentation, AutoProcessor

from .geneval import COLORS, CONFIDENCE, DetectedObject, box_of


GENEVAL_NAMES = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "hair dryer": "hair drier",
}
"""Class names of checkpoints that differ from the benchmark's -> the benchmark's."""
COLOR_PROMPTS = ("a photo of a {color} {label}", "a photo of a {color}-colored {label}", "a photo of a {color} object")
BACKGROUND = "#999999"
"""Colour of all that is outside a thing's mask when its colour is classified."""


def benchmark_names(id2label: dict[int, str]) -> list[str]:
    """Returns the benchmark's name of each class of a detector."""
    return [GENEVAL_NAMES.get(id2label[index], id2label[index]) for index in range(len(id2label))]


class InstanceDetector:
    """Detector of things in images, Mask2Former.

    Args:
        checkpoint: folder of a Mask2Former for instance segmentation.
    """

    def __init__(self, checkpoint: str, device: torch.device):
        self.processor = AutoImageProcessor.from_pretrained(checkpoint)
        self.model = AutoModelForUniversalSegmentation.from_pretrained(
            checkpoint, dtype="float32", use_safetensors=True
        )
        self.model.to(device).eval()
        self.names = benchmark_names(self.model.config.id2label)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> list[list[DetectedObject]]:
        """Returns the things of each image with a score of at least `CONFIDENCE`."""
        inputs = self.processor(images=list(images), return_tensors="pt").to(self.model.device)
        found = self.processor.post_process_instance_segmentation(
            self.model(**inputs),
            threshold=CONFIDENCE,
            target_sizes=[image.size[::-1] for image in images],
            return_binary_maps=True,
        )
        return [self._things(one) for one in found]

    def _things(self, found: dict) -> list[DetectedObject]:
        things = []
        if found["segments_info"]:  # otherwise the map holds no instances
            for mask, about in zip(found["segmentation"].bool().cpu().numpy(), found["segments_info"], strict=True):
                things.append(DetectedObject(self.names[about["label_id"]], about["score"], box_of(mask), mask))
        return things


class ColorClassifier:
    """Classifier of the colours of things, CLIP or SigLIP.

    Args:
        checkpoint: folder of a model that embeds text and images.
    """

    def __init__(self, checkpoint: str, device: torch.device):
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.model = AutoModel.from_pretrained(checkpoint, dtype="float32", use_safetensors=True)
        self.model.to(device).eval()
        self.length = self.model.config.text_config.max_position_embeddings
        self.embedded: dict[str, torch.Tensor] = {}

    def __call__(self, image: Image.Image, things: Sequence[DetectedObject]) -> list[str]:
        """Returns one of `COLORS` for each of one or more things of one class."""
        return self.classify([crop_thing(image, thing) for thing in things], things[0].label)

    @torch.inference_mode()
    def classify(self, crops: Sequence[Image.Image], label: str) -> list[str]:
        """Returns the colour whose texts are the most similar to each crop."""
        inputs = self.processor(images=list(crops), return_tensors="pt").to(self.model.device)
        features = F.normalize(_pooled(self.model.get_image_features(**inputs)), dim=-1)  # (I, D)
        return [COLORS[index] for index in (features @ self._text_features(label).T).argmax(-1).tolist()]

    def _text_features(self, label: str) -> torch.Tensor:
        """Computes the mean of unit features over the wordings of `COLOR_PROMPTS`: (colours, D)."""
        if label not in self.embedded:
            texts = [wording.format(color=color, label=label) for color in COLORS for wording in COLOR_PROMPTS]
            # SigLIP was trained on texts padded to the full length, and CLIP's features do not depend on padding.
            inputs = self.processor(
                text=texts, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
            ).to(self.model.device)
            features = F.normalize(_pooled(self.model.get_text_features(**inputs)), dim=-1)
            self.embedded[label] = F.normalize(features.unflatten(0, (len(COLORS), -1)).mean(1), dim=-1)
        return self.embedded[label]


def _pooled(output) -> torch.Tensor:
    return getattr(output, "pooler_output", output)


def crop_thing(image: Image.Image, thing: DetectedObject) -> Image.Image:
    """Crops an image to the box of a thing; all outside its mask is covered with `BACKGROUND`."""
    if thing.mask is not None:
        image = Image.composite(image, Image.new("RGB", image.size, BACKGROUND), Image.fromarray(thing.mask))
    left, top, right, bottom = (round(side) for side in thing.box)
    return image.crop((left, top, right, bottom))
