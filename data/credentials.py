"""Forms of secrets: tokens known by their prefix, private keys, passwords in addresses and after names for them."""

from __future__ import annotations

import re

PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----(?:(?:(?!-----)[\s\S]){0,20000}"
    r"-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----|[A-Za-z0-9+/=\\\s]{40,20000})"
)
"""A whole block, or as much of one as there is."""

TOKENS = {  # each form starts with a letter or sign of its own, which keeps the search fast
    "AWS": r"A(?:KIA|SIA)[A-Z2-7]{16}",
    "Anthropic": r"sk-ant-[a-z]{3,6}\d\d-[\w-]{20,200}",
    "OpenAI and those like it": r"sk-(?:(?:proj|svcacct|admin|or-v1|lf)-)?[\w-]{20,200}",
    "GitHub": r"gh[opsru]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}",
    "GitLab": r"gl(?:pat|oas|dt|rt|rtr|cbt|ptt|ft|imt|agent|soat|ffct)-[\w-]{20,300}(?:\.[\w-]{2,60}){0,3}",
    "Slack": r"xox[abeoprs]-[\w-]{10,250}|xapp-\d-[\w-]{20,250}",
    "Slack's webhooks": r"hooks\.slack\.com/services/T\w{6,12}/B\w{6,14}/\w{16,32}",
    "Stripe": r"sk_(?:live|test)_[A-Za-z0-9]{16,250}|rk_(?:live|test)_[A-Za-z0-9]{16,250}|whsec_[A-Za-z0-9+/=]{24,64}",
    "Google": r"AIza[\w-]{35}|GOCSPX-[\w-]{28}|ya29\.[\w-]{20,400}",
    "Hugging Face, npm, PyPI, Docker": r"hf_[A-Za-z]{34}|npm_[A-Za-z0-9]{36}|pypi-AgE[\w-]{50,250}|dckr_pat_[\w-]{27}",
    "SendGrid, Telegram, Twilio": r"SG\.[\w-]{22}\.[\w-]{43}|:AA[\w-]{33}|SK[0-9a-f]{32}",
    "DigitalOcean, Databricks, Shopify": r"do[opr]_v1_[a-f0-9]{64}|dapi[a-f0-9]{32}|shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}",
    "Vault, Linear": r"hvs\.[\w-]{24,250}|lin_api_\w{40}",
    "Groq, xAI, Perplexity": r"gsk_\w{40,60}|xai-\w{60,100}|pplx-\w{40,60}",
    "JWT": r"eyJ[\w-]{8,4000}\.eyJ[\w-]{8,8000}\.[\w-]{8,2000}|eyJ[\w-]{16,2000}\.[\w-]{0,2000}(?:\.[\w-]{16,8000}){3}",
}
"""Whose tokens have which form."""
TOKEN = re.compile(rf"(?:{'|'.join(TOKENS.values())})(?![\w-])")

IN_URL = re.compile(r"://(?P<secret>[^\s:/@\"'<>\[\]]{0,80}:[^\s/\"'<>]{1,200})@(?=[\w\[])")
SCHEME = re.compile(
    r"(?i)\b(?:https?|s?ftps?|ssh|git|postgres\w*|mysql\w*|mariadb\w*|mongodb|rediss?|amqps?|smtps?|imaps?|ldaps?|"
    r"mssql\w*|oracle\w*|clickhouse\w*|socks5h?|nats|mqtts?|rtsp)(?:\+\w+)?\Z"
)
AUTHORIZATION = re.compile(
    r"(?:Bearer|bearer|BEARER|Basic|basic|Token|token)[ \t]+(?P<secret>[\w.~+/-]{16,2000}={0,2})"
)

