"""make docs: the site is complete, and needs no other."""

import re
import subprocess
import sys

import pytest

import evonorm_plugins
from tests.docs.blocks import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site's folder; building it fails on any link that leads nowhere."""
    for package in ("material", "mkdocstrings_handlers.python"):
        pytest.importorskip(package, exc_type=ImportError)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_public_name_is_in_the_reference(site):
    pages = "".join(path.read_text() for path in site.glob("api/*.html"))
    for name in evonorm_plugins.__all__:
        assert f'id="evonorm_plugins.{name}"' in pages, name


def test_nothing_is_loaded_from_elsewhere(site):
    loaded = re.compile(
        r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^ >]*"
    )
    for path in site.rglob("*.html"):
        assert not loaded.findall(path.read_text()), path
    for path in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", path.read_text()), path


def test_roles_of_docstrings_are_links(site):
    pages = [path.read_text() for path in site.glob("api/*.html")]
    assert not any(re.search(r":(class|func|meth|mod|data):<code>", page) for page in pages)


def test_the_notebook_is_a_page_with_its_pictures(site):
    page = (site / "tour.html").read_text()
    pictures = re.findall(r'<img[^>]*src="(tour_\d+\.png)"', page)
    assert len(pictures) == 5
    assert all((site / name).read_bytes()[:4] == b"\x89PNG" for name in pictures)


def test_links_of_the_readme_lead_somewhere(site):
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#([^)]+))?\)", (ROOT / "README.md").read_text())
    assert len(links) > 10
    for path, anchor in links:
        assert (ROOT / path).exists(), path
        if anchor:
            page = site / path.removeprefix("docs/").replace(".md", ".html")
            assert f'id="{anchor}"' in page.read_text(), anchor
