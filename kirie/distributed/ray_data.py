"""Prediction by the workers of Ray Data: each keeps the model, reads pictures and writes the files of each.

The process that began the run hands the pictures out in small blocks, takes what comes back in their order, and alone
adds to the files about all pictures and notes what is done. So nothing is lost or doubled when a worker dies: its block
is done again, picture by picture, and whole files are replaced by equal ones. A picture at which workers die again and
again is told, and left out.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from kirie import __version__
from kirie.errors import KirieError, counted
from kirie.prediction.fingerprint import fingerprint
from kirie.prediction.manifest import MANIFEST, File
from kirie.prediction.pieces import Order, Piece, gathered
from kirie.prediction.predictor import Predicts
from kirie.reading.remote import Url

BLOCK = 16  # pictures that a worker gets at once
DEATHS = 3  # of workers, after which the picture is left out at which they died
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


class Room(NamedTuple):
    """What a cluster has for workers.

    Attributes:
        cpus: that they may share, of a cluster of this machine; 1 where each has one.
        copies: a folder for copies of pictures from other stores; None for each machine's temporary one.
    """

    cpus: int = 1
    copies: str | None = None


@dataclass(frozen=True)
class RayWorkers:
    """Predicts in the workers of a Ray cluster: an engine of `predict_files`.

    All machines see the folder of the results, the model and pictures that are files under the paths that they have
    here. A cluster that this process has joined is used; else one that runs at an address; else one is started on this
    machine, which nobody else can reach, and ended with the run.

    Args:
        load: gives what predicts; called once in each worker, in the working directory of this process.
        workers: how many; None for as many as there are GPUs, or without these CPUs.
        device: that of `load`: with "auto" each worker has a GPU of its own where the cluster has any, with "cuda" it
            must, with "cpu" it has none.
        address: of a cluster that runs, HOST:PORT; None for that of RAY_ADDRESS, if it is set.

    Raises:
        KirieError: when Ray is not installed, there is no such number of workers, or the device is one of several.
    """

    load: Callable[[], Predicts]
    workers: int | None = None
    device: str = "auto"
    address: str | None = None

    def __post_init__(self) -> None:
        if find_spec("ray") is None or find_spec("pyarrow") is None:
            raise KirieError('Prediction by Ray needs more packages: pip install "kirie[distributed]".')
        if self.workers is not None and self.workers < 1:
            raise KirieError(f"There is at least 1 worker, got {self.workers}.")
        if self.device not in ("auto", "cpu", "cuda"):
            raise KirieError(f"Ray gives each worker its device: it is auto, cpu or cuda, got {self.device!r:.60}.")

    def __call__(self, order: Order, files: Sequence[File]) -> Generator[Piece, None, None]:
        """What became of each picture, in their order.

        Raises:
            KirieError: when the cluster cannot be had, or a worker cannot predict as this process would.
        """
        if not files:
            return
        with _cluster(self.address, self.workers) as room:
            from ray.exceptions import RayError, RayTaskError

            try:
                for number, text in enumerate(self._texts(order, files, room)):
                    place, *facts = json.loads(text)
                    if place is None:
                        raise KirieError(facts[0])
                    if place != number:
                        raise RuntimeError(f"Ray gave picture {place} in place of {number}")
                    yield Piece(*facts)
            except RayTaskError:  # a mistake in kirie or in a model of one's own keeps its traceback
                raise
            except RayError as error:
                raise KirieError(
                    f"The workers of Ray failed: {_last_line(error)}. Give the same command again to go on."
                ) from error

    def _texts(self, order: Order, files: Sequence[File], room: Room) -> Iterator[str]:
        """What `_Worker` gives for each picture."""
        import ray
        from pyarrow import table
        from ray.data import ActorPoolStrategy, from_arrow

        need, workers = self._shares(room.cpus)
        size = max(1, min(BLOCK, len(files) // (4 * workers)))
        texts = [_file_text(number, file) for number, file in enumerate(files)]
        blocks = [table({"file": texts[start : start + size]}) for start in range(0, len(texts), size)]
        dataset = from_arrow(blocks)
        dataset.context.execution_options.preserve_order = True
        dataset.context.enable_progress_bars = False
        deaths = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_ledger()).remote()
        results = dataset.map_batches(
            _Worker,
            batch_size=size,
            compute=ActorPoolStrategy(size=min(workers, len(blocks))),
            fn_constructor_args=(self.load, order, deaths, room.copies, (os.getcwd(), __version__)),
            **need,
        )
        for row in results.iter_rows():
            yield row["piece"]

    def _shares(self, cpus: int) -> tuple[dict[str, int], int]:
        """What each worker needs of the cluster, and how many there are."""
        import ray

        held = ray.cluster_resources()
        kind = "GPU" if self.device == "cuda" or (self.device == "auto" and held.get("GPU", 0) >= 1) else "CPU"
        there = int(held.get(kind, 0))
        workers = self.workers or there
        if not 1 <= workers <= there:
            raise KirieError(
                f"{counted(max(workers, 1), 'worker')} of Ray would need a {kind} each, and the cluster has {there}. "
                f"Use fewer --workers{' or --device cpu' if kind == 'GPU' else ''}."
            )
        return ({"num_gpus": 1} if kind == "GPU" else {"num_cpus": max(1, cpus // workers)}), workers


class _Worker:
    """Predicts blocks of pictures.

    Args:
        load: gives what predicts.
        order: what is written.
        deaths: the `_ledger` of the run, an actor.
        copies: see `Room`.
        begun: the working directory, and the version of kirie, where the run began.
    """

    def __init__(
        self, load: Callable[[], Predicts], order: Order, deaths: Any, copies: str | None, begun: tuple[str, str]
    ) -> None:
        self._order, self._deaths, self._copies, self._fault = order, deaths, copies, ""
        try:
            _check_machine(order, *begun)
            self._predictor = load()
            if fingerprint(self._predictor) != order.fingerprint:
                raise KirieError("it loads another model than the machine where the run began; copy the model there.")
        except (KirieError, MemoryError, OSError) as error:
            self._fault = _fault_text(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """For each `file` of the block, its number and what became of it, as a JSON list; or why that cannot be."""
        if self._fault:
            return {"piece": [self._fault]}
        try:
            rows = [json.loads(text) for text in batch["file"]]
            remote = any(is_remote for _, is_remote, *_ in rows)
            with TemporaryDirectory(prefix="kirie-", dir=self._copies) if remote else nullcontext("") as copies:
                numbered = [(row[0], _file_of(row, copies)) for row in rows]
                return {"piece": [json.dumps([number, *piece]) for number, piece in self._pieces(numbered)]}
        except (MemoryError, OSError) as error:
            return {"piece": [_fault_text(error)]}

    def _pieces(self, numbered: Sequence[tuple[int, File]]) -> Iterator[tuple[int, Piece]]:
        """The pictures of a block, each with its number."""
        if self._begun(f"block {numbered[0][0]}") == 1:
            pieces = gathered(self._predictor, self._order, [file for _, file in numbered])
            yield from ((number, piece) for (number, _), piece in zip(numbered, pieces, strict=True))
            return
        for number, file in numbered:
            yield from ((number, piece) for piece in self._one(number, file))

    def _one(self, number: int, file: File) -> Iterator[Piece]:
        """A picture by itself, of a block at which a worker died."""
        if self._begun(number) > DEATHS:
            died = f"{file.path} is left out: {counted(DEATHS, 'worker')} of Ray died at it"
            told = f"{died}, perhaps for want of memory. With fewer --workers each has more."
            yield Piece(file.state(), [], [], told, refused=True)
            return
        yield from gathered(self._predictor, self._order, [file])
        self._deaths.ended.remote(number)

    def _begun(self, what: int | str) -> int:
        """How often this was begun and not ended, now included."""
        import ray

        times: int = ray.get(self._deaths.begun.remote(what))
        return times


def _ledger() -> type:
    """The class of an actor that counts what was begun; made here, so that its process need not import this module."""

    class Ledger:
        def __init__(self) -> None:
            self._open: dict[int | str, int] = {}

        def begun(self, what: int | str) -> int:
            self._open[what] = self._open.get(what, 0) + 1
            return self._open[what]

        def ended(self, what: int | str) -> None:
            self._open.pop(what, None)

    return Ledger


def _check_machine(order: Order, here: str, version: str) -> None:
    """Goes to the working directory of the run; raises a KirieError where this machine would not give its results."""
    if version != __version__:
        raise KirieError(f"it has kirie {__version__}, and the run began with {version}.")
    try:
        os.chdir(here)
        seen = (order.home / MANIFEST).exists()
    except OSError:
        seen = False
    if not seen:
        raise KirieError(
            f"it does not see the folder {order.out} of {here}. All machines need the results, the model and local "
            "pictures under the same paths."
        )


def _fault_text(error: Exception) -> str:
    """Why a worker gives no pieces, in place of them: to be told once, where the run began."""
    why = "there is not enough memory; use fewer --workers." if isinstance(error, MemoryError) else str(error)
    return json.dumps([None, f"A worker of Ray on {socket.gethostname()} cannot predict: {why}"])


def _file_text(number: int, file: File) -> str:
    return json.dumps([number, isinstance(file.path, Url), str(file.path), *file[1:]])


def _file_of(row: Sequence[Any], copies: str) -> File:
    _, is_remote, path, *names = row
    return File(Url(path, Path(copies)) if is_remote else Path(path), *names)


@contextmanager
def _cluster(address: str | None, workers: int | None) -> Iterator[Room]:
    """A cluster for the block: the one that this process has joined, one that runs, or one of its own."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    address = address or os.environ.get("RAY_ADDRESS")
    alone = address in (None, "", "local")
    if alone and "ray" not in sys.modules:  # it looks at these when it is imported
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on any system: no address but the loopback one
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray
    import ray.data

    if ray.is_initialized():
        yield Room()
        return
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    ray._private.worker._worker_logs_enabled = False  # on standard output: that workers died
    with _own_cluster(workers) if alone else _joined(str(address)) as room:
        yield room


