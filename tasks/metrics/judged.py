"""What a judge says of an answer: our pointwise verdict, DeepEval's and Ragas' own metrics. Advisory, 0 to 1, higher
is better, NaN where the judge gave nothing that the metric could use.

The judge is the libraries' model, through the judge's one door, so that its memory, budget and retries hold for them
too. Only answerable questions are judged: the question alone decides. To add one: a row
in `deepeval_metrics` or `ragas_metrics`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from data.records import Answer, GoldenQuestion, digest
from tasks.bill import MOST_TOKENS
from tasks.judge import DATA_ONLY, Judge, Judgeable, inert, reason, schema_format

if TYPE_CHECKING:
    from openai import AsyncOpenAI

VERDICT = "judged_correct"
RUBRIC = "deepeval_rubric"


def deepeval_metrics(model, rubric: str = "") -> dict:
    """New metrics of DeepEval by our name for them. Since DeepEval 4.3 all of them give 1 for a pass, also those that
    are named after what they look for (bias, toxicity, hallucination). `rubric`: criteria of the team, '' for none.
    """
    from deepeval import metrics
    from deepeval.test_case import SingleTurnParams

    kinds = {
        "deepeval_faithfulness": metrics.FaithfulnessMetric,
        "deepeval_answer_relevancy": metrics.AnswerRelevancyMetric,
        "deepeval_contextual_precision": metrics.ContextualPrecisionMetric,
        "deepeval_contextual_recall": metrics.ContextualRecallMetric,
        "deepeval_hallucination": metrics.HallucinationMetric,
        "deepeval_bias": metrics.BiasMetric,
        "deepeval_toxicity": metrics.ToxicityMetric,
    }
    made = {name: kind(model=model, include_reason=False, eval_mode="llm") for name, kind in kinds.items()}
    if rubric:
        shown = [SingleTurnParams.INPUT, SingleTurnParams.ACTUAL_OUTPUT, SingleTurnParams.EXPECTED_OUTPUT]
        made[RUBRIC] = metrics.GEval(name="rubric", criteria=rubric, evaluation_params=shown, model=model)
    return made


@cache
def deepeval_model():
    """The class of a judge as DeepEval sees it: DeepEval's own LocalModel does not send the schema."""
    from deepeval.models import DeepEvalBaseLLM

    class Grader(DeepEvalBaseLLM):
        def __init__(self, judge: Judge, client: AsyncOpenAI):
            self.client = client
            super().__init__(judge.model)

        def load_model(self):
            return self.name

        def get_model_name(self) -> str:
            return self.name

        def generate(self, prompt: str, schema=None):
            raise NotImplementedError("the judge is asked asynchronously; use a_measure")

        async def a_generate(self, prompt: str, schema=None):
            reply = await self.client.chat.completions.create(
                model=self.name,
                messages=[{"role": "system", "content": DATA_ONLY}, {"role": "user", "content": prompt}],
                temperature=0,
                max_tokens=MOST_TOKENS,
                **({"response_format": schema_format(schema)} if schema else {}),
            )
            said = reply.choices[0].message.content or ""
            return schema.model_validate_json(said) if schema else said

    return Grader


def ragas_metrics(judge: Judge, client: AsyncOpenAI) -> dict[str, Callable[[dict], Awaitable[float]]]:
    """Metrics of Ragas by our name for them, each a function of a case; noise sensitivity is turned round."""
    import instructor
    from ragas.llms import llm_factory
    from ragas.metrics import collections

    llm = llm_factory(
        judge.model, client=client, temperature=0, max_tokens=MOST_TOKENS, max_retries=1, system_prompt=DATA_ONLY
    )
    # Ragas asks for any JSON at all and puts the schema into the prompt
    llm.client = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)

    def of(metric, *names: str, turn: bool = False) -> Callable[[dict], Awaitable[float]]:
        async def scored(case: dict) -> float:
            value = float((await metric.ascore(**{name: case[name] for name in names})).value)
            return 1 - value if turn else value

        return scored

    asked, said, wanted, shown = "user_input", "response", "reference", "retrieved_contexts"
    relevancy = collections.AnswerRelevancy(llm=llm, embeddings=ragas_embeddings())
    return {
        "ragas_faithfulness": of(collections.Faithfulness(llm=llm), asked, said, shown),
        "ragas_response_relevancy": of(relevancy, asked, said),
        "ragas_context_precision": of(collections.ContextPrecision(llm=llm), asked, wanted, shown),
        "ragas_context_recall": of(collections.ContextRecall(llm=llm), asked, shown, wanted),
        "ragas_factual_correctness": of(collections.FactualCorrectness(llm=llm), said, wanted),
        "ragas_noise_sensitivity": of(collections.NoiseSensitivity(llm=llm), asked, said, wanted, shown, turn=True),
    }


