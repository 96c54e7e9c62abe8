"""Sources into a snapshot."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import settings
from data import formats, reviews, snapshots
from data.feedback import Place, Said
from data.records import Cleaning, Example, Preference, Sources
from data.snapshots import VERSION
from data.sources import listed
from tasks import prepare
from tasks.prepare import inputs_key
from tests.ledgers import new_ledger


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path / "home"))
    settings.settings.cache_clear()
    yield tmp_path / "home"
    settings.settings.cache_clear()


class Handbook:
    """A folder of documents with their questions, for editing."""

    def __init__(self, folder):
        self.folder, self.pairs, self.held = folder, [], []
        for number in range(80):
            self.write(
                f"d{number}.md", f"# Page {number}\n## Limit\nThe limit of item {number} is {number + 100} units.\n"
            )
            row = {"answers": [f"{number + 100} units"], "document": f"d{number}.md", "section": "Limit"}
            asked = f"What is the limit of item {number}?"
            (self.held if number < 20 else self.pairs).append({"question": asked} | row)

    def write(self, name, text):
        path = self.folder / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def sources(self, golden=True):
        for name, rows in (("pairs", self.pairs), ("golden", self.held)):
            (self.folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        held = str(self.folder / "golden.jsonl") if golden else None
        return Sources("handbook", str(self.folder / "docs"), str(self.folder / "pairs.jsonl"), held)

    def prepare(self, previous=None, golden=True, said=()):
        return prepare.prepare(self.sources(golden), previous, said)


@pytest.fixture
def handbook(tmp_path):
    return Handbook(tmp_path)


def edited(seq, number, owner="", answer="9 units", asked="How high is the limit of", **more):
    """A reviewed edit of an answer about page `number`, or an established user's."""
    verdict = {} if owner else {"verdict": "accepted", "reviewer": "eve"}
    place = (Place(f"d{number}.md", "Limit"),)
    text = more.pop("edit", f"{number + 100} units")
    return Said(seq, seq * 86_400.0, owner, f"{asked} item {number}?", answer, -1, text, place, **verdict | more)


def reasons(snapshot):
    return [row["reason"] for row in snapshots.left_out(snapshot)]


def test_a_snapshot_holds_what_was_read_and_says_how_much(handbook):
    made = handbook.prepare()
    assert (made.documents, made.sections, made.examples, made.golden, made.leaked) == (80, 80, 60, 20, 0)
    assert len(list(snapshots.sections(made))) == 80
    assert next(snapshots.documents(made)).sections[0].heading == "Limit"
    assert all(example.section == "Limit" for example in snapshots.examples(made))
    assert all(question.votes and question.section_hash for question in snapshots.golden(made))


def test_preparing_twice_is_a_read_of_the_same_files(handbook):
    made = handbook.prepare()
    before = {file: file.stat().st_mtime_ns for file in Path(made.uri).iterdir()}
    assert handbook.prepare() == made
    assert {file: file.stat().st_mtime_ns for file in Path(made.uri).iterdir()} == before


def test_unchanged_sources_after_a_release_give_the_same_snapshot(handbook):
    for golden in (True, False):
        made = handbook.prepare(golden=golden)
        assert handbook.prepare(previous=made, golden=golden) == made


def test_the_id_follows_content_and_not_the_place_or_the_time(handbook, tmp_path):
    made = handbook.prepare()
    handbook.write("d0.md", (tmp_path / "docs" / "d0.md").read_text() + "\n\n")
    assert handbook.prepare().id == made.id
    handbook.write("d0.md", "# Page 0\n## Limit\nThe limit of item 0 is 7 units.\n")
    assert handbook.prepare().id != made.id


def test_a_snapshot_cut_off_before_its_marker_is_made_again(handbook):
    made = handbook.prepare()
    (Path(made.uri) / "COMPLETE").unlink()
    with pytest.raises(FileNotFoundError, match="not complete"):
        snapshots.sections(made)
    assert handbook.prepare() == made
    assert len(list(snapshots.sections(made))) == 80


def test_a_damaged_table_is_made_again(handbook):
    made = handbook.prepare()
    (Path(made.uri) / "sections.parquet").write_bytes(b"")
    assert handbook.prepare() == made
    assert len(list(snapshots.sections(made))) == 80


