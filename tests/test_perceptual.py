"""Loading of Inception and LPIPS from files of weights."""

import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from lightning_utilities.core import imports
from safetensors.torch import save_file
from torch import nn

from evotok.cli import main
from evotok.eval import perceptual


def vgg16_features() -> nn.Sequential:
    """VGG16's convolutions, at random: widths as in Simonyan and Zisserman 2014, configuration D."""
    layers, before = [], 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2)]
        before = width or before
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def vgg16():
    torch.manual_seed(0)
    return {f"features.{name}": value for name, value in vgg16_features().state_dict().items()}


def test_load_lpips_reads_the_trunk_of_both_formats(vgg16, tmp_path, monkeypatch):
    monkeypatch.setattr("torchmetrics.functional.image.lpips._get_tv_model_features", lambda *_: vgg16_features())
    save_file(vgg16, tmp_path / "vgg16.safetensors")
    torch.save(vgg16 | {"classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg16.pth")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = [
        perceptual.load_lpips(tmp_path / name, torch.device("cpu"))(images, images.flip(0))
        for name in ("vgg16.safetensors", "vgg16.pth")
    ]
    assert found[0].shape == (2,) and (found[0] > 0).all()
    assert torch.equal(*found), "the same weights, whatever the random initialization was"
    same = perceptual.load_lpips(tmp_path / "vgg16.pth", torch.device("cpu"))(images, images)
    assert torch.equal(same, torch.zeros(2))


def test_load_lpips_refuses_other_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("torchmetrics.functional.image.lpips._get_tv_model_features", lambda *_: vgg16_features())
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: cannot be used .* give vgg16-"):
        perceptual.load_lpips(tmp_path / "other.pth", torch.device("cpu"))


@pytest.mark.parametrize("content", [b"text", {"a": 1}, vgg16_features])
def test_read_weights_refuses_other_content(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=r"weights\.pth: (no file of weights|holds something else)"):
        perceptual.read_weights(path)


def test_checks_name_missing_files_and_packages(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no such file: give weights-inception-2015-12-05"):
        perceptual.check_weights("inception_weights", str(tmp_path / "inception.pth"))
    (tmp_path / "vgg16.pth").write_bytes(b"")
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package torchvision: .*pip install torchvision"):
        perceptual.check_weights("lpips_weights", str(tmp_path / "vgg16.pth"))
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match=r"vgg16\.pth: no file of weights"):
        perceptual.check_weights("lpips_weights", str(tmp_path / "vgg16.pth"))


@pytest.fixture
def fidelity(monkeypatch):
    """Returns torch-fidelity's module of Inception. The library imports torchvision for networks and data that are not
    used here: if it is missing, or of another build than torch, empty modules replace it. For torchmetrics, which would
    use more of it, torchvision is missing then."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in ("", ".datasets", ".transforms", ".transforms.functional"):
            module = ModuleType(f"torchvision{name}")
            module.__spec__ = ModuleSpec(module.__name__, None)
            monkeypatch.setitem(sys.modules, module.__name__, module)
            parent, _, child = module.__name__.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)
        for name in ("CIFAR10", "CIFAR100", "STL10"):
            setattr(sys.modules["torchvision.datasets"], name, object)
        find = imports.find_spec
        monkeypatch.setattr(imports, "find_spec", lambda name: None if name == "torchvision" else find(name))
    return pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="make test-fid")


@pytest.fixture
def inception(fidelity, tmp_path):
    """Writes a file of random weights: the trained ones cannot be fetched in a test."""
    torch.manual_seed(0)
    torch.save(fidelity_weights(fidelity), tmp_path / "inception.pth")
    return tmp_path / "inception.pth"


def test_load_inception_has_the_features_of_torch_fidelity(fidelity, inception):
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    features = perceptual.load_inception(inception, torch.device("cpu"))(images)
    own = fidelity.FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(inception))
    with torch.no_grad():
        [expected] = own(((images + 1) * 127.5).round().byte())
    assert features.shape == (2, 2048) and features.std() > 0
    torch.testing.assert_close(features, expected)


def test_eval_reconstruction_measures_rfid(inception, tmp_path, capsys):
    words = [f"inception_weights={inception}", "limit=4", "depths=[1,4]", f"cache={tmp_path}", "--json"]
    assert main(["eval", "reconstruction", "mini", *words, "--out", str(tmp_path / "out")]) == 0
    results = json.loads(capsys.readouterr().out)
    assert all(results["figures"][f"rfid_depth{depth}"] > 0 for depth in (1, 4))
    assert "torch-fidelity" in results["versions"]


def fidelity_weights(fidelity) -> dict:
    """Returns the weights of an untrained network."""
    parts = {"Conv2d_1a_3x3": fidelity.BasicConv2d(3, 32, kernel_size=3, stride=2)}
    parts |= {"Conv2d_2a_3x3": fidelity.BasicConv2d(32, 32, kernel_size=3)}
    parts |= {"Conv2d_2b_3x3": fidelity.BasicConv2d(32, 64, kernel_size=3, padding=1)}
    parts |= {"Conv2d_3b_1x1": fidelity.BasicConv2d(64, 80, kernel_size=1)}
    parts |= {"Conv2d_4a_3x3": fidelity.BasicConv2d(80, 192, kernel_size=3)}
    parts |= {
        "Mixed_5b": fidelity.InceptionA(192, pool_features=32),
        "Mixed_5c": fidelity.InceptionA(256, pool_features=64),
        "Mixed_5d": fidelity.InceptionA(288, pool_features=64),
        "Mixed_6a": fidelity.InceptionB(288),
        "Mixed_7a": fidelity.InceptionD(768),
        "Mixed_7b": fidelity.InceptionE_1(1280),
        "Mixed_7c": fidelity.InceptionE_2(2048),
        "fc": nn.Linear(2048, 1008),
    }
    for letter, width in zip("bcde", (128, 160, 160, 192), strict=True):
        parts[f"Mixed_6{letter}"] = fidelity.InceptionC(768, channels_7x7=width)
    return nn.ModuleDict(parts).state_dict()
