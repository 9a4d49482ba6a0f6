"""What images become before and in a network, against the tools' own extractors."""

import numpy as np
import pytest
import torch
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from evonorm_plugins.errors import InputError
from evonorm_plugins.metrics import weights
from evonorm_plugins.metrics.extractor import CustomExtractor
from evonorm_plugins.metrics.inception import InceptionExtractor, resized
from tests.conftest import BlockMeans
from tests.metrics.conftest import pictures


def tensors(n, size=48, seed=0):
    return torch.from_numpy(pictures(n, size, seed)).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("size", [(32, 32), (128, 128), (299, 299), (400, 301), (7, 1)])
def test_resizing_is_that_of_the_tools(size):
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    theirs = interpolate_bilinear_2d_like_tensorflow1x(images.float(), (299, 299), None, False)
    assert torch.equal(resized(images, "torch-fidelity"), (theirs - 128) / 128)
    theirs = images.float() / 255
    theirs = torch.nn.functional.interpolate(
        theirs, size=(299, 299), mode="bilinear", align_corners=False
    )
    assert torch.equal(resized(images, "pytorch-fid"), 2 * theirs - 1)


@pytest.fixture(scope="module")
def extractors(inception_weights):
    return {
        backend: InceptionExtractor(inception_weights, "abcdef0123", backend=backend)
        for backend in ("torch-fidelity", "pytorch-fid")
    }


def test_features_are_torch_fidelitys(extractors, inception_weights):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3(
        "x", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_weights)
    )
    images = tensors(3)
    fast = InceptionExtractor(inception_weights, "abcdef0123", fast=True)(images)
    for ours, folded, expected in zip(
        extractors["torch-fidelity"](images), fast, theirs(images), strict=True
    ):
        assert torch.equal(ours, expected)
        # Of what differs between pictures, not of the values.
        spread = (expected - expected.mean(0)).norm()
        assert 0 < (folded - expected).norm() < 3e-4 * spread


def test_features_are_pytorch_fids(extractors, inception_weights, monkeypatch):
    from pytorch_fid.inception import InceptionV3

    monkeypatch.setenv("TORCH_HOME", str(inception_weights.parents[2]))
    images = tensors(3)
    with torch.no_grad():
        expected = InceptionV3([3]).eval()(images.float() / 255)[0].flatten(1)
    ours, logits = extractors["pytorch-fid"](images)
    assert torch.equal(ours, expected)
    assert logits.shape == (3, 1008)


def test_sizes_may_be_mixed(extractors):
    extractor = extractors["torch-fidelity"]
    images = [tensors(1, 48)[0], tensors(1, 64, 1)[0]]
    together = extractor(images)[0]
    alone = torch.cat([extractor(image[None])[0] for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_labels(extractors, inception_weights):
    extractor = extractors["torch-fidelity"]
    assert extractor.label == "inception-2015@abcdef01"
    extractor.sha256 = weights.SHA256
    assert extractor.label == ""
    low = InceptionExtractor(inception_weights, weights.SHA256, precision="bfloat16")
    assert low.label == "bfloat16"
    assert low.describe()["precision"] == "bfloat16"
    features, _ = low(tensors(2))
    expected, _ = extractor(tensors(2))
    assert features.dtype == torch.float32
    assert (features - expected).norm() / expected.norm() < 0.15
    assert not torch.equal(features, expected)


def test_what_is_no_inception(tmp_path):
    path = tmp_path / "x.pth"
    cases = {
        "no state dict": [1, 2],
        "does not hold the weights of FID's Inception": {"fc.weight": torch.ones(1000, 2048)},
    }
    for message, content in cases.items():
        torch.save(content, path)
        for backend in ("torch-fidelity", "pytorch-fid"):
            with pytest.raises(InputError, match=message):
                InceptionExtractor(path, "x", backend=backend)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="cut off"):
        InceptionExtractor(path, "x")
    with pytest.raises(InputError, match="backend 'clean-fid'"):
        InceptionExtractor(path, "x", backend="clean-fid")


def test_torchscript_and_export(quick_extractor, tmp_path):
    images = tensors(5)
    expected = BlockMeans()(images)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        BlockMeans().eval(), (images,), dynamic_shapes={"images": {0: batch}}
    )
    torch.export.save(program, tmp_path / "blocks.pt2")
    for path in (quick_extractor, tmp_path / "blocks.pt2"):
        extractor = CustomExtractor(path)
        for count in (5, 2, 1):
            features, logits = extractor(images[:count])
            torch.testing.assert_close(features, expected[0][:count])
            torch.testing.assert_close(logits, expected[1][:count])
        assert extractor.label.startswith(path.name + "@")
        assert not extractor.is_reference


def test_custom_extractor_on_mixed_sizes(quick_extractor):
    images = [tensors(1, 48)[0], tensors(1, 20, 1)[0], tensors(1, 48, 2)[0]]
    features, _ = CustomExtractor(quick_extractor)(images)
    for row, image in zip(features, images, strict=True):
        torch.testing.assert_close(row, BlockMeans()(image[None])[0][0])


def scripted(forward, path):
    module = type("Module", (torch.nn.Module,), {"forward": forward})()
    torch.jit.save(torch.jit.trace(module, tensors(3), check_trace=False), path)
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda self, x: x.float(), r"features are \(3, 3, 48, 48\)"),
        (lambda self, x: (x.float().mean((2, 3)), x.float()), r"logits are \(3, 3, 48, 48\)"),
        (lambda self, x: x.float().mean((2, 3)) * float("nan"), "not all finite"),
        (lambda self, x: x.float().mean((2, 3))[:2], "for 3 images"),
    ],
)
def test_what_is_no_feature(tmp_path, forward, message):
    module = scripted(forward, tmp_path / "x.pt")
    with pytest.raises(InputError, match=message):
        CustomExtractor(module)(tensors(3))


@pytest.mark.filterwarnings("ignore")
def test_module_that_fails(tmp_path):
    module = scripted(lambda self, x: x.reshape(-1, 3 * 48 * 48).float(), tmp_path / "x.pt")
    extractor = CustomExtractor(module)
    assert extractor(tensors(2))[0].shape == (2, 3 * 48 * 48)
    with pytest.raises(InputError, match=r"fails on uint8 images \(2, 3, 20, 20\)"):
        extractor(tensors(2, 20))


def test_what_is_no_module(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"abc")
    np.savez(tmp_path / "y.pt2", a=1)
    for name in ("x.pt", "y.pt2.npz"):
        with pytest.raises(InputError, match=r"no module of torch\.jit\.save"):
            CustomExtractor(tmp_path / name)
    with pytest.raises(InputError, match="there is no file"):
        CustomExtractor(tmp_path / "gone.pt")
