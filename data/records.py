"""The vocabulary of Perennial: small frozen records that steps hand to each other.

Records hold ids, hashes and URIs, never models or dataframes. Every record turns into
plain JSON with `as_json` and back with `Record.of`, and hashes with `digest`.
"""

from __future__ import annotations

import hashlib
import json
import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar


def digest(*parts: object) -> str:
    """Hex sha256 of the canonical JSON of `parts`: equal content, equal digest, on any machine."""
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=as_json)
    return hashlib.sha256(canonical.encode()).hexdigest()


def file_sha256(path: str | Path) -> str:
    """Hex sha256 of a file, read in blocks of 1 MiB."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def as_json(record: object) -> dict:
    """A record as plain JSON types."""
    return json.loads(json.dumps(_plain(record), default=_plain))


LATE = {"late": True}
"""Metadata of a field that a record got when there were hashes of it already: while it is at its default it is not
written, so that what was hashed before keeps its hash."""


def _plain(record: object) -> dict:
    if not is_dataclass(record) or isinstance(record, type):
        raise TypeError(f"{type(record).__name__} is not a record")
    values = [(one, getattr(record, one.name)) for one in fields(record)]
    return {one.name: value for one, value in values if not (one.metadata == LATE and value == one.default)}


def _build(kind, value):
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _build(next(a for a in arguments if a is not type(None)), value)
    if origin is tuple:
        return tuple(_build(arguments[0], item) for item in value)
    if is_dataclass(kind) and isinstance(value, dict):
        return kind.of(value)
    return value


class Record:
    """Reading a record back from JSON; unknown keys are refused, so nothing is dropped in silence.

    `retired`: fields that records of earlier versions have and nothing reads any more.
    """

    retired: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of(cls, data: dict):
        hints = typing.get_type_hints(cls)
        known = {one.name for one in fields(cls)}
        if unknown := set(data) - known - {*cls.retired}:
            raise ValueError(f"{cls.__name__} has no field {sorted(unknown)[0]!r}; it has {', '.join(sorted(known))}")
        return cls(**{name: _build(hints[name], value) for name, value in data.items() if name in known})


# --- what goes in -----------------------------------------------------------------------------

ASSISTANT = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"
"""The name of an assistant, as a regular expression."""


@dataclass(frozen=True)
class Cleaning(Record):
    """Which filters documents pass before anything else sees them; each counts and names what it took out.

    `redact`: personal data and secrets become `[kind]`. `unfit`: documents that are no text worth indexing.
    `near_duplicates`: of documents that say the same, the newest stays. `boilerplate`: lines that most documents share.
    """

    redact: bool = True
    unfit: bool = True
    near_duplicates: bool = True
    boilerplate: bool = True


@dataclass(frozen=True)
class Sources(Record):
    """Where an assistant's documents and examples are: each a folder, a file, a glob or a URL of a file system."""

    assistant: str
    documents: str
    examples: str | None = None
    golden: str | None = None
    cleaning: Cleaning = Cleaning()


@dataclass(frozen=True)
class Section(Record):
    """A stretch of a document under one heading: the path of headings joined by ' > ', '' before the first.

    `page`: the page it starts on, from 1, where the format has pages.
    """

    document: str
    title: str
    heading: str
    text: str
    page: int | None = None

    @property
    def hash(self) -> str:
        """Content hash: the same in two editions exactly when heading and text are the same."""
        return digest(self.document, self.heading, self.text)


@dataclass(frozen=True)
class Document(Record):
    """One document as read: `id` is its path under the source root, `path#row` inside a file of rows.

    `modified`: ISO 8601, UTC, '' unknown. `language`: ISO 639-1, '' uncertain. `access`: the label that a reader must
    hold, '' for every reader. `tenant`: the only tenant that may read it, '' for all.
    """

    id: str
    title: str
    sections: tuple[Section, ...]
    modified: str = ""
    language: str = ""
    access: str = ""
    tenant: str = ""


@dataclass(frozen=True)
class Example(Record):
    """A question with its accepted answers (none: unanswerable), bound to the section that answers it."""

    question: str
    answers: tuple[str, ...] = ()
    document: str | None = None
    section: str | None = None

    @property
    def id(self) -> str:
        return digest(self.question, self.document)[:16]


