"""Retrieval by itself: figures known by hand, comparisons, questions made from the documents, the command."""

import json
import zlib
from dataclasses import replace
from math import log2
from types import SimpleNamespace

import numpy as np
import pytest

import settings
from data import embedding, store
from data.chunking import chunk_ids
from data.golden_sets import open_part
from data.records import (
    Chunk,
    Document,
    Filter,
    GoldenQuestion,
    IndexVersion,
    Model,
    Release,
    Retrieval,
    Section,
    as_json,
    digest,
)
from serving.engine import models
from tasks.retrieval import PROBE, RetrievalReport, evaluate_retrieval, markdown, probes


class Embedder:
    """A text that holds 'near 0.9' lies at that cosine to every question; all others are hashed words."""

    def embed(self, texts):
        rows = np.full((len(texts), 64), 1e-3, np.float32)
        for row, text in zip(rows, texts, strict=True):
            if "near " in text:
                cosine = float(text.split("near ")[1].split()[0])
                row[:] = 0
                row[0], row[1] = cosine, (1 - cosine**2) ** 0.5
            elif text.startswith("?"):
                row[:] = np.eye(64)[0]
            else:
                for word in text.lower().split():
                    row[zlib.crc32(word.strip(".,").encode()) % 64] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    settings.settings.cache_clear()
    monkeypatch.setattr(embedding, "load", lambda folder: Embedder())
    monkeypatch.setattr(models, "embedder_folder", lambda: tmp_path)
    yield tmp_path
    settings.settings.cache_clear()


def split(document, section):
    """A chunk for each part between bars."""
    place, texts = (document.id, document.title, section.heading), section.text.split("|")
    names = chunk_ids((*place, text, document.access, document.tenant) for text in texts)
    return [
        Chunk(name, *place, section.hash, text, part, access=document.access, tenant=document.tenant)
        for part, (name, text) in enumerate(zip(names, texts, strict=True))
    ]


def write(texts, assistant="a", **about) -> IndexVersion:
    """An index of one document of one section for each text; `about` of each as a document."""
    made = []
    for name, text in texts.items():
        section = Section(name, f"Title {name}", f"Heading {name}", text)
        made.append((Document(name, section.title, (section,), **about.get(name, {})), section))
    return store.write(assistant, made, split, Embedder().embed, "e", "c", "snap")


def asked(texts, name, text="?", **about) -> GoldenQuestion:
    section = Section(name, f"Title {name}", f"Heading {name}", texts.get(name, ""))
    about = {"id": digest(name, text), "answers": ("yes",), "section_hash": section.hash} | about
    return GoldenQuestion(question=text, document=name, section=section.heading, **about)


BY_RANK = {f"d{rank:02}": f"near {1 - rank / 40}" for rank in range(1, 21)}
VECTORS = Retrieval(vector_weight=1.0)


