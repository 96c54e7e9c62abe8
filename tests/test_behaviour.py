"""Behaviour: the same question in other forms, and answers that change or stay."""

import pytest

from data.records import Answer, Chunk, Generation, GoldenQuestion, IndexVersion, Model, Release
from tasks.arm import Arm
from tasks.behaviour import FORMS, agreement, behaviour, mistyped, reworded

CHUNKS = {f"c{at}": Chunk(f"c{at}", f"d{at}", "T", "S", f"h{at}", "word " * (at + 1)) for at in range(6)}
GOLDEN = [
    GoldenQuestion(f"q{at}", f"When does number {at} start?", ("yes",) if at else (), f"d{at}", "S", f"h{at}")
    for at in range(6)
]


class Index:
    def places(self):
        return {chunk.id: (chunk.document, "S", chunk.section_hash) for chunk in CHUNKS.values()}

    def chunk(self, id):
        return CHUNKS[id]


class Engine:
    """What it says follows from the prompt by `say`."""

    def __init__(self, say, version):
        self.say, self.version, self.prompts = say, version, []

    def generate(self, prompts, decoding):
        self.prompts += prompts
        return [Generation(self.say(prompt), 9, 9, "stop", 0.1, 0.1) for prompt in prompts]


def behaves(say, version, most=3):
    index = IndexVersion("b", "uri", "t", 1, "sum", "emb", "chunk", 1, 1, "snap")
    release = Release("b", Model("c" * 64, "m.gguf", "openvino", "b"), index)
    arm = Arm(release, Engine(say, version), Index(), None)
    return behaviour(arm, GOLDEN, most), arm.engine


def test_the_answerable_questions_with_the_shortest_passages_are_asked_in_each_form():
    scored, engine = behaves(lambda prompt: "at noon", "same")
    for name in FORMS:
        assert scored[name] == [None, 1.0, 1.0, 1.0, None, None]
    assert len(engine.prompts) == 3 * 4


def first_passage(prompt):
    return prompt.split("[1]")[1].split("[2]")[0]


def asked(prompt):
    return prompt.split("Question:")[1]


SAYS = {
    "order_invariance": lambda prompt: f"{first_passage(prompt).count('word')} words",
    "paraphrase_consistency": lambda prompt: "other" if "at what time" in asked(prompt) else "noon",
    "typo_robustness": lambda prompt: "noon" if "number" in asked(prompt) else "other",
}


@pytest.mark.parametrize("name", FORMS)
def test_an_answer_that_moves_with_one_form_loses_that_score_alone(name):
    scored, _ = behaves(SAYS[name], name)
    assert {value < 1 for value in scored[name] if value is not None} == {True}
    assert {value for other in FORMS if other != name for value in scored[other]} == {None, 1.0}


def test_two_abstentions_agree_and_one_does_not():
    def said(text, abstained=False):
        return Answer("q", text, abstained, (), (), Generation(text, 1, 1, "stop", 0.1, 0.1))

    assert agreement(said("-", True), said("+", True)) == 1.0
    assert agreement(said("-", True), said("noon")) == agreement(said("noon"), said("night")) == 0.0
    assert agreement(said("at noon"), said("noon")) == pytest.approx(2 / 3)


def test_names_and_figures_survive_every_form():
    question = "How many days does Quillbox keep the 30 versions of CRM-7 shared with others?"
    for form in (reworded, mistyped):
        assert form(question) != question
        assert all(word in form(question) for word in ("Quillbox", "30", "CRM-7"))
