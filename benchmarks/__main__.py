"""`python -m benchmarks` lists every figure by id; `python -m benchmarks ID` measures one, ending with a JSON line."""

import importlib
import json
import sys
import time

FIGURES = {
    "fresh-run": "benchmarks.fresh_run",
    "wiki-gain": "benchmarks.wiki_gain",
    "heal-edit": "benchmarks.heal_edit",
    "serve-while-training": "benchmarks.serve_while_training",
    "retrieval-quality": "benchmarks.retrieval_quality",
    "follow-ups": "benchmarks.follow_ups",
    "redaction": "benchmarks.redaction",
    "embed-throughput": "benchmarks.embed_throughput",
    "reindex-releases": "benchmarks.reindex_releases",
    "reindex-incremental": "benchmarks.reindex_incremental",
    "query-latency": "benchmarks.query_latency",
    "prepare-scaling": "benchmarks.prepare_scaling",
    "index-debris": "benchmarks.index_debris",
    "feedback-guards": "benchmarks.feedback_guards",
    "train-time-to-loss": "benchmarks.train_time_to_loss",
    "train-time-tuned": "benchmarks.train_time_tuned",
    "train-efficiency": "benchmarks.train_efficiency",
    "train-quality": "benchmarks.train_quality",
    "train-domain-shift": "benchmarks.train_domain_shift",
    "train-overhead": "benchmarks.train_overhead",
    "train-two-nodes": "benchmarks.train_two_nodes",
    "export-loss": "benchmarks.export_loss",
    "train-dpo": "benchmarks.train_dpo",
    "train-gpu": "benchmarks.train_gpu",
    "gate-error-rates": "benchmarks.gate_error_rates",
    "gate-planted": "benchmarks.gate_planted",
    "gate-stability": "benchmarks.gate_stability",
    "evaluate-time": "benchmarks.evaluate_time",
    "scoring-overhead": "benchmarks.scoring_overhead",
    "grounding-agreement": "benchmarks.grounding_agreement",
    "judge-ppi": "benchmarks.judge_ppi",
    "drift-detectors": "benchmarks.drift_detectors",
    "quiet-weeks": "benchmarks.quiet_weeks",
    "diagnosis": "benchmarks.diagnosis",
    "remedy-storm": "benchmarks.remedy_storm",
    "serve-throughput": "benchmarks.serve_throughput",
    "serve-added-latency": "benchmarks.serve_added_latency",
    "front-door": "benchmarks.front_door",
    "deploy-under-load": "benchmarks.deploy_under_load",
    "rollback-time": "benchmarks.rollback_time",
    "prompt-ab": "benchmarks.prompt_ab",
    "semantic-cache": "benchmarks.semantic_cache",
    "event-latency": "benchmarks.event_latency",
    "monitor-cost": "benchmarks.monitor_cost",
    "events-exactly-once": "benchmarks.events_exactly_once",
    "heal-quality": "benchmarks.heal_quality",
    "bad-requests": "benchmarks.bad_requests",
    "overload": "benchmarks.overload",
}


def main() -> None:
    if len(sys.argv) == 1:
        for name, module in FIGURES.items():
            figure = importlib.import_module(module)
            print(f"{name:22} {figure.AIM:60} {figure.__doc__.splitlines()[0]}")
        return
    name = sys.argv[1]
    if name not in FIGURES:
        sys.exit(f"there is no figure {name!r}; there are {', '.join(FIGURES)}")
    figure, start = importlib.import_module(FIGURES[name]), time.monotonic()
    measured = figure.measure()
    line = {"figure": name, "aim": figure.AIM, "met": figure.met(measured["value"])} | measured
    print(json.dumps(line | {"seconds": round(time.monotonic() - start, 1)}))


if __name__ == "__main__":
    main()
