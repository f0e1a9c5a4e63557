"""Writes the API reference of the public names, from their docstrings; needs the docs extra.

    pip install -e '.[docs,torch]'
    python docs/reference.py build/api

and open build/api/index.html. A public name without a docstring, or a warning of pdoc, is an error.
"""

import importlib
import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.doc

MODULES = (
    # What `medinit_jax.load` and the other names of the package itself are.
    "medinit_jax.api",
    "medinit_jax.interop.torch",
    "medinit_jax.interop.torch_command",
    "medinit_jax.hyper.written",
    "medinit_jax.models.zoo",
    "medinit_jax.models.statistics",
    "medinit_jax.data.phantoms",
    "medinit_jax.core.errors",
    "medinit_jax.main",
    "medinit_jax.release",
)


def missing() -> list[str]:
    """Returns the public functions and classes that have no docstring."""
    return [
        member.fullname
        for name in MODULES
        for member in pdoc.doc.Module(importlib.import_module(name)).flattened_own_members
        if isinstance(member, pdoc.doc.Function | pdoc.doc.Class)
        and not member.name.startswith("_")
        and not member.docstring
    ]


def main() -> int:
    """Runs the command line."""
    if len(sys.argv) != 2:
        print("Name the folder to be written, such as build/api.", file=sys.stderr)
        return 2
    pdoc.render.configure(docformat="google", show_source=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # A NamedTuple's constructor does not know the module that it was written in.
        unresolved = r"Error parsing type annotation ForwardRef\(.*\.__init__\."
        warnings.filterwarnings("ignore", unresolved)
        bare = missing()
        pdoc.pdoc(*MODULES, output_directory=Path(sys.argv[1]))
    if bare:
        print(f"Without a docstring: {', '.join(bare)}.", file=sys.stderr)
    return 1 if bare else 0


if __name__ == "__main__":
    sys.exit(main())