@dataclass(frozen=True)
class Preference(Record):
    """Two answers to a question of which people prefer `chosen`; the section that holds it, the feedback that says so.

    `chosen` was written by a reviewer, by the system, or by a user whom a passage supports.
    """

    question: str
    chosen: str
    rejected: str
    document: str | None = None
    section: str | None = None
    feedback: tuple[int, ...] = ()

    @property
    def id(self) -> str:
        return digest(self.question, self.chosen, self.rejected)[:16]


@dataclass(frozen=True)
class Quarantined(Record):
    """Input that could not be used: which file, where in it ('' for all of it), why."""

    file: str
    place: str
    reason: str


@dataclass(frozen=True)
class GoldenQuestion(Record):
    """A held-out question. `section_hash` is the hash of the section (else of the document) it was bound to.

    `state`: 'active' votes; 'aged' has an edited or deleted source and waits for review (invariant 13);
    'rederived' was bound again, because its answer occurs in exactly one new section. `origin`: 'given' by the team,
    'feedback' that a reviewer chose, 'generated' from the documents (synthetic), or 'left out': asked by an evaluation
    without the section that answers it, to see whether it abstains.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    document: str
    section: str | None
    section_hash: str
    state: str = "active"
    origin: str = "given"

    @property
    def votes(self) -> bool:
        return self.state != "aged"

    @property
    def synthetic(self) -> bool:
        return self.origin == "generated"


# --- what is built ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot(Record):
    """A content-hashed folder of Parquet files, see data/snapshots. Counts of what it holds and of what was taken out:
    `duplicates` and `near_duplicates` documents, `unfit` documents, `redacted` spans, `furniture` lines.

    `feedback` rows went into examples and `preferences`; `flip_rate` is the share of votes that are wrong, 0 to .45 in
    steps of .05, measured on the votes that could be compared (for a robust loss), 0 without preferences.
    """

    id: str
    uri: str
    assistant: str
    documents: int
    sections: int
    examples: int
    golden: int
    aged: int
    quarantined: int
    duplicates: int
    leaked: int
    near_duplicates: int = 0
    unfit: int = 0
    redacted: int = 0
    furniture: int = 0
    preferences: int = 0
    feedback: int = 0
    flip_rate: float = 0.0


@dataclass(frozen=True)
class ChunkSettings(Record):
    """How sections are cut; sizes in tokens of the embedder. `strategy`: one of STRATEGIES in data/chunking.

    `overlap`: tokens that a chunk repeats of the one before it, for the strategy 'window' alone.
    """

    max_tokens: int = 200
    min_tokens: int = 12
    strategy: str = "structure"
    overlap: int = 0


@dataclass(frozen=True)
class Chunk(Record):
    """What is embedded and cited. `id` is the hash of document, title, heading, text and ordinal of equal ones, and of
    access and tenant where they are set. `part` counts the chunks of a section from 0; the rest is as in Document.
    """

    id: str
    document: str
    title: str
    section: str
    section_hash: str
    text: str
    part: int = 0
    page: int | None = None
    modified: str = ""
    language: str = ""
    access: str = ""
    tenant: str = ""


@dataclass(frozen=True)
class IndexVersion(Record):
    """One immutable LanceDB version. `checksum` covers chunk ids, embedder and chunker: content, not place.

    `nearest`: how its vectors are searched; None for exactly.
    """

    assistant: str
    uri: str
    table: str
    version: int
    checksum: str
    embedder: str
    chunker: str
    chunks: int
    embedded: int
    snapshot: str
    nearest: Nearest | None = None


@dataclass(frozen=True)
class Model(Record):
    """A served artifact. `sha256` is of the file or folder at `uri`; `base` is the sha256 of the base weights.

    Where base and adapter are served apart (engine `transformers`), `uri` is the base's and `sha256` is of both. With
    engine `upstream` there are no files: `uri` and `base` are its name, and `sha256` is of that.
    """

    sha256: str
    uri: str
    engine: str
    base: str
    adapter: str | None = None
    adapter_uri: str | None = None


# --- what is released -------------------------------------------------------------------------


@dataclass(frozen=True)
class Shot(Record):
    """A worked example of a prompt: a question that people asked, its reviewed `answer`, and the chunk that holds it.

    `label` is the number of the review or feedback it comes from (see tasks/labels.Label).
    """

    question: str
    answer: str
    chunk: Chunk
    label: int

    @property
    def rests_on(self) -> frozenset[str]:
        """The tombstones that take it out of every prompt: of its chunk, and of what it was learnt from."""
        return frozenset((self.chunk.id, buried_feedback(self.label)))


def buried_feedback(number: int) -> str:
    """The tombstone of a withdrawn piece of feedback; no chunk has such an id."""
    return f"feedback {number}"


@dataclass(frozen=True)
class Prompt(Record):
    """The prompt as text. `passage` formats one retrieved chunk, `user` the question below the passages.

    `chat`: how turns are written, a name in serving/chat.py FORMATS or such a format as JSON; a Base says which.
    `shots` stand before the conversation as turns of it.
    """

    system: str = (
        "You answer questions from the numbered passages. Reply with the shortest exact answer, copied from a "
        "passage. If no passage answers the question, reply: The documents do not say."
    )
    passage: str = "[{number}] {title} - {section}\n{text}\n"
    user: str = "{passages}\nQuestion: {question}"
    abstain: str = "The documents do not say."
    chat: str = "chatml"
    shots: tuple[Shot, ...] = field(default=(), metadata=LATE)

    @property
    def sha256(self) -> str:
        return digest(self)


@dataclass(frozen=True)
class Retrieval(Record):
    """Hybrid search: `candidates` from each of vectors and full text, their scores added, `top_k` shown.

    `vector_weight`, 0 to 1, is what the vectors count for; the words count for the rest. `per_source`: most chunks of
    one document among those shown, 0 for any number. `distinct`: a chunk whose text is this similar, 0 to 1, to a
    better one with the same figures is not shown. `section_characters`: a shown chunk is widened by its neighbours in
    the section while the passages together stay within this; 0 for never. `reranker`: a cross-encoder, by folder or
    model id, that orders the best `rerank` candidates anew.
    """

    top_k: int = 3
    candidates: int = 30
    vector_weight: float = 0.5
    per_source: int = 0
    distinct: float = 0.95
    section_characters: int = 0
    reranker: str | None = None
    rerank: int = 20
    retired: ClassVar[tuple[str, ...]] = ("rrf_k",)

    def __post_init__(self):
        if not 0 <= self.vector_weight <= 1:
            raise ValueError(f"vector_weight is {self.vector_weight}; give 0 (words alone) to 1 (vectors alone)")
        if not 0 < self.distinct <= 1:
            raise ValueError(f"distinct is {self.distinct}; give a similarity up to 1 (1: only equal texts)")
        if min(self.top_k, self.candidates, self.rerank) < 1 or min(self.per_source, self.section_characters) < 0:
            raise ValueError(f"{self}: top_k, candidates and rerank are 1 or more, the others not negative")


@dataclass(frozen=True)
class Filter(Record):
    """Which chunks a question may see. Who asks comes first: a chunk with an access label or a tenant is seen only with
    that label and tenant. The rest narrows: `documents` ids, `languages` (ISO 639-1), `modified_after` (ISO 8601).
    """

    tenant: str = ""
    labels: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    modified_after: str = ""


@dataclass(frozen=True)
class Nearest(Record):
    """An approximate vector index: `probes` partitions are searched, `refine` times as many rows compared exactly.

    `recall`: share of the exact ten nearest that it finds for the probe questions of its build.
    """

    kind: str
    probes: int
    refine: int
    recall: float


@dataclass(frozen=True)
class Decoding(Record):
    """How the engine writes. Temperature 0 is greedy. Defaults a request may override within the guard's limits."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    json_schema: ClassVar[str] = ""
    tools: ClassVar[str] = ""


