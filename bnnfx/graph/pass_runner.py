"""What a pass is, and the runner: match, ask, rewrite; then lint, recompile, check the stage, measure the change."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Generic, TypeVar

from torch import fx, nn

from bnnfx.errors import ConversionError
from bnnfx.graph.inplace import must_stay
from bnnfx.graph.record import PassReport, Record, Refusal, Remark, Role
from bnnfx.graph.stage import Stage, check_contract

C = TypeVar("C")
M = TypeVar("M")
P = TypeVar("P")


class Pass(ABC, Generic[C, M, P]):
    """One rewrite, in three questions: where does it match, is it allowed there, what is put in place.

    `C` is the context of the pipeline, `M` what a match is: a node, or a small tuple or dataclass around one. `P` is
    the plan, whatever was found out while asking whether a match may be rewritten; None where nothing was.

    What a pass needs to know of the whole graph it computes when it is made; from then on it keeps nothing of its own.
    `match` and `allowed` look and change nothing: not the graph, its modules and shapes, nor the report.

    Attributes:
        requires: the stage that the graph is in before.
        ensures: the stage that it is in afterwards.
        after: for a pass of another package, the pass that it follows; ours are ordered in `bnnfx.pipelines`.
        role: what its report says of layers, for `explain`; see `Role`.
    """

    requires: ClassVar[Stage]
    ensures: ClassVar[Stage]
    after: ClassVar["type[Pass[Any, Any, Any]] | None"] = None
    role: ClassVar[Role | None] = None

    def __init__(self, gm: fx.GraphModule, context: C) -> None:
        self.gm = gm
        self.context = context
        self.report = PassReport(type(self).__name__, role=self.role)

    @abstractmethod
    def match(self) -> Iterable[M]:
        """The places where the pass could apply, in graph order; asked lazily, so later matches see a rewrite."""

    @abstractmethod
    def allowed(self, match: M) -> P | Refusal:
        """The reason not to rewrite here, and what would change it; else the plan that `rewrite` gets."""

    @abstractmethod
    def rewrite(self, match: M, plan: P) -> None:
        """Change the graph at a match."""

    @abstractmethod
    def subject(self, match: M) -> str:
        """Name of a match in reports: the layer's qualified name where there is one, else the node's."""

    def layers(self, match: M) -> tuple[str, ...]:
        """The layers of the float model that a refusal of this match concerns; the subject itself is always one."""
        return ()

    def finish(self) -> None:
        """Called after the last match, for what can only be said of the whole graph."""

    def stop_if_refused(self, what: str) -> None:
        """For `finish`, where nothing may be left as it is.

        Args:
            what: what cannot be done, as the beginning of a sentence.

        Raises:
            ConversionError: something was refused; the message has every reason and remedy.
        """
        if self.report.refused:
            reasons = " ".join(f"'{said.subject}': {said.reason}; {said.remedy}." for said in self.report.refused)
            raise ConversionError(f"{what}. {reasons}")

    def note(self, subject: str, reason: str, remedy: str = "", layers: tuple[str, ...] = ()) -> None:
        """Record something noticed that is no refusal."""
        self.report.notes.append(Remark(subject, reason, remedy, layers))


Watcher = Callable[[PassReport, fx.GraphModule], None]
_WATCHERS: ContextVar[tuple[Watcher, ...]] = ContextVar("watchers", default=())


@contextmanager
def watch_passes(watcher: Watcher) -> Iterator[None]:
    """Show a function what every pass of the pipelines that run inside the `with` statement did.

    Args:
        watcher: called after each pass with its report and the graph as the pass left it, which goes on being
            rewritten: what is to be kept must be copied, as `gm.code` is.

    >>> import bnnfx
    >>> seen = []
    >>> with watch_passes(lambda report, gm: seen.append(report.name)):
    ...     _ = bnnfx.convert(nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(3))), "xnor")
    >>> seen[-1]
    'BinarizeLayers'
    """
    token = _WATCHERS.set((*_WATCHERS.get(), watcher))
    try:
        yield
    finally:
        _WATCHERS.reset(token)


def run_passes(
    gm: fx.GraphModule, passes: Sequence[type[Pass[C, Any, Any]]], context: C, record: Record
) -> fx.GraphModule:
    """Run passes in order on `gm`, in place; each report goes into `record`.

    Raises:
        StageError: a pass was given, or left, a graph that breaks the promise of a stage.
    """
    for kind in passes:
        if record.stage is not kind.requires:
            raise AssertionError(f"{kind.__name__} runs on stage {kind.requires}, the graph is in {record.stage}")
        pass_ = kind(gm, context)
        before = _fingerprint(gm)
        for match in pass_.match():
            subject = pass_.subject(match)
            plan = pass_.allowed(match)
            if isinstance(plan, Refusal):
                remark = Remark(subject, plan.reason, plan.remedy, pass_.layers(match))
                pass_.report.refused.append(remark)
            else:
                pass_.rewrite(match, plan)
                pass_.report.applied.append(subject)
        pass_.finish()
        gm.graph.eliminate_dead_code(lambda node: must_stay(gm, node))
        gm.delete_all_unused_submodules()
        _delete_unused_buffers(gm)
        gm.graph.lint()
        gm.recompile()
        check_contract(gm, kind.ensures)
        pass_.report.changed = _fingerprint(gm) != before
        record.stage = kind.ensures
        record.reports.append(pass_.report)
        for watcher in _WATCHERS.get():
            watcher(pass_.report, gm)
    return gm


def _delete_unused_buffers(gm: fx.GraphModule) -> None:
    """Drop the root's buffers that no node reads any more; the function above looks at submodules only."""
    read = {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}
    for name, _ in list(gm.named_buffers(recurse=False)):
        if name not in read:
            delattr(gm, name)


def _fingerprint(gm: fx.GraphModule) -> tuple[object, ...]:
    """What tells whether anything changed: the code, which module object stands where, which tensors it holds."""
    modules: dict[str, nn.Module] = dict(gm.named_modules())
    settings = [
        (name, id(module), repr(module) if not list(module.children()) else "") for name, module in modules.items()
    ]
    tensors = [(name, id(t)) for name, t in (*gm.named_parameters(), *gm.named_buffers())]
    return gm.graph.python_code("self").src, tuple(settings), tuple(tensors)
