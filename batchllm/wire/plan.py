"""What a run asks of each record: the stages of each variant, each a job of its own with its own stack.

It makes jobs of the tables `[[variant]]` and `[[stage]]`, checks them all, connects each provider once, and
puts one gate before everything on the same account and model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio

from batchllm.errors import ConfigError
from batchllm.fields import frozen
from batchllm.job import Job, Loaded
from batchllm.layers.gated import Gate
from batchllm.layers.lingering import Lingering
from batchllm.model import Record
from batchllm.pipeline import Stage
from batchllm.ports import Observer, Provider
from batchllm.stop import Stop
from batchllm.wire.asking import Asking, Asks, Shared, asking, check_fields, missing
from batchllm.wire.gates import Gates
from batchllm.wire.limiting import gate_of, limits_of
from batchllm.wire.standby import stop_of
from batchllm.wire.stepping import Stepping

if TYPE_CHECKING:
    from batchllm.layers.fallback import Standby

_OF_TABLE = frozenset({"name", "run", "folder", "when", "open", "process", "on_timeout", "threads"})
"""What a table holds that is no setting."""
_LIMITS = ("rpm", "rps", "tpm", "input_tpm", "output_tpm")


@frozen
class Plan:
    """`askings` has the stages of each variant, in order; `names` are the variants', none without."""

    names: tuple[str, ...]
    askings: tuple[tuple[Asking, ...], ...]

    def __iter__(self) -> Iterator[Asking]:
        """Everyone who may be asked: each stage's model, then those that stand by for it."""
        return (each for stages in self.askings for stage in stages for each in (stage, *stage.fallbacks))

    @property
    def variants(self) -> int:
        """Units that a record makes."""
        return max(1, len(self.names))

    @property
    def model(self) -> str:
        """Who is asked, in a word or a few."""
        return ", ".join(dict.fromkeys(each.model for stages in self.askings for each in stages))

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages in order, none where there is one that nobody named."""
        named = [each.stage["name"] for stages in self.askings for each in stages if each.stage is not None]
        return tuple(dict.fromkeys(named))

    @property
    def warnings(self) -> list[str]:
        """What is to be said when the run starts."""
        return list(dict.fromkeys(each.chosen.warning for each in self if each.chosen.warning))

    def enough(self, records: Sequence[Record]) -> bool:
        """Whether these records have every field that any prompt needs."""
        return not any(missing(each, records) for each in self)

    def check_fields(self, first: Sequence[Record], *, raw: bool = False) -> None:
        """A template field that none of the first records has is a mistake in the template: ConfigError.

        `raw` records hold whole requests, of which only the model matters.
        """
        if raw and (self.names or self.stages):
            raise ConfigError(
                "records of the OpenAI batch format are asked as they stand, not under variants or in stages",
                "leave out the variants or stages, or convert the records",
            )
        for each in self:
            if raw and each.fallbacks:
                said = "records of the OpenAI batch format name their own model"
                raise ConfigError(said, "leave out --fallback")
            if not raw:
                check_fields(each, first)

    async def connect(self, stack: AsyncExitStack) -> list[Provider]:
        """A provider for each asking, in their order; those that need the same connection share it."""
        made: list[tuple[Any, Provider]] = []
        found = []
        for each in self:
            provider = next((provider for key, provider in made if key == each.connection), None)
            if provider is None:
                provider = await stack.enter_async_context(each.connect())
                made.append((each.connection, provider))
            found.append(provider)
        return found

    async def gates(
        self,
        job: Job,
        providers: Sequence[Provider],
        stop: Stop,
        observers: Sequence[Observer],
        stack: AsyncExitStack,
    ) -> list[Gate]:
        """The gate of each asking, in their order: one for all on the same account and model.

        One of a model that only stands by for others never stops the run, but that model's part in it.
        """
        asked = {each.account for stages in self.askings for each in stages}
        groups: dict[Any, list[tuple[Asking, Provider]]] = {}
        for each, provider in zip(self, providers, strict=True):
            groups.setdefault(each.account, []).append((each, provider))
        gates, called = {}, self.called()
        for account, members in groups.items():
            first, provider = members[0]
            shared = _strictest(replace(job, fallback=first.job.fallback), [each.job for each, _ in members])
            if isinstance(first, Stepping):
                shared = replace(shared, concurrency=first.job.concurrency, quota_file=None)
            its = stop if account in asked else stop_of(first.model, stop)
            gates[account] = await gate_of(
                shared, first.spec, provider, its, observers, stack, ramp=not isinstance(first, Stepping)
            )
            gates[account].whose = called.get(account)
        return [gates[each.account] for each in self]

    def wire(
        self, providers: Sequence[Provider], gates: Sequence[Gate], shared: Shared, *, raw: bool
    ) -> Wired:
        """The stacks of all, each with its provider behind its gate; `raw` records hold request bodies."""
        of_models = [(each, g) for each, g in zip(self, gates, strict=True) if not isinstance(each, Stepping)]
        models = list(dict.fromkeys(gate for _, gate in of_models))
        functions = [gate for gate in dict.fromkeys(gates) if gate not in models]
        asked = list(dict.fromkeys(gate for each, gate in of_models if not each.stands_by))
        main = asked[0] if len(asked) == 1 else None
        if len(models) > 1 and shared.job.concurrency != "auto":
            shared = replace(shared, window=anyio.CapacityLimiter(shared.job.concurrency))
        shared = replace(shared, several=self._several(), called=self.called())
        alone = models[0] if len(models) == 1 and not functions else None
        wired = Wired({}, alone or Gates(models, functions, shared.window, main), [])
        made = iter(zip(providers, gates, strict=True))
        for name, stages in zip(self.names or (None,), self.askings, strict=True):
            wired.stages[name] = []
            for each in stages:
                provider, gate = next(made)
                if isinstance(each, Stepping):
                    stack, lingering = each.lingering_stack(provider, gate, shared)
                    wired.lingering.append(lingering)
                else:
                    others = [_standby(other, *next(made), shared) for other in each.fallbacks]
                    stack = each.stack(provider, gate, shared, others)
                wired.stages[name].append(each.ready(stack, raw=raw))
        return wired

    def called(self) -> dict[Any, str]:
        """What tells the accounts apart in messages: the models, with more where that is not enough."""
        asked = {each.account: each for each in self}
        called = {}
        for account, each in asked.items() if len(asked) > 1 else ():
            alike = [other for other in asked.values() if other.model == each.model]
            more = ""
            if len({_address(other) for other in alike}) > 1:
                more = f" at {_address(each)}"
            elif len(alike) > 1 and each.job.api_key_env is not None:
                more = f" with {each.job.api_key_env}"
            called[account] = each.model + more
        return called

    def _several(self) -> frozenset[str]:
        """The models that stages and variants ask at more than one address."""
        asked = {(each.model, each.spec.base_url) for stages in self.askings for each in stages}
        models = [model for model, _ in asked]
        return frozenset(model for model in models if models.count(model) > 1)


@frozen
class Wired:
    """The stages of each variant, ready to be asked; the gate or gates before them; who may linger."""

    stages: dict[str | None, list[Stage]]
    gate: Gate | Gates
    lingering: list[Lingering]


def plan_of(loaded: Loaded, environ: Mapping[str, str], *, terminal: bool, asks: Asks | None = None) -> Plan:
    """Check everything that a job asks; ConfigError says what is wrong with it.

    `asks` makes something else of the job than an ask of models.
    """
    job = loaded.job
    if asks is not None:
        return Plan((), ((asks(loaded, environ, terminal=terminal),),))
    if (job.variant or job.stage) and (job.emit == "openai-batch" or job.input_format == "openai-batch"):
        raise ConfigError(
            "variants and stages can't go with the OpenAI batch format",
            "leave out --emit and --input-format openai-batch",
        )
    if job.variant and job.resume_by == "id":
        raise ConfigError(
            "--resume-by id doesn't go with variants", "resume by position, which is the default"
        )
    askings = []
    stages: Sequence[dict[str, Any] | None] = [*(job.stage or ())] or [None]
    for variant in job.variant or [{}]:
        of_variant = _with(loaded, "variant", variant)
        askings.append(
            tuple(
                asking(_with(of_variant, "stage", stage or {}), environ, terminal=terminal, stage=stage)
                for stage in stages
            )
        )
    plan = Plan(tuple(each["name"] for each in job.variant or ()), tuple(askings))
    for asked in plan.askings if job.stage else ():
        _check_answers(asked)
    return plan


def _standby(asked: Asking, provider: Provider, gate: Gate, shared: Shared) -> Standby:
    """A model that stands by, with a stack of its own, which keeps no answers."""
    from batchllm.layers.fallback import Standby

    return Standby(asked.model, asked.stack(provider, gate, replace(shared, answers=None)), gate.stop)


def _address(asked: Asking) -> str:
    """Host and port; the rest of an address may hold a secret."""
    return urlsplit(asked.spec.base_url or "").netloc.rpartition("@")[2] or "its own address"


def _check_answers(stages: Sequence[Asking]) -> None:
    """A template that names a stage which doesn't come before it is a mistake: ConfigError."""
    names: list[str] = []
    for each in stages:
        for source in (each.when, each.prompt):
            for template in source.templates if source is not None else ():
                template.check_answers(names)
        names.append(each.name or "")


def _with(loaded: Loaded, kind: str, table: Mapping[str, Any]) -> Loaded:
    """The job with the settings of a table in place of its own."""
    # Limits of the run are its models', not those of functions beside them.
    changes: dict[str, Any] = dict.fromkeys(_LIMITS) if "run" in table else {}
    given = {name: value for name, value in table.items() if name not in _OF_TABLE}
    if "param" in given:
        given["param"] = loaded.job.param | given["param"]
    origins = {name: f"{kind} {table['name']}: {name}" for name in given}
    return Loaded(replace(loaded.job, **changes | given), loaded.origins | origins)


def _strictest(job: Job, jobs: Sequence[Job]) -> Job:
    """The run's job under the lowest of the limits that its members have."""
    lowest: dict[str, float | None] = {}
    for each in jobs:
        for name, limit in limits_of(each).items():
            known = lowest.get(name)
            lowest[name] = limit if known is None else min(known, limit if limit is not None else known)
    return replace(
        job,
        rps=None,
        rpm=lowest["requests"],
        tpm=lowest["tokens"],
        input_tpm=lowest["input-tokens"],
        output_tpm=lowest["output-tokens"],
    )
