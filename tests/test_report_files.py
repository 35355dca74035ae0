"""Reports as files: one page that needs nothing beside it, a Markdown text, the JSON; all of them with every cell."""

import json
import re
from html.parser import HTMLParser

import pytest

from parity.records import BINS
from parity.report import content, html, markdown
from parity.report.environment import environment

EVIL = "</script><img src=x onerror=alert(1)>|`<b>\u2028"
"""A name that would leave the script element, and a table of Markdown, if it could."""

NOTE = "One picks the first, see https://docs.jax.dev/en/latest/_autosummary/jax.numpy.max.html."


def cell(pair, transform="forward", verdict="identical", data="random", **more):
    return {
        "id": f"{pair}/float32/{transform}/jax-eager/cpu/{data}", "pair": pair, "group": "group",
        "transform": transform,
        "world": "jax-eager", "dtype": "float32", "device": "cpu", "data": data, "seed": 3, "verdict": verdict,
        "known": False, "failed": verdict not in content.AGREES, "judged": "bits", "reason": "", "diagnosis": None,
        "output": None, "index": [], "got": None, "want": None, "ratio": None, "twin_ratio": None, "histogram": None,
        "inputs_sha256": "ab" * 32, "seconds": 0.1, "rerun": f"python -m parity check a.py --pair '{pair}'",
    } | more  # fmt: skip


CAUSE = {"cause": "ties", "text": "Two <maxima>.", "fix": "Use amax."}
CELLS = (
    cell("same"),
    cell("same", "vjp", "within bound", ratio=0.25, histogram=[0] * 9 + [7] + [0] * 4),
    cell("max", "vjp", "differs", "ties", reason="by x[0]", diagnosis=CAUSE, output="by x", index=[0, 1],
         got=float("nan"), want=-1.5, ratio=float("inf")),
    cell("max", "vjp", "differs", "kinks", known=True, failed=False, reason="by x[0]", known_reason="as listed"),
    cell(EVIL, "forward", "crashed", reason=EVIL, diagnosis=CAUSE | {"text": EVIL}),
    cell(EVIL, "vjp", "timed out"),
    cell("odd", "forward", "unsupported", known=True, failed=False),
)  # fmt: skip
PAIRS = {
    "max": {"group": "group", "note": NOTE, "torch": "torch.max(x, -1)", "jax": "jnp.max(x, -1)"},
    EVIL: {"group": EVIL, "note": EVIL, "torch": EVIL, "jax": EVIL},
}
REPORT = content.content(EVIL, environment(), CELLS, PAIRS)


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the text in each."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], {}, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts.setdefault(self._open[-1] if self._open else "", []).append(data)


@pytest.fixture(scope="module")
def page():
    return Page(html.render(REPORT))


def data(page):
    return json.loads(page.texts["script"][0])


def test_the_page_refers_to_nothing_outside(page):
    loading = {"src", "href", "srcset", "data", "action", "poster", "background"}
    for tag, attributes in page.elements:
        for name in loading & set(attributes):
            assert attributes[name].startswith("#"), f"<{tag} {name}={attributes[name]}>"
    (style,) = page.texts["style"]
    assert "url(" not in style
    assert "@import" not in style
    code = page.texts["script"][1]
    for name in ("fetch(", "XMLHttpRequest", "import(", "WebSocket", "sendBeacon", ".src"):
        assert name not in code
    (policy,) = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_what_a_user_wrote_is_text_and_nothing_else(page):
    assert not [tag for tag, _ in page.elements if tag in ("img", "b")]
    assert EVIL in "".join(page.texts["h1"])
    assert EVIL in data(page)["strings"]
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert name not in page.texts["script"][1]


def test_every_cell_is_on_the_page(page):
    held = data(page)
    strings = held["strings"]
    seen = [[strings[number] for number in row[:7]] for row in held["cells"]]
    verdicts = ["identical", "within-bound", "differs", "known", "crashed", "timed-out", "unsupported"]
    assert seen == [
        [one["pair"], one["transform"], "jax-eager", "float32", "cpu", one["data"], verdict]
        for one, verdict in zip(CELLS, verdicts, strict=True)
    ]
    assert [row[7] for row in held["cells"]] == [None, 0.25, "inf", None, None, None, None]
    assert held["cells"][1][8] == [9, 7]
    assert len(held["histogram_log2"]) == len(BINS) + 1


def test_every_cell_that_does_not_agree_is_told_in_full(page):
    details = data(page)["details"]
    assert set(details) == {"2", "3", "4", "5", "6"}
    assert details["2"]["diagnosis"] == CAUSE
    assert (details["2"]["index"], details["2"]["got"], details["2"]["want"]) == ([0, 1], "nan", -1.5)
    assert details["3"]["known_reason"] == "as listed"
    assert details["2"]["rerun"] == "python -m parity check a.py --pair 'max'"


