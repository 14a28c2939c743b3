"""The page: whole, escaped, without network, and drawn by a browser in both schemes and widths."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_evalguard import Finding, Report
from lightning_evalguard.checks.registry import page_of
from lightning_evalguard.checks.sync.check import Sync
from lightning_evalguard.confusion.matrix import ConfusionMatrix
from lightning_evalguard.record import run as record
from lightning_evalguard.views.page import page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NASTY = "<script>alert('x')</script> & \"co\""


class Outline(HTMLParser):
    """What stands in a page; fails where its tags do not match."""

    VOID = frozenset({"meta", "path", "circle", "polyline"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, Any]]:
        return [attrs for name, attrs in self.tags if name == tag]


def result(classes: int = 3, task: str = "multiclass", **more: Any) -> Any:
    torch.manual_seed(0)
    if task == "multilabel":
        state = ConfusionMatrix(classes, "multilabel", preds_are="probs")
        state.update(torch.rand(40, classes), torch.randint(2, (40, classes)))
        return state.result()
    state = ConfusionMatrix(classes, **more)
    target = torch.arange(40 * classes) % classes
    wrong = torch.rand(len(target)) < 0.2
    state.update(torch.where(wrong, (target + 1) % classes, target), target)
    return state.result([f"class {i}" for i in range(classes)])


def run(epochs: int = 4, **more: Any) -> dict[str, Any]:
    history = [
        {"epoch": e, "step": 10 * e, "stage": "validate",
         "scores": {"val/loss": 1 / (e + 1), "val/accuracy": e / 5, "train_eval/accuracy": e / 4,
                    "val/f1_class/0": 0.5}}
        for e in range(epochs)
    ]  # fmt: skip
    given: dict[str, Any] = {
        "run": "fit", "started": "2026-11-26T01:02:03+00:00", "ended": "2026-11-26T01:22:33+00:00",
        "error": None, "epoch": epochs, "step": 10 * epochs, "history": history, "confusion": {},
        "evaluated_on": {"val": {"samples": 120, "hash": "2115e590" * 2, "hash_of": "all of it"}},
        "checkpoint": {"path": "last.ckpt", "is": "best", "bytes": 3, "sha256": "ab" * 32},
        "seed": {"PL_GLOBAL_SEED": "3", "torch": 3}, "model": "shop.models.Net",
        "hyper_parameters": {"lr": 0.1, "hub": {"api_key": "***"}}, "data_hyper_parameters": {},
        "precision": "32-true", "strategy": "SingleDeviceStrategy", "device": "cpu", "devices": 1,
        "nodes": 1, "world_size": 1, "rank": 0, "versions": {"torch": "2.13.0"},
        "git": {"revision": "0123456789", "changed_files": 2},
    }  # fmt: skip
    return given | more


def rich() -> dict[str, Any]:
    report = Report()
    report.checked.update({"evaluations": 5, "batches": 40})
    report.add(
        [
            Finding("modes", "validate", "is in train mode, expected eval mode", "Call `.eval()`.",
                    "backbone.bn1", "BatchNorm2d", "src/model.py:88", "self.backbone.train()",
                    leads="subject", count=3),
            Finding("stochastic", "validate", "`torch.rand(3)` drew random numbers", "Allow it.",
                    "", "Net", "src/model.py:9", "torch.rand(3)", certain=False),
        ]
    )  # fmt: skip
    report.confusion = {"val": result(10), "test": result(3)}
    report.syncs = [
        Sync("src/model.py:57", "loss.item()", "user", "fit", "item", 1.0, 0.31)
    ]
    report.note("val: multiclass, from `logits`")
    runs = [run(), run(run="test", history=[], checkpoint=None, step=41)]
    return record.content(report, runs)


def test_it_needs_nothing_from_elsewhere_and_is_well_formed() -> None:
    text = page(rich(), "logs/version_0/evalguard.json")
    outline = Outline(text)
    tags = {tag for tag, _ in outline.tags}
    assert not tags & {"link", "img", "iframe", "object"}
    addresses = set(re.findall(r"https?://[^\s\"<]+", text))
    assert addresses == {
        page_of("modes"),
        page_of("stochastic"),
    }  # loaded by a click alone
    assert not re.search(r"url\(|@import|src=", text)
    assert "default-src 'none'" in text
    assert outline.of("html") == [{"lang": "en"}]
    assert "<title>version_0 · evaluation record</title>" in text


def test_it_shows_everything_that_is_on_record() -> None:
    text = page(rich())
    for words in (
        "1 finding, 1 warning</p>", "self.backbone.train()", "src/model.py:88", ">validate, 3x<",
        "Call <code>.eval()</code>.", "Confusion matrix · test", "loss.item()", "0.31 ms",
        "120 samples #2115e590", "last.ckpt", "0123456789, 2 files",
        "hub.api_key", "***", "torch 2.13.0", "val: multiclass, from <code>logits</code>",
        "<h1>Net</h1>", "2026-11-26 01:22 UTC",
    ):  # fmt: skip
        assert words in text, words


def test_a_clean_record_says_so() -> None:
    report = Report()
    report.confusion["val"] = result()
    text = page(record.content(report, []))
    assert '<p class="verdict good">No findings</p>' in text
    assert "<h2>Findings" not in text
    Outline(text)


def test_a_second_run_says_only_what_differs() -> None:
    text = page(rich())
    second = text[text.rindex("<details open>") :]
    assert "<summary>test</summary>" in second
    assert "precision" not in second
    assert "4, 41" in second


def test_a_notebook_shows_report_and_result_in_a_frame() -> None:
    report = Report.from_dict(rich()["report"])
    for shown, heading in (
        (report, "Findings"),
        (report.confusion["val"], "Confusion matrix"),
    ):
        html = shown._repr_html_()
        (frame,) = Outline(html).of("iframe")
        assert "allow-same-origin" not in frame["sandbox"]
        inside = Outline(frame["srcdoc"])
        assert inside.of("table")
        assert f"<h2>{heading}" in frame["srcdoc"]
        assert "No run" not in frame["srcdoc"]


def test_names_are_text_and_never_markup() -> None:
    report = Report()
    report.add([Finding(NASTY, NASTY, NASTY, NASTY, NASTY, NASTY, f"{NASTY}:3", NASTY)])
    state = ConfusionMatrix(2)
    state.update(torch.tensor([0, 1, 1]), torch.tensor([1, 1, 0]))
    report.confusion[NASTY] = state.result([NASTY, "b"])
    report.syncs = [Sync(f"{NASTY}:1", NASTY, NASTY, NASTY, NASTY, 1.0, None, NASTY)]
    report.note(NASTY)
    moments = [
        {"epoch": i, "step": i, "stage": NASTY, "scores": {f"val/{NASTY}": float(i)}}
        for i in range(2)
    ]
    nasty = run(run=NASTY, model=NASTY, hyper_parameters={NASTY: NASTY}, error=NASTY)
    text = page(record.content(report, [nasty, run(history=moments)]), NASTY)
    outline = Outline(text)
    assert outline.of("script") == [{}]
    assert text.count("<script") == 1
    assert not [
        attrs for _, attrs in outline.tags if "onerror" in attrs or "co" in attrs
    ]


@pytest.mark.parametrize(
    "one",
    [
        result(2),
        result(40),
        result(4, "multilabel"),
        result(30, full=False),
        result(400),
    ],
    ids=["binary", "pooled", "multilabel", "no matrix", "many"],
)
def test_every_kind_of_result_has_a_page(one: Any) -> None:
    report = Report()
    report.confusion["val"] = one
    text = page(record.content(report, []))
    outline = Outline(text)
    assert len(outline.of("table")) == 1 + (
        one.matrix is not None and one.task != "multilabel"
    )
    if one.num_classes > 20 and one.matrix is not None:
        assert f"{one.num_classes - 19} others" in text
    assert len(text) < 400_000


def test_a_long_class_name_is_cut_to_its_column_and_whole_in_a_tooltip() -> None:
    long = "a name that goes on and on, for sixty characters and a few more"
    state = ConfusionMatrix(2)
    state.update(torch.tensor([0, 1, 1]), torch.tensor([1, 1, 0]))
    report = Report()
    report.confusion["val"] = state.result([long, "b"])
    outline = Outline(page(record.content(report, [])))
    heads = [attrs for attrs in outline.of("th") if attrs.get("title") == long]
    # its row and its column of the matrix, its row of the classes
    assert len(heads) == 3
    assert (
        len([attrs for attrs in outline.of("span") if attrs.get("class") == "name"])
        == 4
    )


def test_curves_join_what_is_measured_on_two_sets() -> None:
    text = page(rich())
    charts = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    (accuracy,) = [c for c in charts if "<b>accuracy</b>" in c]
    assert accuracy.count("<polyline") == 2
    assert "train_eval 0.750" in accuracy
    assert "val 0.600" in accuracy
    assert not [c for c in charts if "f1_class" in c]
    assert "<h2>Epochs" not in page(record.content(Report(), [run(epochs=1)]))


def test_tables_have_heads_and_can_be_scrolled_by_keyboard() -> None:
    outline = Outline(page(rich()))
    assert all(attrs.get("scope") in ("row", "col") for attrs in outline.of("th"))
    assert len(outline.of("caption")) == len(outline.of("table"))
    regions = [a for a in outline.of("div") if a.get("role") == "region"]
    assert len(regions) == len(outline.of("table"))
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in regions)
    assert all(a["role"] == "img" and a["aria-label"] for a in outline.of("svg"))


def test_the_only_script_is_the_one_that_the_policy_names_by_its_hash() -> None:
    text = page(rich())
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\"" in text


def around(line: int, lines: str, stage: str = "validate") -> Finding:
    fact, remedy = "drew random numbers", "Pass `training=self.training`."
    where = f"src/model.py:{line}"
    return Finding(
        "stochastic", stage, fact, remedy, "head", "Head", where, excerpt=lines
    )


def test_the_lines_around_a_finding_are_shown_with_its_own_marked() -> None:
    report = Report()
    report.add([around(9, "\n".join(f"    x = {NASTY!r} * {n}" for n in range(6, 13)))])
    text = page(record.content(report, []))
    (lines,) = re.findall(r'<pre class="lines".*?</pre>', text, re.DOTALL)
    numbers = re.findall(r'<span class="(it)?"><b>(\d+)</b>', lines)
    assert numbers == [("it" if n == 9 else "", str(n)) for n in range(6, 13)]
    assert "</b>x = " in lines  # without what all of them are indented by
    assert "<script" not in lines
    Outline(text)


def test_a_page_reads_no_file_that_a_record_names(tmp_path: Path) -> None:
    path = tmp_path / "private.py"
    path.write_text("password = 'hunter2'\n" * 9)
    report = Report()
    report.add([Finding("modes", "fit", "is", "Do.", location=f"{path}:4")])
    assert "hunter2" not in page(record.content(report, []))
    report.findings[0] = replace(report.findings[0], excerpt="x\n" * 500)
    assert page(record.content(report, [])).count('<span class="') <= 7


def test_one_cause_is_one_card_with_its_stages_beside_it() -> None:
    report = Report()
    report.add(
        [
            around(9, "x"),
            around(9, "x", "test"),
            around(9, "x", "test"),
            around(30, "x"),
        ]
    )
    text = page(record.content(report, []))
    cards = re.findall(r'<li class="bad">.*?</li>', text, re.DOTALL)
    chips = [re.findall(r'class="chip">([^<]*)<', card) for card in cards]
    assert chips == [["validate", "test, 2x"], ["validate"]]
    assert "2 findings</p>" in text


def test_the_name_of_a_check_leads_to_its_page() -> None:
    text = page(rich())
    assert f'<a href="{page_of("modes")}" target="_blank"' in text


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (
            p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
        )
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_stands_out_in_both_schemes() -> None:
    style = page(rich()).split("<style>")[1]
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", part))
                   for part in style.split("@media (prefers-color-scheme: dark)")[:2])  # fmt: skip
    for theme in (light, dark):
        for ink in ("ink", "soft", "good", "doubt", "bad"):
            for paper in ("page", "card"):
                assert contrast(theme[ink], theme[paper]) >= 4.5, (ink, paper)
        for hue in ("right", "wrong"):
            assert contrast("#ffffff", theme[hue]) >= 4.5, hue


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which .ci/run installs")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_draws_it(width: int, dark: bool, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "page.html").write_text(page(rich()), encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--window-size={width},5000",
        f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}",
        (tmp_path / "page.html").as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=240, capture_output=True)
    with Image.open(tmp_path / "page.png") as drawn:
        # nothing but a table's own box is wider than the window
        assert drawn.width == width
        found = {c: n for n, c in drawn.convert("RGB").getcolors(1 << 24) or ()}
    paper, right, wrong = (
        ((15, 19, 23), (47, 111, 191), (189, 82, 22)) if dark else
        ((246, 247, 249), (23, 74, 134), (166, 61, 10))
    )  # fmt: skip
    assert found[paper] > 50_000
    assert found[right] > 300
    assert found[wrong] > 300


_PRESSES = """
<script>
const heads = () => [...document.querySelectorAll(".classes th[scope=col]")];
const rows = () => [...document.querySelectorAll(".classes tbody tr")].map(
  (row) => [...row.cells].map((cell) => cell.textContent.trim()));
