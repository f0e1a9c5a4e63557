"""HTML and SVG as nested calls: text is escaped unless it was made here."""

import html
import math
from collections.abc import Iterable
from typing import Any, TypeGuard

_VOID = frozenset({"br", "col", "hr", "img", "link", "meta"})
_SVG_LEAVES = frozenset({"circle", "line", "path", "polygon", "polyline", "rect", "use"})
DASH = "–"


class Html(str):
    """Text that is markup already; every other string is escaped when it enters a page."""

    __slots__ = ()


def element(name: str, /, *children: Any, **attributes: Any) -> Html:
    """Make one element.

    Args:
        name: tag name.
        *children: `Html` is kept, other text is escaped, None is left out, lists are flattened.
        **attributes: a trailing underscore is dropped (`class_`), other underscores become
            hyphens; None leaves the attribute out.

    Returns:
        The markup.
    """
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{text}>")
    inner = join(children)
    if name in _SVG_LEAVES and not inner:
        return Html(f"<{name}{text}/>")
    return Html(f"<{name}{text}>{inner}</{name}>")


def join(children: Iterable[Any]) -> Html:
    """Join children as `element` does, without an element around them."""
    parts = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, (list, tuple)):
            parts.append(join(child))
        else:
            parts.append(html.escape(str(child), quote=False))
    return Html("".join(parts))


def is_number(value: Any) -> TypeGuard[float]:
    """Tell whether a value is a finite number and not a boolean."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def fixed(value: Any, digits: int = 3) -> str:
    """A number with fixed digits and a true minus sign; a dash for what is no finite number."""
    return f"{value:.{digits}f}".replace("-", "−") if is_number(value) else DASH


def signed(value: Any, digits: int = 3) -> str:
    """As `fixed`, with a plus sign; what would round to zero gets one digit more."""
    text = fixed(value, digits)
    if text == DASH:
        return text
    if float(text.lstrip("−")) == 0:
        text = fixed(value, digits + 1)
        if float(text.lstrip("−")) == 0:
            return fixed(0.0, digits)
    return text if text.startswith("−") else f"+{text}"


def count(value: Any) -> str:
    """A whole number with thousands set apart; a dash for what is no finite number."""
    return f"{round(value):,}".replace(",", "\u202f") if is_number(value) else DASH


def percent(value: Any) -> str:
    """A share as a percentage, such as 2 % or 12.5 %."""
    return f"{100 * value:.6g}\u00a0%" if is_number(value) else DASH


def spread(mean: Any, sd: Any, digits: int = 3) -> str:
    """Mean and deviation, such as 0.842 ± 0.011; the mean alone where there is no deviation."""
    return fixed(mean, digits) + (f"\u00a0±\u00a0{fixed(sd, digits)}" if is_number(sd) else "")


def duration(seconds: Any) -> str:
    """Seconds in the two units that a reader wants, such as 6 min 12 s."""
    if not is_number(seconds):
        return DASH
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f}\u00a0s"
    if whole < 3600:
        return f"{whole // 60}\u00a0min {whole % 60}\u00a0s"
    return f"{whole // 3600}\u00a0h {whole % 3600 // 60}\u00a0min"


def _plain(value: Any) -> str:
    """Attribute text; coordinates are rounded to a tenth of a pixel or less."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
