"""Who carries a ratings alarm, and the remedy: their ratings are set aside, nothing else happens (METHODS, row 8)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from scipy import stats

from data import quarantine
from data.ledger import Ledger
from data.quarantine import voice
from tasks.evidence import DiagnosisSettings

RECENT = 200
"""Ratings that are looked at."""
FEWEST_BAD, FEWEST_VOICES = 5, 5
"""Bad ratings, and voices that rated, below which nobody is called few."""
FEW = 0.05
"""Share of the voices that may be called few; one always may be."""


def carriers(
    rated: Sequence[dict], usual: float, most: float = DiagnosisSettings.few_users
) -> tuple[tuple[str, ...], float]:
    """The few voices that carry the bad ones of `rated` (rows of feedback), the worst first, and their share of these.

    All together rate worse than `usual`, the share of bad ratings before. These few gave at least `most` of the bad
    ones and rate worse than the others (Fisher's exact test at 1%), who without them do not rate worse than usual
    (exact binomial tests at 5%): else what people say got worse broadly, or did not. ((), 0.0) where nobody does.
    """

    def worse(n: int, of: int) -> bool:
        return bool(stats.binom.sf(n - 1, of, usual) < 0.05)

    voices = [voice(row) for row in rated]
    bad = Counter(one for one, row in zip(voices, rated, strict=True) if row["rating"] < 0)
    known = set(voices) - {None}
    if bad.total() < FEWEST_BAD or len(known) < FEWEST_VOICES or not worse(bad.total(), len(rated)):
        return (), 0.0
    few: tuple[str, ...] = ()
    for one, _ in [ranked for ranked in bad.most_common() if ranked[0]][: max(1, int(FEW * len(known)))]:
        few = (*few, one)
        theirs, given = sum(bad[name] for name in few), sum(name in few for name in voices)
        rest, others = bad.total() - theirs, len(voices) - given
        table = [[theirs, given - theirs], [rest, others - rest]]
        apart = stats.fisher_exact(table, alternative="greater").pvalue < 0.01
        if theirs >= most * bad.total() and apart and not worse(rest, others):
            return few, theirs / bad.total()
    return (), 0.0


def recent(ledger: Ledger, assistant: str) -> list[dict]:
    """The last ratings that count."""
    rated = [row for row in ledger.feedback(assistant) if row["rating"]]
    return quarantine.counted(ledger, assistant, rated)[-RECENT:]


def set_aside(ledger: Ledger, assistant: str, voices: Sequence[str] = ()) -> str:
    """Set the ratings of `voices` aside, or of those who carry the bad ones now, and say so.

    The sentence goes to channels outside: it counts the voices, and the decision in the ledger names them.
    """
    reason = "a diagnosis or a person named them"
    if not voices:
        detector = ledger.signal_states(assistant).get("ratings", {}).get("detector")
        if not detector:
            return "nothing to set aside: what is usual among the ratings is not known yet"
        voices, share = carriers(recent(ledger, assistant), detector["p0"])
        reason = f"they gave {share:.0%} of the bad ratings among the last {RECENT}"
    fresh = [one for one in voices if one not in quarantine.aside(ledger, assistant)]
    if not fresh:
        return "nothing to set aside: no few carry the bad ratings, or it was done already"
    quarantine.set_aside(ledger, assistant, fresh, reason)
    done = f"set aside the ratings of {quarantine.many(fresh)}"
    return f"{done}; python -m flows.remedies give-back names them and lets them count again"
