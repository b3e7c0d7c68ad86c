"""Events for TensorBoard."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from dispatch_rl.tracking.base import Row
from dispatch_rl.tracking.interrupts import undisturbed

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardTracker:
    """Numbers, pictures, and tables as text.

    Its writer has a queue and a thread, which an interrupt in the wrong place would leave waiting for each other.

    Args:
        folder: Where the events go.
    """

    title = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._behind = -1

    @cached_property
    def _writer(self) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter

        writer: SummaryWriter = SummaryWriter(str(self._folder), purge_step=self._behind + 1)
        return writer

    def rewind(self, step: int) -> None:
        self._behind = step

    def log(self, step: int, values: Mapping[str, float]) -> None:
        with undisturbed():
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def summarise(self, values: Mapping[str, float]) -> None:
        pass

    def table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines = [columns, ["---"] * len(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
        with undisturbed():
            self._writer.add_text(name, "\n".join("| " + " | ".join(line) + " |" for line in lines), step)

    def image(self, step: int, name: str, png: bytes) -> None:
        import numpy as np
        from PIL import Image

        with undisturbed():
            self._writer.add_image(name, np.asarray(Image.open(BytesIO(png)).convert("RGB")), step, dataformats="HWC")

    def bundle(self, name: str, folder: Path, about: Row) -> None:
        pass

    def finish(self, failed: bool) -> None:
        with undisturbed():
            self._writer.close()


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value).replace("|", "/")