@contextmanager
def _joined(address: str) -> Iterator[Room]:
    """A cluster that runs, until the block ends."""
    import ray

    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdecimal():  # Ray itself tries for minutes
            if int(port) > 65535:  # the system would take the remainder
                raise ValueError("there are ports up to 65535")
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise KirieError(f"There is no Ray cluster at {address}: {error}.") from error
    try:
        try:
            with _silent():
                ray.init(address, **QUIET)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise KirieError(f"The Ray cluster at {address} cannot be joined: {_last_line(error)}.") from error
        yield Room()
    finally:
        ray.shutdown()


@contextmanager
def _own_cluster(workers: int | None) -> Iterator[Room]:
    """A cluster of this machine, for this process alone, until the block ends."""
    import ray
    from ray.job_config import JobConfig

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Its sockets lie there, whose paths must be short: the temporary folders of some systems have no room for them.
    root = os.environ.get("RAY_TMPDIR") or ("/tmp" if os.path.isdir("/tmp") else None)
    with TemporaryDirectory(prefix="kirie-ray-", dir=root, ignore_cleanup_errors=True) as folder:
        try:
            with _silent():
                ray.init(
                    "local",
                    num_cpus=max(cpus, workers or 1),
                    include_dashboard=False,
                    job_config=JobConfig(_py_driver_sys_path=sys.path[::-1]),  # each goes before those before it
                    _temp_dir=folder,
                    **QUIET,
                )
            if not ip_address(ray.util.get_node_ip_address()).is_loopback:
                raise KirieError(
                    "Ray was imported before kirie could close it to the network. Import it later, or call ray.init() "
                    "and so have the cluster that you want."
                )
            yield Room(cpus, folder)
        finally:
            ray.shutdown()


@contextmanager
def _silent() -> Iterator[None]:
    """A block in which Ray begins, and writes nothing on standard error then or later.

    Its C++ part would call it an error that workers can be restarted, and would write that it was told to be silent.
    Where RAY_BACKEND_LOG_LEVEL is set, it writes.
    """
    if "RAY_BACKEND_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
        del os.environ["RAY_BACKEND_LOG_LEVEL"]


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".")[:300] if lines else type(error).__name__
