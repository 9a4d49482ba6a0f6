"""Where the weights come from, and what is said when there are none."""

import functools
import hashlib
import http.server
import os
import stat
import threading

import pytest

from evonorm_plugins.errors import InputError
from evonorm_plugins.metrics import weights

CONTENT = b"the weights" * 1000


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(weights.VARIABLE, raising=False)
    monkeypatch.setattr(weights, "SHA256", hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder that is served at the second of two addresses; nothing is at the first."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(handler.func, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{running.server_port}"
        monkeypatch.setattr(weights, "URLS", (f"{root}/gone.pth", f"{root}/w.pth"))
        yield folder
        running.shutdown()


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(weights, "URLS", ("http://127.0.0.1:9/a.pth", "http://127.0.0.1:9/b.pth"))


def test_a_path_then_the_variable(tmp_path, monkeypatch, offline):
    files = {}
    for name in ("given", "variable"):
        files[name] = tmp_path / name
        files[name].write_bytes(name.encode())
    monkeypatch.setenv(weights.VARIABLE, str(files["variable"]))
    assert weights.find_inception_weights(files["given"])[0] == files["given"]
    path, sha256 = weights.find_inception_weights()
    assert path == files["variable"]
    assert sha256 == hashlib.sha256(b"variable").hexdigest()
    monkeypatch.setenv(weights.VARIABLE, "/gone.pth")
    with pytest.raises(InputError, match=r"EVONORM_INCEPTION_WEIGHTS: there is no file /gone\.pth"):
        weights.find_inception_weights()


def test_download_goes_to_the_cache_once(server, tmp_path):
    (server / "w.pth").write_bytes(CONTENT)
    said, mask = [], os.umask(0o022)
    path, sha256 = weights.find_inception_weights(notify=said.append)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert path.read_bytes() == CONTENT
    assert sha256 == weights.SHA256
    assert path.parent == tmp_path / "cache/evonorm/weights"
    assert len(said) == 2  # one for each address that was tried
    (server / "w.pth").unlink()
    assert weights.find_inception_weights(notify=said.append)[0] == path
    assert len(said) == 2


def test_a_wrong_download_is_not_kept(server, tmp_path):
    (server / "w.pth").write_bytes(b"an error page")
    with pytest.raises(InputError, match=hashlib.sha256(b"an error page").hexdigest()):
        weights.find_inception_weights(notify=lambda _: None)
    assert list((tmp_path / "cache/evonorm/weights").iterdir()) == []


def test_a_corrupt_cache_is_passed_over(server, tmp_path):
    (server / "w.pth").write_bytes(CONTENT)
    cached = tmp_path / "cache/evonorm/weights" / "gone.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(CONTENT[:100])
    said = []
    path, _ = weights.find_inception_weights(notify=said.append)
    assert "was passed over" in said[0]
    assert path == cached
    assert path.read_bytes() == CONTENT


def test_the_file_that_the_tools_have_downloaded(tmp_path, offline):
    for name in ("a.pth", "b.pth"):
        path = tmp_path / "torch/hub/checkpoints" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENT if name == "b.pth" else b"cut off")
    assert weights.find_inception_weights(notify=lambda _: None)[0] == path


@pytest.mark.parametrize("download", [True, False])
def test_offline_error_says_what_to_do(offline, download):
    with pytest.raises(InputError) as error:
        weights.find_inception_weights(download=download, notify=lambda _: None)
    for part in (*weights.URLS, weights.SHA256, weights.VARIABLE):
        assert part in str(error.value)
    # Trainings, which do not download, have no such option.
    assert ("--inception-weights" in str(error.value)) == download


def test_the_real_constants():
    # The tools put the first digits of the hash into the name of the file.
    assert all(f"-{_real_sha256()[:8]}.pth" in url for url in _real_urls())
    from pytorch_fid.inception import FID_WEIGHTS_URL
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    assert _real_urls() == (FID_WEIGHTS_URL, URL_INCEPTION_V3)


def _real_sha256():
    return "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


_URLS = weights.URLS


def _real_urls():
    return _URLS
