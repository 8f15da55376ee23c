"""Exported graphs of the image tokenizer: `torch.export` programs and ONNX files give its codes and pixels."""

import json
import sys

import pytest
import torch

from evotok.cli import main
from evotok.commands.checkpoints import load_tokenizer
from evotok.data.code_shards import tokenizer_hash
from evotok.data.world.icons import load_world
from evotok.data.world.images import held_out_scenes, scene_pixels
from evotok.tokenizer_graphs import GRAPHS, export_programs


@pytest.fixture(scope="module")
def tokenizer():
    """Returns the trained tokenizer of the embedded model."""
    return load_tokenizer("mini")[0].cpu()


@pytest.fixture(scope="module")
def scenes():
    """Returns scenes of the validation styles (5, 3, 64, 64)."""
    return scene_pixels(load_world(), held_out_scenes(load_world(), "val", 5))


def expected(tokenizer, scenes) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Returns the input and output of each graph, by the model."""
    codes = tokenizer.encode(scenes)
    with torch.no_grad():
        return {
            "encoder": (scenes, codes),
            "pixel_decoder": (codes[..., :4], tokenizer.decode_pixels(codes)),
            "semantic_decoder": (codes, tokenizer.decode_semantics(codes)),
        }


def test_saved_programs_equal_the_model_for_any_batch(tiny_model, pixels, tmp_path):
    vq_model = tiny_model.model.vq_model
    codes = vq_model.encode(pixels)
    inputs = {"encoder": pixels, "pixel_decoder": codes[..., :2], "semantic_decoder": codes}
    for name, program in export_programs(vq_model).items():
        torch.export.save(program, tmp_path / f"{name}.pt2")
        loaded = torch.export.load(tmp_path / f"{name}.pt2").module()
        for batch in (4, 1):
            with torch.no_grad():
                wanted = getattr(vq_model, GRAPHS[name][0])(inputs[name][:batch])
                given = loaded(inputs[name][:batch])
            assert given.dtype == wanted.dtype
            torch.testing.assert_close(given, wanted, rtol=0, atol=0 if name == "encoder" else 1e-5)


def test_onnx_files_equal_the_model_for_any_batch(tokenizer, scenes, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert main(["export-onnx", "mini", "--out", str(tmp_path / "onnx"), "--json"]) == 0
    sizes = json.loads(capsys.readouterr().out)["bytes"]
    assert sizes == {path.name: path.stat().st_size for path in (tmp_path / "onnx").glob("*.onnx")}
    names = {path.name for path in (tmp_path / "onnx").iterdir()}
    assert names == {"encoder.onnx", "pixel_decoder.onnx", "semantic_decoder.onnx", "preprocessor_config.json"}
    size = json.loads((tmp_path / "onnx" / "preprocessor_config.json").read_text())["size"]
    assert size == {"height": 64, "width": 64}
    for name, (inputs, outputs) in expected(tokenizer, scenes).items():
        session = onnxruntime.InferenceSession(tmp_path / "onnx" / f"{name}.onnx", providers=["CPUExecutionProvider"])
        [given], [output] = session.get_inputs(), session.get_outputs()
        assert [given.name, output.name] == list(GRAPHS[name][1:])
        assert isinstance(given.shape[0], str) and given.shape[1:] == list(inputs.shape[1:])
        metadata = session.get_modelmeta().custom_metadata_map
        assert metadata["tokenizer"] == tokenizer_hash(tokenizer) and metadata["image_size"] == "64"
        for batch in (5, 1):
            result = torch.from_numpy(session.run(None, {given.name: inputs[:batch].numpy()})[0])
            if name == "encoder":
                assert_equal_but_for_ties(tokenizer, inputs[:batch], result, outputs[:batch])
            else:
                torch.testing.assert_close(result, outputs[:batch], rtol=0, atol=1e-4, msg=name)


@torch.no_grad()
def assert_equal_but_for_ties(tokenizer, pixels, codes, wanted):
    """Checks that codes (B, N, D) differ at most where two entries are equally near, up to rounding of the residual."""
    differs = codes != wanted
    positions = differs.any(-1).nonzero()
    assert len(positions) <= 0.01 * differs[..., 0].numel()
    latents, _ = tokenizer._encode_features(pixels)
    for image, position in positions.tolist():
        found, other = codes[image, position], wanted[image, position]
        level = differs[image, position].nonzero()[0].item()
        residual = latents[image, position]
        if level:
            residual = residual - tokenizer.quantizer.decode_codes(found[:level])
        entries = tokenizer.quantizer.codebooks[level](torch.stack([found[level], other[level]]))
        near, far = (entries - residual).square().sum(-1)
        torch.testing.assert_close(near, far, rtol=1e-4, atol=0)


def test_export_without_its_packages_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export-onnx", "mini", "--out", str(tmp_path / "a" / "onnx")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "evotok[onnx]" in line and list(tmp_path.iterdir()) == []
