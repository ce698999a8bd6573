"""The gates of a run that asks several models, as one: what is shown, steered and waited for together.

Each account and model has its gate with its own limits; `window` bounds the calls in flight on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import anyio

from batchllm.layers.gated import Gate


class Gates:
    """The gates of models and of functions beside them; `window` is the run's, None where one gate has it.

    `main` is the one model's whose limits and window are the run's, where the others only stand by for it or
    there are none; None where several models stand side by side.
    """

    def __init__(
        self,
        models: Sequence[Gate],
        functions: Sequence[Gate],
        window: anyio.CapacityLimiter | None,
        main: Gate | None,
    ) -> None:
        self._gates = (*models, *functions)
        self._models = tuple(models) or self._gates
        self._window = window
        self._main = main
        self.ceiling = main.ceiling if main is not None else sum(gate.ceiling for gate in self._models)

    @property
    def in_flight(self) -> int:
        """Calls of models in flight now."""
        return sum(gate.in_flight for gate in self._models)

    @property
    def delayed(self) -> int:
        """Requests that wait to be tried again."""
        return sum(gate.delayed for gate in self._gates)

    @property
    def width(self) -> float:
        """Calls that may be in flight now."""
        return self.target

    @property
    def target(self) -> float:
        """Calls of models that are to be in flight."""
        if self._window is not None:
            return self._window.total_tokens
        return self._main.target if self._main is not None else sum(gate.target for gate in self._models)

    @property
    def held(self) -> bool:
        """Whether nobody is admitted until `go_on`."""
        return self._gates[0].held

    def hold(self) -> None:
        """Admit nobody until `go_on`."""
        for gate in self._gates:
            gate.hold()

    def go_on(self) -> None:
        """Admit again."""
        for gate in self._gates:
            gate.go_on()

    def limits(self) -> dict[str, float]:
        """Those of the one model that others stand by for; none that are of all."""
        return self._main.limits() if self._main is not None else {}

    def limit(self, limits: Mapping[str, float | None]) -> None:
        """Other limits for that one model; ValueError where each model has limits of its own."""
        if self._main is None:
            several = "this run asks several models, each with limits of its own: they stay as they are"
            raise ValueError(several)
        self._main.limit(limits)

    def retune(self, concurrency: int) -> None:
        """Another window for all together; ValueError where that can't be."""
        if self._window is not None:
            if not 1 <= concurrency <= self.ceiling:
                raise ValueError(f"this run can have 1 to {self.ceiling:g} calls in flight")
            self._window.total_tokens = concurrency
        elif self._main is not None:
            self._main.retune(concurrency)
        else:
            raise ValueError("each model of this run finds its own window: -c auto")

    def room(self) -> float:
        """Calls that could go out now, as far as windows are concerned."""
        room = max(gate.room() for gate in self._in_use())
        return room if self._window is None else min(room, self._window.available_tokens)

    def waits(self) -> str | None:
        """Why calls are held back now, in words, or None."""
        return next((reason for gate in self._in_use() if (reason := gate.waits()) is not None), None)

    def _in_use(self) -> Sequence[Gate]:
        """All but those of models that stood by and are out."""
        return [gate for gate in self._gates if gate.stop.reason is None] or self._gates

    async def tend(self) -> None:
        """Heed what only time brings; runs beside the calls until it is cancelled."""
        async with anyio.create_task_group() as tasks:
            for gate in self._gates:
                tasks.start_soon(gate.tend)

    def watch(
        self, freed: Callable[[], None], resized: Callable[[float], None], spared: Callable[[], None]
    ) -> None:
        """Call `freed` where there is room anew, `resized` with each new target, `spared` for who waits."""
        for gate in self._gates:
            gate.watch(freed, lambda _: resized(self.target), spared)
