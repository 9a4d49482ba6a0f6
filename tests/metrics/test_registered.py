"""torch-fidelity's extractors by name, with files of random weights, against its own classes."""

import hashlib
import json
import math
import warnings

import numpy as np
import pytest
import torch
from torch_fidelity import feature_extractor_clip, feature_extractor_dinov2
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from evonorm_plugins.errors import InputError
from evonorm_plugins.metrics import registered
from evonorm_plugins.metrics.dinov2 import DinoV2
from evonorm_plugins.metrics.fid import frechet_distance
from evonorm_plugins.metrics.registered import (
    RegisteredExtractor,
    find_extractor_weights,
    known_extractors,
    open_extractor,
)
from tests.metrics.conftest import pictures, save_pngs


def tensors(n, size=48, seed=0):
    return torch.from_numpy(pictures(n, size, seed)).permute(0, 3, 1, 2).contiguous()


def drawn(shapes, seed=0):
    """Tensors of these shapes whose features are neither all alike nor beyond all bounds."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        scale = 0.3 if len(shape) < 2 else math.prod(shape[1:]) ** -0.5
        ones = key.endswith(("norm1.weight", "norm2.weight", "norm.weight", "gamma")) or (
            ".ln_" in key and key.endswith("weight")
        )
        state[key] = noise * scale + float(ones)
    return state


@pytest.fixture(scope="module")
def dinov2_state():
    with torch.device("meta"):
        net = DinoV2("dinov2_vits14")
    return drawn({key: tensor.shape for key, tensor in net.state_dict().items()})


@pytest.fixture(scope="module")
def weights(dinov2_state, tmp_path_factory):
    """Folder of weights files by extractor: CLIP's as its TorchScript, with one block."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(dinov2_state, folder / "dinov2-vit-s-14")
    module = feature_extractor_clip.CLIPVisual(64, 224, 1, 768, 32)
    module.load_state_dict(drawn({k: t.shape for k, t in module.state_dict().items()}, 1))
    module.text_projection = torch.nn.Parameter(torch.zeros(3, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is announced to go
        torch.jit.save(torch.jit.script(Holder(module)).inner, folder / "clip-vit-b-32")
    # Views of one number each: half a gigabyte in a file of kilobytes.
    with torch.device("meta"):
        from torchvision.models import vgg16

        shapes = {key: t.shape for key, t in vgg16().state_dict().items()}
    state = {k: torch.full((1,) * len(s), 0.01).expand(s) for k, s in shapes.items()}
    rows = torch.randn(4096, 1, generator=torch.Generator().manual_seed(0))
    state["classifier.3.weight"] = rows.expand(4096, 4096)
    torch.save(state, folder / "vgg16")
    return folder


class Holder(torch.nn.Module):
    """Parameters under the names that a script of the whole network has."""

    class Inner(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    def __init__(self, module):
        super().__init__()
        self.inner = Holder.Inner()
        for key, tensor in module.state_dict().items():
            *path, name = key.split(".")
            inner = self.inner
            for part in path:
                if not hasattr(inner, part):
                    inner.add_module(part, Holder.Inner())
                inner = getattr(inner, part)
            inner.register_parameter(name, torch.nn.Parameter(tensor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_dinov2_is_timms(dinov2_state):
    """At the size that positions were learnt at: between, timm interpolates in another way."""
    import timm

    ours = DinoV2("dinov2_vits14").eval()
    ours.load_state_dict(dinov2_state)
    theirs = timm.create_model("vit_small_patch14_dinov2", num_classes=0).eval()
    state = {key: tensor for key, tensor in dinov2_state.items() if key != "mask_token"}
    theirs.load_state_dict(state)
    images = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_positions_are_read_where_dinov2_reads_them():
    """Bicubic (a = -0.75) at ``(k + 0.5) * 37 / 16.1 - 0.5``, written out for a grid of 16."""
    net = DinoV2("dinov2_vits14")
    with torch.no_grad():
        net.pos_embed.normal_(generator=torch.Generator().manual_seed(0))

    def cubic(t, a=-0.75):
        t = abs(t)
        if t < 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    matrix = np.zeros((16, 37))
    for k in range(16):
        at = (k + 0.5) * 37 / 16.1 - 0.5
        for i in range(math.floor(at) - 1, math.floor(at) + 3):
            matrix[k, min(max(i, 0), 36)] += cubic(at - i)
    grid = net.pos_embed[0, 1:, :5].detach().double().numpy().reshape(37, 37, 5)
    expected = np.einsum("ri,cj,ijd->rcd", matrix, matrix, grid).reshape(256, 5)
    found = net._positions(16, 16)[0].detach()
    torch.testing.assert_close(found[0], net.pos_embed[0, 0].detach())
    np.testing.assert_allclose(found[1:, :5], expected, rtol=1e-3, atol=1e-4)


def test_giant_has_the_gates_of_its_file():
    with torch.device("meta"):
        state = DinoV2("dinov2_vitg14").state_dict()
    assert state["blocks.39.mlp.w12.weight"].shape == (8192, 1536)
    assert state["blocks.39.mlp.w3.weight"].shape == (1536, 4096)


def test_dinov2_by_name(weights, dinov2_state):
    extractor = RegisteredExtractor("dinov2-vit-s-14", weights / "dinov2-vit-s-14", "1a2b3c4d5e")
    images = tensors(2)
    features, logits = extractor(images)
    assert logits is None
    assert features.shape == (2, 384)
    net = DinoV2("dinov2_vits14").eval()
    net.load_state_dict(dinov2_state)
    x = interpolate_bilinear_2d_like_tensorflow1x(images.float(), (224, 224), None, False)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in
                 ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(features, net((x / 255 - mean) / std), rtol=1e-3, atol=1e-4)
    assert (features[0] - features[1]).abs().max() > 0.01
    assert extractor.label == "dinov2-vit-s-14@1a2b3c4d"
    # Of two sizes, in the order of the images.
    mixed = [tensors(1, 20)[0], images[0], tensors(1, 20, 1)[0]]
    together = extractor(mixed)[0]
    torch.testing.assert_close(together[1], features[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(together[2], extractor(mixed[2][None])[0][0], rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # TorchScript is announced to go
def test_clip_by_name_is_torch_fidelitys(weights):
    path = weights / "clip-vit-b-32"
    theirs = feature_extractor_clip.FeatureExtractorCLIP(
        "clip-vit-b-32", ["clip"], feature_extractor_weights_path=str(path)
    )
    state = torch.jit.load(path).state_dict()
    images = tensors(3)
    (expected,) = theirs(images)
    assert torch.equal(RegisteredExtractor("clip-vit-b-32", path, "ab" * 32)(images)[0], expected)
    assert (expected[0] - expected[1]).abs().max() > 0.01
    # A state dict does as well.
    plain = path.with_name("clip.pth")
    torch.save(dict(state), plain)
    assert torch.equal(RegisteredExtractor("clip-vit-b-32", plain, "ab" * 32)(images)[0], expected)


def test_vgg16_by_name(weights):
    features, _ = RegisteredExtractor("vgg16", weights / "vgg16", "397923af")(tensors(1))
    assert features.shape == (1, 4096)
    assert 0.3 < (features > 0).double().mean() < 0.7  # after the ReLU


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("dinov2-vit-b-14", "dinov2-vit-s-14", "does not hold the weights of dinov2-vit-b-14"),
        ("clip-vit-b-16", "clip-vit-b-32", r"is \(768, 32, 50\), not \(768, 16, 197\)"),
        ("clip-rn50", "clip-vit-b-32", "does not hold the weights of clip-rn50"),
        ("dinov2-vit-s-14", "nan", r"NaN or infinite: blocks\.3\.norm1\.weight"),
        ("dinov2-vit-s-14", "text", "cannot be read as weights"),
    ],
)
def test_a_file_of_something_else(name, file, message, weights, dinov2_state, tmp_path):
    path = weights / file
    if file == "nan":
        state = {**dinov2_state, "blocks.3.norm1.weight": torch.full((384,), math.nan)}
        torch.save(state, path := tmp_path / file)
    if file == "text":
        (path := tmp_path / file).write_text("no weights")
    with pytest.raises(InputError, match=message) as error:
        RegisteredExtractor(name, path, "ab" * 32)
    assert str(path) in str(error.value)


@pytest.fixture
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return {
        "own": tmp_path / "cache/evonorm/weights",
        "hub": tmp_path / "torch/hub/checkpoints",
        "clip": tmp_path / ".cache/clip",
    }


def test_weights_are_found_in_the_usual_caches(caches, monkeypatch):
    content = b"a script"
    sha256 = hashlib.sha256(content).hexdigest()
    metadata = {"hash": sha256, "filename": "ViT-B-32"}
    monkeypatch.setitem(feature_extractor_clip.MODEL_METADATA, "clip-vit-b-32", metadata)
    url = f"https://example.org/{sha256}/ViT-B-32.pt"
    monkeypatch.setitem(feature_extractor_clip.MODEL_URLS, "clip-vit-b-32", url)
    places = [caches["clip"] / "ViT-B-32.pt", caches["hub"] / f"clip-vit-b-32-{sha256}.pt"]
    for place in (*places, caches["own"] / "ViT-B-32.pt"):
        place.parent.mkdir(parents=True)
        place.write_bytes(content)
        assert find_extractor_weights("clip-vit-b-32") == (place, sha256)
    said = []
    (caches["own"] / "ViT-B-32.pt").write_bytes(b"cut")
    found = find_extractor_weights("clip-vit-b-32", notify=said.append)
    assert found == (places[1], sha256)
    assert len(said) == 1
    assert "passed over" in said[0]
    other = caches["hub"] / "dinov2_vitl14_pretrain.pth"
    other.write_bytes(b"any")
    assert find_extractor_weights("dinov2-vit-l-14")[0] == other


@pytest.mark.parametrize("name", ["dinov2-vit-b-14", "clip-vit-b-32", "vgg16"])
def test_without_weights_it_is_said_where_they_belong(name, caches):
    with pytest.raises(InputError) as error:
        open_extractor(name)
    for part in (name, "get https://", "--feature-extractor-weights FILE", str(caches["own"])):
        assert part in str(error.value)


def test_all_of_torch_fidelity_are_known():
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    known = known_extractors()
    assert known == sorted(FEATURE_EXTRACTORS_REGISTRY)
    assert set(registered._CLIP) | set(feature_extractor_dinov2.MODEL_METADATA) < set(known)
    with pytest.raises(InputError, match=r"there is no file dinov3, .* clip-.*dinov2-vit-b-14"):
        open_extractor("dinov3")


def test_fd_dinov2_is_one_option(evaluate, weights, tmp_path):
    folders = [save_pngs(pictures(n, 30, n), tmp_path / str(n)) for n in (5, 7)]
    arguments = ["--fake", folders[0], "--real", folders[1], "--workers", 0, "--device", "cpu"]
    arguments += ["--feature-extractor-weights", weights / "dinov2-vit-s-14", "--quiet"]
    status, out, err = evaluate(
        "gan", "--feature-extractor", "dinov2-vit-s-14", *arguments, "--json"
    )
    assert status == 0, err
    record = json.loads(out)
    sha256 = hashlib.sha256((weights / "dinov2-vit-s-14").read_bytes()).hexdigest()
    (key,) = record["scores"]
    assert key == f"fid[dinov2-vit-s-14@{sha256[:8]}]"
    extractor = RegisteredExtractor("dinov2-vit-s-14", weights / "dinov2-vit-s-14", sha256)
    moments = []
    for n in (5, 7):
        x = extractor(tensors(n, 30, n))[0].double().numpy()
        moments += [x.mean(0), np.cov(x, rowvar=False)]
    expected = frechet_distance(*moments, singular=True)
    assert record["scores"][key] == pytest.approx(expected, rel=1e-4)
    assert record["protocol"]["extractor"] == "dinov2-vit-s-14"
