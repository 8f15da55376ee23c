# Copyright 2026 The EvoTok authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Configurations of EvoTok: the image tokenizer, the depth decoder, and the multimodal model built of both.

Defaults are the paper's sizes (256 px, SigLIP2-large encoder, 16 levels of 32,768 entries, Qwen2.5-7B). Every size is a
field, so that the mini model differs from the paper's in its `config.json` alone.
"""

import sys
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import auto_docstring


# Part of a configuration: given as a dict or None, and a configuration after `__post_init__`.
if TYPE_CHECKING:
    SubConfig = Any
else:
    SubConfig = dict | PreTrainedConfig | None

_AUTO_MAP = {
    "AutoConfig": "configuration_evotok.EvoTokConfig",
    "AutoModel": "modeling_evotok.EvoTokModel",
    "AutoModelForImageTextToText": "modeling_evotok.EvoTokForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_evotok.EvoTokForConditionalGeneration",
}

if "evotok" not in sys.modules:  # the package fills all tables of the Auto classes
    # `transformers serve` loads models of these tables only, and accepts images for those of the first one.
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    )

    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.setdefault("evotok", "EvoTokForConditionalGeneration")  # pyright: ignore[reportArgumentType]  # typed as its own literals
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.setdefault("evotok", "EvoTokForConditionalGeneration")


@auto_docstring(
    custom_intro="""
    Configuration of [`EvoTokVQModel`], the image tokenizer (paper, Sec. 3.1).
    """
)
@strict
class EvoTokVQConfig(PreTrainedConfig):
    r"""
    encoder_config (`dict` or `PreTrainedConfig`, *optional*):
        Vision encoder. The output of its last layer is used without post-layernorm and pooling head, and
        `num_hidden_layers` is 23 where the SigLIP2-large checkpoint has 24: `hidden_states[-2]` of the original.
    codebook_size (`int`, *optional*, defaults to 32768):
        Entries K of each codebook.
    codebook_dim (`int`, *optional*, defaults to 32):
        Width C of the shared latent space.
    num_codebooks (`int`, *optional*, defaults to 16):
        Levels, L_sem of Eq. 4.
    num_pixel_codebooks (`int`, *optional*, defaults to 4):
        Pixel levels, whose sum is decoded to pixels, L_pix of Eq. 4: the first of all levels.
    codebook_decay (`float`, *optional*, defaults to 0.99):
        Decay of the EMA of the codebooks.
    codebook_epsilon (`float`, *optional*, defaults to 1e-05):
        Laplace smoothing of the cluster sizes.
    codebook_warmup_steps (`int`, *optional*, defaults to 2000):
        Training steps before the EMA starts; until then entries are only restarted.
    codebook_restart_threshold (`float`, *optional*, defaults to 1.0):
        An entry with a lower average count per step is restarted from a vector of the global batch; 0 for never.
    codebook_keeps_sums (`bool`, *optional*, defaults to `False`):
        Whether the sums of vectors of the EMA have a buffer, as in checkpoints converted from the paper's release;
        otherwise they are the entries times their cluster sizes.
    vq_loss_reduction (`str`, *optional*, defaults to `"mean"`):
        `"sum"` or `"mean"` over the levels in Eq. 7; the weight of a mean does not depend on their number.
    pixel_latent_channels (`int`, *optional*, defaults to 256):
        Pixel decoder: width after the 1x1 convolution.
    pixel_base_channels (`int`, *optional*, defaults to 128):
        Pixel decoder: base width.
    pixel_channel_multipliers (`list[int]`, *optional*, defaults to `(1, 1, 2, 2, 4)`):
        Pixel decoder: multiples of the base width from full resolution down to the grid, log2(patch_size) + 1 of them.
    pixel_num_res_blocks (`int`, *optional*, defaults to 2):
        Pixel decoder: residual blocks per resolution (one more is built, as in VQGAN).
    pixel_norm_groups (`int`, *optional*, defaults to 32):
        Pixel decoder: groups of its normalizations.
    pixel_resize (`bool`, *optional*, defaults to `False`):
        Pixel decoder: whether its output is resized (bicubic) to `image_size` where the upsampled grid has another
        side: 27 x 27 positions upsampled by 16 have 432 pixels for an image of 384. Otherwise the two must be equal.
    semantic_hidden_size (`int`, *optional*, defaults to 1024):
        Semantic decoder, a ViT over the grid: its width.
    semantic_num_hidden_layers (`int`, *optional*, defaults to 3):
        Semantic decoder: layers.
    semantic_num_attention_heads (`int`, *optional*, defaults to 12):
        Semantic decoder: heads, each `semantic_hidden_size // semantic_num_attention_heads` wide.
    semantic_mlp_ratio (`float`, *optional*, defaults to 4.0):
        Semantic decoder: width of the MLPs, as a multiple of its own.
    semantic_feature_dim (`int`, *optional*, defaults to 1024):
        Width of the decoded semantics, that of the teacher's features.
    layer_norm_eps (`float`, *optional*, defaults to 1e-06):
        Epsilon of the layer and group normalizations.
    initializer_range (`float`, *optional*, defaults to 0.02):
        Standard deviation of initial linear layers, class token and positions; convolutions are LeCun normal.
    """

    model_type = "evotok_vq"
    _auto_class = "AutoConfig"  # a saved checkpoint carries this code
    base_config_key = "vq_config"
    attribute_map = {"hidden_size": "semantic_feature_dim"}  # width of the image features for generic code
    sub_configs_defaults = {
        "encoder_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="siglip_vision_model",
            init_kwargs={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 23,
                "num_attention_heads": 16,
                "image_size": 256,
                "patch_size": 16,
                "vision_use_head": False,
            },
        )
    }

    encoder_config: SubConfig = None
    codebook_size: int = 32768
    codebook_dim: int = 32
    num_codebooks: int = 16
    num_pixel_codebooks: int = 4
    codebook_decay: float = 0.99
    codebook_epsilon: float = 1e-5
    codebook_warmup_steps: int = 2000
    codebook_restart_threshold: float | int = 1.0
    codebook_keeps_sums: bool = False
    vq_loss_reduction: Literal["sum", "mean"] = "mean"
    pixel_latent_channels: int = 256
    pixel_base_channels: int = 128
    pixel_channel_multipliers: list[int] | tuple[int, ...] = (1, 1, 2, 2, 4)
    pixel_num_res_blocks: int = 2
    pixel_norm_groups: int = 32
    pixel_resize: bool = False
    semantic_hidden_size: int = 1024
    semantic_num_hidden_layers: int = 3
    semantic_num_attention_heads: int = 12
    semantic_mlp_ratio: float | int = 4.0
    semantic_feature_dim: int = 1024
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.pixel_channel_multipliers = list(self.pixel_channel_multipliers)

    @property
    def image_size(self) -> int:
        """Returns the side of an image in pixels."""
        return self.encoder_config.image_size

    @property
    def grid_size(self) -> int:
        """Returns the side of the grid of positions."""
        return self.encoder_config.image_size // self.encoder_config.patch_size

    @property
    def num_positions(self) -> int:
        """Returns the number of positions of an image, N."""
        return self.grid_size**2

    def validate_depths(self):
        """Checks that the pixel levels are some or all of the levels."""
        if not 1 <= self.num_pixel_codebooks <= self.num_codebooks:
            raise ValueError(
                f"num_pixel_codebooks={self.num_pixel_codebooks} must be between 1 and num_codebooks="
                f"{self.num_codebooks}: pixels are decoded from a prefix of the levels."
            )

    def validate_upsampling(self):
        """Checks that the pixel decoder upsamples the grid to the size of the image, unless it resizes.

        It upsamples by 2 after each multiplier but the last.
        """
        factor = 2 ** (len(self.pixel_channel_multipliers) - 1)
        patch_size = getattr(self.encoder_config, "patch_size", factor)
        if patch_size != factor and not self.pixel_resize:
            raise ValueError(
                f"pixel_channel_multipliers has {len(self.pixel_channel_multipliers)} entries and upsamples by "
                f"{factor}, but encoder_config.patch_size is {patch_size}: give log2(patch_size) + 1 multipliers, or "
                "set pixel_resize."
            )


@auto_docstring(
    custom_intro="""
    Configuration of [`EvoTokDepthDecoder`], the transformer over levels that predicts the codes of one position (paper,
    Sec. 3.3, Eq. 9).
    """
)
@strict
class EvoTokDepthDecoderConfig(PreTrainedConfig):
    r"""
    codebook_size (`int`, *optional*, defaults to 32768):
        As in [`EvoTokVQConfig`].
    codebook_dim (`int`, *optional*, defaults to 32):
        As in [`EvoTokVQConfig`].
    num_codebooks (`int`, *optional*, defaults to 4):
        Levels predicted for a position, L_pix.
    backbone_hidden_size (`int`, *optional*, defaults to 3584):
        Width of the language model's hidden states.
    hidden_dropout (`float`, *optional*, defaults to 0.1):
        Dropout after the attention's projection and after the MLP.
    attention_dropout (`float`, *optional*, defaults to 0.0):
        Dropout of the attention's weights.
    """

    model_type = "evotok_depth_decoder"
    _auto_class = "AutoConfig"  # a saved checkpoint carries this code
    base_config_key = "depth_decoder_config"

    codebook_size: int = 32768
    codebook_dim: int = 32
    num_codebooks: int = 4
    backbone_hidden_size: int = 3584
    hidden_size: int = 2560
    intermediate_size: int = 10240
    num_hidden_layers: int = 6
    num_attention_heads: int = 40
    hidden_act: str = "gelu"
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02

    def validate_heads(self):
        """Checks that the number of heads divides the width."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}."
            )


