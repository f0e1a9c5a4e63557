"""From the command line to one locked configuration, with errors that name the key."""

import difflib
import importlib.util
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from medinit_jax.core.errors import UsageError
from medinit_jax.core.membership import Cluster


class Command(NamedTuple):
    """What a command line asks for.

    Attributes:
        config: the locked configuration, overrides applied.
        workdir: where the run lives.
        cluster: the processes that share the run.
    """

    config: ml_collections.ConfigDict
    workdir: Path
    cluster: Cluster = Cluster()


def read_command_line(argv: Sequence[str], usage: str = "") -> Command:
    """Parses `--config=FILE[:VARIANT] [--config.KEY=VALUE ...] [--workdir=DIR]`, and processes.

    `--config.init=START:PATH` is short for `--config.init.start=START --config.init.path=PATH`.

    The config file's `get_config(argument)` gives the values; then `presets[preset]`, where the
    configuration has these keys; then the overrides of the command line, in their order.

    Args:
        argv: the program's name and its arguments.
        usage: what `--help` prints above the flags.

    Returns:
        The configuration, the workdir and the processes.

    Raises:
        UsageError: anything that is wrong with the command line or the config file.
        SystemExit: after `--help`.
    """
    argv = _spelled_out(argv)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        help_string="the experiment: FILE.py, or FILE.py:VARIANT",
        flag_values=values,
        sys_argv=list(argv),
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "where the run lives; default runs/<config name>[-<variant>]; a second run resumes it",
        flag_values=values,
    )
    _define_cluster(values)
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    if any(re.fullmatch(r"--?(help|h)", argument) for argument in argv):
        print(f"{usage}\n{values}")
        raise SystemExit(0)
    file, variant = _config_file(argv)
    try:
        left = values(list(argv))
    except (flags.Error, KeyError, AttributeError, IndexError) as error:
        raise _explain(error, argv) from error
    if len(left) > 1:
        raise UsageError(f"The argument {left[1]!r} is no flag; write --NAME=VALUE.")
    config = values["config"].value
    _apply_preset(config, config_flags.get_override_values(values["config"]))
    suffix = f"-{variant}" if variant else ""
    workdir = values["workdir"].value or Path("runs") / f"{file.stem}{suffix}"
    cluster = Cluster(
        values["cluster"].value or "",
        values["coordinator"].value or "",
        values["processes"].value,
        values["process"].value,
        values["cluster_timeout"].value or 0,
        values["cluster_heartbeat"].value or 0,
    )
    return Command(config, Path(workdir), cluster)


def _define_cluster(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "cluster",
        "",
        "auto: the run has a process on each host of this TPU VM, or each task of SLURM",
        flag_values=values,
    )
    flags.DEFINE_string(
        "coordinator",
        "",
        "HOST:PORT of process 0, for a run of several processes",
        flag_values=values,
    )
    flags.DEFINE_integer("processes", None, "how many processes there are", flag_values=values)
    flags.DEFINE_integer("process", None, "which of them this is, from 0", flag_values=values)
    flags.DEFINE_integer(
        "cluster_timeout", 300, "seconds in which they have to meet", flag_values=values
    )
    flags.DEFINE_integer(
        "cluster_heartbeat",
        60,
        "seconds without a sign of life after which one is taken for dead, and the run ends",
        flag_values=values,
    )


def unknown_variant(argument: str, known: Iterable[str]) -> UsageError:
    """Returns the error for a config file's `get_config` to raise on an argument it lacks.

    Args:
        argument: what stood after the colon.
        known: the variants there are.

    Returns:
        The error, with the valid names in its sentence.
    """
    names = ", ".join(repr(name) for name in known if name)
    return UsageError(
        f"The config has no variant {argument!r}; write one of {names} after the colon, or none."
    )


