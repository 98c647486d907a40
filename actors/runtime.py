"""The wall to Ray: how a plain class becomes a named, restartable actor, and how it is called.

Every resident actor is one Ray actor of the class ``Host``: detached, restarted for ever, without
CPUs of its own, its calls never retried by Ray (callers retry with keys, see ``handles``). The
object inside is built by a factory in the actor's own process, so nothing that is open has to be
pickled; a factory that has to wait for others is awaited beside. A constructor that raises would be
final for Ray, so a failing factory, or start, is kept as the reason that every call gets, and the
process ends a little later to be started afresh.

Faults of the domain travel as values and are raised again at the caller. Arrow tables travel in
Arrow's own stream format: Ray takes a table apart column by column in Python, at twenty times the
cost for the small tables that most commands carry.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
from collections.abc import Callable
from inspect import isawaitable
from typing import Any, NoReturn

import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayActorError, RayError
from ray.util.serialization import register_serializer

from actors.process import calm_collector, keep_pandas_out
from manta.errors import MantaError, NotReady, OutcomeUnknown

NAMESPACE = "manta"
# What Ray does all the time beside our actors, as far as nobody here has any use for it.
QUIET = {
    "RAY_prestart_worker_first_driver": "0",  # idle workers: ours are never taken from there
    "RAY_enable_timeline": "0",
    "RAY_event_stats": "0",
    "RAY_raylet_report_resources_period_milliseconds": "1000",  # actors take none
}
QUIET_WITHOUT_DASHBOARD = {
    "RAY_enable_metrics_collection": "0",
    "RAY_metrics_report_interval_ms": "60000",
}
RETRY_BUILD_S = 5.0
logger = logging.getLogger("manta.actors")


class Host:
    """The Ray actor around one of our objects."""

    async def __init__(self, name: str, build: Callable[[], Any]) -> None:  # type: ignore[misc]
        self._name = name
        self._failure = f"{name} is starting"
        self._object: Any = None
        self._tasks: set[asyncio.Task[Any]] = set()
        logging.basicConfig(level=logging.INFO)
        keep_pandas_out()
        _send_tables_as_streams()
        try:
            built = build()
        except Exception as error:
            self._fail("built", error)
            return
        if not isawaitable(built):
            self._object = built
        self._keep(asyncio.ensure_future(self._start(built)))

    async def call(self, method: str, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
        """``(True, answer)`` or ``(False, MantaError)``."""
        if self._object is None:
            return False, NotReady(self._failure)
        if method.startswith("_"):
            raise AttributeError(method)
        try:
            answer = getattr(self._object, method)(*arguments)
            return True, (await answer if asyncio.iscoroutine(answer) else answer)
        except MantaError as error:
            return False, error

    async def pid(self) -> int:
        return os.getpid()

    async def _start(self, built: Any) -> None:
        try:
            if isawaitable(built):
                self._object = await built
            start = getattr(self._object, "start", None)
            result = None if start is None else start()
            if asyncio.iscoroutine(result):
                await result
            calm_collector()
        except Exception as error:
            self._fail("started", error)

    def _fail(self, what: str, error: Exception) -> None:
        logger.error("%s could not be %s", self._name, what, exc_info=error)
        self._object = None
        self._failure = f"{self._name} could not be {what}: {error}"
        asyncio.get_running_loop().call_later(RETRY_BUILD_S, exit_process, self._failure)

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def exit_process(reason: str) -> NoReturn:
    """End this actor's process at once; Ray starts the next incarnation, replay decides."""
    logger.error("ending the process: %s", reason)
    logging.shutdown()
    os._exit(70)


def start_actor(
    name: str,
    build: Callable[[], Any],
    *,
    environment: dict[str, str] | None = None,
    label_selector: dict[str, str] | None = None,
) -> None:
    """Create the named actor, or leave the one that is there."""
    try:
        ray.get_actor(name, namespace=NAMESPACE)
        return
    except ValueError:
        pass
    options: dict[str, Any] = {
        "name": name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": 0,
        "max_concurrency": 10_000,
        "enable_task_events": False,
    }
    if environment:
        options["runtime_env"] = {"env_vars": environment}
    if label_selector:
        options["label_selector"] = label_selector
    ray.remote(Host).options(**options).remote(name, build)