def test_golden_questions_and_their_near_duplicates_are_never_training_examples(handbook):
    for row in handbook.held[:5]:
        handbook.pairs.append(row)
        handbook.pairs.append(
            row | {"question": row["question"].lower().rstrip("?"), "document": None, "section": None}
        )
    made = handbook.prepare()
    golden = {question.question.lower() for question in snapshots.golden(made)}
    assert not golden & {example.question.lower() + "?" for example in snapshots.examples(made)}
    assert (made.examples, made.leaked) == (60, 10)
    assert len(reasons(made)) == 10


def test_other_questions_about_a_golden_document_are_not_trained_on(handbook):
    handbook.pairs.append({"question": "Anything else about page three?", "answers": [], "document": "d3.md"})
    made = handbook.prepare()
    assert (made.examples, made.leaked) == (60, 0)
    assert reasons(made) == ["about a source that golden questions are about"]


def test_without_a_golden_file_documents_are_held_out_and_none_is_on_both_sides(handbook):
    handbook.pairs += handbook.held
    made = handbook.prepare(golden=False)
    held = {question.document for question in snapshots.golden(made)}
    assert len(held) == 16
    assert not held & {example.document for example in snapshots.examples(made)}
    assert made.golden + made.examples == 80


def test_without_any_examples_golden_questions_are_made_from_the_documents_and_marked(handbook):
    made = prepare.prepare(Sources("handbook", handbook.sources().documents))
    assert (made.documents, made.examples, made.golden) == (80, 0, 80)
    question = snapshots.golden(made)[0]
    assert question.synthetic and question.votes and question.section == "Limit"
    assert "is how many units?" in question.question and question.answers[0].endswith(" units")


def test_an_edited_fact_ages_its_golden_question_and_takes_its_training_example_out(handbook):
    first = handbook.prepare()
    handbook.write("d0.md", "# Page 0\n## Limit\nThe limit of item 0 is 7 units.\n")
    handbook.write("d30.md", "# Page 30\n## Limit\nThe limit of item 30 is 7 units.\n")
    second = handbook.prepare(first)
    assert (second.aged, second.golden, second.examples) == (1, 20, 59)
    (review,) = snapshots.reviews(second)
    assert ("100 units" in review["old"], "7 units" in review["new"]) == (True, True)
    assert reasons(second) == ["outdated: its answer is no longer in the section it was bound to"]
    third = handbook.prepare(second)
    assert third == second


def test_a_person_giving_new_answers_makes_an_aged_question_vote(handbook):
    first = handbook.prepare()
    handbook.write("d0.md", "# Page 0\n## Limit\nThe limit of item 0 is 7 units.\n")
    second = handbook.prepare(first)
    handbook.held[0]["answers"] = ["7 units"]
    third = handbook.prepare(second)
    assert (second.aged, third.aged, snapshots.reviews(third)) == (1, 0, [])


def test_a_deleted_document_ages_its_golden_question_and_quarantines_its_examples(handbook, tmp_path):
    first = handbook.prepare()
    for name in ("d0.md", "d30.md"):
        (tmp_path / "docs" / name).unlink()
    second = handbook.prepare(first)
    assert (second.documents, second.aged, second.golden, second.examples) == (78, 1, 20, 59)
    (row,) = snapshots.quarantine(second)
    assert "no document 'd30.md'" in row.reason
    assert "item 30" in row.place


def test_bad_files_and_bad_questions_are_quarantined_and_the_rest_goes_on(handbook):
    handbook.write("slides.pptx", "PK")
    handbook.write("empty.md", "")
    handbook.write("copy.md", "# Page 5 again\n## Limit\nThe limit of item 5 is 105 units.\n")
    handbook.pairs.append({"question": "What is the limit of item 33?", "answers": ["no"], "document": "d33.md"})
    handbook.held.append({"question": "What is nowhere?", "answers": ["x"], "document": "nowhere.md"})
    made = handbook.prepare()
    assert (made.documents, made.duplicates, made.examples, made.golden) == (80, 1, 60, 20)
    told = " ".join(row.reason for row in snapshots.quarantine(made))
    assert made.quarantined == 4
    for part in ("no reader for '.pptx'", "empty", "with other answers", "no document 'nowhere.md'"):
        assert part in told


def test_a_folder_without_a_readable_document_is_an_error_with_the_reasons(tmp_path):
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "a.pptx").write_text("PK")
    with pytest.raises(ValueError, match=r"no document could be read.*no reader for '\.pptx'"):
        prepare.prepare(Sources("a", str(tmp_path / "only")))


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "x" * 64])
def test_an_assistant_name_that_is_no_plain_name_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="use letters"):
        prepare.prepare(Sources(name, str(tmp_path)))


