"""The pass runner: it measures what changed, collects what was said, and does not believe a pass."""

import operator

import pytest
import torch
from helpers.models import conv3x3
from torch import fx, nn

from bnnfx.errors import StageError
from bnnfx.graph import edit
from bnnfx.graph.pass_runner import Pass, run_passes, watch_passes
from bnnfx.graph.record import Record, Refusal, Remark
from bnnfx.graph.stage import Stage
from bnnfx.nn import BinaryConv2d


class Convolutions(Pass):
    """Matches every module call; subclasses say what happens there."""

    requires = Stage.CANONICAL
    ensures = Stage.CANONICAL

    def match(self):
        yield from [node for node in self.gm.graph.nodes if node.op == "call_module"]

    def allowed(self, match):
        return None

    def rewrite(self, match, plan):
        pass

    def subject(self, match):
        return str(match.target)


def graph():
    return fx.symbolic_trace(nn.Sequential(conv3x3(3, 8), nn.ReLU(), conv3x3(8, 8)))


def run(kind, gm=None, stage=Stage.CANONICAL):
    gm, record = gm or graph(), Record(stage)
    assert run_passes(gm, (kind,), None, record) is gm
    assert record.stage is kind.ensures
    (report,) = record.reports
    assert report.name == kind.__name__
    return report, gm


def test_pass_that_claims_a_rewrite_and_does_nothing():
    report, _ = run(Convolutions)
    assert report.applied == ["0", "1", "2"]
    assert report.changed is False


class ChangesBesideTheMatch(Convolutions):
    """Says nothing of what it does."""

    def match(self):
        self.gm.get_submodule("1").inplace = True
        return []


class NewWeight(Convolutions):
    def match(self):
        self.gm.get_submodule("0").weight = nn.Parameter(torch.zeros(8, 3, 3, 3))
        return []


class SwapsModule(Convolutions):
    def match(self):
        edit.replace_module(self.gm, "0", conv3x3(3, 8))
        return []


class AddsNode(Convolutions):
    def match(self):
        (node, *_) = (n for n in self.gm.graph.nodes if n.target == "0")
        edit.call_module_after(self.gm, node, "1")
        return []


class AddsBuffer(Convolutions):
    def match(self):
        self.gm.get_submodule("0").register_buffer("constant", torch.zeros(1))
        return []


@pytest.mark.parametrize("kind", [ChangesBesideTheMatch, NewWeight, SwapsModule, AddsNode, AddsBuffer])
def test_change_that_is_not_claimed(kind):
    report, _ = run(kind)
    assert report.applied == []
    assert report.changed is True


class UnreadBuffers(Convolutions):
    def match(self):
        node = next(n for n in self.gm.graph.nodes if n.target == "0")
        for name in ("read", "unread"):
            self.gm.register_buffer(name, torch.zeros(1))
        with self.gm.graph.inserting_after(node):
            read = self.gm.graph.get_attr("read")
        with self.gm.graph.inserting_after(read):
            added = self.gm.graph.call_function(operator.mul, (node, read))
        node.replace_all_uses_with(added, delete_user_cb=lambda user: user is not added)
        return []


def test_buffer_that_nobody_reads_goes():
    _, gm = run(UnreadBuffers)
    assert [name for name, _ in gm.named_buffers(recurse=False)] == ["read"]


class DeadNode(Convolutions):
    """Leaves a node that nobody reads, and a module that nobody calls."""

    def match(self):
        (node, *_) = (n for n in self.gm.graph.nodes if n.target == "1")
        target = edit.add_module(self.gm, "0", "extra", nn.ReLU())
        with self.gm.graph.inserting_after(node):
            self.gm.graph.call_module(target, (node,))
        return []


def test_dead_code_is_cleared():
    report, gm = run(DeadNode)
    assert report.changed is False
    assert not hasattr(gm, "0_extra")


class Drops(Convolutions):
    """Drops a node, but asks the user who reads it first."""

    def match(self):
        yield from [node for node in self.gm.graph.nodes if node.target == "1"]

    def rewrite(self, match, plan):
        match.replace_all_uses_with(match.all_input_nodes[0])
        self.gm.graph.erase_node(match)


def test_graph_is_recompiled():
    x = torch.randn(1, 3, 4, 4)
    gm = graph()
    before = gm(x)
    report, gm = run(Drops, gm)
    assert report.changed is True
    assert not torch.equal(gm(x), before)
    assert torch.equal(gm(x), gm.get_submodule("2")(gm.get_submodule("0")(x)))