def beside(file: str, name: str) -> Any:
    """Returns a config file's neighbor as a module: its `get_config`, and what else it holds.

    Args:
        file: `__file__` of the config file that asks.
        name: the neighbor's name, without ".py".
    """
    path = Path(file).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"_{name}_config", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_stages(config: ml_collections.ConfigDict, known: Sequence[str]) -> tuple[str, ...]:
    """Returns the stages to run, in the order in which they build on each other.

    Args:
        config: `stages` is a tuple of names; `--config.stages=evaluate,report` gives one element
            with a comma, which is split here.
        known: every stage, in order.

    Returns:
        The named stages, each once.

    Raises:
        UsageError: a name that is no stage, or none at all.
    """
    names = [name.strip() for part in config.stages for name in str(part).split(",")]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        what = f"the unknown stage {unknown[0]!r}" if unknown else "no stage"
        raise UsageError(f"config.stages names {what}; use some of {','.join(known)}.")
    return tuple(stage for stage in known if stage in names)


def _spelled_out(argv: Sequence[str]) -> list[str]:
    """Writes the short form of a start as its two keys."""
    found = []
    for argument in argv:
        if match := re.fullmatch(r"(--?config\.init)=([^:]*):?(.*)", argument):
            found += [f"{match[1]}.start={match[2]}", f"{match[1]}.path={match[3]}"]
        else:
            found.append(argument)
    return found


def _config_file(argv: Sequence[str]) -> tuple[Path, str]:
    value = ""
    for i, argument in enumerate(argv):
        if match := re.fullmatch(r"--?config(?:=(.*))?", argument):
            value = match[1] if match[1] is not None else "".join(argv[i + 1 : i + 2])
    if not value:
        raise UsageError("No experiment was named; add --config=FILE.py, or --help for more.")
    name, _, variant = value.partition(":")
    if not Path(name).is_file():
        raise UsageError(f"There is no config file {name}; check the path given with --config=.")
    return Path(name), variant


def _apply_preset(config: ml_collections.ConfigDict, overrides: dict[str, Any]) -> None:
    """Sets the values of `config.presets[config.preset]`, and the command line's over them."""
    if "presets" not in config:
        return
    if config.preset not in config.presets:
        known = ", ".join(sorted(config.presets))
        raise UsageError(f"The config has no preset {config.preset!r}; set it to one of {known}.")
    config.update(config.presets[config.preset])
    config.update_from_flattened_dict(overrides)


def _explain(error: Exception, argv: Sequence[str]) -> UsageError:
    """Turns what the flag parser raised into one sentence."""
    if isinstance(error, flags.Error):
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        detail = lines[0] if len(lines) < 2 else f"{lines[0]} {lines[-1]}"
        return UsageError(f"{detail.rstrip('.:')}; --help shows the flags.")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=[])
    values([argument for argument in argv if not re.match(r"--?(no)?config\.", argument)], True)
    known = _keys(values["config"].value)
    given = [m[1] for argument in argv if (m := re.match(r"--?(?:no)?config\.([^=]+)", argument))]
    unknown = [key for key in given if key not in known]
    if not unknown:
        return UsageError(f"The configuration cannot be read ({error}); check the overrides.")
    key = unknown[0]
    return UsageError(f"The config has no key {key!r}; {_suggest(key, known)}")


def _suggest(key: str, known: Sequence[str]) -> str:
    """Returns the end of a sentence: the keys most like one that is not there, or its neighbors."""
    parent, _, leaf = key.rpartition(".")
    ends = {name: name.rpartition(".") for name in known if not name.startswith("presets.")}
    alike = difflib.get_close_matches(leaf, {end[2] for end in ends.values()}, n=3, cutoff=0.6)
    near = [name for end in alike for name in ends if ends[name][2] == end]
    # Those beside the missing key come first; sorting keeps the order of likeness otherwise.
    near.sort(key=lambda name: ends[name][0] != parent)
    if near:
        return f"did you mean {' or '.join(near[:3])}?"
    while not (beside := [name for name in ends if ends[name][0] == parent]):
        parent = parent.rpartition(".")[0]
    return f"the keys there are {', '.join(beside)}."


def _keys(config: ml_collections.ConfigDict, prefix: str = "") -> list[str]:
    keys = []
    for name, value in config.items():
        keys.append(f"{prefix}{name}")
        if isinstance(value, ml_collections.ConfigDict):
            keys += _keys(value, f"{prefix}{name}.")
    return keys
