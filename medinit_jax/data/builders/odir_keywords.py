"""What a doctor's keywords for an eye of OIA-ODIR say: normal or not, and which classes."""

from __future__ import annotations

import re

CLASSES = ("N", "D", "G", "C", "A", "H", "M", "O")
# A keyword that contains one of these names the class; any other disease is O.
_PARTS = {
    "D": ("diabetic retinopathy", "proliferative retinopathy"),
    "G": ("glaucoma",),
    "C": ("cataract",),
    "A": ("macular degeneration",),
    "H": ("hypertensive retinopathy",),
    "M": ("myopi",),
}
_NORMAL, _DUST, NO_FUNDUS = "normal fundus", "lens dust", "anterior segment image"
# These tell of the photograph, not of the eye.
_QUALITY = frozenset(
    {
        _DUST,
        NO_FUNDUS,
        "no fundus image",
        "low image quality",
        "optic disk photographically invisible",
        "image offset",
    }
)


def keywords(text: str) -> list[str]:
    """Returns the keywords of an eye, lower case; the tables separate them by full-width commas."""
    words = (" ".join(word.split()).casefold() for word in re.split("[,，]", text))
    return [word for word in words if word]


def is_normal(text: str) -> bool:
    """Says whether an eye's keywords call it normal: one holds "normal fundus", or dust is all.

    So the rule of the SWCL authors, but whatever the case, the blanks and the kind of comma. A
    keyword as "abnormal fundus" would be called normal, too; the builder notes every such eye.
    """
    words = keywords(text)
    return any(_NORMAL in word for word in words) or words == [_DUST]


def is_normal_by_authors(text: str) -> bool:
    """Says the same as the SWCL authors' code does, letter by letter.

    It minds case and blanks, and separates keywords by the half-width comma only.

    Source: https://github.com/BPYap/SWCL, script/2_preprocess_odir.py.
    """
    return _NORMAL in text or [word.strip() for word in text.split(",")] == [_DUST]


def hidden_normal(text: str) -> str:
    """Returns the first keyword that holds "normal fundus" and says more; "" if there is none."""
    return next((word for word in keywords(text) if _NORMAL in word and word != _NORMAL), "")


def eye_classes(text: str) -> list[int]:
    """Returns which of CLASSES an eye's keywords name.

    Keywords that tell of the photograph name none. So an eye of which nothing else is said has no
    class at all, as in the patients' labels, unless it is called normal.

    Args:
        text: Keywords of one eye.

    Returns:
        8 values 0 or 1 in the order of CLASSES.
    """
    found = {"N"} if is_normal(text) else set()
    for word in keywords(text):
        named = {name for name, parts in _PARTS.items() if any(part in word for part in parts)}
        if not named and _NORMAL not in word and word not in _QUALITY:
            named = {"O"}
        found |= named
    return [int(name in found) for name in CLASSES]
