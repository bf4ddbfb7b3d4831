"""What a run tells other tools while it goes on: TensorBoard events, MLflow runs."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any, Protocol

from fieldmark.runtime.cache import atomic_write
from fieldmark.runtime.errors import FieldmarkError, UsageError

#: Logger -> the package that it needs. Each is an extra of the same name.
PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow"}
#: Values of steps are sent to MLflow when so many seconds have passed, or so many are waiting.
SEND_SECONDS, SEND_VALUES = 10.0, 900


class Logger(Protocol):
    """Told what happens. Steps are counted from the beginning of the run, over all its phases."""

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """After an optimiser step: loss, lr, photos_per_second…"""

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """After a look at the held-out photos: a row of the learning curve, with its ``step``."""

    def close(self, done: bool = True) -> None:
        """Nothing more will come. done: the run came to its end."""


def check(names: Sequence[str]) -> None:
    """Raises UsageError for a logger there is not, FieldmarkError where its package is missing."""
    for name in names:
        if name not in PACKAGES:
            raise UsageError(f"no logger is called {name!r}; there are: {', '.join(PACKAGES)}")
        if util.find_spec(PACKAGES[name]) is None:
            raise FieldmarkError(f"--log {name} needs {PACKAGES[name]}: pip install 'fieldmark[{name}]'")


@contextlib.contextmanager
def opened(
    names: Sequence[str],
    out: Path,
    settings: Mapping[str, Any],
    note: Callable[[str], None],
    part: str = "",
) -> Iterator[Logger]:
    """The loggers of these names as one, closed at the end.

    out: the run folder; settings: of the run, told once; note: takes a line for the user; part: of the run ("fold-1"),
    which is logged apart.
    """
    made: dict[str, Logger] = {}
    for name in names:
        if name == "tensorboard":
            made[name] = TensorBoard(out / "tensorboard" / part)
        else:
            made[name] = MLflow(f"{out.name} {part}".strip(), out / "checkpoints" / part, settings)
    logger = Several(made, note)
    try:
        yield logger
    except BaseException:
        logger.close(done=False)
        raise
    logger.close()


class Several:
    """Some loggers. One that fails (a full disk, a server that is gone) is left out from then on: training does
    not end for its sake."""

    def __init__(self, loggers: Mapping[str, Logger], note: Callable[[str], None]):
        self.loggers, self.note = dict(loggers), note

    def step(self, step: int, values: Mapping[str, float]) -> None:
        self._each(lambda logger: logger.step(step, values))

    def evaluation(self, row: Mapping[str, Any]) -> None:
        self._each(lambda logger: logger.evaluation(row))

    def close(self, done: bool = True) -> None:
        self._each(lambda logger: logger.close(done))

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self.loggers.items()):
            try:
                call(logger)
            except Exception as error:
                del self.loggers[name]
                self.note(f"{name} cannot be told more ({_line(error)}): training goes on without it")


NOTHING = Several({}, lambda line: None)


class TensorBoard:
    """Event files in ``folder``: `tensorboard --logdir FOLDER` shows them.

    A run that is resumed writes a further file; what the killed one told of later steps is taken back.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._writer: Any = None

    def step(self, step: int, values: Mapping[str, float]) -> None:
        self._add("train", step, values)

    def evaluation(self, row: Mapping[str, Any]) -> None:
        self._add("held_out", int(row["step"]), _held_out(row))
        self._writer.flush()

    def close(self, done: bool = True) -> None:
        if self._writer is not None:
            self._writer.close()

    def _add(self, group: str, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            # Files are named by the second: one that is resumed at once would take the place of the first.
            self._writer = SummaryWriter(str(self.folder), purge_step=step, filename_suffix=f".{step:08d}")
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)


class MLflow:
    """A run of MLflow, on the server or in the store that MLFLOW_TRACKING_URI names (else MLflow's own choice).

    Its id is kept in ``folder``, beside the checkpoints, so a run that is resumed goes on in it. Raises
    FieldmarkError where the store cannot be reached.
    """

    def __init__(self, name: str, folder: Path, settings: Mapping[str, Any]):
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # by itself it tries for minutes
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._waiting: list[Any] = []
        self._metric, self._sent = Metric, time.monotonic()
        kept = folder / "mlflow.json"
        try:
            self._client = MlflowClient()
            known = json.loads(kept.read_text(encoding="utf-8"))["run"] if kept.is_file() else None
            if known:
                self.run = str(known)
                self._client.update_run(self.run, status="RUNNING")
                return
            group = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fieldmark")
            found = self._client.get_experiment_by_name(group)
            number = found.experiment_id if found else self._client.create_experiment(group)
            self.run = str(self._client.create_run(number, run_name=name).info.run_id)
            told = [Param(key, str(value)[:500]) for key, value in settings.items() if value is not None]
            self._client.log_batch(self.run, params=told[:100])
        except Exception as error:
            raise FieldmarkError(
                f"MLflow cannot be used ({_line(error)}): name a server in MLFLOW_TRACKING_URI, or pip install"
                " mlflow to keep runs in a file"
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(kept) as file:
            file.write_text(json.dumps({"run": self.run}), encoding="utf-8")

    def step(self, step: int, values: Mapping[str, float]) -> None:
        self._add("train", step, values)
        if len(self._waiting) > SEND_VALUES or time.monotonic() - self._sent > SEND_SECONDS:
            self._send()

    def evaluation(self, row: Mapping[str, Any]) -> None:
        self._add("held_out", int(row["step"]), _held_out(row))
        self._send()

    def close(self, done: bool = True) -> None:
        self._send()
        self._client.set_terminated(self.run, "FINISHED" if done else "FAILED")

    def _add(self, group: str, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._waiting += [
            self._metric(f"{group}/{name}", float(value), now, step)
            for name, value in values.items()
            if math.isfinite(value)
        ]

    def _send(self) -> None:
        if self._waiting:
            self._client.log_batch(self.run, metrics=self._waiting)
        self._waiting, self._sent = [], time.monotonic()


def _held_out(row: Mapping[str, Any]) -> dict[str, float]:
    """What a row of the curve says of the held-out photos."""
    return {
        name.removeprefix("held_out_"): float(value)
        for name, value in row.items()
        if name.startswith("held_out_")
    }


def _line(error: Exception) -> str:
    """The first sentence of an error, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