const shot = [];
for (const i of [3, 3, 0]) {
  heads()[i].querySelector("button").click();
  shot.push({ rows: rows(), sorted: heads().map((head) => head.getAttribute("aria-sort")) });
}
heads()[1].querySelector("button").focus();
const focused = document.activeElement.textContent;
document.body.innerHTML = "<pre id=shot></pre>";
document.getElementById("shot").textContent = JSON.stringify({ shot, focused });
</script>
"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which .ci/run installs")
def test_a_click_on_a_head_sorts_the_classes_and_says_so(tmp_path: Path) -> None:
    report = Report()
    report.confusion["val"] = result(12)
    text = page(record.content(report, []))
    # the test's own script is none that the page's policy lets run
    text = re.sub(r"<meta http-equiv[^>]*>", "", text).replace(
        "</body>", _PRESSES + "</body>"
    )
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom",
        f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "page.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(
        command, check=True, timeout=240, capture_output=True, text=True
    )
    (shot,) = re.findall(r'<pre id="shot">(.*?)</pre>', done.stdout, re.DOTALL)
    told = json.loads(html.unescape(shot))
    up, down, named = told["shot"]
    recalls = [float(row[3]) for row in up["rows"]]
    assert recalls == sorted(recalls)
    assert [float(row[3]) for row in down["rows"]] == recalls[::-1]
    assert len({row[0] for row in named["rows"]}) == 12
    states = [shown["sorted"][3] for shown in told["shot"]]
    assert states == ["ascending", "descending", "none"]
    assert named["sorted"][0] == "ascending"
    assert told["focused"] == "support"
