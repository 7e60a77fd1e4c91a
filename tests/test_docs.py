"""The pages: every relative link and path leads to a file, and no page is too long."""

import re
import subprocess
from pathlib import Path

from imports import ROOT

TRACKED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
).stdout.split()
PAGES = [name for name in TRACKED if name.endswith(".md") and (ROOT / name).exists()]
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:pipeline|tests|benchmarks|docs|recipes)/[\w/.]+\.\w+)`")
CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """The page without its code blocks, whose comments look like headings."""
    return CODE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
    missing = []
    for link in LINK.findall(prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
            missing.append(link)
    return missing


def test_links_of_pages_and_files_that_they_name_exist() -> None:
    for name in PAGES:
        assert broken(ROOT / name) == [], name
        named = [] if name == "CHANGELOG.md" else NAMED.findall(prose(ROOT / name))
        assert [path for path in named if "NAME" not in path and not (ROOT / path).exists()] == [], name


def test_no_page_is_long() -> None:
    lines = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in PAGES}
    assert {name: count for name, count in lines.items() if name.startswith("docs/") and count > 250} == {}
    assert lines["README.md"] <= 130
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1100
