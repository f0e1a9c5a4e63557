"""A PyTorch model initialized from the command line, without a line of code.

    medinit-torch my_models:make_unet --initializer=medinit-fundus --example=2,3,64,64 --out=start.safetensors
    medinit-torch networks/unet.py:make_unet --initializer=runs/hyper --example=2,3,64,64 --out=start.pt

What stands before the colon is a module that Python finds from here, or a file; what stands behind
it is called without arguments and returns the model. The state_dict, buffers included, is written
as .safetensors or, by torch.save, as .pt or .pth; what became of every parameter is printed. The
same as `python -m medinit_jax.interop.torch_command`. Exit codes: 0 done, 2 something to put right
(a sentence on stderr).
"""  # noqa: E501

# Without torch a type checker takes the file torch.py beside this one for it.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medinit_jax.core import command
from medinit_jax.core.errors import UsageError
from medinit_jax.core.workdir import share

FORMATS = (".safetensors", ".pt", ".pth")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: The arguments; None = those of the process.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(argv)
    return command.exit_code(lambda: run(options), "Stopped; say the same command again.")


def run(options: argparse.Namespace) -> None:
    """Makes a model, initializes it and writes its state_dict.

    Args:
        options: Those of the command line.

    Raises:
        UsageError: The factory, the example, the initializer or the file is not what it should be.
    """
    # All that needs no model is looked at first: making one may take minutes.
    out, shapes = _target(options.out), [_shape(text) for text in options.example]
    from medinit_jax.api import load
    from medinit_jax.interop.torch import initialize, torch

    initializer = load(options.initializer, options.modality)
    model = made(options.factory, options.seed)
    # In the model's own precision and place, whatever the factory chose.
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
    example = tuple(torch.zeros(s, dtype=first.dtype, device=first.device) for s in shapes)
    print(
        initialize(
            model,
            example,
            initializer,
            head=options.head,
            only=options.only,
            on_unknown=options.on_unknown,
            unknown_types=options.unknown_types,
        )
    )
    _write(model, out)
    print(f"Written: {out}")


def made(factory: str, seed: int) -> Any:
    """Returns what the user's factory makes.

    Args:
        factory: `MODULE:FUNCTION` or `FILE.py:FUNCTION`.
        seed: Of PyTorch's generator when it is called.

    Returns:
        A `torch.nn.Module`.

    Raises:
        UsageError: There is no such function, it fails, or it returns something else or a model
            without parameters.
    """
    import torch

    place, _, name = factory.rpartition(":")
    if not place or not name:
        raise UsageError(
            f"{factory!r} does not name a factory; write MODULE:FUNCTION or FILE.py:FUNCTION."
        )
    module = _imported(place)
    function: Any = module
    for part in name.split("."):
        if not hasattr(function, part):
            raise UsageError(f"{place} has no {name}; name a function in it that returns a model.")
        function = getattr(function, part)
    if isinstance(function, torch.nn.Module):
        raise UsageError(
            f"{factory} is a model already; name a function or class that makes one, so that every "
            "call begins anew."
        )
    if not callable(function):
        raise UsageError(
            f"{factory} is of type {type(function).__name__} and cannot be called; name a function "
            "or class that makes a model."
        )
    # Only now: importing may draw numbers too, and happens once in a process.
    torch.manual_seed(seed)
    try:
        model = function()
    # Whatever the user's code raises, the sentence has to say where.
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"{factory}() failed: {_told(error)}; it is called without arguments."
        ) from error
    if not isinstance(model, torch.nn.Module):
        raise UsageError(
            f"{factory}() returned a {type(model).__name__}; it has to return a torch.nn.Module."
        )
    if next(model.parameters(), None) is None:
        raise UsageError(
            f"{factory}() returned a {type(model).__name__} without parameters, of which there is "
            "nothing to initialize; name a function that makes a model with layers."
        )
    return model


def _imported(place: str) -> Any:
    """Imports the user's module, from a file or by its name."""
    here = os.getcwd()
    if here not in sys.path:
        # A console script, other than `python -m`, does not search the current folder.
        sys.path.insert(0, here)
    file = Path(place)
    try:
        if place.endswith(".py"):
            if not file.is_file():
                raise UsageError(f"There is no file {file}; name the file that makes the model.")
            # Its neighbors can be imported from it, as when it is run.
            sys.path.insert(0, str(file.resolve().parent))
            spec = importlib.util.spec_from_file_location(file.stem, file)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(file.stem, module)
            spec.loader.exec_module(module)
            return module
        return importlib.import_module(place)
    except UsageError:
        raise
    # A script that reads a command line ends the process where it cannot.
    except (Exception, SystemExit) as error:
        remedy = "name a module that Python finds from this folder, or a file as path/name.py"
        if not (isinstance(error, ModuleNotFoundError) and error.name == place.partition(".")[0]):
            remedy = "put that right first"
        raise UsageError(f"{place} cannot be imported: {_told(error)}; {remedy}.") from error


def _told(error: BaseException) -> str:
    line = next(iter(str(error).strip().splitlines()), "").rstrip(".")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            f"--example={text} is no shape; write whole numbers above 0 with commas between them, "
            "batch first, such as 2,3,64,64."
        )
    return tuple(int(part) for part in parts)


def _target(text: str) -> Path:
    out = Path(text)
    if out.suffix not in FORMATS:
        raise UsageError(f"--out={text} is of no known kind; end it in {', '.join(FORMATS)}.")
    if out.exists():
        raise UsageError(f"{out} is there already; remove it or write to another file.")
    if not out.parent.is_dir():
        raise UsageError(f"There is no folder {out.parent}; make it first.")
    return out


def _write(model: Any, out: Path) -> None:
    """Writes a state_dict whole or not at all."""
    import torch
    from safetensors.torch import save_model

    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        if out.suffix == ".safetensors":
            # Tied parameters are written once; safetensors.torch.load_model knows them.
            save_model(model, str(partial))
        else:
            torch.save(model.state_dict(), partial)
        share(partial)
        os.replace(partial, out)
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"{out} cannot be written ({_told(error)}); write to another place, or end it in .pt."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "medinit-torch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("factory", help="MODULE:FUNCTION or FILE.py:FUNCTION; called without arguments")
    add("--initializer", required=True, help="a folder, a workdir, a .zip, or an installed name")
    add(
        "--example",
        required=True,
        action="append",
        help="shape of the input, batch first, such as 2,3,64,64; once for every input",
    )
    add("--out", required=True, help=f"the file to be written, {', '.join(FORMATS)}")
    add("--modality", default="", help="refuse an initializer of other images (default: take any)")
    add("--only", default="", help="the part of the model to predict (default: all)")
    add("--head", action="store_true", help="predict the classifier too")
    add(
        "--on-unknown",
        choices=("fallback", "error"),
        default="fallback",
        help="what becomes of parameters without a rule (default: fallback, their own values)",
    )
    add(
        "--unknown-types",
        choices=("error", "nearest"),
        default="error",
        help="what becomes of layers that the initializer was not made for (default: error)",
    )
    add("--seed", type=int, default=0, help="of the model's own initialization (default: 0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
