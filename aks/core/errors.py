"""Every error that aks raises on purpose. Each message says what came, what is wanted, what to do."""


class AksError(Exception):
    """Base of all errors raised by aks; the CLI prints these without a traceback."""


class InvalidProblemError(AksError, ValueError):
    """A problem's axis or attribute is outside what its op accepts."""


class UnknownOpError(AksError, KeyError):
    """No op of that name is in ``aks.ops.OPS``, and it names no kernel of a user's that can be imported."""

    __str__ = Exception.__str__  # KeyError would print the repr of the message


class UnknownDeviceError(AksError, KeyError):
    """No DeviceSpec of that name, and no driver to read one from."""

    __str__ = Exception.__str__


class IllegalConfigError(AksError, ValueError):
    """A config was asked to run on a problem or device whose rules forbid it."""


class KernelError(AksError, ValueError):
    """What was said of a user's own kernel, or a call of it, does not fit the kernel (``aks.adaptive``)."""


class UnsupportedRoutineError(AksError):
    """The vendor's library has no such routine for this problem."""


class FormulaError(AksError, ValueError):
    """A feature or rule formula uses something that Python, numpy and C would not read alike."""


class DataError(AksError, ValueError):
    """A measurement file is missing, empty, truncated, altered or of another schema or space."""


class CollectError(AksError, RuntimeError):
    """Measuring cannot go on: the worker does not start, or race after race brings no result."""


class ArtifactError(AksError, ValueError):
    """An exported tree or manifest is missing, truncated, altered or for another device or space."""


class BenchError(AksError, ValueError):
    """A benchmark was asked for what it cannot measure."""


class GraphError(AksError, ValueError):
    """Graphs of a step were asked for that cannot be, or it was given what it does not take."""


class DriverError(AksError, RuntimeError):
    """The CUDA driver is missing, older than the kernels need, or a call of it failed."""


class MissingExtraError(AksError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def require(module: str, extra: str):
    """Import ``module``, or say which extra installs it.

    Raises
    ------
    MissingExtraError
        If ``module`` is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module!r} is not installed; this command needs the {extra!r} extra: pip install 'aks[{extra}]'"
        ) from error
