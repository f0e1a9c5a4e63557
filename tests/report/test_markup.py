"""Escaping, number formats, and the style sheet's contrast."""

import math
import re

import pytest

from medinit_jax.report.markup import (
    DASH,
    Html,
    count,
    duration,
    element,
    fixed,
    join,
    percent,
    signed,
    spread,
)
from medinit_jax.report.style import CSS


def test_text_and_attributes_are_escaped_and_markup_is_kept():
    assert element("p", "a < b & c") == "<p>a &lt; b &amp; c</p>"
    assert element("p", element("b", "x"), Html("<i>y</i>")) == "<p><b>x</b><i>y</i></p>"
    assert element("a", title='"><script>') == '<a title="&quot;&gt;&lt;script&gt;"></a>'
    assert join(["<", None, [Html("<br>"), "é"]]) == "&lt;<br>é"


def test_attribute_names_and_void_elements():
    made = element("path", class_="x", stroke_width=1.5, viewBox="0 0 1 1", id=None)
    assert made == '<path class="x" stroke-width="1.5" viewBox="0 0 1 1"/>'
    assert element("img", src="a") == '<img src="a">'
    assert element("td") == "<td></td>"
    assert element("circle", element("title", "t")) == "<circle><title>t</title></circle>"
    assert element("rect", x=12.3456, y=3.0) == '<rect x="12.35" y="3"/>'


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (fixed(0.84249), "0.842"),
        (fixed(-0.5, 1), "−0.5"),
        (fixed(math.nan), DASH),
        (fixed(None), DASH),
        (fixed(True), DASH),
        (signed(0.0344), "+0.034"),
        (signed(-0.0344), "−0.034"),
        (signed(-0.0002), "−0.0002"),
        (signed(-1e-9), "0.000"),
        (signed(0.0), "0.000"),
        (count(8400), "8\u202f400"),
        (percent(0.02), "2\u00a0%"),
        (percent(0.125), "12.5\u00a0%"),
        (spread(0.8, 0.01, 2), "0.80\u00a0±\u00a00.01"),
        (spread(0.8, None), "0.800"),
        (duration(12.34), "12.3\u00a0s"),
        (duration(437.6), "7\u00a0min 18\u00a0s"),
        (duration(7300), "2\u00a0h 1\u00a0min"),
    ],
)
def test_formats(made, wanted):
    assert made == wanted


def _luminance(color: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_text_color_stands_out_in_light_and_dark():
    schemes = re.findall(r":root \{(.*?)\}", CSS, re.S)
    assert len(schemes) == 2
    for scheme in schemes:
        colors = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", scheme))
        pairs = [
            (colors[name], colors["ground"])
            for name in colors.keys() - {"ground", "sheet", "rule", "alarm", "alarm-ground"}
        ]
        assert len(pairs) == 12
        for color, ground in [*pairs, (colors["alarm"], colors["alarm-ground"])]:
            light, dark = sorted((_luminance(color), _luminance(ground)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (color, ground)
