"""README.md and docs/ name what there is: every state, figure and target. `test_reference.py` holds what is generated.

They link to no page and no heading that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from bench.__main__ import FIGURES
from gateway_sidecar.domain.model import ReplicaState

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text("utf-8")
DOCUMENTS = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").rglob("*.md"))]
MOST_LINES = 180
"""A newcomer reads the README in one sitting; the rest is in docs/."""


def page(name: str) -> str:
    """The text of a page of docs/."""
    return (REPOSITORY / "docs" / name).read_text("utf-8")


def first_cells(text: str) -> str:
    """The first cell of each row of its tables, joined."""
    return "\n".join(re.findall(r"^\| (.*?) (?<!\\)\|", text, re.MULTILINE))


def pages_of(navigation: object) -> list[str]:
    """The pages in a part of the site's navigation, in order."""
    if isinstance(navigation, str):
        return [navigation]
    parts = navigation.values() if isinstance(navigation, dict) else navigation if isinstance(navigation, list) else ()
    return [page for part in parts for page in pages_of(part)]


def test_each_page_is_once_in_the_navigation_of_the_site() -> None:
    """A reader finds every page, and none under two names."""
    navigation = pages_of(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text("utf-8"))["nav"])
    of_docs = [str(it.relative_to(REPOSITORY / "docs")) for it in (REPOSITORY / "docs").rglob("*.md")]
    assert sorted(it for it in navigation if not (REPOSITORY / it).is_file()) == sorted(of_docs)
    assert len(set(navigation)) == len(navigation)


def test_a_sentence_names_who_it_is_about() -> None:
    """A client, a gateway, an operator: a reader need not guess. Names of tests are no sentences."""
    found = re.compile(r"\b(?:whoever|so does one that)\b", re.IGNORECASE)
    sentences = [(it.name, re.sub(r"`[^`]*`", "", it.read_text("utf-8"))) for it in DOCUMENTS]
    assert [(name, text[each.start() :][:60]) for name, text in sentences for each in found.finditer(text)] == []


def test_the_readme_is_short() -> None:
    """It says who it is for, how to begin, and where the rest is."""
    assert len(README.splitlines()) <= MOST_LINES


def test_the_readme_has_the_two_commands() -> None:
    """People and machines begin with them; each stands at the beginning of a line, with what it does behind it."""
    assert re.findall(r"^make (\w+) +# \w", README, re.MULTILINE) == ["run", "test"]


def test_the_readme_names_every_package_that_setup_installs() -> None:
    """Nobody is surprised by what `make` puts on the machine."""
    setup = (REPOSITORY / "scripts" / "setup.sh").read_text("utf-8")
    lists = re.findall(r'\b(?:packages|wished)="([^"]+)"', setup)
    wanted = {word for one in lists for word in one.split() if re.fullmatch(r"[a-z][a-z0-9.-]+", word)}
    wanted -= {"python3", "python3.11", "python3.11-venv"}  # python3-venv brings the one, Ubuntu 22.04 needs the others
    assert {"python3-venv", "nginx-light", "prometheus", "wrk"} <= wanted
    assert wanted <= set(re.findall(r"`([a-z0-9.-]+)`", README))


def test_the_first_configuration_is_the_example() -> None:
    """README and tutorial show a configuration that works: tests load examples/minimal.yaml."""
    minimal = (REPOSITORY / "examples" / "minimal.yaml").read_text("utf-8")
    for text in (README, page("tutorial.md"), page("configuration.md")):
        assert text.split("```yaml\n")[1].split("```")[0] in minimal


def test_every_state_is_in_the_table_and_no_other() -> None:
    """`status` shows these words."""
    table = page("reference/commands.md").partition("## States")[2].partition("## Exit codes")[0]
    assert set(re.findall(r"`([a-z]+)`", first_cells(table))) == {state.value for state in ReplicaState}


def test_every_figure_is_in_the_table_and_no_other() -> None:
    """docs/figures.md has a row for each module of bench/."""
    benches = "\n".join(path.read_text("utf-8") for path in sorted((REPOSITORY / "bench").glob("*.py")))
    measured = set(re.findall(r'^NAME = "([a-z-]+)"', benches, re.MULTILINE))
    assert set(re.findall(r"^\| `([a-z-]+)`:", page("figures.md"), re.MULTILINE)) == measured == set(FIGURES)


def test_every_target_of_make_is_in_the_table_and_no_other() -> None:
    """docs/development.md and `make help` name the same targets."""
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    helped = set(re.findall(r"^## make ([a-z-]+)", makefile, re.MULTILINE))
    targets = set(re.findall(r"^\.PHONY: (.*)", makefile, re.MULTILINE)[0].split()) - {"help"}
    assert helped == targets
    assert set(re.findall(r"`make ([a-z-]+)", first_cells(page("development.md")))) == targets


def without_code(text: str) -> str:
    """What is prose: no fenced block."""
    return re.sub(r"^( *```).*?^ *```$", r"\1", text, flags=re.MULTILINE | re.DOTALL)


def headings(document: Path) -> set[str]:
    """The anchors of its headings, as a forge and the site make them."""
    titles = re.findall(r"^#+ (.+)$", without_code(document.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(document: Path) -> None:
    """A link to a file of this repository has that file at its end, and one to a heading that heading."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(document.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (document.parent / file).resolve() if file else document
        assert path.exists(), f"it links to {target}, which is not there"
        assert path.is_relative_to(REPOSITORY.resolve()), f"it links to {target}, outside the repository"
        if anchor:
            assert anchor in headings(path), f"it links to {target}, which has no such heading"


def test_every_page_can_be_found_from_the_readme() -> None:
    """A page that no link leads to is read by nobody."""
    found: set[Path] = set()
    ahead = [REPOSITORY / "README.md"]
    while ahead:
        document = ahead.pop()
        if document in found or document.suffix != ".md":
            continue
        found.add(document)
        links = re.findall(r"\]\(([^)#:\s]+)", document.read_text("utf-8"))
        ahead += [(document.parent / link).resolve() for link in links]
    assert [path.name for path in DOCUMENTS if path.resolve() not in {each.resolve() for each in found}] == []


def test_every_table_has_a_head() -> None:
    """An empty line in the middle of one makes plain text of what follows."""
    for document in DOCUMENTS:
        lines = ["", *document.read_text("utf-8").splitlines(), ""]
        for before, first, second in zip(lines, lines[1:], lines[2:], strict=False):
            if first.startswith("|") and not before.startswith("|"):
                assert re.fullmatch(r"\|[ :|-]+\|", second), f"{document.name}: {first[:80]}"


def test_what_is_inside_a_list_stands_four_spaces_in() -> None:
    """A forge takes two or three; the site's Markdown would end the list there."""
    for document in DOCUMENTS:
        for line in without_code(document.read_text("utf-8")).splitlines():
            assert not re.match(r" {1,3}(?:```|[-*] |\d+\. )", line), f"{document.name}: {line[:80]}"


def test_no_list_has_an_empty_place() -> None:
    """A name that a search and replace took away leaves its comma behind."""
    assert [it.name for it in DOCUMENTS if ", ," in re.sub(r"`[^`\n]*`", "x", it.read_text("utf-8"))] == []
