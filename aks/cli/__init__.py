"""The command line: ``aks --help``. Each command imports what it needs when it runs."""

from __future__ import annotations

import sys

import typer

from aks.cli.bench import bench
from aks.cli.calibrate import calibrate
from aks.cli.collect import collect
from aks.cli.data import data
from aks.cli.devices import devices
from aks.cli.doctor import doctor
from aks.cli.evaluate import evaluate, report
from aks.cli.export import explain, export
from aks.cli.imports import imports
from aks.cli.stability import stability
from aks.cli.train import train
from aks.core.errors import AksError, MissingExtraError

EXTRAS = {
    "gpu": ("torch", "triton"),
    "train": ("jinja2", "matplotlib", "mlflow", "numpy", "pandas", "pyarrow", "sklearn", "xgboost"),
    "transformers": ("transformers",),
}
"""What each extra of ``pip install 'aks[...]'`` brings that a command may miss."""

app = typer.Typer(
    name="aks",
    help="Pick the fastest GPU kernel for the problem at hand: measure, train, export, explain.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for command in (collect, train, export, evaluate, stability, explain, report, doctor, devices):
    app.command()(command)
app.add_typer(bench, name="bench")
app.add_typer(calibrate, name="calibrate")
app.add_typer(data, name="data")
app.add_typer(imports, name="import")


def main() -> None:
    """Run ``aks`` on ``sys.argv`` and exit: 0 if all went well, 2 with one line on stderr if the input was at fault."""
    try:
        app()
    except AksError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        _fail(_missing_extra(error))


def _fail(error: AksError) -> None:
    print(f"aks: {error}", file=sys.stderr)
    sys.exit(2)


def _missing_extra(error: ModuleNotFoundError) -> MissingExtraError:
    module = (error.name or "").split(".")[0]
    for extra, modules in EXTRAS.items():
        if module in modules:
            return MissingExtraError(
                f"{module!r} is not installed; this command needs the {extra!r} extra: pip install 'aks[{extra}]'"
            )
    raise error