def test_the_figures_are_those_computed_by_hand():
    version = write(BY_RANK)
    golden = [asked(BY_RANK, name) for name in ("d01", "d02", "d04", "d10", "d15")]
    report = evaluate_retrieval(version, golden, VECTORS)
    found = {measure.metric: measure.mean for measure in report.measures}
    assert [found[f"hit@{k}"] for k in (1, 3, 5, 10)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert [found[f"chunk recall@{k}"] for k in (1, 3, 5, 10)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert found["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 4 + 1 / 10 + 0) / 5)
    assert found["ndcg@10"] == pytest.approx((1 + 1 / log2(3) + 1 / log2(5) + 1 / log2(11) + 0) / 5)
    assert found["hit_rate"] == pytest.approx(0.4)
    assert (report.questions, report.left_out, report.clusters, report.unit) == (5, 0, 5, "section")


def test_every_chunk_of_the_bound_section_is_gold_and_every_one_of_a_bound_document():
    texts = {"a": "near 0.9|near 0.7|near 0.5", "b": "near 0.8"}
    (report,) = [evaluate_retrieval(write(texts), [asked(texts, "a")], VECTORS)]
    assert report["chunk recall@1"].mean == pytest.approx(1 / 3)
    assert report["chunk recall@3"].mean == pytest.approx(2 / 3)
    assert report["ndcg@10"].mean == pytest.approx((1 + 1 / log2(4) + 1 / log2(5)) / (1 + 1 / log2(3) + 1 / log2(4)))
    whole = asked(texts, "a", section_hash="of the document")
    assert evaluate_retrieval(write(texts), [whole], VECTORS)["chunk recall@10"].mean == 1.0


def test_the_right_document_counts_where_another_of_its_sections_was_found():
    sections = [Section("a", "A", heading, text) for heading, text in (("One", "near 0.9"), ("Two", "near 0.1"))]
    others = [Section(f"b{n}", "B", "One", f"near 0.{8 - n // 4}{n % 4}") for n in range(12)]
    made = [(Document("a", "A", tuple(sections)), section) for section in sections]
    made += [(Document(section.document, "B", (section,)), section) for section in others]
    version = store.write("a", made, split, Embedder().embed, "e", "c", "snap")
    question = GoldenQuestion("q", "?", ("yes",), "a", "Two", sections[1].hash)
    report = evaluate_retrieval(version, [question], VECTORS)
    assert (report["hit@10"].mean, report["document recall@1"].mean) == (0.0, 1.0)


def test_an_interval_holds_the_mean_and_is_never_a_point_even_when_all_are_right():
    version = write(BY_RANK)
    report = evaluate_retrieval(
        version, [asked(BY_RANK, name, f"? {n}") for n in range(3) for name in BY_RANK], VECTORS
    )
    assert (report.unit, report.clusters) == ("document", 20)
    for measure in report.measures:
        assert 0 <= measure.lower < measure.mean < measure.upper <= 1
    sure = evaluate_retrieval(version, [asked(BY_RANK, "d01", f"? {n}") for n in range(9)], VECTORS)["hit@1"]
    assert (sure.mean, sure.upper) == (1.0, 1.0) and sure.lower < 0.9


def test_questions_of_one_document_count_as_one_cluster():
    version = write(BY_RANK)
    many = [asked(BY_RANK, name, f"? {n}") for n in range(6) for name in BY_RANK]
    few = many[: len(many) // 2]
    lumped, alone = (evaluate_retrieval(version, some, VECTORS)["mrr"] for some in (many, few))
    assert lumped.upper - lumped.lower == pytest.approx(alone.upper - alone.lower), "more of the same, no surer"


def test_other_settings_are_compared_question_by_question():
    texts = {f"d{n}": f"word{n} near {0.5 - n / 100}" for n in range(40)}
    version = write(texts)
    golden = [asked(texts, name, f"? word{name[1:]}") for name in texts]
    words, vectors = Retrieval(vector_weight=0.0), Retrieval(vector_weight=1.0)
    report = evaluate_retrieval(version, golden, words, against=vectors)
    row = report["hit@1"]
    assert (row.mean, row.other) == (1.0, 1 / 40) and row.difference.mean == pytest.approx(39 / 40)
    assert row.difference.verdict == "promote" and row.difference.lower > 0
    assert evaluate_retrieval(version, golden, vectors, against=words)["hit@1"].difference.verdict == "reject"
    same = evaluate_retrieval(version, golden, words, against=words)["mrr"].difference
    assert (same.mean, same.lower <= 0 <= same.upper) == (0.0, True)


def test_more_chunks_shown_is_seen_in_the_hit_rate_alone():
    version, golden = write(BY_RANK), [asked(BY_RANK, name) for name in BY_RANK]
    report = evaluate_retrieval(version, golden, replace(VECTORS, top_k=6), against=VECTORS)
    assert (report["hit_rate"].mean, report["hit_rate"].other) == (6 / 20, 3 / 20)
    assert report["hit@5"].difference.mean == report["mrr"].difference.mean == 0


def test_another_index_is_compared_on_the_questions_that_both_can_answer():
    old = write(BY_RANK)
    lost = {name: text for name, text in BY_RANK.items() if name != "d02"}
    new = write(lost | {"d01": "near 0.1"})
    golden = [asked(BY_RANK, name) for name in ("d01", "d02", "d03")]
    report = evaluate_retrieval(new, golden, VECTORS, against=old)
    assert (report.questions, report.left_out) == (2, 1)
    assert report["hit@1"].mean == 0.5 and report["hit@1"].other == 0.5
    release = Release("a", Model("a" * 64, "m.gguf", "openvino", "b"), old, retrieval=Retrieval(vector_weight=0.5))
    compared = evaluate_retrieval(new, golden, VECTORS, against=release)
    assert (compared.other_index, compared.other_retrieval) == (old, release.retrieval)


def test_questions_that_measure_nothing_are_left_out_and_counted():
    texts = BY_RANK | {"secret": "near 0.99"}
    version = write(texts, secret={"tenant": "rival"})
    golden = [
        asked(texts, "d01"),
        asked(texts, "d02", answers=()),
        asked(texts, "d03", state="aged"),
        asked(texts, "gone"),
        asked(texts, "secret"),
        asked(texts, "d04"),
    ]
    buried = frozenset(chunk.id for chunk in store.open_index(version).chunks() if chunk.document == "d04")
    report = evaluate_retrieval(version, golden, VECTORS, tombstones=buried)
    assert (report.questions, report.left_out, report["hit@1"].mean) == (1, 5, 1.0)
    seen = evaluate_retrieval(version, golden, VECTORS, Filter("rival"), tombstones=buried)
    assert (seen.questions, seen["hit@1"].mean) == (2, 0.5)
    with pytest.raises(ValueError, match="none of 1 questions has its source in version"):
        evaluate_retrieval(version, [asked(texts, "gone")])


def test_widened_passages_do_not_change_what_is_found():
    texts = {"a": "near 0.9|near 0.7|near 0.5", "b": "near 0.8"}
    golden, version = [asked(texts, "a"), asked(texts, "b")], write(texts)
    wide = evaluate_retrieval(version, golden, replace(VECTORS, section_characters=5000))
    assert wide.measures == evaluate_retrieval(version, golden, VECTORS).measures


# --- probes -----------------------------------------------------------------------------------

HANDBOOK = {
    "Lyon.md": "The office opens iron shutters for visitors. It costs nothing.|The spare keys hang by a boiler.",
    "Bonn.md": "The office lends bicycles to badged guests. It costs nothing.|The cellar floods after heavy rain.",
    "Oslo.md": "The office keeps skis waxed through winter. It costs nothing.|The ferry timetable is pinned to a door.",
    "Turin.md": "The office roasts chestnuts for its neighbours. It costs nothing.|The tram stops under an old arcade.",
    "Ghent.md": "The office repairs looms of local weavers. It costs nothing.|The canal bridge lifts for tall barges.",
    "Riga.md": "The office grows amber orchids under glass. It costs nothing.|The organ concert ends before midnight.",
}


def test_probes_are_the_same_each_time_and_each_knows_its_section():
    version = write(HANDBOOK)
    made = probes(version, 8)
    assert made == probes(version, 8) != probes(version, 8, seed=1)
    assert len(made) == len({question.question for question in made}) == 8
    places = {(place[0], place[2]) for place in store.open_index(version).places().values()}
    assert all((question.document, question.section_hash) in places and question.votes for question in made)
    report = evaluate_retrieval(version, made)
    assert all(question.id.startswith(PROBE) for question in made)
    assert (report.probes, report.left_out) == (8, 0) and report["hit@3"].mean == 1.0


def test_probes_take_headings_and_telling_words_in_turn_and_copy_no_sentence():
    made = probes(write(HANDBOOK), 6)
    texts = [text.lower() for text in HANDBOOK.values()]
    assert [question.question.startswith("Heading ") for question in made] == [True, False] * 3
    for question in made[1::2]:
        found = set(question.question.split())
        assert len(found) >= 3 and not found & {"the", "office", "for", "nothing"}, "said of all"
        assert not any(question.question in text for text in texts)


def test_probes_ask_every_document_before_any_a_second_time():
    made = probes(write(HANDBOOK), 6)
    assert {question.document for question in made} == set(HANDBOOK)


def test_no_more_probes_are_made_than_the_documents_give():
    assert 0 < len(probes(write({"a.md": "one two three four five"}), 50)) <= 2


def test_half_a_word_at_the_end_of_a_long_sentence_is_not_asked_for():
    texts = {name: " ".join(f"{name}{n}".ljust(70, "x") for n in range(9)) for name in ("oak", "elm", "fir")}
    asked_for = {word for question in probes(write(texts), 10)[1::2] for word in question.question.split()}
    assert asked_for and asked_for <= {word for text in texts.values() for word in text.split()}


def test_a_heading_that_two_sections_share_is_no_question():
    sections = [Section("a.md", "Title", "Notes", f"alpha{n} beta{n} gamma{n}") for n in range(4)]
    made = [(Document("a.md", "Title", tuple(sections)), section) for section in sections]
    version = store.write("a", made, split, Embedder().embed, "e", "c", "snap")
    assert all("Notes" not in question.question for question in probes(version, 10))


def test_nobody_is_asked_about_what_may_not_be_seen():
    version = write(HANDBOOK, **{"Lyon.md": {"access": "board"}})
    assert "Lyon.md" not in {question.document for question in probes(version, 50)}
    assert "Lyon.md" in {question.document for question in probes(version, 50, allowed=Filter(labels=("board",)))}


# --- to be read -------------------------------------------------------------------------------


def test_the_table_has_a_row_a_metric_and_says_when_the_questions_are_probes():
    version = write(HANDBOOK)
    report = evaluate_retrieval(version, probes(version, 8))
    table = markdown(report)
    assert "8 of them probes" in table and "| hit_rate, 3 shown |" in table and table.count("\n| ") == 16
    assert "probes" not in markdown(evaluate_retrieval(version, [asked(HANDBOOK, "Lyon.md")]))
    compared = markdown(evaluate_retrieval(version, probes(version, 8), against=VECTORS))
    assert "verdict" in compared and "The other: index version" in compared and "vector_weight=1.0" in compared


def test_a_report_turns_into_json_and_back():
    version = write(HANDBOOK)
    report = evaluate_retrieval(version, probes(version, 8), against=VECTORS)
    assert RetrievalReport.of(json.loads(json.dumps(as_json(report)))) == report


def test_a_report_becomes_an_artifact(monkeypatch):
    from tasks import report

    made, version = [], write(HANDBOOK)
    monkeypatch.setattr(report, "create_markdown_artifact", lambda **artifact: made.append(artifact))
    report.retrieval("handbook", evaluate_retrieval(version, probes(version, 8)))
    assert (
        made[0]["key"] == "retrieval" and "| mrr |" in made[0]["markdown"] and "hit@3 100.0%" in made[0]["description"]
    )


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def live(home, monkeypatch):
    """A ledger whose assistant 'wiki' has a live release on the handbook, and an older one."""
    from flows import retrieval
    from tests.ledgers import go_live, new_ledger

    book = new_ledger(home, "wiki", "idle")
    version = write(HANDBOOK)
    model = Model("a" * 64, "m.gguf", "openvino", "b" * 64)
    for settings_ in (VECTORS, Retrieval()):
        go_live(book, Release("wiki", model, version, retrieval=settings_))
    monkeypatch.setattr(retrieval, "Ledger", lambda url: book)
    return book


def run(monkeypatch, capsys, *words):
    from flows import retrieval

    monkeypatch.setattr("sys.argv", ["flows.retrieval", "--assistant", *words])
    retrieval.main()
    return capsys.readouterr()


def test_the_command_measures_the_live_release_by_probes_when_there_is_no_golden_set(live, monkeypatch, capsys):
    table = run(monkeypatch, capsys, "wiki").out
    assert "of them probes" in table and "verdict" not in table


def test_the_command_compares_other_settings_with_those_served_and_with_another_release(live, monkeypatch, capsys):
    table = run(monkeypatch, capsys, "wiki", "--top-k", "5", "--vector-weight", "0.2").out
    assert "| hit_rate, 5 shown |" in table and "verdict" in table and "vector_weight=0.5" in table
    older = live.accepted_releases("wiki")[1]
    assert "vector_weight=1.0" in run(monkeypatch, capsys, "wiki", "--against", older).out


def test_the_flow_leaves_the_table_as_an_artifact(live, monkeypatch):
    from flows import retrieval

    made = []
    monkeypatch.setattr(retrieval.report, "create_markdown_artifact", lambda **artifact: made.append(artifact))
    found = retrieval.measure_retrieval.fn("wiki")
    assert found.probes == found.questions and made[0]["key"] == "retrieval"


def test_the_command_says_what_to_do_when_nothing_is_live(live, monkeypatch, capsys):
    with pytest.raises(LookupError, match=r"nothing is live for 'idle' yet; run python -m flows\.lifecycle"):
        run(monkeypatch, capsys, "idle")


def test_retrieval_settings_are_compared_on_open_questions_alone(live, monkeypatch):
    from flows import retrieval

    golden = [GoldenQuestion(f"q{n}", f"Q{n}?", ("x",), f"d{n}.md", "S", "h") for n in range(50)]
    asked, row = [], live.release_row
    monkeypatch.setattr(live, "release_row", lambda release: row(release) | {"snapshot": {"id": "s"}})
    monkeypatch.setattr(retrieval, "Snapshot", SimpleNamespace(of=lambda row: row))
    monkeypatch.setattr(retrieval.snapshots, "golden", lambda snapshot: golden)
    monkeypatch.setattr(retrieval, "evaluate_retrieval", lambda index, questions, *_, **__: asked.extend(questions))
    retrieval.measure("wiki")
    assert asked == open_part(golden) and 0 < len(asked) < 50


def test_a_golden_file_is_bound_to_the_documents_of_the_live_snapshot(live, home, monkeypatch, capsys):
    from flows import retrieval

    documents = [
        Document(name, f"Title {name}", (Section(name, f"Title {name}", f"Heading {name}", text),))
        for name, text in HANDBOOK.items()
    ]
    monkeypatch.setattr(retrieval.snapshots, "documents", lambda snapshot: iter(documents))
    file = home / "golden.jsonl"
    rows = [
        {"question": "Where are keys?", "answers": ["by a boiler"], "document": "Lyon.md"},
        {"question": "Where?", "answers": ["nowhere"], "document": "gone.md"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    snapshot = type("Snapshot", (), {"documents": len(documents)})
    (question,) = retrieval.read_golden(str(file), snapshot)
    assert (question.document, question.section) == ("Lyon.md", "Heading Lyon.md")
    assert "left out: 'Where?': no document 'gone.md'" in capsys.readouterr().err
    report = evaluate_retrieval(live.release(live.assistant("wiki")["live_release"]).index, [question])
    assert (report.questions, report.probes, report["hit@3"].mean) == (1, 0, 1.0)
    with pytest.raises(LookupError, match="no snapshot to bind"):
        retrieval.measure("wiki", str(file))