def test_the_inputs_key_covers_files_previous_and_code(handbook, monkeypatch):
    sources = handbook.sources()
    files = listed(sources.documents)
    first = inputs_key(sources, files, None)
    made = handbook.prepare()
    assert inputs_key(sources, files, made) != first
    assert inputs_key(replace(sources, cleaning=Cleaning(redact=False)), files, None) != first
    monkeypatch.setattr(prepare, "VERSION", VERSION + "x")
    assert inputs_key(sources, files, None) != first


def parsed(monkeypatch):
    """The names of the files that are read from now on."""
    names, parse = [], formats.parse
    monkeypatch.setattr(formats, "parse", lambda files: names.extend(f.name for f in files) or parse(files))
    return names


def test_only_files_that_changed_are_read_again_and_the_snapshot_is_as_if_all_were(handbook, monkeypatch, tmp_path):
    handbook.held.clear()
    handbook.write("broken.pdf", "no PDF")
    first = handbook.prepare()
    handbook.write("d7.md", "# Page 7\n## Limit\nThe limit of item 7 is 9 units.\n")
    (tmp_path / "docs" / "d8.md").unlink()
    handbook.write("new.md", "# New\n## Limit\nThe limit of item new is 1 unit.\n")
    names = parsed(monkeypatch)
    second = handbook.prepare(first)
    assert [name for name in names if name.endswith(".md")] == ["d7.md", "new.md"]
    assert (second.documents, second.quarantined) == (80, first.quarantined)
    alone = prepare.prepare(Sources("other", handbook.sources().documents))
    assert list(snapshots.documents(second)) == list(snapshots.documents(alone))


def test_a_copy_comes_back_when_the_document_kept_instead_is_deleted(handbook, tmp_path):
    handbook.write("a5.md", (tmp_path / "docs" / "d5.md").read_text())
    first = handbook.prepare()
    (row,) = snapshots.filtered(first)
    assert {row["document"], row["dropped"]} == {"a5.md", "d5.md"}
    assert row["reason"] == f"exact copy of {row['dropped']}"
    (tmp_path / "docs" / row["dropped"]).unlink()
    assert row["document"] in {document.id for document in snapshots.documents(handbook.prepare(first))}


def test_every_filter_counts_and_names_what_it_took_and_can_be_switched_off(handbook):
    for number in range(80):
        handbook.write(
            f"d{number}.md",
            f"# Page {number}\n## Limit\nThe limit of item {number} is {number + 100} units.\nWas this page helpful?\n",
        )
    handbook.write("mail.md", "# People\nAsk anna.berg@example-mail.com or support@example-mail.com about it.\n")
    handbook.write("junk.md", "# Junk\n" + "x9" * 4000)
    made = handbook.prepare()
    text = "\n".join(section.text for section in snapshots.sections(made))
    assert (made.unfit, made.furniture, snapshots.redacted(made)) == (1, 1, {"email": 1})
    assert "helpful" not in text and "anna.berg" not in text and "[email] or support@" in text
    (row,) = snapshots.filtered(made)
    assert row["document"] == "junk.md" and row["reason"].startswith("unfit: ")
    off = replace(handbook.sources(), cleaning=Cleaning(False, False, False, False))
    text = "\n".join(section.text for section in snapshots.sections(prepare.prepare(off)))
    assert "anna.berg" in text and "x9x9" in text and "helpful" in text


def test_a_second_document_with_the_same_id_is_quarantined_in_every_snapshot(handbook):
    row = {"id": "one", "text": "The first text of this id."}
    handbook.write("squad.json", json.dumps({"data": [squad("Oslo", "Oslo has a fjord.")]}))
    handbook.write("squad2.json", json.dumps({"data": [squad("Oslo", "Oslo has an opera.")]}))
    first = handbook.prepare()
    handbook.write("rows.jsonl", json.dumps(row))
    second = handbook.prepare(first)
    for made in (first, second):
        (refused,) = snapshots.quarantine(made)
        assert (refused.file, refused.place) == ("squad2.json", "Oslo")


def squad(title, text):
    return {"title": title, "paragraphs": [{"context": text, "qas": []}]}


