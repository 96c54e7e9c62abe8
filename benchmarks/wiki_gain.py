"""F1 gained by fine-tuning on real questions, on held-out articles, given the right paragraph and through retrieval."""

import sys

from benchmarks.machine import data, lifecycle, machine

AIM = "promoted, at least +0.25 F1 in both"


def met(value: dict) -> bool:
    return value["decision"] == "promote" and min(value["gain_given"], value["gain_end_to_end"]) >= 0.25


def measure() -> dict:
    """`lifecycle` on SQuADShifts new-wiki with a 10-minute training budget; the untuned release is the baseline."""
    source = data("squadshifts_new_wiki.json.gz")
    with machine():
        found = lifecycle("--assistant", "wiki", "--documents", source, "--examples", source, "--train-minutes", "10")
    tuned, untuned = found["metrics"], found["baseline"]
    print(found, file=sys.stderr)
    value = {
        "decision": found["decision"],
        "gain_given": round(tuned["given_f1"] - untuned["given_f1"], 4),
        "gain_end_to_end": round(tuned["token_f1"] - untuned["token_f1"], 4),
        "f1_given": [round(untuned["given_f1"], 4), round(tuned["given_f1"], 4)],
        "f1_end_to_end": [round(untuned["token_f1"], 4), round(tuned["token_f1"], 4)],
        "interval": next(i for i in found["intervals"] if i["metric"] == "correct"),
        "stages_s": found["seconds"],
    }
    return {"value": value, "n": value["interval"]["n"], "against": "the untuned base model", "limit": None}