def ragas_embeddings():
    """The assistant's own embedder as Ragas sees it."""
    from ragas.embeddings.base import BaseRagasEmbedding

    from data.embedding import load
    from serving.engine.models import embedder_folder

    class Embeddings(BaseRagasEmbedding):
        def embed_text(self, text: str, **_) -> list[float]:
            return load(embedder_folder()).embed([text])[0].tolist()

        async def aembed_text(self, text: str, **_) -> list[float]:
            return self.embed_text(text)

    return Embeddings()


def case_of(question: GoldenQuestion, answer: Answer) -> dict:
    """An answered question in Ragas' words, every text inert."""
    return {
        "user_input": inert(question.question),
        "response": inert(answer.text),
        "reference": inert(question.answers[0]),
        "retrieved_contexts": [inert(hit.chunk.text) for hit in answer.hits],
    }


def deepeval_case(case: dict):
    """The same as a DeepEval test case."""
    from deepeval.test_case import LLMTestCase

    return LLMTestCase(
        input=case["user_input"],
        actual_output=case["response"],
        expected_output=case["reference"],
        retrieval_context=case["retrieved_contexts"],
        context=case["retrieved_contexts"],
    )


def score(
    golden: Sequence[GoldenQuestion],
    answers: Sequence[Answer | None],
    judge: Judge,
    verdicts: int,
    deeply: int,
    rubric: str = "",
) -> dict[str, list[float | None]]:
    """Judged scores in the order of `golden`, None for questions not asked about.

    The pointwise verdict is asked about `verdicts` answerable questions, the metrics of DeepEval and Ragas, with many
    requests each, about `deeply` of them. Which ones depends on the questions alone, so both arms have the same.
    """
    chosen = sorted(
        (at for at, question in enumerate(golden) if question.answers), key=lambda at: digest(golden[at].id)
    )
    asked = chosen[:verdicts]
    scored: dict[str, list[float | None]] = {VERDICT: [None] * len(golden)}
    answered = [at for at in asked if answers[at] is not None]
    given = [Judgeable(golden[at].question, golden[at].answers, answers[at].text) for at in answered]
    said = dict(zip(answered, judge.verdicts(given), strict=True))
    for at in asked:
        scored[VERDICT][at] = said.get(at, math.nan)
    pairs = [(golden[at], answers[at]) for at in chosen[:deeply]]
    for at, found in zip(chosen[:deeply], deep(pairs, judge, rubric), strict=True):
        for name, value in found.items():
            scored.setdefault(name, [None] * len(golden))[at] = value
    return scored


def deep(answered: Sequence[tuple[GoldenQuestion, Answer | None]], judge: Judge, rubric: str) -> list[dict[str, float]]:
    """Every metric of both libraries for each answered question; NaN for all of one without an answer."""

    async def ask(client: AsyncOpenAI) -> list[dict[str, float]]:
        grader = deepeval_model()(judge, client)
        ragas = ragas_metrics(judge, client)

        async def one(question: GoldenQuestion, answer: Answer | None) -> dict[str, float]:
            deepeval = deepeval_metrics(grader, rubric)  # a metric of DeepEval holds the case it measures
            if answer is None:
                return dict.fromkeys((*deepeval, *ragas), math.nan)
            case = case_of(question, answer)
            tested = deepeval_case(case)
            measures = {name: metric.a_measure(tested, _show_indicator=False) for name, metric in deepeval.items()}
            measures |= {name: metric(case) for name, metric in ragas.items()}
            values = await asyncio.gather(*(measured(judge, name, measure) for name, measure in measures.items()))
            return dict(zip(measures, values, strict=True))

        return list(await asyncio.gather(*(one(*pair) for pair in answered)))

    return judge.run(ask)


async def measured(judge: Judge, name: str, measure: Awaitable[float]) -> float:
    """A score within 0 to 1, or NaN when the judge failed or said what the metric cannot use."""
    from deepeval.errors import DeepEvalError
    from instructor.core.exceptions import InstructorError
    from openai import OpenAIError

    try:
        value = float(await measure)
    except (OpenAIError, InstructorError, DeepEvalError, ValueError, LookupError, ArithmeticError) as problem:
        judge.bill.problems[f"{name}: {reason(problem)}"] += 1
        return math.nan
    return value if math.isnan(value) else min(1.0, max(0.0, value))
