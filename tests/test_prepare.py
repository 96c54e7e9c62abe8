"""Sources into a snapshot."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import settings
from data import snapshots
from data.records import Cleaning, Sources
from data.snapshots import VERSION
from data.sources import listed
from tasks import prepare
from tasks.prepare import inputs_key


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

    def prepare(self, previous=None, golden=True):
        return prepare.prepare(self.sources(golden), previous)


@pytest.fixture
def handbook(tmp_path):
    return Handbook(tmp_path)


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


def test_no_examples_at_all_are_allowed(handbook):
    made = prepare.prepare(Sources("handbook", handbook.sources().documents))
    assert (made.documents, made.examples, made.golden) == (80, 0, 0)


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
