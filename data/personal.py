"""Forms of e-mail addresses, IP addresses and telephone numbers."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress

# --- e-mail -----------------------------------------------------------------------------------

CJK = r"\u3040-\u9fff\uac00-\ud7af"
# Chinese, Japanese and Korean write no space before an address, so a Latin local part does not run into them.
LOCAL = rf"(?:[^\W{CJK}](?:[^\W{CJK}]|[.%+'-]){{0,63}}|[{CJK}]{{1,30}})"
TLD = r"(?:[A-Za-z]{2,24}(?![A-Za-z0-9])|xn--[a-z0-9-]{2,59}|[^\W\d_a-zA-Z]{2,24})"
EMAIL = re.compile(rf"(?<![a-zA-Z0-9À-ɏ]){LOCAL}(?:@|＠|%40|&#64;)(?:[^\W_][\w-]{{0,62}}\.){{1,8}}{TLD}(?!\()")

AT, DOT = (rf"\s?[\[({{<]\s?(?:{word})\s?[\])}}>]\s?" for word in ("at|AT|@", r"dot|DOT|\."))
USUAL = r"(?:com|org|net|edu|gov|info|biz|io|eu|[a-z]{2})\b"
WRITTEN = r"(?<![\w.+-])[\w.+-]{1,64}"
NOBODY = r"(?:us|me|it|is|are|look|find|visit|available|hosted|online|site|website|page|shop|reach|see|live|more)"
SPELT = re.compile(
    rf"{WRITTEN}(?:(?:{DOT}| dot )\w{{1,30}}){{0,3}}{AT}[\w-]{{1,63}}(?:(?:\.|{DOT}| dot )[\w-]{{2,63}}){{1,4}}"
    rf"|{WRITTEN} ?@ ?[\w-]{{1,63}}(?:{DOT}[\w-]{{2,63}}){{1,4}}"
    rf"|{WRITTEN} @ (?:[\w-]{{1,63}}\.){{1,4}}{USUAL}"
    rf"|(?i:(?!{NOBODY}\b){WRITTEN}(?: dot \w{{1,30}}){{0,3}} at "
    rf"[\w-]{{1,63}}(?: dot [\w-]{{2,63}}){{0,3}} dot {USUAL})"
)
NO_MAILBOX = re.compile(
    r"(?i)(?:git|hg|svn)@|.*@v?\d+\.\d"  # git@host, package@1.2.3
    r"|.*\.(?:png|jpe?g|gif|svg|webp|ico|css|js|json|ya?ml|html?|txt|zip|gz|whl)\Z"  # logo@2x.png
)
COPIED_TO = re.compile(r":[\w.~-]*/")
"""What follows in `git@host:owner/repository` and `user@host:/path`."""
ROLE = re.compile(
    r"abuse|accounting|accounts|admin|administrator|api|billing|booking|bookings|careers|community|compliance|"
    r"contact|contacto|customercare|customerservice|customersupport|dataprotection|datenschutz|developer|"
    r"developers|donotreply|dpo|editor|enquiries|events|feedback|finance|hello|help|helpdesk|hi|hostmaster|hr|"
    r"info|information|inquiries|invoice|invoices|it|jobs|kontakt|legal|mail|marketing|media|membership|news|"
    r"newsletter|noc|noreply|notices|notification|notifications|office|operations|ops|order|orders|partner|"
    r"partners|payments|personnel|postmaster|press|privacy|procurement|purchasing|recruiting|recruitment|"
    r"reception|registrar|reservations|returns|root|sales|security|service|services|shipping|shop|soc|staff|"
    r"status|subscribe|subscriptions|support|system|team|tech|training|unsubscribe|vendor|vertrieb|webmaster|"
    r"welcome"
)
"""Local parts of an organisation's mailboxes, RFC 2142's among them, without separators."""


def email(match: re.Match) -> tuple[int, int] | None:
    copied = COPIED_TO.match(match.string, match.end())
    return None if copied or NO_MAILBOX.match(match[0]) else match.span()


def role(address: str) -> bool:
    """Is the mailbox that of a role: support@, no-reply@, sales+eu@, hr-berlin@?"""
    local = re.split(r"\s?[\[({<]|[+@＠]|%(?:40|2B)|&#64;| at | AT ", address)[0].lower()
    return any(ROLE.fullmatch(part) for part in (re.sub(r"[._-]", "", local), re.split(r"[._-]", local)[0]))


# --- IP ---------------------------------------------------------------------------------------

IPV4 = re.compile(
    r"[0-9](?<![\w.][0-9])(?<![A-Za-z]-[0-9])\d{0,2}(?:\.\d{1,3}){3}(?![\w+]|\.\w|-[A-Za-z])(?P<prefix>/\d\d?\b)?"
)
IPV6 = re.compile(r"(?i)(?<![\w:.])[\da-f:]{1,4}:[\da-f:.]{1,41}(?P<prefix>/\d{1,3}\b)?(?!\w)")
IN_USE = re.compile(
    r"(?i)[23][\da-f]{3}:|f[cd][\da-f]{2}:|fe[89ab][\da-f]:|64:ff9b::|::ffff:|(?=.*\b[\da-f]{3,4}\b)(?:[\da-f]+:){7}"
)
"""Global, unique local, link-local and mapped addresses, and any that are written out: 12:34:56, a::b and f32::add are
none, nor is 00:1a:2b:ff:fe:3c:4d:5e."""
VERSION = re.compile(
    r"(?i)(?:(?<![a-z])v(?:er|ersions?)?|releases?|firmware|build|patch|revision|sections?|chapter|clause|§|figure|"
    r"table|step|appendix|oid|kernel|driver|ios|android|windows|macos|"
    r"(?:up|down)grad\w* (?:from|to)|[=<>~^!]=|[~^])"
    r"[\s.:=]*(?:v?[\d.]+(?:,? (?:and|or|to)|,|-| -)\s?)*\Z"  # versions 1.2.3.4 and 1.2.3.5
)
HOST_WORD = re.compile(
    r"(?i)(?:\b(?:ip|ipv4|address|addr|hosts?|server|client|peer|from|login|ssh|ping|dns|gateway|router|remote|src|dst|"
    r"source|destination|connect\w*(?: to)?|block\w*|bann?\w*|via|proxy|node|vpn|"
    r"(?:is|was)(?= ))\b[\s:=\"'(\[]{0,6}|://|@|^)\Z"
)
"""Before an address, or at the start of the text. Four numbers below 32 are a version without it, or without a port:
one in 3,000 public addresses is like that, and nearly every version."""
NOT_A_HOST = ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3", "ff00::/8")
"""Unspecified and wildcard masks, loopback, multicast with netmasks, and the last of IPv6."""
PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10", "fc00::/7", "fe80::/10")
RESOLVERS = ("1.1.1.1", "1.0.0.1", "8.8.8.8", "8.8.4.4", "9.9.9.9")


def ipv4(match: re.Match) -> tuple[int, int] | None:
    text, (start, end) = match.string, match.span()
    before, after = text[max(0, start - 60) : start], text[end : end + 9]
    address = match[0].removesuffix(match["prefix"] or "")
    product = re.search(r"\w/\Z", before) and not re.match(r":\d", after)  # Chrome/120.0.0.0, not host/10.0.0.7:9042
    if product or not _host(address, match["prefix"]) or VERSION.search(before):
        return None
    if max(map(int, address.split("."))) < 32 and not _within(address, PRIVATE):
        heading = re.search(r"(?m)^[#\s]*\Z", before) and re.match(r"\.? [A-Z(]|\s*\n[-=~^]{3}", after)
        if heading or not (HOST_WORD.search(before) or re.match(r":\d", after)):
            return None
    return start, start + len(address)


def ipv6(match: re.Match) -> tuple[int, int] | None:
    address = match[0].removesuffix(match["prefix"] or "").rstrip(".:")
    good = IN_USE.match(address) and _host(address, match["prefix"])
    return (match.start(), match.start() + len(address)) if good else None


def _host(text: str, prefix: str | None) -> bool:
    """Is `text` the address of one machine, not of a network such as 10.0.0.0/8?"""
    try:
        bits = ipaddress.ip_address(text).max_prefixlen
    except ValueError:
        return False
    network = prefix and int(prefix[1:]) < bits and _within(text, (text + prefix,))
    return not network and not _within(text, NOT_A_HOST)


def _within(text: str, networks: Iterable[str]) -> bool:
    """Is the address in one of `networks`? One with a host's bits set is none."""
    for network in networks:
        with suppress(ValueError):
            if ipaddress.ip_address(text) in ipaddress.ip_network(network):
                return True
    return False


