"""The command line: arguments, JSON, exit codes; nothing else.

Exit codes: 0 done, 1 not converged or a failed gate, 2 bad usage or input, 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Any

import typer

from collapsar.cli.app import Interrupted, app, program

__all__ = ["app", "main"]

_UsageError: Any = typer.BadParameter.__base__  # click's, or the copy that newer typers carry


def main() -> None:
    """Run the command line; every foreseen error is one line on stderr and an exit code."""
    try:
        code = program()(sys.argv[1:] or ["--help"], standalone_mode=False)
    except _UsageError as error:
        message = error.format_message().replace("Value error, ", "")  # typer's own words for a wrong choice
        command = "collapsar" if error.ctx is None else error.ctx.command_path
        code = _complain(f"{message} (see `{command} --help`)")
    except ModuleNotFoundError as error:
        code = _complain(_missing(error))
    except (ValueError, OSError, ArithmeticError) as error:
        code = _complain(_sentence(error))
    except (Interrupted, KeyboardInterrupt, typer.Abort) as error:
        code = _complain(str(error) or "interrupted", 130)
    except RuntimeError as error:
        from collapsar.solver import NotConvergedError  # here: other outcomes need not pay for the import

        if not isinstance(error, NotConvergedError):
            raise
        code = _complain(str(error), 1)
    sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str, code: int = 2) -> int:
    print(f"collapsar: {' '.join(message.split())}", file=sys.stderr)
    return code


def _sentence(error: Exception) -> str:
    """What went wrong; for a file, its name first."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    return str(error) or type(error).__name__


def _missing(error: ModuleNotFoundError) -> str:
    extras = dict.fromkeys(("torch", "torchmetrics", "sklearn", "safetensors"), "train")
    extras |= dict.fromkeys(("joblib", "dask", "distributed"), "cluster")
    extras |= {"matplotlib": "plot", "jinja2": "report", "onnx": "onnx"}
    extra = extras.get((error.name or "").partition(".")[0])
    return f"this needs `pip install 'collapsar[{extra}]'` ({error.name} is missing)" if extra else str(error)
