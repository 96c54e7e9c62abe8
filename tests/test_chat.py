"""Chat formats: written the same as the model's own template writes them, and nothing from outside spells a role."""

import pytest

from data.records import Prompt
from serving import rag
from serving.chat import FORMATS, chat_format
from serving.engine.template import derive, render
from tests import tiny

LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}"
    "{{ m.content | trim }}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set said = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set said = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (said if loop.first else '') }}"
    "{{ m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\\n' }}"
    "{{ m.content }}{{ '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
KNOWN = {
    "chatml": (tiny.CHATML, tiny.ROLES),
    "llama3": (LLAMA3, ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]),
    "llama2": (LLAMA2, ["<s>", "</s>"]),
    "gemma": (GEMMA, ["<bos>", "<start_of_turn>", "<end_of_turn>"]),
}
ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "llama2": "</s>", "gemma": "<end_of_turn>"}
TURNS = [("user", "One?"), ("assistant", "Two."), ("user", "Three?"), ("assistant", "Four."), ("user", "Five?")]


@pytest.mark.parametrize("name", KNOWN)
def test_a_derived_format_writes_what_the_template_writes(name):
    template, added = KNOWN[name]
    made = chat_format(derive(template, TOKENS, added))
    asked = [("system", "Be short."), *TURNS]
    if name == "gemma":
        asked = [("user", "Be short.\n\nOne?"), *TURNS[1:]]
    assert [made.write("Be short.", TURNS)] == render(template, [asked], TOKENS)
    assert made.end == ENDS[name]


def test_a_known_format_keeps_its_name_and_others_are_data():
    assert [derive(*(KNOWN[name][0], TOKENS, KNOWN[name][1])) for name in FORMATS] == list(FORMATS)
    made = derive(LLAMA2, TOKENS, ["<s>", "</s>"])
    assert made.startswith("{") and rag.build_prompt(Prompt(chat=made), "q", []).startswith("<s>[INST] <<SYS>>\n")


@pytest.mark.parametrize("name", KNOWN)
def test_no_text_from_outside_spells_a_role_in_any_format(name):
    template, added = KNOWN[name]
    made = chat_format(derive(template, TOKENS, added))
    forged = "".join(f"x{mark}{mark[0]}{mark}" for mark in (*added, *made.turns))
    written = made.escape(forged)
    assert not [mark for mark in (*added, *made.marks) if mark in written]


@pytest.mark.parametrize("text", ["<<s>s>", "[/[/INST]INST]", "</s></s>"])
def test_a_mark_inside_a_mark_stays_broken(text):
    made = chat_format(derive(LLAMA2, TOKENS, ["<s>", "</s>"]))
    assert not [mark for mark in made.marks if mark in made.escape(text)]


def test_a_format_whose_user_begins_skips_an_answer_without_its_question():
    made = chat_format(derive(LLAMA2, TOKENS, ["<s>", "</s>"]))
    assert made.write("S", TURNS[1:]) == made.write("S", TURNS[2:])
    assert "Two." in FORMATS["chatml"].write("S", TURNS[1:])


@pytest.mark.parametrize(
    "template, why",
    [
        ("{% for m in messages %}{{ m.content }}{{ loop.index }}{% endfor %}", "equal turns differently"),
        ("{{ messages[-1].content }}", "leaves out or repeats"),
        ("{{ raise_exception('never') }}", "fails"),
    ],
)
def test_a_template_that_is_no_format_is_refused(template, why):
    with pytest.raises(ValueError, match=why):
        derive(template, TOKENS, [])


def test_the_default_prompt_is_the_one_it_was():
    assert Prompt().chat == "chatml"
    assert Prompt().sha256 == "6ea31182441e5b8174f3534eec75dd5ea9e7e97f11c463d1d81ae8f4943bd915"
