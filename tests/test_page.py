"""The page of an evaluation: what stands on it first, and that hostile text stays text."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from data.records import as_json
from tasks import page
from tasks.gate import GateSettings, Scores, decide

HOSTILE = '<script>alert("x")</script><img src=http://evil.test/p.png> ![p](http://evil.test/p.png) | [1](x)\n# big'


@pytest.fixture
def made(tmp_path):
    """A function that judges a candidate with so many questions lost, every text hostile, and writes the page."""

    def make(lost: int = 30, hard: str | None = None, untuned: dict | None = None, sealed: tuple = ()):
        n = 120
        champion = np.ones(n)
        candidate = champion.copy()
        candidate[:lost] = 0
        ids = tuple(f"q{i}" for i in range(n))
        clusters = tuple(f"d{i // 4}" for i in range(n))
        slices = tuple(("billing",) if i % 2 else ("sharing",) for i in range(n))
        arms = {
            name: Scores(
                ids,
                clusters,
                {"correct": list(values), "token_f1": list(values), "latency": [0.5] * n, "chrf": [None] * n},
                slices,
            )
            for name, values in (("candidate", candidate), ("champion", champion))
        }
        row = {"accepted": [HOSTILE], "answer": HOSTILE, "contexts": [[HOSTILE] * 3], "tokens": [300, 8]}
        rows = [row | {"id": i, "question": f"{i} {HOSTILE}"} for i in ids]
        settings = GateSettings(guardrails=("latency",))
        decision = decide(*arms.values(), {"format": hard}, settings, release="rel-new", champion_release="rel-old")
        scores = {name: None if hard else as_json(arm) for name, arm in arms.items()}
        body = scores | {
            "evaluation": {"questions": n, "seconds": 61.0},
            "sealed": list(sealed),
            "rows": {} if hard else {name: [row for row in rows if row["id"] not in sealed] for name in arms},
            "about": {"candidate": {"model": "a" * 64}, "suite": "5a17", "seed": 0},
            "changed": ["model"],
        }
        stored = tmp_path / "scores.json"
        stored.write_text(json.dumps(body))
        return [file.read_text() for file in page.write(replace(decision, evaluation=str(stored)), untuned)]

    return make


class Tags(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.seen: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))


def test_the_decision_and_its_reason_come_first(made):
    shown, text = made()
    first = re.search(r"<h1>(.*?)</h1>", shown, re.S)[1]
    assert "REJECTED" in first and "Worse than allowed: correct -25.0 points" in first
    assert shown.index("<h1>") < shown.index("<h2>")
    assert text.startswith("# REJECTED: rel-new\n")


def test_hostile_text_is_shown_and_never_becomes_html(made):
    shown, _ = made()
    tags = {tag for tag, _ in Tags(shown).seen}
    assert "&lt;script&gt;" in shown
    assert not tags & {"script", "img", "iframe", "link", "a", "object", "form"}
    assert not any(name.startswith("on") or name in ("src", "href") for _, attrs in Tags(shown).seen for name in attrs)
    assert "default-src 'none'" in shown


def test_hostile_text_is_no_markdown_either(made):
    _, text = made()
    assert "<" not in text
    assert not re.search(r"(?<!\\)!(?<!\\)\[", text)
    assert not re.search(r"(?<!\\)\]\(", text)
    assert not re.search(r"^# big", text, re.M)


def test_every_metric_has_an_interval_and_only_those_of_the_gate_have_a_verdict(made):
    shown, text = made()
    assert {"correct", "latency", "token_f1"} <= set(re.findall(r'<div class="metric"><span>(\w+)', shown))
    assert "told only" in next(line for line in text.splitlines() if line.startswith("| token\\_f1"))
    assert "chrf" not in shown


def test_the_twenty_worst_regressions_stand_side_by_side(made):
    shown, _ = made(lost=30)
    assert shown.count("<article>") == 20
    assert shown.count("<details>") == 40
    assert "correct 1.00 -&gt; 0.00" in shown
    assert "No question got worse" in made(lost=0)[0]


def test_the_untuned_model_is_drawn_where_it_is_known(made):
    assert "◇" not in made()[0]
    assert "◇" in made(untuned={"correct": 0.4})[0]


def test_seeds_hashes_and_slices_are_there(made):
    _, text = made()
    for told in ("candidate model | aaaa", "suite | 5a17", "seed | 0", "sharing | 60", "margin 0.05"):
        assert told in text


def test_a_candidate_that_was_never_asked_has_a_page_too(made):
    shown, text = made(hard="the artifact is not the recorded one")
    assert "the artifact is not the recorded one" in shown and "the artifact is not the recorded one" in text


def test_no_sealed_question_is_shown_and_the_others_keep_their_scores(made):
    sealed = tuple(f"q{i}" for i in range(20))
    shown, text = made(lost=30, sealed=sealed)
    assert shown.count("<article>") == 10 and not any(f"<b>{name} " in shown for name in sealed)
    assert shown.count("correct 1.00 -&gt; 0.00") == 10
    told = next(line for line in text.splitlines() if line.startswith("| token\\_f1"))
    assert "| 100 |" in told and next(line for line in text.splitlines() if line.startswith("| correct")).count(
        "| 120 |"
    )
