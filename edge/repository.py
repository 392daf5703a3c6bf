"""Loads, reloads and unloads models while others are served; one change after the other.

A reload opens the new copy beside the old one, and closes the old one when the last request inside
has its answer. Where memory holds one copy only, the old one goes first, and is opened again if the
new one cannot be.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from edge.admission import return_freed_memory
from edge.bundle import Bundle
from edge.errors import EdgeError, InferenceError, NotReadyError, QueueFullError, UnknownModelError
from edge.loading import Loader
from edge.served import Served
from edge.serving import Serving

MAX_WAITING_CHANGES = 2  # each holds a thread of the HTTP server

logger = logging.getLogger(__name__)


class Repository:
    """The models of a bundle as they come and go.

    reopen: verifies the bundle on disk and returns it, as it is now. drain_s: how long requests
    inside a model that goes may take. Changes may be asked for from any thread.
    """

    def __init__(
        self,
        serving: Serving,
        loader: Loader,
        *,
        reopen: Callable[[], Bundle],
        drain_s: float,
    ) -> None:
        self._serving = serving
        self._loader = loader
        self._reopen = reopen
        self._drain_s = drain_s
        self._changes: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting = 0
        self._counting = threading.Lock()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._work, name="loader", daemon=True)

    def start(self, names: Iterable[str], done: Callable[[], None]) -> Future[None]:
        """Open the models that are served from the start; done is called at the end.

        What is returned has the error of the first that failed, if none could be opened.
        """
        started: Future[None] = Future()
        started.add_done_callback(lambda _: done())
        chosen = tuple(names)
        self._changes.put(lambda: _settle(started, lambda: self._open_first(chosen)))
        self._thread.start()
        return started

    def load(self, name: str) -> Future[None]:
        """Open a model, anew if it is open; raises QueueFullError if others wait for changes."""
        return self._submit(lambda: self._load(name))

    def unload(self, name: str) -> Future[None]:
        """Close a model when the requests inside are answered; raises as `load`.

        One that is not open, because it was unloaded or failed, is only no longer waited for.
        """
        return self._submit(lambda: self._unload(name))

    def stop(self) -> None:
        """Refuse further changes and break off what can be broken off."""
        self._loader.stop()
        with self._counting:
            self._is_stopping = True
            self._changes.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end after `stop`."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _submit(self, change: Callable[[], None]) -> Future[None]:
        done: Future[None] = Future()
        with self._counting:
            if self._waiting >= MAX_WAITING_CHANGES:
                raise QueueFullError(
                    f"{self._waiting} changes of models wait already; retry when they are done"
                )
            if self._is_stopping:
                raise _stopping()
            self._waiting += 1
            self._changes.put(lambda: self._change(done, change))
        return done

    def _change(self, done: Future[None], change: Callable[[], None]) -> None:
        if self._is_stopping:
            done.set_exception(_stopping())
        else:
            _settle(done, change)
        with self._counting:
            self._waiting -= 1

    def _work(self) -> None:
        while (change := self._changes.get()) is not None:
            change()

    def _open_first(self, names: tuple[str, ...]) -> None:
        self._loader.detect()
        failures = []
        for name in names:
            try:
                self._open(self._serving.bundle, name)
            except EdgeError as error:
                failures.append(error)
        if failures and not self._serving.served:
            raise failures[0]

    def _load(self, name: str) -> None:
        bundle = self._reopen()
        old = self._serving.served.get(name)
        crowding = None
        if old is not None:
            model = next((m for m in bundle.manifest.models if m.name == name), None)
            crowding = None if model is None else self._loader.crowding(bundle, model)
        if old is not None and crowding is not None:
            reason = f"model {name!r} is reloaded, and memory holds one copy: {crowding}"
            logger.warning("draining before the reload name=%s: %s", name, crowding)
            self._serving.take_out(name)
            self._serving.note(name, "LOADING", reason)
            self._close(old)
        try:
            self._open(bundle, name)
        except EdgeError:
            if old is not None and crowding is not None:
                logger.warning("opening the old copy again name=%s", name)
                with contextlib.suppress(EdgeError):  # said in the log and in the model's state
                    self._open(old.bundle, name)
            raise
        self._serving.bundle = bundle
        self._serving.want(name)
        if old is not None and crowding is None:
            self._close(old)

    def _unload(self, name: str) -> None:
        self._serving.model(name, None)  # known, whether it is open or not
        self._serving.want(name, wanted=False)
        if name in self._serving.served:
            old = self._serving.take_out(name)
            self._serving.note(name, "UNLOADING", f"model {name!r} answers its last requests")
            self._close(old)
        reason = (
            f"model {name!r} was unloaded; POST /v2/repository/models/{name}/load brings it back"
        )
        self._serving.note(name, "UNAVAILABLE", reason)
        logger.info("unloaded name=%s", name)

    def _open(self, bundle: Bundle, name: str) -> None:
        serving, models = self._serving, bundle.manifest.models
        model = next((model for model in models if model.name == name), None)
        if model is None:
            known = ", ".join(repr(model.name) for model in models)
            raise UnknownModelError(f"model {name!r} is unknown; the bundle on disk has {known}")
        if name not in serving.served:
            serving.note(name, "LOADING", f"model {name!r} is opening")
        try:
            served = self._loader.open(bundle, model)
        except EdgeError as error:
            logger.error("not loaded name=%s: %s", name, error)
            if name not in serving.served:
                serving.note(name, "UNAVAILABLE", f"model {name!r} could not be opened: {error}")
            raise
        serving.put(served)
        logger.info(
            "loaded name=%s version=%s bundle=%s variant=%s",
            name, model.version, bundle.manifest.version, served.choice.variant.id,
        )  # fmt: skip

    def _close(self, old: Served) -> None:
        """Close a model that nobody finds any more."""
        if not old.places.close(self._drain_s):
            logger.warning("requests are still inside name=%s", old.model.name)
        if not old.runner.stop(self._drain_s):
            logger.warning("worker still busy name=%s", old.model.name)
        return_freed_memory()


def _stopping() -> NotReadyError:
    return NotReadyError("the agent is stopping; its models stay as they are")


def _settle(done: Future[None], change: Callable[[], None]) -> None:
    """Make a change and tell its end; the thread that makes changes outlives every one."""
    try:
        change()
    except EdgeError as error:
        done.set_exception(error)
    except Exception as error:
        logger.error("a change of models failed", exc_info=error)
        message = "the agent failed to change its models; the traceback is in its log"
        done.set_exception(InferenceError(message))
    else:
        done.set_result(None)
