"""`/ask`: a page on which people ask, read where an answer comes from, and say what they think of it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from data.records import Chunk, Release
from serving.rerank import joined

FILE = Path(__file__).with_name("pages") / "ask.html"


def alone(html: str) -> dict[str, str]:
    """Headers of a page that is one file, talks to its own server alone, and stands in no other page.

    The policy names the page's own script and style by hash, so nothing that slips into it would run (CSP 3, 8.3).
    """
    hashes = {tag: _sha256(re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)[1]) for tag in ("script", "style")}
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }


def _sha256(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def page() -> APIRouter:
    """The route of the page. The file holds no data: what it shows it asks the endpoint for, with the reader's key."""
    routes, html = APIRouter(), FILE.read_text()

    @routes.get("/ask")
    async def ask() -> HTMLResponse:
        return HTMLResponse(html, headers=alone(html))

    return routes


def section(chunks: Sequence[Chunk], release: Release) -> dict:
    """A section as a client reads it: its chunks in reading order, as one text."""
    first = chunks[0]
    text = reduce(joined, (chunk.text for chunk in chunks))
    about = {name: getattr(first, name) for name in ("document", "title", "section", "page", "modified")}
    return {"object": "section", "release": release.id, **about, "text": text}
