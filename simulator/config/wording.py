"""How messages say things: shortened values, the nearest name, lists of choices."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_MAX_SHOWN = 40
_MAX_DIGITS = 24
_MAX_COMPARED = 60  # difflib takes the product of both lengths
_MAX_CHOICES = 40


def shortened(text: str, limit: int = _MAX_SHOWN) -> str:
    """Returns `text` on one line, cut in the middle of nowhere if long, with the number of digits of a long number."""
    digits = text.lstrip("+-")
    if len(digits) > _MAX_DIGITS and digits[:1000].replace("_", "").isdecimal():
        return f"{text[:12]}… ({len(digits):,} digits)"
    line = "".join(letter if letter.isprintable() else " " for letter in text[: limit + 1])
    return line if len(line) <= limit else f"{line[:limit]}…"


def nearest(word: str, options: Iterable[str]) -> str | None:
    """Returns the option that `word` was probably meant to be, None if none is near."""
    names = {option.lower().replace("-", "_"): option for option in options}
    wanted = word[:_MAX_COMPARED].lower().replace("-", "_")
    if wanted in names:
        return names[wanted]
    matches = difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)
    return names[matches[0]] if matches else None


def listed(options: Sequence[str]) -> str:
    """Returns `a, b, c`, cut after forty."""
    more = f", … ({len(options) - _MAX_CHOICES} more)" if len(options) > _MAX_CHOICES else ""
    return ", ".join(options[:_MAX_CHOICES]) + more


def alternatives(phrases: Sequence[str]) -> str:
    """Returns `a, b or c`, without repeats."""
    unique = list(dict.fromkeys(phrases))
    if len(unique) < 2:
        return "".join(unique)
    return f"{', '.join(unique[:-1])} or {unique[-1]}"
