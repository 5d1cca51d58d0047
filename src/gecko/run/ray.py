"""The executor that works on a Ray cluster: ``--engine ray``.

A worker is a Ray actor that fetches what a stage needs once (:class:`gecko.run.engine.Job`) from the object store, and is
handed task after task, one a shard. The driver alone has the run folder: it makes the tasks and writes the shards. A worker
that dies is replaced, and the shard that it had is done again.
"""

import gc
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from gecko.core.errors import ConfigError, GeckoError, RunError
from gecko.run.engine import Do, Done, R, Take, Task, perform

TRIES = 3  # of a shard, before it is taken for the reason why its workers die


class Cluster(AbstractContextManager["Cluster"]):
    """See :class:`gecko.run.engine.Executor`; a context manager, which connects and leaves again.

    ``address`` is that of a running cluster, or ``auto``; without one, one of this machine's own is made for as long as
    it is used. ``workers`` is how many; none: one a GPU, and where there is none, one a machine. Raises ConfigError: Ray
    is not installed, no cluster answers, or it has not so many CPUs or GPUs.
    """

    remote = True

    def __init__(
        self, address: str | None = None, workers: int | None = None, *, say: Callable[[str], None] = lambda _: None
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError("--engine ray needs the package ray: pip install 'gecko-embed[ray]'") from error
        self._ray: Any = ray
        self._say = say
        self._idle: list[Any] = []  # between two stages
        self._stages = 0
        self._ours = not ray.is_initialized()
        if self._ours:
            self._connect(address)
        try:
            self.workers, self._needs = _division(ray.nodes(), workers)
        except ConfigError:
            self.__exit__()
            raise

    def _connect(self, address: str | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            options["include_dashboard"] = False
        try:
            self._ray.init(address=address or "local", **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = f"--address {address}" if address else "a cluster of this machine"
            raise ConfigError(f"{where}: Ray does not answer ({error}); start it with: ray start --head") from error

    def __exit__(self, *_: object) -> None:
        for worker in self._idle:
            self._ray.kill(worker)
        self._idle.clear()
        if self._ours:
            self._ray.shutdown()

    def keep(self, value: Any) -> Callable[[], Any]:
        """See :class:`gecko.run.engine.Executor`."""
        return _Kept(self._ray.put(value))

    def run(self, do: Do[Task, R], take: Take[Task]) -> Iterator[tuple[int, Done[R]]]:
        """See :class:`gecko.run.engine.Executor`. Raises RunError: a shard ends every worker that it is given to."""
        from ray.exceptions import RayActorError, RayTaskError

        self._stages += 1
        stage, kept = self._stages, self._ray.put(do)
        make: Any = self._ray.remote(**self._needs)(_Worker)
        busy: dict[Any, tuple[Any, int, Task]] = {}
        again: list[tuple[int, Task]] = []
        deaths: Counter[int] = Counter()
        try:
            while True:
                while len(busy) < self.workers and (taken := again.pop() if again else take()) is not None:
                    worker = self._idle.pop() if self._idle else make.remote()
                    busy[worker.work.remote(stage, [kept], taken[1])] = (worker, *taken)
                if not busy:
                    return
                ready = self._ray.wait(list(busy))[0][0]
                worker, index, task = busy.pop(ready)
                try:
                    done: Done[R] = self._ray.get(ready)
                except RayActorError as error:
                    self._ray.kill(worker)
                    deaths[index] += 1
                    if deaths[index] == TRIES:
                        raise RunError(
                            f"part {index + 1} has ended {TRIES} workers, the last one so: {error}"
                        ) from error
                    self._say(f"a worker has ended in the middle of part {index + 1}, which another does again")
                    again.append((index, task))
                    continue
                except RayTaskError as error:
                    self._idle.append(worker)
                    if isinstance(error.cause, GeckoError):
                        raise error.cause from error
                    raise
                self._idle.append(worker)
                yield index, done
        finally:
            for worker, *_ in busy.values():
                self._ray.kill(worker)
            self._rest()

    def _rest(self) -> None:
        """Free the models of workers that have nothing to do; a GPU's memory is free only when its process is gone."""
        for worker in self._idle:
            if "num_gpus" in self._needs:
                self._ray.kill(worker)
            else:
                worker.forget.remote()
        if "num_gpus" in self._needs:
            self._idle.clear()


class _Worker:
    def __init__(self) -> None:
        self.stage = 0
        self.do: Any = None

    def work(self, stage: int, kept: list[Any], task: Any) -> Done[Any]:
        if stage != self.stage:
            import ray

            self.forget()
            self.do = ray.get(kept[0])
            self.stage = stage
        return perform(self.do, task)

    def forget(self) -> None:
        self.stage, self.do = 0, None
        gc.collect()


@dataclass(frozen=True)
class _Kept:
    ref: Any

    def __call__(self) -> Any:
        import ray

        return ray.get(self.ref)


def _division(nodes: list[dict[str, Any]], workers: int | None) -> tuple[int, dict[str, float]]:
    """How many workers, and what Ray is to reserve for each, so that all of them find a place.

    Raises ConfigError: they would not.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = sum(int(resources.get("GPU", 0)) for resources in alive)
    cpus = [int(resources["CPU"]) for resources in alive if resources.get("CPU", 0) >= 1]
    count = workers or gpus or max(1, len(cpus))
    if gpus and count > gpus:
        raise ConfigError(f"--workers {count}: the cluster has {gpus} GPUs; give at most as many")
    if gpus:
        return count, {"num_gpus": 1, "num_cpus": 1}
    each = math.ceil(count / max(1, len(cpus)))
    if not cpus or min(cpus) < each:
        raise ConfigError(
            f"--workers {count}: a machine would have {each}, and of {len(cpus)} with CPUs the smallest has "
            f"{min(cpus, default=0)}; give fewer"
        )
    return count, {"num_cpus": min(cpus) // each}
