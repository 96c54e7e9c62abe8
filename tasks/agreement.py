"""What feedback adds to a snapshot: examples and preferences that people agree on, and why the rest was refused.

Rows pass the guards on rows (tasks/guards), their votes are counted (tasks/votes), and what they call for passes the
guards on items. Every row ends in an example or a preference, or with the one guard that refused it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from data.feedback import Said
from data.records import Example, GoldenQuestion, Preference, as_json
from tasks import votes
from tasks.golden import Corpus, clusters, leaks, unit
from tasks.guards import ROWS, Guards, Known, Refusal
from tasks.votes import Item

OUTDATED = "outdated: its answer is no longer in the section it was bound to"


@dataclass(frozen=True)
class Chosen:
    """What feedback adds to a snapshot. `used`: rows (seq, kind, item) of the snapshot's table `feedback`.

    `outdated`: what reviewers accepted of answers that the documents have lost since.
    """

    examples: list[Example] = field(default_factory=list)
    preferences: list[Preference] = field(default_factory=list)
    used: list[dict] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    flip_rate: float = 0.0
    outdated: list[Example] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return len({row["seq"] for row in self.used})

    def __str__(self) -> str:
        counted = Counter(refusal.guard for refusal in self.refused)
        out = ", ".join(f"{number} {guard}" for guard, number in counted.most_common()) or "none"
        return (
            f"feedback: {self.rows} of {self.rows + len(self.refused)} rows went into {len(self.examples)} examples "
            f"and {len(self.preferences)} preferences (votes wrong: {self.flip_rate:.0%}); refused: {out}"
        )


def choose(
    said: Sequence[Said],
    corpus: Corpus,
    golden: Sequence[GoldenQuestion] = (),
    given: Sequence[Example] = (),
    chosen: Guards = Guards(),
    outdated: Callable[[Example], bool] = lambda example: False,
) -> Chosen:
    """What may be trained on of `said`, and each row that may not. `given`: the examples there are without feedback;
    `outdated`: whether the documents held an example's answer and hold it no more.

    Neither the clock nor the order of `said` matters: the same rows give the same choice.
    """
    if not said:
        return Chosen()
    rows = sorted(said, key=lambda one: one.seq)
    cluster = dict(zip((one.seq for one in rows), clusters([one.question for one in rows]), strict=True))
    known = Known(corpus, golden, given, chosen, cluster, outdated)
    refused: dict[int, Refusal] = {}
    for guard, refuse in ROWS.items():
        reasons = refuse(rows, known)
        refused |= {seq: Refusal(seq, guard, reason) for seq, reason in reasons.items()}
        rows = [one for one in rows if one.seq not in reasons]
    asked = votes.count(rows, corpus)
    batch = votes.items(asked, chosen.users, known.topic, corpus)
    why: dict[int, Refusal] = {}
    aged: list[Example] = []
    for guard, drop in ITEMS.items():
        reasons = drop(batch, known)
        for number, reason in reasons.items():
            why |= {seq: Refusal(seq, guard, reason) for seq in batch[number].seqs}
        if guard == "outdated":
            aged = [example for number in reasons for example in batch[number].answers if outdated(example)]
        batch = [item for number, item in enumerate(batch) if number not in reasons]
    used = [{"seq": seq, "kind": item.kind, "item": item.record.id} for item in batch for seq in sorted(item.seqs)]
    taken = {row["seq"] for row in used}
    for one in rows:
        if one.seq not in taken:
            refused[one.seq] = why.get(one.seq) or Refusal(one.seq, *_unresolved(one, asked, chosen))
    records = [item.record for item in batch]
    return Chosen(
        [record for record in records if isinstance(record, Example)],
        [record for record in records if isinstance(record, Preference)],
        used,
        [refused[seq] for seq in sorted(refused)],
        votes.flip_rate(asked),
        list(dict.fromkeys(aged)),
    )


# --- guards on items: position of each refused item -> reason ---------------------------------


def held_out(batch: Sequence[Item], known: Known) -> dict[int, str]:
    held = {unit(q.document, q.section, known.corpus) for q in known.golden if q.document}
    reason = "about a source that golden questions are about"
    return {number: reason for number, item in enumerate(batch) if item.topic in held}


def outdated(batch: Sequence[Item], known: Known) -> dict[int, str]:
    """What a reviewer accepted may be lost to an edit of the documents; what users agree on a passage holds today."""
    return {number: OUTDATED for number, item in enumerate(batch) if any(map(known.outdated, item.answers))}


def contradicting(batch: Sequence[Item], known: Known) -> dict[int, str]:
    """The team's own examples come first: an example they already have adds nothing, one against them is wrong."""
    near = leaks([item.record.question for item in batch], [example.question for example in known.given])
    answers: dict[str, set] = defaultdict(set)
    for example in known.given:
        answers[example.question] |= {votes.key(answer) for answer in example.answers}
    found = {}
    for number, question in near.items():
        text = batch[number].text
        if not any(votes.compatible(votes.key(text), other) for other in answers[question]):
            found[number] = f"the given examples answer otherwise: {question}"
        elif batch[number].kind == "example":
            found[number] = f"the given examples say it already: {question}"
    return found