def test_labels_reach_the_documents_and_a_broken_label_keeps_one_out(handbook):
    handbook.write("hr.md", "---\naccess: hr\ntenant: acme\n---\n# Pay\nThe pay day is the 25th of each month.\n")
    handbook.write("bad.md", "---\naccess: [hr, all]\n---\n# Pay\nThe bonus is paid in March of each year.\n")
    made = handbook.prepare()
    (pay,) = [document for document in snapshots.documents(made) if document.title == "Pay"]
    assert (pay.access, pay.tenant, pay.language) == ("hr", "acme", "en")
    assert [row.file for row in snapshots.quarantine(made)] == ["bad.md"]


# --- feedback ---------------------------------------------------------------------------------


def test_feedback_joins_the_examples_and_makes_preferences_with_their_lineage(handbook):
    plain, made = handbook.prepare(), handbook.prepare(said=[edited(1, 40), edited(2, 41, withdrawn="by ops: spam")])
    asked = "How high is the limit of item 40?"
    assert (made.examples, made.preferences, made.feedback) == (61, 1, 1) and made.id != plain.id
    example = Example(asked, ("140 units",), "d40.md", "Limit")
    assert example in snapshots.examples(made)
    assert [row["origin"] for row in snapshots.rows(made, "examples")].count("feedback") == 1
    (pair,) = snapshots.preferences(made)
    assert pair == Preference(asked, "140 units", "9 units", "d40.md", "Limit", (1,))
    assert snapshots.feedback(made) == [
        {"kind": "example", "item": example.id, "seq": 1},
        {"kind": "preference", "item": pair.id, "seq": 1},
    ]
    (out,) = snapshots.feedback_left_out(made)
    assert (out["seq"], out["guard"], out["reason"]) == (2, "withdrawn", "withdrawn by ops: spam")
    assert made.flip_rate == 0.1 and plain.flip_rate == 0.0


def test_feedback_taken_out_gives_the_snapshot_that_was_without_it_and_says_so(handbook, capsys):
    rows = [edited(1, 40), edited(2, 41)]
    both, one = handbook.prepare(said=rows), handbook.prepare(said=rows[:1])
    without = handbook.prepare(both, said=[rows[0], replace(rows[1], withdrawn="by ops: poisoned")])
    assert without.id == one.id != both.id
    assert "1 withdrawn" in capsys.readouterr().out


def test_votes_that_nothing_is_trained_on_make_no_other_snapshot(handbook):
    made = handbook.prepare(said=[edited(1, 40)])
    assert handbook.prepare(said=[edited(1, 40), edited(2, 50, "ann"), edited(3, 51, None, verdict="")]) == made


@pytest.mark.parametrize("golden", [True, False])
def test_the_golden_set_is_the_same_whatever_is_said(handbook, golden):
    handbook.pairs += handbook.held
    rows = [edited(seq, seq, asked="What is the limit of") for seq in range(1, 80)]
    rows += [edited(seq + 100, seq, asked="Please, what may be the limit of") for seq in range(1, 80)]
    plain, made = handbook.prepare(golden=golden), handbook.prepare(golden=golden, said=rows)
    assert made.feedback and snapshots.golden(made) == snapshots.golden(plain)
    held = {question.document for question in snapshots.golden(made)}
    trained = [e.document for e in snapshots.examples(made)] + [p.document for p in snapshots.preferences(made)]
    assert not held & set(trained)


def test_a_golden_question_is_never_learned_from_feedback_not_even_reviewed(handbook):
    rows = [edited(1, 3, asked="what is the limit, of"), edited(2, 3, asked="Tell me about")]
    made = handbook.prepare(said=rows)
    assert (made.feedback, made.preferences) == (0, 0)
    assert [row["guard"] for row in snapshots.feedback_left_out(made)] == ["golden", "held out"]


def test_an_accepted_edit_is_left_out_when_its_fact_is_edited_and_stays_out(handbook):
    first = handbook.prepare(said=[edited(1, 40)])
    handbook.write("d40.md", "# Page 40\n## Limit\nThe limit of item 40 is 7 units.\n")
    second = handbook.prepare(first, said=[edited(1, 40)])
    assert (second.feedback, second.preferences, second.examples) == (0, 0, 59)
    third = handbook.prepare(second, said=[edited(1, 40)])
    assert third == second
    fresh = handbook.prepare(third, said=[edited(1, 40), edited(2, 40, edit="7 units")])
    assert [pair.chosen for pair in snapshots.preferences(fresh)] == ["7 units"]