@dataclass(frozen=True)
class Constrained(Decoding):
    """Decoding of one request: the release's, and the JSON schema that the answer has to follow, '' for none.

    `tools`: what may be called and what came of it (serving/tools.py), '' for nothing.
    """

    json_schema: str = ""
    tools: str = ""


@dataclass(frozen=True)
class Guard(Record):
    """Limits checked before anything is queued, and what happens to what is logged."""

    max_question_characters: int = 4000
    max_messages: int = 40
    max_new_tokens: int = 512
    redact_log: bool = True


@dataclass(frozen=True)
class Reuse(Record):
    """When an answer is given again (serving/semantic): cosines of two questions from which on they ask the same, if
    they have the same words and if they have others; `hours`: how long an answer is kept."""

    same_words: float = 0.6
    other_words: float = 0.92
    hours: float = 24.0


@dataclass(frozen=True)
class Release(Record):
    """What is served for one assistant. Its id hashes content only, so where files lie does not matter.

    `reuse`: None where each answer is written anew.
    """

    assistant: str
    model: Model
    index: IndexVersion
    prompt: Prompt = Prompt()
    retrieval: Retrieval = Retrieval()
    decoding: Decoding = Decoding()
    guard: Guard = Guard()
    reuse: Reuse | None = None

    @classmethod
    def recorded(cls, release_id: str, body: dict) -> Release:
        """A release of the ledger under the id it was released with: a later version of this code may hash more."""
        release = cls.of(body)
        release.__dict__["id"] = release_id
        return release

    def moved(self, model: Model | None = None, index: IndexVersion | None = None) -> Release:
        """The same release with its files in another place. Raises ValueError when what is there is something else."""
        there = replace(self, model=model or self.model, index=index or self.index)
        if there.content != self.content:
            raise ValueError(f"{self.id} is not what lies there: its model or its index differ from the record")
        return self.recorded(self.id, as_json(there))

    @property
    def parts(self) -> dict:
        """What is served, part by part: equal where the parts answer alike."""
        index = self.index
        return {
            "model": self.model.sha256,
            "index": (index.checksum, index.embedder, index.chunker),
            "prompt": self.prompt,
            "retrieval": self.retrieval,
            "decoding": self.decoding,
            "guard": self.guard,
        }

    @property
    def content(self) -> tuple:
        """What the id is a hash of."""
        index = self.index
        served = (self.assistant, self.model.sha256, index.checksum, index.embedder, index.chunker)
        served += (self.reuse,) if self.reuse else ()  # without one the ids of before there was one stay
        return served, self.prompt, self.retrieval, self.decoding, self.guard

    @cached_property
    def id(self) -> str:
        return "rel-" + digest(*self.content)[:20]


