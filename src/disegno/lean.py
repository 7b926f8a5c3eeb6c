"""Diffusers' nets, opened without the libraries that it would open beside them: a picture comes seconds sooner.

A net is torch alone. With it diffusers opens whatever is installed of transformers, peft, accelerate and scipy, and
torch's compiler: 1,800 modules, more than half of the time of a small picture. In a process that is the program's own
they are not there while diffusers is opened, which it is made for (they are optional to it), and are there again
afterwards for those who want them, as a model with CLIP does (docs/decisions/0005-diffusers-is-opened-alone.md).
"""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any, cast

NETS = ("autoencoders.autoencoder_kl", "controlnets.controlnet", "unets.unet_2d_condition")
PACKAGES = ("autoencoders", "controlnets", "transformers", "unets")  # each opens all of its modules when it is opened
OPTIONAL = ("peft", "transformers", "accelerate", "scipy", "torch._dynamo")


def open_nets() -> None:
    """Open diffusers' nets alone, once: diffusers' pipelines are not in this process then. For the program's own."""
    if "diffusers" in sys.modules:
        return
    import torch

    with _absent(OPTIONAL), _uncompiled(torch.compiler), _unlisted():
        try:
            with _hollow(PACKAGES):
                _open()
        except ImportError:  # a diffusers in which a module wants more of a package than that
            _open()


def _open() -> None:
    for name in NETS:
        import_module(f"diffusers.models.{name}")


@contextmanager
def _absent(names: tuple[str, ...]) -> Generator[None]:
    """Within, modules that are not open cannot be found: None is Python's own sign of that."""
    modules = cast(dict[str, ModuleType | None], sys.modules)
    hidden = [name for name in names if name not in modules]
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]


@contextmanager
def _uncompiled(compiler: Any) -> Generator[None]:
    """Within, `torch.compiler.disable` marks nothing: to mark a function it opens the compiler, which is not used."""
    kept = compiler.disable
    compiler.disable = _unmarked
    try:
        yield
    finally:
        compiler.disable = kept


@contextmanager
def _unlisted() -> Generator[None]:
    """Within, nobody knows which registry's package a module is of: to know it, the files of all packages are read."""
    kept = metadata.packages_distributions
    metadata.packages_distributions = dict
    try:
        yield
    finally:
        metadata.packages_distributions = kept


@contextmanager
def _hollow(names: tuple[str, ...]) -> Generator[None]:
    """Within, these packages of diffusers' models give the modules that are asked for, and open no others.

    Afterwards they are opened whole by who wants them; modules that are open already stay what they are.
    """
    models = import_module("diffusers.models")
    hollow = {f"{models.__name__}.{name}": ModuleType(f"{models.__name__}.{name}") for name in names}
    for name, package in hollow.items():
        package.__path__ = [str(Path(models.__path__[0]) / name.rpartition(".")[2])]
    sys.modules.update(hollow)
    try:
        yield
    finally:
        for name, package in hollow.items():
            if sys.modules.get(name) is package:
                del sys.modules[name]
            if vars(models).get(name.rpartition(".")[2]) is package:
                delattr(models, name.rpartition(".")[2])


def _unmarked(fn: Callable[..., Any] | None = None, *_: object, **__: object) -> Callable[..., Any]:
    return fn if fn is not None else lambda each: each