def shared(text: str) -> bool:
    """Is it an address that many networks use: a private one, or that of a public resolver?"""
    return text in RESOLVERS or _within(text, PRIVATE)


# --- telephone --------------------------------------------------------------------------------

TRUNK_ZERO = ("GB", "DE", "FR", "IT", "NL", "CH", "BE", "SE", "AU", "JP", "ZA")
REGIONS = (
    *TRUNK_ZERO,
    "US",
    "AT",
    "ES",
    "PT",
    "IE",
    "DK",
    "NO",
    "FI",
    "PL",
    "CZ",
    "GR",
    "NZ",
    "IN",
    "CN",
    "BR",
    "MX",
    "SG",
)
"""Whose national forms are known: where they start with 0, and where they need a word for telephone before them."""
STEP = r"[ \u00a0\u2009\u202f]?[-./()‐‑–]{0,2}[ \u00a0\u2009\u202f]?"
PHONE = re.compile(
    rf"[+(0-9](?<![\w.,$€£#@][+(0-9])(?<!\w-[+(0-9])(?<!\d[/:][+(0-9])(?<![/_]/[+(0-9])\+?(?:{STEP}\n?[0-9]){{6,17}}"
)
END = r"(?!(?!x\d)\w|[.,:-]?\d| ?[%€$£])"
INTERNATIONAL = re.compile(rf"\(?(?:\+|00 ?(?=[1-9]))\(?\d(?:{STEP}\n?\d){{6,16}}{END}")
NORTH_AMERICAN = re.compile(rf"(?:1[ .-]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ ./-])[2-9]\d\d[ .-]\d{{4}}{END}")
ZERO = re.compile(rf"(?!\d{{5}}-\d{{4}}\b)\(?0[1-9]\d{{0,4}}(?:(?!\d){STEP}\d{{2,8}}){{1,5}}{END}")
AFTER_WORD = re.compile(rf"(?=(?:\D{{0,3}}\d){{7}})\(?\d{{1,15}}(?:(?!\d){STEP}\d{{2,14}}){{0,6}}{END}")
FREE = re.compile(r"\(?(?:\+|00|(?:1[ .-]?)?\(?8(?:00|33|44|55|66|77|88)|080[08]|0180|0900|1[38]00)")
EXTENSION = re.compile(r"(?i)[ ,]{0,2}(?:ext(?:ension)?\.?|x|durchwahl|poste)[ .:]{0,2}\d{1,6}\b")
JOIN = (
    r"[ \t:.,=(\"'*>-]{0,4}(?:(?:numbers?|no|nr|num|is|was|ist|lautet|es|è|est|é|at|on|under|unter|au|al|home|work|"
    r"office|direct|private|or)\b[ \t:.=(\"'*-]{0,4}){0,4}\n?\Z"
)
PHONE_WORD = re.compile(
    r"(?i)(?<![a-z])(?:(?P<sure>(?:tele?)?phone|tel|tlf|fon|tél|fax|whats ?app|my number|(?:handy|ruf|telefon)nummer|"
    r"t[eé]l[eéèê](?:f|ph)[oó]n\w{0,3}|(?:call|text|reach|phone)(?: (?:me|us|him|her|them|back))+)|"
    r"mobiel|mobile?|m[oó]vil|cell(?:ulare)?|celular|handy|portable|signal|sms|dial|ring|call|"
    r"ll[aá]m\w{1,6}|appel\w{1,4}|joindre|chiam\w{1,5}|bel)" + JOIN
)
"""Ends with a word for telephone: one that is used of nothing else, or another."""
NUMBERED = re.compile(
    r"(?i)(?<![a-z])(?:order|invoice|ticket|case|ref|reference|tracking|parcel|serial|part|item|article|model|sku|lot|"
    r"isbn(?:-1[03])?|issn|ean|upc|gtin|doi|id|version|build|release|rfc|timestamp|account|customer|contract|license|"
    r"batch|transaction|booking|iata|awb|duns|page|year|bestellung|rechnung|commande|pedido|"
    r"(?:bestell|rechnungs|serien|kunden|vertrags|artikel|auftrags)nummer)s?" + JOIN
)
"""Ends with a word for something else that has a number."""
DATE = re.compile(r"(?:\d{4}([-./ ])[01]?\d\1[0-3]?\d|[0-3]?\d([-./])[01]?\d\2(?:\d{4}|\d\d))(?!\d)")
INSIDE = re.compile(r"(?<![-:./]\d)(?<![-./]\d{3})\d \Z")
"""Ends with a group of digits that is not the end of a date or a time."""


