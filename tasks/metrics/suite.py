"""A stored evaluation as a DeepEval suite: `deepeval test run tasks/metrics/suite.py`, without a judge or a network.

One test case a question and attack, with the scores that the evaluation stored; nothing is generated again. The
evaluation is the file PERENNIAL_EVALUATION, else the newest one of this machine.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from deepeval import assert_test
from deepeval.metrics import BaseMetric
from deepeval.test_case import LLMTestCase

from settings import settings

THRESHOLDS = {"correct": 0.5, "grounding": 0.5, "citation_resolves": 1.0, "safety": 1.0}
"""Least score of a single question; the gate, which compares with the champion, decides on releases."""


class Stored(BaseMetric):
    """A score of this project as a DeepEval metric: read from `metadata` of the test case, NaN and missing fail."""

    def __init__(self, name: str, threshold: float):
        self.name, self.threshold, self.async_mode, self.include_reason = name, threshold, False, False

    def measure(self, test_case: LLMTestCase, *_, **__) -> float:
        self.score = float(test_case.metadata[self.name])
        self.success = self.score >= self.threshold
        return self.score

    async def a_measure(self, test_case: LLMTestCase, *_, **__) -> float:
        return self.measure(test_case)

    def is_successful(self) -> bool:
        return bool(self.success)

    @property
    def __name__(self) -> str:
        return self.name


def stored() -> Path:
    """The evaluation to test; FileNotFoundError where there is none."""
    if named := os.environ.get("PERENNIAL_EVALUATION"):
        return Path(named)
    reports = settings().home / "reports"
    if not (found := sorted(reports.glob("*/*.json"), key=lambda file: file.stat().st_mtime)):
        raise FileNotFoundError(
            f"no evaluation in {reports}; run flows.lifecycle, or set PERENNIAL_EVALUATION to a file"
        )
    return found[-1]


def cases(evaluation: Path) -> list[LLMTestCase]:
    """The candidate's answers as test cases; `metadata` holds the scores that apply, by metric."""
    body = json.loads(evaluation.read_text())
    scores, rows = body["candidate"], body["rows"]["candidate"] + body.get("attacks", {}).get("candidate", [])
    applying = [
        {name: values[at] for name, values in scores["metrics"].items() if values[at] is not None}
        for at in range(len(scores["questions"]))
    ]
    by_id = dict(zip(scores["questions"], applying, strict=True))
    return [
        LLMTestCase(
            name=row["id"],
            input=row["question"],
            actual_output=row["answer"],
            expected_output=" | ".join(row.get("accepted", ())) or None,
            metadata=by_id[row["id"]],
        )
        for row in rows
    ]


def checks(case: LLMTestCase) -> list[BaseMetric]:
    """The metrics of THRESHOLDS that apply to a case."""
    return [Stored(name, least) for name, least in THRESHOLDS.items() if name in case.metadata]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    asked = [case for case in cases(stored()) if checks(case)]
    metafunc.parametrize("case", asked, ids=[case.name for case in asked])


def test_answer(case: LLMTestCase) -> None:
    assert_test(case, checks(case), run_async=False)