# --- what is answered -------------------------------------------------------------------------


@dataclass(frozen=True)
class Hit(Record):
    """A retrieved chunk, its fused score, and its cosine similarity to the question (NaN if nobody searched for it)."""

    chunk: Chunk
    score: float
    similarity: float


@dataclass(frozen=True)
class Citation(Record):
    """Mark `[number]` in the message, and the chunk it stands for."""

    number: int
    chunk: str
    document: str
    title: str
    section: str


@dataclass(frozen=True)
class Generation(Record):
    """What an engine wrote for one prompt. Times in seconds from submission."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    first_token_s: float
    total_s: float


@dataclass(frozen=True)
class Answer(Record):
    """One answered question: `text` without marks, `citations`, the hits shown to the model, the generation."""

    question: str
    text: str
    abstained: bool
    citations: tuple[Citation, ...]
    hits: tuple[Hit, ...]
    generation: Generation


# --- what is decided --------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval(Record):
    """A mean paired difference (candidate - champion) with one-sided 95% bounds, n questions in `clusters` clusters.

    `detectable`: the smallest true difference found with 80% power; `power`: the chance to promote an equal candidate.
    """

    metric: str
    mean: float
    lower: float
    upper: float
    n: int
    clusters: int
    margin: float
    discordance: float
    detectable: float
    verdict: str
    power: float = 0.0


@dataclass(frozen=True)
class Decision(Record):
    """`verdict`: promote | bootstrap | reject | hold; `reason` is one sentence a person understands.

    `golden`: the content hash of the golden questions that could vote, '' for a decision of before there was one.
    `look`: which test of this candidate it was, 0 when nothing was tested; `alpha`: its error level. `evaluation`: the
    file of scores it was taken from, `suite`: the hash of what was asked and how it was scored, `settings`: the gate's.
    """

    verdict: str
    reason: str
    release: str
    champion: str | None = None
    superior: bool = False
    judged: str = "golden"
    intervals: tuple[Interval, ...] = ()
    metrics: dict | None = None
    baseline: dict | None = None
    notes: tuple[str, ...] = ()
    look: int = 0
    alpha: float = 0.05
    evaluation: str = ""
    suite: str = ""
    settings: dict | None = None
    golden: str = ""

    @property
    def accepted(self) -> bool:
        return self.verdict in ("promote", "bootstrap")