def phone(match: re.Match) -> tuple[int, int] | None:
    """An international number of a possible length, a national one that libphonenumber's metadata knows as given out,
    or, after a word for telephone, one of a possible length."""
    text, start = match.string, match.start()
    before = text[max(0, start - 48) : start]
    abroad = INTERNATIONAL.match(text, start)
    if abroad and "+" in abroad[0]:
        number, regions, possible = abroad, ("US",), True
    elif DATE.match(text, start) or called(NUMBERED, before):
        return None
    elif word := called(PHONE_WORD, before):
        number, regions, possible = AFTER_WORD.match(text, start), REGIONS, bool(word["sure"])
    elif number := NORTH_AMERICAN.match(text, start):
        regions, possible = ("US",), not re.fullmatch(r"[\d ]+", number[0])
    elif INSIDE.search(before):
        return None
    else:
        number, regions, possible = abroad or ZERO.match(text, start), TRUNK_ZERO, False
    end = number and next((end for end in whole_groups(number[0]) if _dials(number[0][:end], regions, possible)), None)
    if not end:
        return None
    extension = EXTENSION.match(text, start + end)
    alone = number[0][0] == "(" and ")" not in number[0][:end]
    return start + alone, extension.end() if extension else start + end


def called(words: re.Pattern, before: str) -> re.Match | None:
    """Does the text before a number end with one of `words`? Most numbers in a table have none before them."""
    return words.search(before) if before.rstrip(" \t\n:.,=(\"'*>-")[-1:].isalpha() else None