PASSWORDS = (
    "password",
    "passwort",
    "passwd",
    "passphrase",
    "passcode",
    "pwd",
    "pw",
    "_pass",
    "kennwort",
    "contraseña",
    "mot de passe",
)
KEYS = ("api", "access", "private", "auth", "signing", "encryption", "account", "master")
NAMES = "|".join([*PASSWORDS, "secret", "token", "credential", *(f"{word}[ _-]?key" for word in KEYS)])
NAMED = (
    rf"(?P<name>{NAMES})(?:s|[ _-](?:access[ _-]?key|key|value|base|\d))?[\"'\])*`]{{0,3}}(?:\s?:\s?str\b)?\s{{0,3}}"
    r"(?::=|=>|[:=>]|\b(?:is|est|ist|es|lautet|was)\b:?|(?P<space>\s))\s{0,3}"
)
NAME = re.compile(NAMED)
"""In lower case: a word for a secret and what stands between it and its value."""
ASSIGNED = re.compile(
    rf"(?i){NAMED}(?:(?:\w{{1,30}}\()?(?P<quote>[\"'`])(?P<quoted>[^\"'`\s]{{6,300}})(?P=quote)"
    r"|(?P<bare>[^\s\"'`<>,;]{6,300}))"
)
COMMAND = re.compile(r"(?:--[\w-]*|\bset [\w.-]*|\blogin \S+ )\Z")
"""Before a name that only a space divides from its value: --password, aws configure set, .netrc."""
CALL = re.compile(r"[A-Za-z_][\w.]{2,}[(\[]")
PLACEHOLDER = re.compile(
    r"(?i)your|example|placeholder|change.?me|dummy|fake|sample|redacted|replace|insert|x{4}|\*{3}|\.{3}|…"
    r"|1234567|abcdef"
    r"|\A(?:(?:the|my|new|old|user|test|db|some)[_-]?)?"
    r"(?:pass(?:word|wd)?|pwd|pw|secret|token|key|api[_-]?key|hunter)\d{0,4}\Z"
    r"|\A[a-z_]*(?:key|secret|token|password|passwd|pwd|pass|id|seed)\Z"
    r"|\A(?:<.*|\[[\w -]*\]?|[$%]?\{.*|\$\(?[A-Za-z_]+\)?|%\(?[A-Za-z_]+\)?[%s]?)\Z"
    r"|\A(?:test|none|null|true|false|postgres|root|admin|guest|user)\Z"
)
"""What stands in documentation where a secret would."""
WORD = re.compile(
    r"\d+[A-Za-z]{0,3}\d*|[A-Za-z](?:\d+[a-z]?)?|(?:[A-Z][a-z]++|[a-z]{2,}+|[A-Z]{2,}+[a-z]*+)++[A-Z]?\d{0,3}"
)
"""A word or name, also in camel case, or a figure with a unit."""


def private_key(match: re.Match) -> tuple[int, int] | None:
    body = match[0].replace("\\n", "\n")
    return match.span() if re.search(r"[A-Za-z0-9+/]{40}", body) and "..." not in body else None


def token(match: re.Match) -> tuple[int, int] | None:
    inside = re.match(r"[\w-]", match.string[max(0, match.start() - 1) : match.start()]) and match[0][0] != ":"
    loose = match[0].startswith("sk-")  # as sk-fading-circle-container-element does
    real = not _placeholder(match[0]) and (not loose or _drawn(match[0]))
    return match.span() if real and not inside else None


def in_url(match: re.Match) -> tuple[int, int] | None:
    user, _, password = match["secret"].partition(":")
    known = SCHEME.search(match.string[max(0, match.start() - 24) : match.start()])
    real = not PLACEHOLDER.search(password) and user != password if known else _drawn(password)
    return match.span("secret") if real else None


def authorization(match: re.Match) -> tuple[int, int] | None:
    return match.span("secret") if _drawn(match["secret"]) else None


def assigned(match: re.Match) -> tuple[int, int] | None:
    """The value, if it looks drawn at random, or is a password as the usual rules ask for."""
    if match["space"] and not COMMAND.search(match.string[max(0, match.start() - 40) : match.start()]):
        return None
    value, start = match["quoted"], match.start("quoted")
    if not value:
        value, start = re.split(r"&(?=\w+=)|[)\]}]+(?=\W|\Z)", match["bare"])[0].rstrip("."), match.start("bare")
        if CALL.match(value):
            return None
    if match["name"].lower() in PASSWORDS:
        real = len(value) >= 6 and (_drawn(value) or _mixed(value))
    else:
        real = len(value) >= 12 and _drawn(value)
    return (start, start + len(value)) if real else None


def _placeholder(value: str) -> bool:
    return bool(PLACEHOLDER.search(value)) or len(set(value)) < min(len(value), 12) / 2


def _drawn(value: str) -> bool:
    """Was `value` drawn at random, or made hard to guess? Not when it stands for one, nor when it is made of words."""
    return not _placeholder(value) and any(not WORD.fullmatch(part) for part in re.split(r"[\W_]+", value) if part)


def _mixed(value: str) -> bool:
    """Has it a letter, a digit and a sign that names and paths do not have, as rules for passwords ask for?"""
    has = all(re.search(sign, value) for sign in (r"[A-Za-z]", r"\d", r"[^\w./:-]"))
    return has and "/" not in value and not _placeholder(value)
