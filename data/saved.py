"""A folder written by `Dataset.save_to_disk` of the Hugging Face library into documents and questions."""

from __future__ import annotations

from pathlib import Path

from data import rows
from data.sections import Read, Unreadable


def is_dataset(folder: Path) -> bool:
    """Whether one split was saved in this folder; a `DatasetDict` is a folder of such folders."""
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def belongs(file_name: str) -> bool:
    """Whether a file of that folder is a part of the dataset, rather than a document beside it."""
    return file_name in ("state.json", "dataset_info.json") or file_name.endswith(".arrow")


def read(name: str, folder: Path, most_bytes: int) -> Read:
    """The columns of `rows.read_jsonl`, and `context` with `question` and `answers` as in SQuAD.

    Raises Unreadable past `most_bytes` of Arrow files, and without such columns.
    """
    from datasets import load_from_disk

    size = sum(file.stat().st_size for file in folder.glob("*.arrow"))
    if size > most_bytes:
        raise Unreadable(f"{size >> 20} MiB is over the limit of {most_bytes >> 20} MiB; save it in parts")
    dataset = load_from_disk(str(folder))
    columns = dataset.column_names
    if not {"text", "question", "context"} & set(columns):
        raise Unreadable(f"no column `text`, `question` or `context`; it has {', '.join(columns) or 'none'}")
    wanted = [column for column in columns if column in rows.COLUMNS or _is_label(column)]
    tables = dataset.select_columns(wanted).with_format("arrow").iter(batch_size=1000)
    numbered = enumerate((row for table in tables for row in table.to_pylist()), start=1)
    return rows.grouped(name, ((f"row {number}", row) for number, row in numbered))


def _is_label(column: str) -> bool:
    return column.strip().lower() in rows.LABELS
