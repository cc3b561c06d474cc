"""A hook of the site: links in notebooks, which MkDocs resolves in Markdown alone."""

import posixpath
import re
from typing import Any


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Let the links of a notebook to files of the site lead to their pages.

    Args:
        html: what was made of the page.
        page: the page; those that are no notebooks stay as they are.
        config: not used.
        files: all files of the site.

    Returns:
        The page with its links.
    """
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    folder = posixpath.dirname(page.file.src_uri)

    def resolved(found: re.Match[str]) -> str:
        file = files.get_file_from_path(posixpath.normpath(posixpath.join(folder, found[1])))
        if file is None:
            return found[0]
        return f'href="{file.url_relative_to(page.file)}{found[2] or ""}"'

    return re.sub(r'href="([^":#]+\.(?:md|ipynb))(#[^"]*)?"', resolved, html)
