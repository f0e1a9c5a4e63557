"""What the page of each study is about: its title, the start under test, its figures."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Kind(NamedTuple):
    """What a study shows.

    Attributes:
        title: Of the page.
        main: The start under test.
        subject: The same at the beginning of a sentence.
        beforehand: What was trained for the starts, once, with the first seed.
        figure: What is drawn.
        judged: Where the paper's figures are from: test images, or those of validation.
    """

    title: str
    main: str
    subject: str
    beforehand: str
    figure: Literal["convergence", "epochs", "shares", "maps", "differences"]
    judged: Literal["test", "validation"] = "test"


_HYPER = ("hyper", "The hyper-initializer", "hypernetwork, rotation network")
_SWCL = ("swcl", "SWCL", "labeler, patches, encoder")

KINDS: dict[str, Kind] = {
    "hyper_table2": Kind("Table 2: fine-tuning from every start", *_HYPER, "convergence"),
    "hyper_fig2": Kind("Figure 2: shares of labels", *_HYPER, "shares"),
    "hyper_fig3": Kind("Figure 3: class activation maps by epoch", *_HYPER, "maps"),
    "hyper_fig4": Kind("Figure 4: convergence", *_HYPER, "epochs"),
    "swcl_table2": Kind("Table II: seven tasks from every start", *_SWCL, "differences"),
    "swcl_table3": Kind(
        "Table III: thresholds, and labels taken away", *_SWCL, "differences", "validation"
    ),
    "swcl_compare": Kind("A share of the labels, from five starts", *_SWCL, "convergence"),
    "swcl_chain": Kind("SWCL from its labeler to one task", *_SWCL, "convergence"),
}
# From so many starts on a table has a line per start instead of a column.
MANY = 6