def shares(batch: Sequence[Item], known: Known) -> dict[int, str]:
    """At most the shares of the questions that are left in the end, reviewed and oldest ones first.

    An example and the preferences on the same question are one lesson and count once. The largest batch that keeps
    the shares: what is over is dropped until nothing is, since dropping makes the batch smaller. What a reviewer
    accepted is from nobody in particular, and what more users agree on than must is not either.
    """
    lessons: dict[votes.Key, list[int]] = defaultdict(list)
    for number, item in enumerate(batch):
        lessons[votes.key(item.record.question)].append(number)
    due = {
        asked: {
            *(("user", user) for at in numbers for user in batch[at].users),
            *(("topic", batch[at].topic) for at in numbers),
        }
        for asked, numbers in lessons.items()
    }
    kept = sorted(
        lessons, key=lambda asked: min((not batch[at].reviewed, min(batch[at].seqs)) for at in lessons[asked])
    )
    share_of = {"user": known.chosen.user_share, "topic": known.chosen.topic_share}
    found: dict[int, str] = {}
    while True:
        most = {name: max(1, int(share * len(kept) + 1e-9)) for name, share in share_of.items()}
        counts: Counter = Counter()
        stay = []
        for asked in kept:
            over = next((name for name, who in sorted(due[asked], key=str) if counts[name, who] >= most[name]), None)
            if over is None:
                counts.update(due[asked])
                stay.append(asked)
                continue
            reason = (
                f"more than {share_of[over]:.0%} of the batch would be due to one {over}; it waits for a larger one"
            )
            found |= dict.fromkeys(lessons[asked], reason)
        if len(stay) == len(kept):
            return found
        kept = stay


ITEMS: dict[str, Callable[[Sequence[Item], Known], dict[int, str]]] = {
    "outdated": outdated,
    "held out": held_out,
    "given": contradicting,
    "share": shares,
}


UNRESOLVED = ("unsupported", "conflicting", "alone", "unpaired")
"""What becomes of votes that no guard refused and that make nothing."""


def _unresolved(one: Said, asked: dict, chosen: Guards) -> tuple[str, str]:
    """Why votes that passed the guards made nothing: (guard, reason)."""
    texts = asked[votes.key(one.question)]
    text, against = votes.endorsed(one), votes.denied(one)
    if text is None:
        worse = texts[votes.key(against)]
        if not worse.bad(chosen.users):
            return "alone", f"{len(worse.denied)} users against this answer, {len(worse.asserted)} for it"
        return "unpaired", "no answer to prefer to this one is known yet"
    found = texts[votes.key(text)]
    if found.good(chosen.users):
        return "unpaired", "nothing to prefer it to, or another wording of what is trained on"
    if found.accepted or found.rejected or found.overruled:
        return "conflicting", "a reviewer decided otherwise"
    if found.place is None:
        return "unsupported", "no passage shown for the answer says this; a reviewer can accept it"
    others = (found.denied.keys() | found.rivals) - found.asserted.keys()
    if others:
        return "conflicting", f"{len(found.asserted)} users for it, {len(others)} against it or for another text"
    return "alone", f"{len(found.asserted)} of {chosen.users} users say so; a reviewer can accept it"


def tables(chosen: Chosen) -> dict[str, list[dict]]:
    """The rows of the snapshot's tables preferences, feedback and feedback_left_out."""
    return {
        "preferences": [as_json(one) | {"id": one.id} for one in chosen.preferences],
        "feedback": chosen.used,
        "feedback_left_out": [as_json(refusal) for refusal in chosen.refused],
    }
