"""Golden questions made from documents: what the rules ask, and what only stays because the source answers it."""

import pytest

from data.records import Document, Section
from tasks.golden import Corpus
from tasks.synthesis import Asked, generate, reads


def corpus(language="en", **texts):
    """Documents by name; a text is {heading: text}."""
    made = [
        Document(f"{d}.md", d, tuple(Section(f"{d}.md", d, h, t) for h, t in parts.items()), language=language)
        for d, parts in texts.items()
    ]
    return Corpus(made, {}, len(made))


def asked(language="en", **texts):
    return {question.question: question.answers[0] for question in generate(corpus(language, **texts))}


OTHER = {"Fans": "The fan turns slowly. Nobody hears it at night.", "Doors": "A door has a lock and a handle."}


@pytest.mark.parametrize(
    "text, question, answer",
    [
        ("Plan | Storage\nSolo | 50 GB\nTeam | 2 TB", "Guide, Plans: what is the Storage of Team?", "2 TB"),
        ("Storage: 50 GB\nSupport: by email", "Guide, Plans: what is the Support?", "by email"),
        ("A seat is a place for one member.", "What is a seat?", "a place for one member"),
        ("Deleted files stay for 30 days. Nobody pays.", "Deleted files stay for how many days?", "30 days"),
        ("Quotes last six weeks and then end. Ask us.", "Quotes last how many weeks and then end?", "six weeks"),
    ],
)
def test_rows_pairs_definitions_and_amounts_become_questions(text, question, answer):
    assert asked(Guide={"Plans": text}, More=OTHER)[question] == answer


def test_a_question_is_bound_to_its_section_votes_and_is_marked():
    texts = corpus(Guide={"Trash": "Deleted files stay for 30 days."}, More=OTHER)
    (question,) = generate(texts)
    assert (question.document, question.section, question.state) == ("Guide.md", "Trash", "active")
    assert question.section_hash == texts.hash("Guide.md", "Trash") and question.origin == "generated"
    assert question.synthetic and question.votes


@pytest.mark.parametrize(
    "text",
    [
        "Deleted files stay for 30 days. Trials also end after 30 days.",  # the answer stands twice
        "They stay for 30 days.",  # leans on a sentence before it
        "See page 30 files for more.",  # a name, no amount
        "Windows 11 users sign in as others do, with at most 3 tries.",
        "Deleted files stay for 30 days. Do deleted files stay for many days? For how many?",  # reads better
    ],
)
def test_what_the_source_does_not_answer_by_itself_is_not_asked(text):
    assert asked(Guide={"Trash": text}, More=OTHER) == {}


def test_a_question_that_other_sections_fit_better_is_not_asked():
    crowd = {f"S{n}": "Deleted files stay for how many days, many days, many files?" for n in range(3)}
    guide = {"Trash": "Some long words before that nobody needs. Deleted files stay for 30 days."}
    assert asked(Guide=guide) and not asked(Guide=guide, More=crowd)


def test_a_reader_that_finds_two_sentences_alike_finds_none():
    section = Section("a.md", "A", "S", "Red files stay 3 days. Red files stay 4 days.")
    assert not reads(Asked("Red files stay how many days?", "3 days", "Red files stay 3 days.", section))


def test_other_languages_are_asked_in_the_words_of_the_documents_alone():
    text = {"Tarife": "Speicher: 50 GB\nEin Platz is a word that does not belong.\nDateien bleiben 30 days lang."}
    assert asked("de", Hilfe=text, More=OTHER) == {"Hilfe, Tarife: Speicher?": "50 GB"}


def test_nothing_is_asked_about_what_is_trained_on_was_just_edited_or_is_asked_already():
    texts = corpus(Guide={"Trash": "Deleted files stay for 30 days.", "Trial": "Trials end after 14 days."}, More=OTHER)
    both = [question.section for question in generate(texts)]
    assert sorted(both) == ["Trash", "Trial"]
    assert [q.section for q in generate(texts, apart={("Guide.md", "Trash")})] == ["Trial"]
    assert [q.section for q in generate(texts, asked=["deleted files stay how many days"])] == ["Trial"]
    assert [q.section for q in generate(texts, steady=lambda section: section.heading == "Trash")] == ["Trash"]


def test_sections_take_turns_and_give_at_most_two_the_same_ones_each_time():
    trees = "Height: tall\nBark colour: grey and brown\nFavourite soil: wet"
    boats = "Length: short\nEngine power: weak\nMooring place: upper harbour"
    texts = corpus(One={"A": trees, "B": boats}, Two={"C": "Trials end after 14 days."})
    first = generate(texts)
    assert generate(texts) == first and len(first) == 5
    assert {q.section for q in generate(texts, 3)} == {"A", "B", "C"}
