"""The reader's page: whole in one file, nothing loaded, no text becomes markup, and what is missing is named."""
from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from scripted_study import points, study_logs, study_manifests, study_rows

from dyme_core import config, utils
from dyme_core.data import datasets
from dyme_core.data.prompt_format import write_response
from dyme_core.supervision.refiner import RuleRefiner
from study import claims, cli, page, report

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(1)> & \"'"
VOID = {"img", "meta", "br", "link", "input"}


class Parsed(HTMLParser):
    """The elements of a page with their attributes, its text, and whether every element is closed in its place."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.texts: dict[str, str] = {}  # by name of the innermost element
        self.feed(html)
        assert not self.open
        self.text = " ".join(" ".join(self.texts.values()).split())

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open += [tag] * (tag not in VOID)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


def store(root: Path) -> report.Stored:
    """Three seeds of the main runs on disk: GRPO is hostile, the base misreads a value; one figure is drawn."""
    chosen = points("main", "sizes")
    records = {record.item: record for record in datasets.of_profile(config.load_profile("smoke"), "test", 0)}
    traces = RuleRefiner().refine_all([record.row for record in records.values()])
    right = {item: write_response(trace, records[item].answer) for item, trace in zip(records, traces, strict=True)}
    misread = {item: re.sub(r"has (\d+)", lambda found: f"has {int(found[1]) + 1}", text, count=1)
               for item, text in right.items()}
    rows = study_rows(chosen, lambda setting: 0.5, items=16, seeds=3)
    rows["question"] = [records[item].question if item in records else "" for item in rows["item"]]
    said = {"grpo": dict.fromkeys(records, HOSTILE), "base": misread}
    rows["prediction"] = [said.get(row.method, right).get(row.item, "") for row in rows.itertuples()]
    logs, stored = study_logs(chosen, lambda setting: 0.5, seeds=3), report.Stored(config.paths("smoke"))
    for made in study_manifests(chosen, seeds=3):
        run = made["run"]
        utils.write_json(stored.paths.manifests / f"{run}.json", made)
        for folder, frame in ((stored.paths.rows, rows), (stored.paths.logs, logs)):
            lines = [{name: value for name, value in line.items() if value == value}
                     for line in frame[frame["run"] == run].to_dict("records")]
            utils.write_rows(utils.run_file(folder, run), lines)
    report.draw("performance", stored)
    return stored


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> report.Stored:
    root = tmp_path_factory.mktemp("repository")
    (root / "notebooks").symlink_to(ROOT / "notebooks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DYME_ROOT", str(root))
        return store(root)


@pytest.fixture(scope="module")
def html(stored: report.Stored) -> str:
    return page.render(stored)


def test_the_page_is_whole_in_one_file_and_loads_nothing(html: str) -> None:
    shown = Parsed(html)
    assert not re.search(r"https?:|//\w|@import|url\(", re.sub(r"base64,[\w+/=]+", "", html))
    assert {tag for tag, _ in shown.elements} & {"link", "iframe", "object", "embed", "base", "form"} == set()
    pictures = shown.all("img")
    assert len(pictures) == 1 + 16, "the figure, and a chart for each question"
    assert all(each["src"].startswith("data:image/png;base64,") and each["alt"] for each in pictures)
    ids = [attributes["id"] for _, attributes in shown.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {each["href"].removeprefix("#") for each in shown.all("a")} <= set(ids)
    assert "luck" in shown.texts["figcaption"] and "make figures PROFILE=smoke" in html
    assert len(html) < 6e6


def test_no_text_of_a_model_becomes_markup_and_no_script_but_the_pages_own_may_run(html: str) -> None:
    shown = Parsed(html)
    assert html.count("&lt;/pre&gt;&lt;script&gt;alert(1)") == 16, "GRPO's responses"
    assert len(shown.all("script")) == 1 and not [name for _, each in shown.elements for name in each if name.startswith("on")]
    digest = base64.b64encode(hashlib.sha256(shown.texts["script"].encode()).digest()).decode()
    [policy] = [each["content"] for each in shown.all("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")


def test_every_claim_stands_with_its_verdict_and_every_method_in_the_table(stored: report.Stored, html: str) -> None:
    text = Parsed(html).text
    frame = claims.table(stored.evidence)
    for claim in frame.itertuples():
        assert f"<strong>{page.jinja2.filters.escape(claim.Claim)}</strong> <span" in html
    assert html.count('<span class="verdict') == len(frame)
    assert {verdict: html.count(f">{verdict}</span>") for verdict in claims.VERDICTS} == {
        verdict: int((frame["Verdict"] == verdict).sum()) for verdict in claims.VERDICTS}
    assert claims.tally(frame)[0] in text
    models = re.findall('<th scope="row">(?:SVLM|Middle VLM|Large VLM), ', html)
    assert len(models) == 2 * 11, "the main table, and the one of steps"


def test_the_traces_are_those_of_the_first_seed_with_right_and_wrong_values_marked(html: str) -> None:
    traces = html.split('<details class="trace">')[1:]
    assert len(traces) == 16 and all(trace.count("<pre>") == 11 for trace in traces)
    lookup = next(trace for trace in traces if "; test-0-00000;" in trace)
    base, sft = (re.search(rf"<h4>SVLM, {name} <.*?<pre>(.*?)</pre>\n(.*?)</p>", lookup, re.DOTALL)
                 for name in ("Base", "CoT-SFT"))
    answer = re.search("Right answer: <strong>(.*?)</strong>", lookup)[1]
    assert f" has <b>{answer}</b>." in sft[1] and "<mark>" not in sft[1] and sft[2].endswith("thinking rated high.")
    assert f" has <mark>{int(answer) + 1}</mark>." in base[1] and "thinking rated low: names no fact" in base[2]


def test_the_same_results_give_the_same_page(stored: report.Stored, html: str) -> None:
    assert page.render(report.Stored(stored.paths)) == html


def test_what_has_no_rows_is_named_and_the_page_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DYME_ROOT", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        cli.main(["page"])
    text = Parsed((tmp_path / "results" / "local" / "page.html").read_text(encoding="utf-8")).text
    assert ended.value.code == 0 and str(tmp_path) not in text
    for sentence in ("No claim has been judged: no <run>.jsonl.xz in results/local/mini/rows", "There is no table of results: ",
                     "There are no traces: ", "There is no log: ", "Not drawn yet: gradient_equivalence, off_policy. "):
        assert sentence in text


def test_the_story_has_every_section_of_the_claims_and_only_figures_that_are_drawn() -> None:
    named = " ".join(names for _, names in page.STORY.values()).split()
    drawn = page.commands(config.Paths(ROOT, config.DEFAULT))
    assert set(page.STORY) >= set(claims.claims()) and set(named) <= set(drawn) and len(named) == len(set(named))
    assert (drawn["performance"], drawn["gallery"]) == ("make figures", "make paper ARGS='--only 02'")


def test_the_published_figures_leave_room_on_a_page_of_six_megabytes() -> None:
    assert sum(path.stat().st_size for path in (ROOT / "paper_figures").glob("*.png")) * 4 / 3 < 5e6
