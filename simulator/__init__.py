"""Simulates a training step of very large transformers on modelled clusters: memory, communication, time.

The names below are loaded when they are first used, so that `shardsim --help` answers at once.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from simulator.version import VERSION

if TYPE_CHECKING:
    from simulator.compare import compare
    from simulator.config.scenario import Scenario, read_scenario, read_variants
    from simulator.errors import ScenarioError
    from simulator.report.result import Report
    from simulator.simulate import evaluate_memory, simulate

__version__ = VERSION
__all__ = [
    "Report",
    "Scenario",
    "ScenarioError",
    "__version__",
    "compare",
    "evaluate_memory",
    "read_scenario",
    "read_variants",
    "simulate",
]


class _Lazy:
    """A public name, loaded from its module when used.

    A data descriptor rather than `__getattr__`, as the modules `simulate` and `compare` bear the names of their
    functions: importing such a module sets it as an attribute of the package, which must go on being the function.
    """

    def __init__(self, module: str) -> None:
        self.module = module
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, package: ModuleType | None, owner: type) -> Any:
        return self if package is None else getattr(importlib.import_module(self.module), self.name)

    def __set__(self, package: ModuleType, value: object) -> None:
        """Ignores the submodule that the import system sets."""


class _Package(ModuleType):
    """This package, with its lazy names."""

    if not TYPE_CHECKING:
        Report = _Lazy("simulator.report.result")
        Scenario = _Lazy("simulator.config.scenario")
        ScenarioError = _Lazy("simulator.errors")
        compare = _Lazy("simulator.compare")
        evaluate_memory = _Lazy("simulator.simulate")
        read_scenario = _Lazy("simulator.config.scenario")
        read_variants = _Lazy("simulator.config.scenario")
        simulate = _Lazy("simulator.simulate")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *__all__]


sys.modules[__name__].__class__ = _Package