class Refuses(Convolutions):
    def allowed(self, match):
        return None if match.target == "1" else Refusal(f"{match.target} is not liked", "like it")

    def layers(self, match):
        return (f"layer {match.target}",)

    def finish(self):
        self.note("all", "seen")


def test_refusals_and_notes_are_collected():
    report, _ = run(Refuses)
    assert report.applied == ["1"]
    assert report.refused == [
        Remark("0", "0 is not liked", "like it", ("layer 0",)),
        Remark("2", "2 is not liked", "like it", ("layer 2",)),
    ]
    assert report.notes == [Remark("all", "seen")]
    record = Record(Stage.CANONICAL)
    run_passes(graph(), (Refuses, Refuses), None, record)
    assert [remark.subject for remark in record.refusals()] == ["0", "2", "0", "2"]


class LazyMatches(Convolutions):
    """Asks for the graph's state between rewrites: the second match must see the first rewrite."""

    def match(self):
        while len(self.gm.graph.nodes) > 3:
            yield next(node for node in reversed(self.gm.graph.nodes) if node.op == "call_module")

    def rewrite(self, match, plan):
        match.replace_all_uses_with(match.all_input_nodes[0])
        self.gm.graph.erase_node(match)


def test_later_matches_see_earlier_rewrites():
    report, _ = run(LazyMatches)
    assert report.applied == ["2", "1"]


class Alias(Convolutions):
    """Breaks the promise of CANONICAL."""

    def rewrite(self, match, plan):
        with self.gm.graph.inserting_after(match):
            new = self.gm.graph.call_function(torch.relu, (match,))
        match.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


class BareBinaryLayer(Convolutions):
    """Claims TRAINABLE, with a layer that reads floats."""

    ensures = Stage.TRAINABLE

    def rewrite(self, match, plan):
        if match.target == "2":
            edit.replace_module(self.gm, "2", BinaryConv2d(8, 8, 3))


class LeftInTraining(Convolutions):
    """Claims PACKED, with a dropout in the graph."""

    ensures = Stage.PACKED

    def rewrite(self, match, plan):
        if match.target == "1":
            edit.replace_module(self.gm, "1", nn.Dropout())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Alias, "not in stage canonical: node 'relu' is spelled as relu, which has a canonical spelling"),
        (BareBinaryLayer, "not in stage trainable: node '_2' is a binary layer that reads '_1', which is no binarizer"),
        (LeftInTraining, "not in stage packed: node '_1' is a Dropout, which belongs to training"),
    ],
)
def test_broken_stage_names_the_node(kind, said):
    with pytest.raises(StageError) as error:
        run(kind)
    assert said in str(error.value)


class ReadsBeforeWritten(Convolutions):
    """Leaves a graph in the wrong order."""

    def rewrite(self, match, plan):
        if match.target == "0":
            match.append(next(n for n in self.gm.graph.nodes if n.op == "placeholder"))


def test_graph_is_linted():
    with pytest.raises(RuntimeError, match="used before it has been defined"):
        run(ReadsBeforeWritten)


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.CANONICAL])
def test_wrong_order_of_stages(stage):
    gm = graph()
    code = gm.code
    with pytest.raises(AssertionError, match=r"Convolutions runs on stage .*CANONICAL.*the graph is in"):
        run(Convolutions, gm, stage)
    assert gm.code == code


class ToTrainable(Convolutions):
    ensures = Stage.TRAINABLE


def test_stages_advance_from_pass_to_pass():
    record = Record(Stage.CANONICAL)
    run_passes(graph(), (Convolutions, ToTrainable), None, record)
    assert record.stage is Stage.TRAINABLE
    with pytest.raises(AssertionError):
        run_passes(graph(), (ToTrainable, Convolutions), None, Record(Stage.CANONICAL))


def test_watchers_see_every_pass_and_what_it_left():
    seen = []

    class Renames(Convolutions):
        def rewrite(self, match, plan):
            match._rename(f"{match.name}_again")

    gm = graph()
    with watch_passes(lambda report, gm: seen.append((report, gm.code))), watch_passes(lambda *_: seen.append(None)):
        record = Record(Stage.CANONICAL)
        run_passes(gm, (Convolutions, Renames), None, record)
    assert [entry and entry[0] for entry in seen] == [record.reports[0], None, record.reports[1], None]
    assert "_again" not in seen[0][1] and "_again" in seen[2][1]
    run(Convolutions)
    assert len(seen) == 4