def stop_actor(name: str) -> None:
    """End a named actor for good."""
    try:
        ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)
    except ValueError:
        pass


class Caller:
    """Calls named actors of one workspace by role. Handles are looked up once and kept."""

    def __init__(self, workspace: str) -> None:
        _send_tables_as_streams()
        self._workspace = workspace
        self._handles: dict[str, ActorHandle] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def call(self, role: str, method: str, *arguments: Any, timeout_s: float = 30.0) -> Any:
        """The answer of one call.

        Raises the domain's own errors as they are, ``NotReady`` where the call certainly did not
        run, ``OutcomeUnknown`` where it may have.
        """
        handle = self._handle(role)
        ok, answer = await self._answer(role, handle.call.remote(method, arguments), timeout_s)
        if ok:
            return answer
        raise answer

    async def _answer(self, role: str, reference: Any, timeout_s: float) -> Any:
        try:
            return await asyncio.wait_for(reference, timeout_s)
        except TimeoutError:
            raise OutcomeUnknown(f"{role} did not answer in {timeout_s:g} s") from None
        except ActorUnavailableError as error:
            raise OutcomeUnknown(f"{role} is not reachable: {error}") from None
        except RayActorError as error:
            self._handles.pop(role, None)
            raise OutcomeUnknown(f"{role} has ended: {error}") from None
        except RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, MantaError):
                raise cause from None
            raise

    def push(self, role: str, method: str, *arguments: Any) -> None:
        """Call without waiting; a loss is the caller's plan."""
        try:
            reference = self._handle(role).call.remote(method, arguments)
        except MantaError:
            return
        task = asyncio.ensure_future(_swallow(reference))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def pid(self, role: str) -> int:
        """The process id of the actor's present incarnation."""
        return int(await self._answer(role, self._handle(role).pid.remote(), 30.0))

    def _handle(self, role: str) -> ActorHandle:
        handle = self._handles.get(role)
        if handle is None:
            name = f"{self._workspace}/{role}"
            try:
                handle = ray.get_actor(name, namespace=NAMESPACE)
            except ValueError:
                raise NotReady(f"no actor {name} runs on this cluster") from None
            self._handles[role] = handle
        return handle


def _send_tables_as_streams() -> None:
    """For this process, which has to be connected to Ray. May be repeated."""
    register_serializer(pa.Table, serializer=table_stream, deserializer=table_of_stream)


def table_stream(table: pa.Table) -> pickle.PickleBuffer:
    """A table as Ray carries it: one buffer, of nothing but the rows of this table."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return pickle.PickleBuffer(sink.getvalue())


def table_of_stream(stream: Any) -> pa.Table:
    """The table again, on the memory of the buffer."""
    return pa.ipc.open_stream(pa.py_buffer(stream)).read_all()


async def _swallow(reference: Any) -> None:
    try:
        await reference
    except RayError:
        logger.info("a push was lost", exc_info=True)


def start_cluster(
    *, num_cpus: int | None = None, dashboard: bool = False, object_store_bytes: int = 200 << 20
) -> str:
    """Start Ray on this machine for this process and return its address."""
    quiet = QUIET if dashboard else QUIET | QUIET_WITHOUT_DASHBOARD
    for name, value in {"RAY_AUTH_MODE": "disabled", **quiet}.items():
        os.environ.setdefault(name, value)
    context = ray.init(
        address="local",  # never one that happens to run, or ran, on this machine
        num_cpus=num_cpus,
        include_dashboard=dashboard,
        dashboard_host="127.0.0.1",
        object_store_memory=object_store_bytes,
        namespace=NAMESPACE,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    return str(context.address_info["address"])


def join_cluster(address: str = "auto") -> None:
    """Connect this process to a running cluster, once."""
    if not ray.is_initialized():
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )


def node_count() -> int:
    """How many living nodes the cluster has."""
    return sum(1 for node in ray.nodes() if node["Alive"])


def is_connected() -> bool:
    return bool(ray.is_initialized())


def stop_cluster() -> None:
    ray.shutdown()