def ruled_on(handbook, verdict, answer=None):
    """The snapshot after an edit aged a golden question and a reviewer settled it, and the queue's ledger."""
    ledger = new_ledger(handbook.folder, "handbook")
    first = handbook.prepare()
    handbook.write("d0.md", "# Page 0\n## Limit\nThe limit of item 0 is 7 units.\n")
    second = handbook.prepare(first)
    reviews.ask_aged(ledger, "handbook", snapshots.reviews(second))
    (waiting,) = reviews.items(ledger)
    reviews.settle(ledger, waiting.number, verdict, "eve", answer)
    rulings = reviews.rulings(ledger, "handbook")
    return prepare.prepare(handbook.sources(), second, rulings=rulings), rulings


def test_an_aged_question_that_a_reviewer_corrects_votes_from_the_next_snapshot_on_its_new_section(handbook):
    third, rulings = ruled_on(handbook, "corrected", "7 units")
    question = next(q for q in snapshots.golden(third) if q.document == "d0.md")
    assert (third.aged, question.answers, question.votes) == (0, ("7 units",), True)
    (section,) = next(d for d in snapshots.documents(third) if d.id == "d0.md").sections
    assert question.section_hash == section.hash
    assert prepare.prepare(handbook.sources(), third, rulings=rulings) == third
    handbook.write("d0.md", "# Page 0\n## Limit\nThe limit of item 0 is 8 units.\n")
    fourth = prepare.prepare(handbook.sources(), third, rulings=rulings)
    assert (fourth.aged, snapshots.reviews(fourth)[0]["answers"]) == (1, ["7 units"])


def test_a_discarded_golden_question_is_gone_and_not_trained_on_either(handbook):
    handbook.pairs.append(handbook.held[0])
    third, _ = ruled_on(handbook, "discarded")
    assert (third.golden, third.aged) == (19, 0)
    assert "discarded as a golden question by eve" in reasons(third)
    assert not any(example.document == "d0.md" for example in snapshots.examples(third))


def test_an_edit_that_a_reviewer_chose_for_the_golden_set_is_asked_and_never_trained_on(handbook):
    handbook.write("d80.md", "# Page 80\n## Limit\nThe limit of item 80 is 180 units.\n")
    first = handbook.prepare()
    made = handbook.prepare(first, said=(edited(1, 80, golden=True),))
    question = next(q for q in snapshots.golden(made) if q.document == "d80.md")
    assert (question.answers, question.origin, question.votes) == (("180 units",), "feedback", True)
    assert (made.golden, made.examples, made.feedback) == (21, 60, 0)
    assert handbook.prepare(made, said=(edited(1, 80, golden=True),)) == made


def test_what_was_trained_on_or_no_reviewer_accepted_never_becomes_golden(handbook):
    handbook.write("d80.md", "# Page 80\n## Limit\nThe limit of item 80 is 180 units.\n")
    first = handbook.prepare()
    told = (edited(1, 30, asked="What is the limit of", golden=True), edited(2, 80, golden=True, verdict="discarded"))
    made = handbook.prepare(first, said=told)
    assert made.golden == 20 and {q.origin for q in snapshots.golden(made)} == {"given"}
    assert ["was trained on" in row.reason for row in snapshots.quarantine(made)] == [True]


def test_made_questions_leave_training_alone_and_those_on_edited_sections_are_replaced_later(handbook):
    sources = replace(handbook.sources(golden=False), examples=None)
    first = prepare.prepare(sources)
    handbook.write("d0.md", "# Page 0\n## Limit\nThe limit of item 0 is 7 units.\n")
    second = prepare.prepare(sources, first, live=first)
    assert (first.golden, second.golden, second.aged) == (80, 79, 0), "neither arm is asked what only one knows"
    third = prepare.prepare(sources, second, live=first)
    assert third.golden == 79, "that it was prepared once makes no champion know it"
    fourth = prepare.prepare(sources, third, live=third)
    assert fourth.golden == 80 and any(q.answers == ("7 units",) for q in snapshots.golden(fourth))
    few = handbook.prepare(golden=False)
    made = {q.document for q in snapshots.golden(few) if q.synthetic}
    assert made == {f"d{number}.md" for number in range(20)}, "the others are trained on or asked already"
    assert few.examples + sum(not q.synthetic for q in snapshots.golden(few)) == 60
