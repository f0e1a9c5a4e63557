"""The page holds every number, loads nothing, is well formed and survives what is missing."""

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.report import write_report
from medinit_jax.report.markup import percent

VOID = {"br", "col", "hr", "img", "link", "meta"}


class Balance(HTMLParser):
    """Checks that tags close in order, and collects text, tags and addresses."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.text, self.tags, self.addresses = [], [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action")]
        assert len({k for k, _ in attrs}) == len(attrs), (tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data):
        self.text.append(data)


def parsed(path) -> Balance:
    parser = Balance()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    assert parser.open == []
    return parser


def numbers_of(value, key=""):
    """Every number of a nested value, with the key it stands under."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from numbers_of(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from numbers_of(item, key)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield key, value


def test_page_holds_every_number_of_the_summary(workdir):
    path = write_report(workdir)
    assert path == workdir / "report.html"
    page = parsed(path)
    text = " ".join(t for t in page.text).replace("\u202f", "").replace("−", "-")
    tokens = set(re.findall(r"-?\d+(?:\.\d+)?", text))
    summary = json.loads((workdir / "summary.json").read_text())
    checked = 0
    for key, value in numbers_of(summary):
        forms = {f"{value:.3f}", f"{value:g}", f"{value:.6g}", f"{value:.1f}"}
        if key == "fraction":
            forms = {percent(value).split("\u00a0")[0]}
        elif isinstance(value, int):
            forms = {str(value)}
        elif key not in ("seconds", "learning_rate", "depth", "chance", "ridge"):
            forms = {f"{value:.3f}"}
        assert forms & tokens, (key, value)
        checked += 1
    assert checked > 350
    for text_value in ("python -m medinit_jax.main --config=configs/hyper.py", "0.1.0 (4b1d2c9)"):
        assert text_value in text


def test_page_is_self_contained(workdir):
    source = write_report(workdir).read_text()
    page = parsed(workdir / "report.html")
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert page.addresses and all(a.startswith("data:image/png;base64,") for a in page.addresses)
    assert "http:" not in source and "https:" not in source
    assert "@import" not in source and "url(" not in source and "@font-face" not in source
    assert len(source) < 2_000_000


def test_report_is_reproducible_and_leaves_no_other_file(workdir):
    before = {p.name for p in workdir.iterdir()}
    first = write_report(workdir).read_bytes()
    assert write_report(workdir).read_bytes() == first
    assert {p.name for p in workdir.iterdir()} == before | {"report.html"}


def test_every_section_is_drawn(workdir):
    page = parsed(write_report(workdir))
    text = " ".join(page.text)
    assert "ot run in this workdir" not in text
    for words in ("left chance at step 640", "Paired differences in test AUC", "who rises early",
                  "Rotation accuracy by split", "resnet18, 10\u00a0% of the labels",
                  "weight tensor, input to output", "180°", "theta_sha256", "pretext.hard",
                  "drawn by a program"):  # fmt: skip
        assert words in text, words


def test_hostile_names_are_escaped(tmp_path, made_up):
    attack = "<script>alert('x')</script>\"><img src=x onerror=y>&amp;"
    content = made_up.summary(networks=(attack,))
    content["rotation_accuracy"][attack] = dict(content["rotation_accuracy"]["val"])
    content["provenance"][attack] = attack
    content["provenance"]["command"] = attack
    content["notes"] = [attack]
    content[attack] = {attack: 1}
    content["probe"][0]["start"] = attack
    content["finetune"][0]["start"] = attack
    folder = made_up.write(tmp_path / "run", content)
    (folder / "parameters.json").write_text(
        json.dumps({attack: [{"name": attack, "shape": [3, 3], "hyper": {"std": 0.1}}]})
    )
    (folder / "config.json").write_text(json.dumps({attack: {attack: attack}}))
    path = write_report(folder)
    page = parsed(path)
    assert "script" not in page.tags
    assert all(a.startswith("data:image/png") for a in page.addresses)
    assert "<script" not in path.read_text() and "<img src=x" not in path.read_text()
    assert "".join(page.text).count(attack) > 8


@pytest.mark.parametrize(
    "keys", [(), ("train",), ("rotation_accuracy",), ("probe",), ("finetune",)]
)
def test_missing_parts_are_named(tmp_path, made_up, keys):
    whole = made_up.summary()
    folder = made_up.write(tmp_path / "part", {k: whole[k] for k in keys}, whole=False)
    text = " ".join(parsed(write_report(folder)).text)
    assert text.count("ot run in this workdir") >= 6


def test_missing_summary_is_a_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"summary\.json is missing.*evaluate"):
        write_report(tmp_path)
    (tmp_path / "summary.json").write_text('{"train": ')
    with pytest.raises(UsageError, match="JSON object"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_broken_side_files_are_remarked_not_raised(workdir):
    (workdir / "samples.npz").write_bytes((workdir / "samples.npz").read_bytes()[:500])
    (workdir / "parameters.json").write_text("{")
    with (workdir / "metrics.jsonl").open("a") as log:
        log.write('{"step": 9')
    text = " ".join(parsed(write_report(workdir)).text)
    assert "samples.npz could not be read" in text
    assert "parameters.json could not be read" in text
    assert "Lines of metrics.jsonl that could not be read and are left out: 1" in text


def test_a_run_at_chance_says_so_before_any_figure(tmp_path, made_up):
    content = made_up.summary(takeoff=None)
    content["rotation_accuracy"]["val"]["mean"] = 0.262
    path = write_report(made_up.write(tmp_path / "chance", content))
    text = " ".join(parsed(path).text)
    alarm = text.index("did not leave chance: rotation accuracy 0.262")
    assert alarm < text.index("What the start is worth")
    assert "never left its plateau" in text


def test_a_ridge_that_is_not_beaten_is_a_limit(tmp_path, made_up):
    content = made_up.summary()
    content["rotation_accuracy"]["ridge"] = 0.98
    text = " ".join(parsed(write_report(made_up.write(tmp_path / "r", content))).text)
    assert "do not exceed ridge regression" in text


def test_one_seed_and_gaps(tmp_path, made_up):
    content = made_up.summary(seeds=1)
    content["finetune"][1]["mean"][3] = None
    content["finetune"][2]["seeds"] = []
    content["finetune"][3]["mean"] = [math.nan] * 10
    content["probe"][0]["mean"] = None
    text = " ".join(parsed(write_report(made_up.write(tmp_path / "one", content))).text)
    assert "nothing can be claimed" in text


def test_full_study_with_many_panels(tmp_path, made_up):
    content = made_up.summary(("resnet18", "val/0"), (0.02, 0.1, 1.0), 5, 30, 50)
    text = " ".join(parsed(write_report(made_up.write(tmp_path / "full", content))).text)
    for network in ("resnet18", "val/0"):
        for share in ("2", "10", "100"):
            assert f"{network}, {share}\u00a0% of the labels" in text
    assert "6 of 6" in text


def test_views_without_their_own_axis_and_float_images(workdir):
    images = np.random.default_rng(0).random((3, 8, 8, 3)).astype(np.float32)
    np.savez(workdir / "samples.npz", images=images, views=images, targets=np.array([0, 1, 9]))
    page = parsed(write_report(workdir))
    assert len(page.addresses) == 6 and "90°" in page.text
