"""One page for one evaluation, as HTML and as Markdown: the decision first, then what it rests on.

Written beside the stored scores, from them and the decision alone. Questions, passages and answers are hostile input:
every text is escaped, the HTML loads nothing and may run nothing.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.records import Decision, Interval
from tasks.findings import Found, difference, find

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --soft: #57606a; --line: #d0d7de; --panel: #f6f8fa;
  --promote: #116329; --reject: #a40e26; --hold: #7d4e00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --soft: #9ea7b3; --line: #3d444d;
  --panel: #161b22; --promote: #56d364; --reject: #ff8e86; --hold: #e3b341; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
  margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; line-height: 1.3; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.promote { color: var(--promote); } .reject { color: var(--reject); } .hold { color: var(--hold); }
small, .soft { color: var(--soft); }
.metric { display: grid; grid-template-columns: 11rem 1fr 15rem; gap: 0 .8rem; align-items: center;
  border-bottom: 1px solid var(--line); padding: .2rem 0; }
svg { width: 100%; height: auto; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); }
article { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: .6rem 1rem;
  margin: .8rem 0; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
@media (max-width: 40rem) { .metric, .sides { grid-template-columns: 1fr; } }
"""
MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~-])")
SAID = {
    "promote": "PROMOTED",
    "bootstrap": "PROMOTED",
    "reject": "REJECTED",
    "hold": "HELD",
    "rolledback": "ROLLED BACK",
}


def write(decision: Decision, untuned: dict[str, float] | None = None) -> tuple[Path, Path]:
    """Writes the page beside the scores the decision was taken from; the HTML file and the Markdown file.

    `untuned`: the untuned model's means on the same questions, where they are known.
    """
    stored = Path(decision.evaluation)
    found = find(decision, json.loads(stored.read_text()), untuned)
    page, text = stored.with_suffix(".html"), stored.with_suffix(".md")
    page.write_text(as_html(found))
    text.write_text(as_markdown(found))
    return page, text


# --- HTML -------------------------------------------------------------------------------------


def as_html(found: Found) -> str:
    decision, e = found.decision, html.escape
    against = f"{decision.release} against {decision.champion}" if decision.champion else decision.release
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{e(SAID[decision.verdict])}: {e(decision.release)}</title><style>{STYLE}</style>",
        f'<h1><span class="{_tone(decision.verdict)}">{e(SAID[decision.verdict])}.</span> {e(decision.reason)}</h1>',
        f'<p class="soft">{e(against)}</p>',
    ]
    if found.intervals:
        diamond = " ◇ is the untuned model." if found.untuned else ""
        parts.append(
            "<h2>Difference to the champion, in points</h2><p class=soft>Bar: bounds of the candidate, dot: mean, "
            f"thin line: the champion, dashed line: the margin; to the right is better.{diamond}</p>"
        )
        reach = _reach(found)
        parts += [_metric(interval, found, reach) for interval in found.intervals]
    parts.append("".join(f"<p>{e(note)}</p>" for note in decision.notes))
    figures, *rest = (f"<h2>{e(title)}</h2>{_table(rows)}" for title, rows in found.tables.items() if len(rows) > 1)
    parts += [figures, f"<h2>Worst regressions ({len(found.worst)})</h2>"]
    parts += map(_regression, found.worst)
    if not found.worst:
        parts.append("<p>No question got worse.</p>")
    return "\n".join([*parts, *rest, "</html>\n"])


def _tone(verdict: str) -> str:
    return {"promote": "promote", "bootstrap": "promote", "reject": "reject"}.get(verdict, "hold")


def _reach(found: Found) -> float:
    """Half the width of the plot: the farthest bound or margin, 5 to 100 points."""
    far = [abs(value) for i in found.intervals for value in (i.lower, i.upper, i.margin)]
    return min(1.0, max(0.05, *far)) * 1.05


def _metric(interval: Interval, found: Found, reach: float) -> str:
    """One row of the plot: the name, the picture, the numbers."""
    decides = interval.metric in {i.metric for i in found.decision.intervals}
    verdict = f'<b class="{_tone(interval.verdict)}">{interval.verdict}</b>' if decides else "<small>told only</small>"
    champion = (found.decision.baseline or {}).get(interval.metric)
    untuned = found.untuned.get(interval.metric)
    mark = untuned - champion if None not in (untuned, champion) and interval.metric != "latency" else None
    numbers = f"{difference(interval)} ({100 * interval.lower:+.1f} to {100 * interval.upper:+.1f})"
    small = f"n {interval.n}, differ {interval.discordance:.0%}, detectable {100 * interval.detectable:.1f}"
    power = f", power {interval.power:.0%}" if interval.margin else ""
    return (
        f'<div class="metric"><span>{html.escape(interval.metric)} {verdict}</span>{_bar(interval, reach, mark)}'
        f"<span>{numbers}<br><small>{small}{power}</small></span></div>"
    )


