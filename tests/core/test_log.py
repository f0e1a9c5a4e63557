import importlib.util
import inspect
import io
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from rich.console import Console

from medinit_jax.core import log


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def clu_interface():
    """clu's abstract class, from its file: importing its package needs TensorFlow."""
    folder = Path(importlib.util.find_spec("clu").submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location(
        "clu_interface", folder / "metric_writers" / "interface.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MetricWriter


def public(cls):
    return {
        name: list(inspect.signature(method).parameters)
        for name, method in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_")
    }


def test_every_writer_has_the_methods_and_arguments_of_clu():
    expected = public(clu_interface())
    assert "write_scalars" in expected and "close" in expected
    for cls in (
        log.MetricWriter,
        log.JsonlWriter,
        log.ConsoleWriter,
        log.TensorBoardWriter,
        log.MultiWriter,
    ):
        assert public(cls) == expected
    for name in expected:
        assert name in vars(log.MultiWriter), f"MultiWriter drops {name}"


def test_jsonl_takes_numbers_of_every_kind_and_is_strict_json(tmp_path):
    writer = log.JsonlWriter(tmp_path / "m.jsonl")
    writer.write_scalars(
        3, {"a": jnp.float32(0.5), "b": np.int64(2), "c": 1.25, "d": float("nan"), "e": np.inf}
    )
    writer.write_texts(4, {"note": "x"})
    writer.close()
    assert read(tmp_path / "m.jsonl") == [
        {"step": 3, "a": 0.5, "b": 2, "c": 1.25, "d": None, "e": None},
        {"step": 4, "note": "x"},
    ]


def test_a_line_is_on_disk_before_the_writer_is_closed(tmp_path):
    writer = log.JsonlWriter(tmp_path / "m.jsonl")
    writer.write_scalars(1, {"a": 1})
    assert read(tmp_path / "m.jsonl") == [{"step": 1, "a": 1}]
    writer.close()


def test_resuming_drops_later_lines_and_a_line_cut_short(tmp_path):
    path = tmp_path / "m.jsonl"
    lines = [json.dumps({"step": step, "loss": step / 2}) for step in (10, 20, 30)]
    path.write_text("\n".join(lines) + '\n{"step": 4')
    writer = log.JsonlWriter(path, resume_step=20)
    writer.write_scalars(30, {"loss": 9})
    writer.close()
    assert [(line["step"], line["loss"]) for line in read(path)] == [(10, 5), (20, 10), (30, 9)]


def test_without_a_resume_step_every_line_stays(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 9}\n')
    log.JsonlWriter(path).close()
    assert read(path) == [{"step": 9}]


def test_all_three_are_written(tmp_path):
    console = Console(file=io.StringIO(), width=20)
    writer = log.create_writer(tmp_path, console)
    writer.write_hparams({"seed": 1})
    writer.write_scalars(7, {"loss": 0.123456, "accuracy": 0.5})
    writer.write_texts(8, {"skipped_step": "step 7 [architecture 12]"})
    writer.write_histograms(8, {"theta": np.arange(5.0)}, {"theta": 3})
    writer.write_histograms(8, {"theta2": np.arange(5.0)})
    writer.write_images(8, {"views": np.zeros((2, 4, 4, 3), np.uint8)})
    writer.write_images(8, {"view": np.zeros((4, 4, 3), np.uint8)})
    writer.write_videos(8, {"v": np.zeros((1, 2, 4, 4, 3), np.uint8)})
    writer.write_audios(8, {"a": np.zeros((1, 8, 1))}, sample_rate=8)
    writer.write_summaries(8, {"s": np.zeros(2)})
    writer.flush()
    writer.close()
    text = console.file.getvalue()
    assert "step 7  loss 0.1235  accuracy 0.5\n" in text
    assert "step 8  skipped_step: step 7 [architecture 12]\n" in text
    assert len(read(tmp_path / "metrics.jsonl")) == 2
    (events,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    assert events.stat().st_size > 500
