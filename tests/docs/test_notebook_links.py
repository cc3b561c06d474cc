"""Links in notebooks lead to pages of the site; all else in them stays."""

from types import SimpleNamespace

import pytest


class File:
    """As MkDocs' files are, with a folder for each page."""

    def __init__(self, src_uri):
        self.src_uri = src_uri

    def url_relative_to(self, other):
        return f"from {other.src_uri} to {self.src_uri}"


class Files(dict):
    get_file_from_path = dict.get


@pytest.fixture
def resolved(monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath / "docs")
    from notebook_links import on_page_content

    known = ("settings.md", "tutorials/pinn.ipynb", "tutorials/phiflow.ipynb")
    files = Files((name, File(name)) for name in known)

    def resolve(html, page="tutorials/pinn.ipynb"):
        return on_page_content(html, SimpleNamespace(file=File(page)), None, files)

    return resolve


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("../settings.md", "from tutorials/pinn.ipynb to settings.md"),
        ("../settings.md#step-size", "from tutorials/pinn.ipynb to settings.md#step-size"),
        ("phiflow.ipynb", "from tutorials/pinn.ipynb to tutorials/phiflow.ipynb"),
        ("missing.md", "missing.md"),
        ("#pinn.ipynb", "#pinn.ipynb"),
        ("https://arxiv.org/abs/readme.md", "https://arxiv.org/abs/readme.md"),
    ],
)
def test_where_links_lead(resolved, link, expected):
    html = '<p><a class="x" href="{}">settings.md</a></p>'
    assert resolved(html.format(link)) == html.format(expected)


def test_pages_in_markdown_stay_as_they_are(resolved):
    html = '<a href="settings.md">'
    assert resolved(html, page="index.md") == html
