"""Exports the image tokenizer as graphs that run without this package: `torch.export` programs and ONNX files.

    encoder           pixel_values (B, 3, H, W) float32 in [-1, 1] -> codes (B, N, D) int64
    pixel_decoder     codes (B, N, L) int64, the pixel levels       -> pixel_values (B, 3, H, W) float32, about [-1, 1]
    semantic_decoder  codes (B, N, D) int64                        -> features (B, N, S) float32

B is free; H, W, N, D, L and S are the tokenizer's.
"""

from pathlib import Path

import torch
from torch import nn

from evotok.data.code_shards import tokenizer_hash
from evotok.modeling_evotok.modeling_evotok_vq import EvoTokVQModel


# name -> (method of the tokenizer, name of the input, name of the output)
GRAPHS = {
    "encoder": ("encode", "pixel_values", "codes"),
    "pixel_decoder": ("decode_pixels", "codes", "pixel_values"),
    "semantic_decoder": ("decode_semantics", "codes", "features"),
}


class _Method(nn.Module):
    """A method of the tokenizer as a module, as `torch.export` needs it."""

    def __init__(self, model: EvoTokVQModel, name: str):
        super().__init__()
        self.model = model
        self.name = name

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return getattr(self.model, self.name)(inputs)


@torch.no_grad()
def export_programs(model: EvoTokVQModel) -> dict[str, torch.export.ExportedProgram]:
    """Exports a program for each of `GRAPHS`, for `torch.export.save`, `torch.export.load` and AOTInductor.

    Args:
        model: in fp32, in evaluation mode. Programs run on its device.
    """
    config = model.config
    codes = torch.zeros(2, config.num_positions, config.num_codebooks, dtype=torch.long, device=model.device)
    examples = {
        "encoder": torch.zeros(2, 3, config.image_size, config.image_size, device=model.device),
        "pixel_decoder": codes[..., : config.num_pixel_codebooks],
        "semantic_decoder": codes,
    }
    batch = torch.export.Dim("batch")
    return {
        name: torch.export.export(_Method(model, method), (examples[name],), dynamic_shapes=({0: batch},))
        for name, (method, _, _) in GRAPHS.items()
    }


def write_onnx(model: EvoTokVQModel, folder: Path) -> list[Path]:
    """Writes `NAME.onnx` for each of `GRAPHS`, and `NAME.onnx.data` for weights of more than 2 GB, ONNX's limit.

    Metadata of each file: `image_size`, `num_pixel_codebooks` and `tokenizer`, its hash as in files of codes.

    Raises:
        ImportError: the packages of the extra `onnx` are not installed.
    """
    try:
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise ImportError("ONNX files need more packages: pip install 'evotok[onnx]'.") from error
    config = model.config
    metadata = {
        "image_size": str(config.image_size),
        "num_pixel_codebooks": str(config.num_pixel_codebooks),
        "tokenizer": tokenizer_hash(model),
    }
    paths = []
    for name, program in export_programs(model).items():
        _, inputs, outputs = GRAPHS[name]
        graph = torch.onnx.export(program, dynamo=True, input_names=[inputs], output_names=[outputs], verbose=False)
        assert graph is not None  # None is for the old exporter
        graph.model.metadata_props.update(metadata)
        paths.append(folder / f"{name}.onnx")
        graph.save(paths[-1])
    return paths
