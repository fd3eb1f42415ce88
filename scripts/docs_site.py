"""The site of docs/: README.md is its front page, and what a page links to outside docs/ comes with it. Beside the page
of the API is its description for programs.

Links are written for a reader of the repository; here they become those of the site. mkdocs.yml names this file.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from gateway_sidecar.api.openapi import describe_api

ROOT = Path(__file__).parents[1]
FRONT = "README.md"
API = "reference/openapi.json"
_LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")
_CODE = re.compile(r"`[^`\n]+`")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what lies outside docs/: the front page, and all that pages link to, and so on."""
    ahead = [FRONT, *(f"docs/{file.src_uri}" for file in files if file.is_documentation_page())]
    seen: set[str] = set()
    while ahead:
        path = ahead.pop()
        if path in seen or not (ROOT / path).is_file():  # MkDocs itself names a link that leads nowhere.
            continue
        seen.add(path)
        if path.endswith(".md"):
            ahead += [_target(path, link) for link in _LINK.findall((ROOT / path).read_text("utf-8"))]
        if not path.startswith("docs/"):
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, API, content=json.dumps(describe_api(), indent=1)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns its links into the site's, and `\\|`, which a table's code needs on a forge, into what it stands for."""
    site = page.file.src_uri
    path = site if page.file.generated_by else f"docs/{site}"

    def link(match: re.Match[str]) -> str:
        target = _target(path, match[1]).removeprefix("docs/")
        return f"]({posixpath.relpath(target, posixpath.dirname(site) or '.')}"

    return _CODE.sub(lambda code: code[0].replace(r"\|", "|"), _LINK.sub(link, markdown))


def _target(path: str, link: str) -> str:
    """Where a link of this file leads, from the root of the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