def whole_groups(number: str) -> Iterator[int]:
    """Where `number` may end so that its groups stay whole, longest first, over at most one end of a line."""
    ends = [len(number), *(gap.start() for gap in reversed(list(re.finditer(r"[^\w()]+", number))))]
    return (end for end in ends if number.count("\n", 0, end) < 2)


def _dials(form: str, regions: tuple[str, ...], possible: bool) -> bool:
    digits, inner = sum(sign.isdigit() for sign in form), form[1:]
    return (
        inner.count("(") <= inner.count(")")
        and digits > (6 if possible else 8)
        and any(possible or valid for _, valid in _parsed(form, regions))
    )


def _parsed(form: str, regions: tuple[str, ...]) -> Iterator[tuple]:
    """What `form` is in each region where it has a possible length, and whether such numbers are given out there."""
    import phonenumbers

    for region in regions:
        try:
            number = phonenumbers.parse(form.replace("\n", " "), region)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_possible_number(number):
            yield number, phonenumbers.is_valid_number(number)


def toll_free(form: str) -> bool:
    """Is it a number that an organisation is called at: toll-free, shared cost, premium rate? One without its country
    must also start like one, as what is free in one country is a person's in another."""
    from phonenumbers import PhoneNumberType, number_type

    own = (PhoneNumberType.TOLL_FREE, PhoneNumberType.SHARED_COST, PhoneNumberType.PREMIUM_RATE, PhoneNumberType.UAN)
    free = any(valid and number_type(number) in own for number, valid in _parsed(form, REGIONS))
    return free and bool(FREE.match(form))
