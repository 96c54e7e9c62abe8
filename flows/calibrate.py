"""`python -m flows.calibrate`: how far the judge agrees with people, and whether it may be heard."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from prefect import flow

from data import reviews
from data.ledger import Ledger
from data.records import as_json
from settings import settings
from tasks import anchors, judge, report
from tasks.calibrate import KIND, Calibration, Labelled, Rules, calibrate, markdown, read_labels


@flow(name="calibrate", log_prints=True)
def calibrate_judge(assistant: str, labels: str | None = None, rules: Rules = Rules()) -> Calibration:
    """`measure`, with the table in the Prefect UI."""
    found = measure(assistant, labels, rules)
    report.calibration(assistant, found)
    return found


def measure(assistant: str, labels: str | None = None, rules: Rules = Rules()) -> Calibration:
    """`compare` on the labelled answers at `labels` (JSON lines), by default on those of the review queue.

    Raises ValueError for a line that is no label, LookupError where nobody labelled an answer yet.
    """
    known_judge()
    if labels:
        return compare(assistant, read_labels(labels), rules)
    items = [Labelled.of(label) for label in reviews.labels(Ledger(settings().ledger), assistant)]
    if not items:
        raise LookupError(
            f"nobody labelled an answer of {assistant!r} yet; list some: python -m flows.review ask RELEASE"
        )
    return compare(assistant, items, rules)


def compare(assistant: str, items: Sequence[Labelled], rules: Rules = Rules()) -> Calibration:
    """The configured judge on labelled items, recorded in the ledger with its version.

    Everything is asked anew, the anchors too: from here on the judge has moved when they do.

    Raises LookupError without a judge, KeyError for an unknown assistant, ConnectionError, with nothing
    recorded, where it gave no verdict on most: what cannot be asked has not changed its mind.
    """
    book, asked = Ledger(settings().ledger), known_judge()
    book.assistant(assistant)
    asked.forget()
    found = calibrate(items, asked.verdicts([item.judgeable for item in items]), asked.version, rules)
    if found.unmeasured > found.items:
        raise ConnectionError(f"{asked.version} gave no verdict on {found.unmeasured} of {len(items)} items; is it up?")
    anchors.start(book, assistant, asked.version, anchors.stored(anchors.ask(asked)))
    print(asked.bill.says())
    book.decide(assistant, KIND, None, "passed" if found.passed else "advisory", found.says(), as_json(found))
    return found


def known_judge() -> judge.Judge:
    """The configured judge; LookupError without one."""
    found = judge.configured()
    if found is None:
        raise LookupError("no judge is configured; set PERENNIAL_JUDGE_URL and PERENNIAL_JUDGE_MODEL")
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flows.calibrate", description="May the judge be heard?")
    parser.add_argument("--assistant", required=True)
    form = "JSON lines: question, answers, answer, system, label (0 or 1)"
    parser.add_argument("--labels", help=f"{form}; without it what was labelled in the review queue")
    parser.add_argument("--margin", type=float, default=Rules().margin, help="of the gate; a judge may inflate by half")
    return parser.parse_args()


def main() -> None:
    """Exit code 0 when it is done, whatever the judge is worth; 1 with a sentence when it cannot be."""
    chosen = arguments()
    rules = Rules(margin=chosen.margin)
    try:
        print(markdown(measure(chosen.assistant, chosen.labels, rules), rules))
    except (LookupError, ValueError) as error:
        sys.exit(str(error.args[0]))
    except OSError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
