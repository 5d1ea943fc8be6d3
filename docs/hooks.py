"""Hooks of mkdocs: pages made of the files at the top of the repository, and docstrings' references as plain code."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that live at the top of the repository, with their links moved into ``docs/``.

    Links to files that the site does not have, such as sources, become plain text.
    """
    top = Path(config.config_file_path).parent
    for name, page in PAGES.items():
        text = (top / name).read_text(encoding="utf-8").replace("](docs/", "](")
        for target, moved in PAGES.items():
            text = re.sub(rf"\]\({re.escape(target)}(#[^)]*)?\)", rf"]({moved}\1)", text)
        text = re.sub(
            r"\[([^]]+)\]\(([^)#:]+)\)", lambda link: link[1] if (top / link[2]).exists() else link[0], text
        )
        files.append(File.generated(config, page, content=text))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Drop the Sphinx roles of docstrings (``:func:`` before a name)."""
    return re.sub(r":(?:attr|class|data|func|meth|mod):(<code>)~?", r"\1", html)
