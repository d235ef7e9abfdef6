"""A hook of MkDocs that brings files from outside docs/ into the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
FOLDERS = {"docs/decisions": "decisions/index.md"}
RESULTS = "benchmarks/results/"

_LINK = re.compile(r"\[(?P<text>[^]]*)\]\((?P<target>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")
# The second word says to the tests which pieces to run; the site's highlighter takes one only.
_FENCE = re.compile(r"^(```\w+) .+$", re.MULTILINE)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages of the root folder, a list of decisions, and the results that pages show."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    decisions = (
        f"- [{path.read_text('utf-8').splitlines()[0].removeprefix('# ')}]({path.name})\n"
        for path in sorted((ROOT / "docs/decisions").glob("0*.md"))
    )
    files.append(
        File.generated(config, "decisions/index.md", content="# Decisions\n\n" + "".join(decisions))
    )
    for path in sorted((ROOT / RESULTS).iterdir()):
        if path.suffix in {".json", ".png"}:
            files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Turn the repository's links into the site's; a file that the site lacks is named only."""
    here = page.file.src_uri
    source = {new: old for old, new in PAGES.items()}.get(here, f"docs/{here}")

    def rewrite(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["target"]))
        if path.startswith(RESULTS):
            path = path.replace(RESULTS, "results/", 1)
        elif path in FOLDERS or path in PAGES:
            path = {**FOLDERS, **PAGES}[path]
        elif path.startswith("docs/"):
            path = path.removeprefix("docs/")
        else:
            return link["text"]
        relative = posixpath.relpath(path, posixpath.dirname(here) or ".")
        return f"[{link['text']}]({relative}{link['anchor'] or ''})"

    return _LINK.sub(rewrite, _FENCE.sub(r"\1", markdown))
