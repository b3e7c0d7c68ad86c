"""The kernels against torch and against what the memory allows. A kernel that disagrees with its reference is an error, not a number."""

# mypy: disable-error-code="import-untyped"

import csv
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dispatch_rl import cli
from dispatch_rl.errors import UserError, first_line
from dispatch_rl.text_table import text_table

if TYPE_CHECKING:
    from dispatch_rl.bench.case import Case

Row = dict[str, Any]
_QUANTILES = [0.5, 0.2, 0.8]
HEADER = ("operation", "by", "rows", "median us", "20 - 80 %", "floor us", "of the bandwidth", "speed-up")


@dataclass(frozen=True)
class KernelBenchConfig:
    """Medians of every operation by kernel, torch and torch.compile, beside the floor: bytes over the measured copy bandwidth."""

    many_rows: int = 4_096
    """Rows of the large case, as in recording."""
    few_rows: int = 6
    """Rows of the small cases: a draft of five and one more."""
    vocab: int = 152_064
    """Columns."""
    compile: bool = True
    """Also measure torch.compile, which takes a minute to compile."""
    csv: Path | None = None
    """File for the rows as CSV; null means kernels-<GPU>.csv in this folder."""
    json: Path | None = None
    """Also write the rows to this file."""

    def __post_init__(self) -> None:
        for key, least in (("many_rows", 1), ("few_rows", 2), ("vocab", 64)):
            if getattr(self, key) < least:
                raise UserError(f"{key}: {getattr(self, key)} is not at least {least}")


def check_in_interpreter() -> None:
    """See, without a GPU, that every kernel agrees with its reference on small inputs.

    Raises:
        UserError: One does not.
    """
    import numpy as np
    import torch

    from dispatch_rl.bench.kernel_cases import make_cases
    from dispatch_rl.kernels.operations import kernels

    # Rows that pad a tile are empty, and the interpreter's numpy warns of what is computed of them.
    with np.errstate(all="ignore"):
        for case in make_cases(kernels(), torch.device("cpu"), many=260, few=3, vocab=1_031, compiled=False, lengths=(33, 70)):
            case.check()


def bench_kernels(config: KernelBenchConfig) -> list[Row]:
    """Check every case, then measure it, and return a row for each case and provider.

    Raises:
        UserError: There is no GPU, or a kernel disagrees with its reference.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
        check_in_interpreter()
        raise UserError(
            "bench kernels: the kernels agree with their references in Triton's interpreter; speed needs a GPU, and there is none"
        )
    from dispatch_rl.bandwidth import copy_bandwidth
    from dispatch_rl.bench.kernel_cases import make_cases
    from dispatch_rl.kernels.operations import kernels

    cases = make_cases(kernels(), torch.device("cuda"), config.many_rows, config.few_rows, config.vocab, config.compile)
    for case in cases:
        case.check()
    bandwidth = copy_bandwidth(torch.device("cuda"))
    return [row for case in cases for row in measure(case, bandwidth, torch.cuda.get_device_name())]


def measure(case: "Case", bandwidth: float, device: str) -> list[Row]:
    """Return a row for every provider that can be measured; the speed-up is over torch eager."""
    from dispatch_rl.bench.case import EAGER

    times = {}
    for name, run in case.providers.items():
        try:
            times[name] = _timed(run, case.by_graph and name != EAGER, case.calls)
        except Exception as error:
            if name == EAGER:
                raise
            print(f"{case.operation} by {name}: {type(error).__name__}: {first_line(error)}; not measured", file=sys.stderr)
    floor_us = 1e6 * case.moved_bytes / bandwidth
    return [
        {
            "operation": case.operation,
            "provider": name,
            "rows": case.rows,
            "columns": case.columns,
            "dtype": "bfloat16",
            "timing": "graph replay" if case.by_graph and name != EAGER else "launches",
            "median_us": median,
            "p20_us": low,
            "p80_us": high,
            "floor_us": floor_us,
            "bandwidth_share": floor_us / median,
            "speedup": times[EAGER][0] / median,
            "copy_gb_per_s": bandwidth / 1e9,
            "device": device,
            **_versions(),
        }
        for name, (median, low, high) in times.items()
    ]


def _timed(run: Callable[[], Any], by_graph: bool, calls: int) -> tuple[float, float, float]:
    """Return median and quantiles (us) of one of the ``calls`` that ``run`` makes, replayed as a graph or launched."""
    from triton.testing import do_bench, do_bench_cudagraph

    run()
    milliseconds = (do_bench_cudagraph if by_graph else do_bench)(run, quantiles=_QUANTILES)
    median, low, high = (1000 * value / calls for value in milliseconds)
    return median, low, high


def _versions() -> dict[str, str]:
    import torch
    import triton

    return {"torch": torch.__version__, "triton": triton.__version__}


def cells(row: Row) -> tuple[str, ...]:
    """Return a row of the table in the order of :data:`HEADER`."""
    spread = f"{row['p20_us']:.1f} - {row['p80_us']:.1f}"
    share, speedup = f"{row['bandwidth_share']:.0%}", f"{row['speedup']:.1f}"
    return (
        row["operation"],
        row["provider"],
        str(row["rows"]),
        f"{row['median_us']:.1f}",
        spread,
        f"{row['floor_us']:.1f}",
        share,
        speedup,
    )


def table(rows: Sequence[Row]) -> str:
    """Return the rows as an aligned table."""
    return text_table([HEADER, *(cells(row) for row in rows)])


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows with their keys as the first line."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main(argv: Sequence[str]) -> None:
    """Run the benchmark, print its table and write its rows."""
    parser = cli.make_parser(KernelBenchConfig, "bench kernels", KernelBenchConfig.__doc__ or "")
    config = cli.build(KernelBenchConfig, parser, cli.parse(parser, argv))
    for key in ("csv", "json"):
        cli.check_file(key, getattr(config, key))
    rows = bench_kernels(config)
    device = rows[0]["device"]
    print(f"{device}; {config.vocab} columns, bfloat16; copy bandwidth {rows[0]['copy_gb_per_s']:.0f} GB/s; all kernels agree\n")
    print(table(rows))
    path = config.csv or Path(f"kernels-{re.sub('[^A-Za-z0-9]+', '-', device).strip('-').lower()}.csv")
    write_csv(path, rows)
    print(f"\nrows: {path}")
    if config.json is not None:
        from dispatch_rl.runs import write_json

        write_json(config.json, rows)
