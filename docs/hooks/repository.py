"""Makes pages that are written for a checkout of the repository a site of their own.

README, CONTRIBUTING and CHANGELOG become pages. Files of the repository to which a page links (pictures, raw results,
source files) are copied into the site. The label after a fenced block's language becomes its title.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.hooks.repository")

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files at the repository's top level that are pages, and what they are called in the site."""
COPIES = "repository"
"""Folder of the site with copies of other files of the repository."""

_LINK = re.compile(r"(?<=\]\()(?P<path>[^)#\s]*)(?P<anchor>#[^)\s]*)?(?=\))")
_LABELLED = re.compile(r"^```(?P<language>\w+) (?P<label>[^\n{=]+)$", re.MULTILINE)
_EXTERNAL = re.compile(r"(?:href|src)=\"(?P<url>[a-z]+://[^\"]*)\"")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from the top level, and every file of the repository to which a page links."""
    for path, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_text(encoding="utf-8")))
    for file in list(files.documentation_pages()):
        if file.src_uri.endswith(".md"):
            for link in _LINK.finditer(file.content_string):
                target = _in_repository(file.src_uri, link["path"])
                if target is not None and _copy_of(target) not in files.src_uris:
                    files.append(File.generated(config, _copy_of(target), abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links within the repository into links within the site."""
    source = page.file.src_uri
    if not source.endswith(".md"):
        return markdown
    markdown = _LINK.sub(lambda link: _link_in_site(source, link["path"]) + (link["anchor"] or ""), markdown)
    return _LABELLED.sub(r'```\g<language> title="\g<label>"', markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Check the form of links to other sites, which cannot be followed without a network."""
    for link in _EXTERNAL.finditer(html):
        url = urlsplit(link["url"])
        if url.scheme != "https" or "." not in url.netloc:
            log.warning("%s links to %s, which is not a complete https address", page.file.src_uri, link["url"])
    return html


def _repository_path(page: str) -> str:
    """Where a page of the site is in the repository."""
    from_top_level = {name: path for path, name in PAGES.items()}
    return from_top_level.get(page, f"docs/{page}")


def _linked(page: str, path: str) -> str | None:
    """The file in the repository, relative to its top, to which a page links; None for another kind of link."""
    if not path or urlsplit(path).scheme:
        return None
    return os.path.normpath(PurePosixPath(_repository_path(page)).parent / path)


def _in_repository(page: str, path: str) -> str | None:
    """The linked file, if it is in the repository and is not already a file of the site."""
    target = _linked(page, path)
    if target is None or target in PAGES or target.startswith("docs/") or not (ROOT / target).is_file():
        return None
    return target


def _copy_of(path: str) -> str:
    """The name of a file's copy in the site: a text that a browser shows."""
    shown = f"{path}.txt" if PurePosixPath(path).suffix in (".md", ".py", ".toml", ".yaml") else path
    return f"{COPIES}/{shown}"


def _link_in_site(page: str, path: str) -> str:
    """The link as it is in the site; one that leads nowhere stays as it is, and MkDocs warns of it."""
    target = _linked(page, path)
    if target is None:
        return path
    if target in PAGES:
        inside = PAGES[target]
    elif _in_repository(page, path) is not None:
        inside = _copy_of(target)
    elif target.startswith("docs/"):
        inside = target.removeprefix("docs/")
    else:
        return path
    return os.path.relpath(inside, PurePosixPath(page).parent)