@auto_docstring(
    custom_intro="""
    Configuration of [`EvoTokForConditionalGeneration`]: image tokenizer, language model and depth decoder.
    """
)
@strict
class EvoTokConfig(PreTrainedConfig):
    r"""
    vq_config (`dict` or `EvoTokVQConfig`, *optional*):
        The image tokenizer.
    depth_decoder_config (`dict` or `EvoTokDepthDecoderConfig`, *optional*):
        The depth decoder. Sizes that it shares with the other two are copied from them unless they are given.
    text_config (`dict` or `PreTrainedConfig`, *optional*):
        The language model, of any causal architecture; Qwen2.5-7B by default.
    image_token_id (`int`, *optional*, defaults to 151655):
        Placeholder of one position of an input image (Qwen2.5's `<|image_pad|>`).
    image_generation_token_id (`int`, *optional*, defaults to 151665):
        Placeholder of one position of a generated image. The default is the first row of Qwen2.5's padded vocabulary
        that its tokenizer does not use.
    vision_start_token_id (`int`, *optional*, defaults to 151652):
        Token before either kind of image.
    vision_end_token_id (`int`, *optional*, defaults to 151653):
        Token after either kind of image.
    projector_hidden_act (`str`, *optional*, defaults to `"gelu"`):
        Activation of both multimodal projectors.
    text_loss_weight (`float`, *optional*, defaults to 1.0):
        Weight of the text term of the training loss.
    image_loss_weight (`float`, *optional*, defaults to 1.0):
        Weight of the image term of the training loss.
    """

    model_type = "evotok"
    _auto_class = "AutoConfig"  # a saved checkpoint carries this code
    # All but the logits: `Trainer.predict` concatenates batches, and not every batch has all of these.
    keys_to_ignore_at_inference = [
        "past_key_values",
        "hidden_states",
        "attentions",
        "image_hidden_states",
        "text_loss",
        "image_loss",
        "image_level_losses",
    ]
    sub_configs_defaults = {  # pyright: ignore[reportAssignmentType]  # classes are made into SubConfigSpec
        "vq_config": EvoTokVQConfig,
        "depth_decoder_config": EvoTokDepthDecoderConfig,
        "text_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="qwen2",
            init_kwargs={
                "vocab_size": 152064,
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-6,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
                "bos_token_id": 151643,
                "eos_token_id": 151645,
            },
        ),
    }

    vq_config: SubConfig = None
    depth_decoder_config: SubConfig = None
    text_config: SubConfig = None
    image_token_id: int = 151655
    image_generation_token_id: int = 151665
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    projector_hidden_act: str = "gelu"
    text_loss_weight: float | int = 1.0
    image_loss_weight: float | int = 1.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        # Transformers adds one Auto class when it saves a model; a checkpoint of either model loads with all of them.
        kwargs.setdefault("auto_map", dict(_AUTO_MAP))
        depth = {} if self.depth_decoder_config is None else self.depth_decoder_config
        super().__post_init__(**kwargs)
        if isinstance(depth, dict):
            shared = {
                "codebook_size": self.vq_config.codebook_size,
                "codebook_dim": self.vq_config.codebook_dim,
                "num_codebooks": self.vq_config.num_pixel_codebooks,
                "backbone_hidden_size": self.text_config.hidden_size,
            }
            for name, value in shared.items():
                if name not in depth:
                    setattr(self.depth_decoder_config, name, value)
        # Many language models set it in the text config, but generation and saving read the outer config.
        self.tie_word_embeddings = self.tie_word_embeddings or self.text_config.tie_word_embeddings

    def validate_parts_agree(self):
        """Checks that the sizes of the depth decoder are those of the tokenizer and the language model."""
        depth, vq, text = self.depth_decoder_config, self.vq_config, self.text_config
        if isinstance(depth, dict) or isinstance(vq, dict) or isinstance(text, dict) or depth is None:
            return
        pairs = {
            "codebook_size": (depth.codebook_size, vq.codebook_size),
            "codebook_dim": (depth.codebook_dim, vq.codebook_dim),
            "num_codebooks (vq_config.num_pixel_codebooks)": (depth.num_codebooks, vq.num_pixel_codebooks),
            "backbone_hidden_size (text_config.hidden_size)": (depth.backbone_hidden_size, text.hidden_size),
        }
        for name, (value, required) in pairs.items():
            if value != required:
                raise ValueError(
                    f"depth_decoder_config.{name} is {value} but must be {required}: make the parts agree."
                )


__all__ = ["EvoTokConfig", "EvoTokDepthDecoderConfig", "EvoTokVQConfig"]
