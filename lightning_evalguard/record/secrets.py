"""What nobody should read in a file: found by its name, by its form, and by what stands before it.

The forms of tokens follow the prefixes that their issuers document (GitHub, GitLab, Hugging Face,
OpenAI, Slack, AWS, Google, Stripe, npm, PyPI), as scanners for leaked secrets list them.
"""

from __future__ import annotations

import re

MASK = "***"
_LONGEST = 20_000  # characters of one text that are looked through

# As part of a name. Of the second kind a number is no secret: max_tokens, pad_token_id, num_keys.
_SECRET = re.compile(
    r"passw(or)?d|passphrase|secret|credential|authorization", re.IGNORECASE
)
_MAYBE = re.compile(
    r"key|token|auth(?!or)|bearer|cookie|private|dsn|jwt", re.IGNORECASE
)
# As a whole word of a name: `db_pass`, `pw`, `userPin`.
_WORDS = frozenset({"pass", "passwd", "pw", "pwd", "pin", "pat"})
_SPLIT = re.compile(r"[^A-Za-z]+|(?<=[a-z])(?=[A-Z])")

_TOKENS = re.compile(
    r"""
    \b(?: hf_[A-Za-z0-9]{8,} | (?:sk|pk|rk)[-_][A-Za-z0-9_-]{8,} | gh[pousr]_[A-Za-z0-9]{8,}
        | github_pat_\w{8,} | glpat-[\w-]{8,} | xox[abeoprs]-[\w-]{8,} | npm_[A-Za-z0-9]{8,}
        | pypi-[\w-]{16,} | (?:AKIA|ASIA)[A-Z0-9]{12,} | AIza[\w-]{20,} | ya29\.[\w-]{8,}
        | eyJ[\w-]{8,2000}\.[\w-]{4,}\.[\w-]* | wandb_v\d_\w{8,} | dckr_pat_[\w-]{8,}
        | SG\.[\w.-]{16,} )
    """,
    re.VERBOSE,
)
_PEM = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*KEY-----|\Z)", re.DOTALL
)
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@?#]{1,500}(?=@)")
_BEARER = re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{6,}", re.IGNORECASE)
_HEADER = re.compile(
    r"\b((?:proxy-)?authorization|(?:set-)?cookie)(\s*[:=]\s*)[^\r\n\"']+", re.I
)
_VALUE = r"""(?P<value>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s,;&?"'{}\[\]()<>]+)"""
# name=value, name: value, "name": "value"
_PAIR = re.compile(
    rf"""(?P<before>["']?(?<![\w.])(?P<name>[A-Za-z_][\w.-]{{0,60}})["']?\s*[:=](?!//)\s*){_VALUE}"""
)
# --name value, -name value
_OPTION_PAIR = re.compile(
    rf"(?P<before>(?<![\w-])-{{1,2}}(?P<name>[A-Za-z][\w.-]*)\s+){_VALUE}"
)
_OPTION = re.compile(r"^-{1,2}(?P<name>[A-Za-z][\w.-]*)$")


def is_secret(name: str, value: object) -> bool:
    """Whether what stands under `name` is one; a number under a name like ``max_tokens`` is none.

    Example:
        >>> is_secret("Authorization", "x"), is_secret("max_tokens", 8), is_secret("author", "x")
        (True, False, False)
    """
    if value is None or isinstance(value, bool) or not name:
        return False
    if _SECRET.search(name) or _speaks_of_a_password(name, value):
        return True
    return bool(_MAYBE.search(name)) and not isinstance(value, (int, float))


def _speaks_of_a_password(name: str, value: object) -> bool:
    words = [word.lower() for word in _SPLIT.split(name) if word]
    if not words or words[-1] not in _WORDS:
        return False
    # `pin` alone is a secret also as a number; `n_pass=2` is a count
    return len(words) == 1 or not isinstance(value, (int, float))


def option_name(text: object) -> str:
    """The name of a command line's option: ``token`` for ``--token``; empty for anything else."""
    option = None
    if isinstance(text, str):
        option = _OPTION.match(text)
    if not option:
        return ""
    return option["name"]


def without_secrets(text: str) -> str:
    """`text` with what looks like a secret masked, and nothing else changed.

    Example:
        >>> without_secrets("https://ghp_ab1@host/x?token=q1&lr=2 Authorization: Bearer abc.def")
        'https://***@host/x?token=***&lr=2 Authorization: ***'
        >>> without_secrets("Server=db;User=me;Pwd=1x;Timeout=3")
        'Server=db;User=me;Pwd=***;Timeout=3'
    """
    text = text[:_LONGEST]
    text = _PEM.sub(MASK, text)
    text = _IN_ADDRESS.sub(MASK, text)
    text = _HEADER.sub(rf"\1\2{MASK}", text)
    for pair in (_PAIR, _OPTION_PAIR):
        text = pair.sub(_masked_pair, text)
    text = _BEARER.sub(rf"\1 {MASK}", text)
    return _TOKENS.sub(MASK, text)


def code_without_secrets(text: str) -> str:
    """Source text with the literals masked that look like secrets; its lines stay as many.

    Example:
        >>> code_without_secrets("attend(key=x); login(api_key='q1')")
        "attend(key=x); login(api_key='***')"
    """
    text = _PEM.sub(lambda key: MASK + "\n" * key[0].count("\n"), text[:_LONGEST])
    text = _IN_ADDRESS.sub(MASK, text)
    text = _PAIR.sub(_masked_literal, text)
    text = _BEARER.sub(rf"\1 {MASK}", text)
    return _TOKENS.sub(MASK, text)


def _masked_literal(pair: re.Match[str]) -> str:
    if pair["value"][:1] in ("'", '"'):
        return _masked_pair(pair)
    return pair[0]


def _masked_pair(pair: re.Match[str]) -> str:
    name = pair["name"]
    value = pair["value"]
    before = pair["before"]
    read = _number_or_text(value)
    if not is_secret(name, read):
        return pair[0]
    quote = ""
    if value[:1] in "\"'":
        quote = value[:1]
    return f"{before}{quote}{MASK}{quote}"


def _number_or_text(value: str) -> object:
    try:
        return float(value)
    except ValueError:
        return {"true": True, "false": False, "none": None, "null": None}.get(
            value.lower(), value
        )