def test_the_page_can_be_used_by_keyboard_and_heard(page):
    (root,) = [a for tag, a in page.elements if tag == "html"]
    assert root["lang"] == "en"
    ids = {a["id"] for _, a in page.elements if "id" in a}
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "for"):
            assert attributes.get(name, "title") in ids | {"title"}
    code = page.texts["script"][1]
    for key in ("ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "Home", "End", "Escape"):
        assert f'"{key}"' in code or f"{key}:" in code
    assert '"aria-label": label(' in code
    assert "aria-live" in html.render(REPORT)


def test_no_verdict_is_told_by_colour_alone(page):
    rows = re.search(r"const VERDICTS = \[(.*?)\n  \];", page.texts["script"][1], re.S)[1]
    triples = re.findall(r'\["([^"]+)", "([^"]+)", "([^"]+)"\]', rows)
    assert {verdict.replace(" ", "-") for verdict in content.ORDER} | {"known"} == {key for key, _, _ in triples}
    assert len({sign for _, _, sign in triples}) == len(triples)
    (style,) = page.texts["style"]
    for key, _, _ in triples:
        assert f".v-{key}" in style
    assert "prefers-color-scheme: dark" in style


def test_without_javascript_there_are_the_causes_and_a_table():
    static = re.sub(r"<script.*?</script>", "", html.render(REPORT), flags=re.S)
    assert static.count("<p>Two &lt;maxima&gt;.</p>") == static.count("<p>by x[0]</p>") == 1
    assert static.count('<p class="fix">Use amax.</p>') == 2  # of two pairs
    assert '<tr><th scope="row">max</th><td> </td><td>≠</td></tr>' in static
    assert f"<dt>python</dt><dd>{environment()['python']}</dd>" in static
    passed = html.render(content.content("one", {}, [cell("same")]))
    assert 'id="why-section" hidden>' in passed


def test_one_fault_is_one_section_of_markdown_with_its_cells_folded():
    """A wrong function fails in many cells; what follows from it has other words, and the same cause and fix."""
    follows = CAUSE | {"text": "The forward differs already: two."}
    cells = [cell("f", kind, "differs", data, diagnosis=follows if kind != "forward" else CAUSE, reason="by x",
                  world=world) for kind in ("vjp", "jvp", "forward") for data in ("ties", "random")
             for world in ("jax-eager", "jax-jit")]  # fmt: skip
    text = markdown.render(content.content("f", {}, cells))
    assert text.count("###") == text.count("**Fix:**") == text.count("Two &lt;maxima>.") == 1
    assert "### f: differs: ties, 12 cells\n\nTwo" in text
    assert "follow" not in text
    assert "- forward, vjp, jvp: in jax-eager, jax-jit; float32; random, ties\n" in text
    assert text.index("<details>") < text.index("- forward") < text.index("</details>")


def test_a_reason_that_a_cause_repeats_is_said_once():
    why = {"cause": "unsupported", "text": "forward in jax-jit raises: no rule", "fix": "List it."}
    refused = cell("f", verdict="unsupported", diagnosis=why, reason="no rule")
    text = markdown.render(content.content("f", {}, [refused]))
    assert text.count("no rule") == 1
    assert "### f: unsupported, 1 cell" in text


def test_markdown_has_every_pair_failure_and_reason():
    text = markdown.render(REPORT)
    assert "<img" not in re.sub(r"``[^\n]*?``|^    .*$", "", text, flags=re.M)  # as code it is harmless
    assert "| max |   | ≠ |" in text
    assert "Worst element: `by x[0, 1]`, got `nan`, want `-1.5`, error over bound inf" in text
    assert "**Fix:** Use amax." in text
    assert "python -m parity check a.py --pair 'max'" in text
    assert f"`torch.max(x, -1)` against `jnp.max(x, -1)`\n\n{NOTE}" in text
    assert "2 pairs differ somewhere as listed. Failed: max; &lt;/script>" in text
    assert f"- python: {environment()['python']}" in text


def test_markdown_of_one_pair_has_its_worlds():
    text = markdown.table(content.content("one", {}, [part for part in CELLS if part["pair"] == "same"]))
    assert text.splitlines() == ["| transform | jax-eager float32 |", "|---|---|", "| forward | = |", "| vjp | ≈ |"]


def test_json_comes_back_as_it_was(tmp_path):
    content.write_json(tmp_path / "r.json", REPORT)
    read = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert [one["id"] for one in read["cells"]] == [one["id"] for one in CELLS]
    assert read["cells"][2]["ratio"] == "inf"
    assert read["counts"] == {
        "crashed": 1, "timed out": 1, "differs": 2, "unsupported": 1, "within bound": 1, "identical": 1
    }  # fmt: skip
    assert not list(tmp_path.glob("*.tmp"))


def test_the_worst_of_cells_is_one_that_fails():
    listed = cell("a", verdict="unsupported", known=True, failed=False)
    assert content.worst([listed, cell("b", verdict="differs")])["pair"] == "b"
    assert content.worst([cell("a", ratio=0.1, verdict="within bound"), cell("b")])["pair"] == "a"


def test_a_report_of_one_call_is_rendered_as_well():
    """`Report.save` knows nothing of groups, notes and the text of functions."""
    bare = {name: REPORT[name] for name in ("name", "environment", "counts", "cells")}
    assert len(data(Page(html.render(bare)))["cells"]) == len(CELLS)
    assert "## What failed" in markdown.render(bare)


def test_control_characters_of_a_name_are_written_out():
    cell = dict.fromkeys(("transform", "world", "dtype", "data", "reason"), "any")
    cell |= {"pair": "\x1b[31m", "verdict": "differs", "failed": True, "known": False}
    assert "\x1b" not in html.render(content.content("ev\x1b[31mil", {}, [cell]))