def _bar(interval: Interval, reach: float, untuned: float | None) -> str:
    def at(value: float) -> float:
        return round(300 + 300 * max(-1.0, min(1.0, value / reach)), 1)

    low, high, tone = at(interval.lower), at(interval.upper), _tone(interval.verdict)
    label = html.escape(
        f"{interval.metric}: {difference(interval)} points, {100 * interval.lower:+.1f} to {100 * interval.upper:+.1f}"
    )
    shapes = [
        '<line x1="300" x2="300" y1="0" y2="26" stroke="currentColor"/>',
        f'<line x1="{at(-interval.margin)}" x2="{at(-interval.margin)}" y1="0" y2="26" stroke="currentColor" '
        'stroke-width="2" stroke-dasharray="4 3"/>',
        f'<g class="{tone}" fill="currentColor"><rect x="{low}" y="10" width="{max(2, round(high - low, 1))}" '
        f'height="6" opacity=".55"/><circle cx="{at(interval.mean)}" cy="13" r="6"/></g>',
    ]
    if untuned is not None:
        x = at(untuned)
        shapes.append(f'<path d="M{x - 7} 13 L{x} 6 L{x + 7} 13 L{x} 20 Z" fill="none" stroke="currentColor"/>')
    body = "".join(shapes)
    return f'<svg viewBox="0 0 600 26" role="img" aria-label="{label}">{body}</svg>'


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    lines = "".join(f"<tr>{row}</tr>" for row in body)
    return f'<div class="scroll"><table><tr>{head.replace("td>", "th>")}</tr>{lines}</table></div>'


def _regression(told: dict) -> str:
    e, candidate, champion = html.escape, told["candidate"], told["champion"]
    sides = "".join(
        f"<div><b>{name}</b><p>{e(row['answer'])}</p>{_contexts(row['contexts'])}</div>"
        for name, row in (("candidate", candidate), ("champion", champion))
    )
    return (
        f"<article><p><b>{e(candidate['question'])}</b><br><small>accepted: {e(_accepted(candidate))}</small></p>"
        f'<div class="sides">{sides}</div><small>{e(_scores(told))}</small></article>'
    )


def _contexts(contexts: Iterable[Sequence[str]]) -> str:
    return "".join(
        f"<details><summary>{html.escape(f'{document} - {section}')}</summary><p>{html.escape(text)}</p></details>"
        for document, section, text in contexts
    )


def _accepted(row: dict) -> str:
    return " | ".join(row["accepted"]) or "(the documents do not say)"


def _scores(told: dict) -> str:
    changed = {name: both for name, both in told["scores"].items() if both[0] != both[1]}
    return ", ".join(f"{name} {theirs:.2f} -> {mine:.2f}" for name, (mine, theirs) in changed.items())


# --- Markdown ---------------------------------------------------------------------------------


def plain(text: str) -> str:
    """`text` that Markdown shows as it stands: no HTML, link, picture, table cell or line break of its own."""
    return MARKDOWN.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))


def as_markdown(found: Found) -> str:
    decision = found.decision
    lines = [f"# {SAID[decision.verdict]}: {decision.release}", "", plain(decision.reason), ""]
    if found.intervals:
        rows = [["metric", "difference", "lower", "upper", "margin", "n", "differ", "detectable", "power", "verdict"]]
        decides = {interval.metric for interval in decision.intervals}
        for i in found.intervals:
            figures = [f"{100 * value:+.1f}" for value in (i.mean, i.lower, i.upper, 0.0 - i.margin)]
            verdict = i.verdict if i.metric in decides else "told only"
            seen = [str(i.n), f"{i.discordance:.0%}", f"{100 * i.detectable:.1f}", f"{i.power:.0%}", verdict]
            rows.append([i.metric, *figures, *seen])
        lines += [*_rows(rows), ""]
    lines += [f"- {plain(note)}" for note in decision.notes]
    for title, rows in found.tables.items():
        if len(rows) > 1:
            lines += ["", f"## {title}", "", *_rows(rows)]
    lines += ["", f"## Worst regressions ({len(found.worst)})"]
    for told in found.worst:
        candidate, champion = told["candidate"], told["champion"]
        shown = " / ".join(f"{document} - {section}" for document, section, _ in candidate["contexts"])
        lines += ["", f"**{plain(candidate['question'])}** accepted: {plain(_accepted(candidate))}", ""]
        lines += [f"- candidate: {plain(candidate['answer'])}", f"- champion: {plain(champion['answer'])}"]
        lines += [f"- passages: {plain(shown)}", f"- {plain(_scores(told))}"]
    return "\n".join([*lines, ""])


def _rows(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = ["| " + " | ".join(map(plain, row)) + " |" for row in rows]
    return [head, "|" + "---|" * len(rows[0]), *body]
