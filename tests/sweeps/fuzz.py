"""Random networks through the whole chain, and mutated files through ONNX Runtime: `make fuzz N=...`.

A case is its seed, which is printed with what went wrong: `fuzz.py networks SEED` and `fuzz.py files SEED` run one.

* A random network (`helpers.random_networks`) is converted by a scheme, trained for a step, split where it is ternary,
  lowered, and written in every dialect; the file is compared on every instruction set of the machine and as the bodies
  stored in it.
* A file of ours is mutated (bytes, attributes, constants, edges) and run with the kernel library in a process of its
  own. It may be refused, by an error of ours or of ONNX Runtime; the process must live.
"""

import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import fx

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.graphs import lowerable
from helpers.outcomes import Outcome, Wrong, time_limit
from helpers.random_networks import RandomNetwork, random_network

import bnnfx
from bnnfx.api import content_of
from bnnfx.config import FLOAT_KEYWORDS
from bnnfx.errors import BnnfxError
from bnnfx.graph.shapes import leaves_of
from bnnfx.runtime.library import isas

PROCESSES = 2

SECONDS = 120
"""How long one case may take."""

MEMORY = 16 * 2**30
"""What a process may map that runs mutated files: a size among them may be anything."""


# --- networks ---------------------------------------------------------------------------------------------------------


def train_one_step(gm: fx.GraphModule, inputs: tuple[torch.Tensor, ...]) -> None:
    """A step where all gradients are finite."""
    gm.train()
    torch.manual_seed(1)
    loss = sum(y.float().square().mean() for y in leaves_of(gm(*inputs)))
    if isinstance(loss, torch.Tensor) and loss.requires_grad:
        loss.backward()
        if all(p.grad is None or bool(p.grad.isfinite().all()) for p in gm.parameters()):
            torch.optim.SGD(gm.parameters(), 0.01).step()


def run_network(network: RandomNetwork, seed: int, folder: Path) -> str:
    """One network through everything; the scheme that binarized it.

    Raises:
        Wrong: results differ.
    """
    r = random.Random(seed)
    inputs = network.inputs(r.choice([2, 3]), seed)
    model = network.build(seed).train(r.random() < 0.7)
    scheme = r.choice(bnnfx.schemes())
    config = bnnfx.Config(keep_float=tuple(word for word in FLOAT_KEYWORDS if r.random() < 0.3))
    gm = bnnfx.convert(model, scheme, example_inputs=inputs, config=config)
    if all(len(shape) < 3 or min(shape[1:]) > 1 for shape in network.shapes):  # a batch norm needs several values
        train_one_step(gm, inputs)
    gm = lowerable(gm.eval())
    packed = bnnfx.lower(gm, inputs)
    others = network.inputs(r.choice([2, 5]), seed + 1)
    require(bnnfx.verify(gm, packed, others), "the packed graph")
    for dialect in bnnfx.targets():
        (folder / f"{dialect}.onnx").write_bytes(content_of(packed, dialect))
    require(bnnfx.verify(packed, folder / "bnnfx.onnx", others, kernels=False), "the bodies in the file")
    require(bnnfx.verify(packed, folder / "standard.onnx", others, kernels=False), "the file of standard operators")
    results: dict[str, list[bytes]] = {}
    for isa in isas():
        with narrowed(isa):
            require(bnnfx.verify(packed, folder / "bnnfx.onnx", others), f"the file on {isa}")
            given = bnnfx.load(folder / "bnnfx.onnx", threads=1).run(*others)
            results[isa] = [y.tobytes() for y in (given if isinstance(given, tuple) else (given,))]
    first, *rest = results
    for isa in rest:
        if results[isa] != results[first]:
            raise Wrong(f"the outputs on {isa} are others than on {first}")
    return scheme


def require(verification: bnnfx.Verification, what: str) -> None:
    if not verification:
        raise Wrong(f"{what}: {verification}")


class narrowed:
    """The kernels of one instruction set."""

    def __init__(self, isa: str) -> None:
        self.isa = isa

    def __enter__(self) -> None:
        self.before = os.environ.get("BNNFX_ISA")
        os.environ["BNNFX_ISA"] = self.isa

    def __exit__(self, *_: object) -> None:
        del os.environ["BNNFX_ISA"]
        if self.before is not None:
            os.environ["BNNFX_ISA"] = self.before


def network_case(seed: int) -> Outcome:
    """What came of the network of a seed; one that is refused as a whole says so by an error of ours."""
    torch.set_num_threads(1)
    network = random_network(seed)
    try:
        with time_limit(SECONDS), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Outcome("right", run_network(network, seed, Path(folder)))
    except Wrong as wrong:
        return Outcome("wrong", f"{wrong}\n{network.source}\n# inputs {network.shapes}")
    except BnnfxError as error:
        # what the compiler made is at fault, and not what it was given
        broken = any(words in str(error) for words in ("does not compute", "cannot be compared", "cannot run"))
        kind = "wrong" if broken or isinstance(error, bnnfx.StageError) else "refused"
        return Outcome(kind, f"{type(error).__name__}: {error}\n{network.source}\n# inputs {network.shapes}")
    except Exception:
        return Outcome("raw error", f"{traceback.format_exc()}\n{network.source}\n# inputs {network.shapes}")


# --- files ------------------------------------------------------------------------------------------------------------

NUMBERS = (0, 1, -1, 2, 3, 7, 63, 64, 65, 255, 2**15, 2**31 - 1, 2**31, -(2**31), 2**32 + 1, 2**62, -(2**63))


def _bytes(r: random.Random, content: bytes) -> bytes:
    """Some bytes become others."""
    changed = bytearray(content)
    for _ in range(r.choice([1, 1, 2, 8, 64])):
        changed[r.randrange(len(changed))] = r.randrange(256)
    return bytes(changed)


def _cut(r: random.Random, content: bytes) -> bytes:
    """The end is missing, or a part in the middle."""
    start = r.randrange(len(content))
    return content[:start] + (content[start + r.randrange(1, 99) :] if r.random() < 0.5 else b"")


def _on_model(change: Callable[[random.Random, onnx.ModelProto], object]) -> Callable[[random.Random, bytes], bytes]:
    def mutate(r: random.Random, content: bytes) -> bytes:
        model = onnx.load_from_string(content)
        for _ in range(r.choice([1, 1, 1, 2, 3])):
            change(r, model)
        return bytes(model.SerializeToString())

    return mutate


def _ours(r: random.Random, model: onnx.ModelProto) -> onnx.NodeProto:
    nodes = [node for node in model.graph.node if node.domain]
    return r.choice(nodes or list(model.graph.node))


def _attribute(r: random.Random, model: onnx.ModelProto) -> None:
    """A number among the attributes of a node of ours becomes another one, or there are more or fewer of them."""
    node = _ours(r, model)
    if not node.attribute:
        return
    attribute = r.choice(list(node.attribute))
    if r.random() < 0.15:
        node.attribute.remove(attribute)
    elif attribute.ints:
        numbers = list(attribute.ints)
        place = r.randrange(len(numbers))
        numbers[place : place + r.choice([0, 1, 1, 1, 2])] = [
            r.choice(NUMBERS) for _ in range(r.choice([0, 1, 1, 1, 3]))
        ]
        del attribute.ints[:]
        attribute.ints.extend(numbers)
    else:
        attribute.i = r.choice([*NUMBERS, attribute.i - 1, attribute.i + 1])


def _constant(r: random.Random, model: onnx.ModelProto) -> None:
    """A constant gets another shape, type, or other values."""
    tensor = r.choice(list(model.graph.initializer))
    try:
        array = onnx.numpy_helper.to_array(tensor)
    except ValueError:  # it was changed before
        return
    kind = r.choice(["flat", "axis", "cut", "empty", "type", "values", "raw", "dims"])
    if kind == "raw":
        tensor.raw_data = tensor.raw_data[: r.randrange(len(tensor.raw_data) + 1)]
        return
    if kind == "dims" and tensor.dims:
        tensor.dims[r.randrange(len(tensor.dims))] = r.choice(NUMBERS)
        return
    if kind == "flat":
        array = array.reshape(-1)
    elif kind == "axis":
        array = array[None]
    elif kind == "cut" and array.ndim:
        array = array[: r.randrange(len(array) + 1)]
    elif kind == "empty":
        array = array.reshape(-1)[:0]
    elif kind == "type":
        array = array.astype(r.choice([np.float32, np.float64, np.uint8, np.int32, np.int64, np.bool_]))
    elif array.size:
        array = np.full_like(array, r.choice([0, 1, 255, 100]))
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def _edges(r: random.Random, model: onnx.ModelProto) -> None:
    """A node reads something else, nothing, or more; or it is another operator."""
    node = _ours(r, model)
    names = [value for other in model.graph.node for value in other.input] + [""]
    kind = r.choice(["other", "fewer", "more", "operator", "result"])
    if kind == "other" and node.input:
        node.input[r.randrange(len(node.input))] = r.choice(names)
    elif kind == "fewer" and node.input:
        del node.input[r.randrange(len(node.input))]
    elif kind == "more":
        node.input.append(r.choice(names))
    elif kind == "operator":
        node.op_type = _ours(r, model).op_type
    elif kind == "result":
        node.output.append("one_more")


def _ends(r: random.Random, model: onnx.ModelProto) -> None:
    """The input has another shape."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[r.randrange(len(dims))].dim_value = r.choice([0, 1, 2, 3, 9])


MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    *(_bytes, _cut),
    *(_on_model(_attribute), _on_model(_constant), _on_model(_edges), _on_model(_ends)),
    *(_on_model(_attribute), _on_model(_constant)),
)


def originals() -> list[bytes]:
    """Files with every kind of node of ours; without checks, which are of no use here."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed, scheme in ((1, "xnor"), (2, "rbnn"), (3, "bireal"), (4, "binaryduo")):
            torch.manual_seed(seed)
            model = torch.nn.Sequential(
                *(torch.nn.Conv2d(3, 10, 3, padding=1), torch.nn.BatchNorm2d(10)),
                *(torch.nn.Conv2d(10, 14, 3, padding=1, groups=2), torch.nn.BatchNorm2d(14), torch.nn.MaxPool2d(2)),
                *(torch.nn.Conv2d(14, 70, 3, stride=2), torch.nn.BatchNorm2d(70), torch.nn.PReLU(70)),
                *(torch.nn.Conv2d(70, 8, 1), torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.Linear(8, 5)),
            )
            x = torch.randn(2, 3, 9, 8)
            gm = lowerable(bnnfx.convert(model.eval(), scheme, example_inputs=(x,)))
            found.append(content_of(gm, example_inputs=(x,), check=False))
    return found


def mutated(seed: int, files: list[bytes]) -> bytes:
    """The file of a seed."""
    r = random.Random(seed)
    return r.choice(MUTATIONS)(r, r.choice(files))


def worker() -> None:
    """Runs the files named on standard input; a line for each, which says what came of it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        try:
            session = bnnfx.load(line.strip(), threads=1)
            inputs = [
                np.ones([d if isinstance(d, int) else 2 for d in v.shape], np.float32) for v in session.ort.get_inputs()
            ]
            session.run(*inputs)
            said = "right"
        except (BnnfxError, ValueError, MemoryError):
            said = "refused"
        except Exception as error:
            theirs = type(error).__module__.startswith("onnxruntime")
            said = "refused" if theirs else f"raw error {type(error).__name__}: {' '.join(str(error).split())}"
        sys.stdout.write(said + "\n")
        sys.stdout.flush()


class Worker:
    """The process that runs mutated files; there is a new one when it has ended."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def run(self, path: Path) -> Outcome:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        try:
            with time_limit(SECONDS):
                process.stdin.write(f"{path}\n")
                process.stdin.flush()
                said = process.stdout.readline().strip()
        except (TimeoutError, BrokenPipeError) as error:
            self.close()
            return Outcome("wrong", f"the process hangs or is gone: {error}")
        if not said:
            code = process.wait()
            self.process = None
            return Outcome("wrong", f"the process ended by {signal.Signals(-code).name if code < 0 else code}")
        kind = next(kind for kind in ("right", "refused", "raw error") if said.startswith(kind))
        return Outcome(kind, said.removeprefix(kind).strip())

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def file_cases(seeds: list[int]) -> Iterator[tuple[int, Outcome]]:
    """What came of the files of these seeds."""
    files, runner = originals(), Worker()
    with tempfile.TemporaryDirectory() as folder:
        try:
            for seed in seeds:
                path = Path(folder) / "mutated.onnx"
                path.write_bytes(mutated(seed, files))
                yield seed, runner.run(path)
        finally:
            runner.close()


# --- all of it --------------------------------------------------------------------------------------------------------

FAILURES = ("wrong", "raw error")
FILES_PER_NETWORK = 8
"""A file takes a fraction of the time."""


def cases(part: str, seeds: list[int]) -> Iterator[tuple[int, Outcome]]:
    if part == "files":
        yield from file_cases(seeds)
    elif len(seeds) == 1:
        yield seeds[0], network_case(seeds[0])
    else:
        with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from zip(seeds, pool.map(network_case, seeds), strict=True)


def fuzz(part: str, seeds: list[int], say: Callable[[str], Any] = sys.stdout.write) -> Counter[str]:
    """Run the cases of these seeds, print those that fail, and count."""
    counts: Counter[str] = Counter()
    for seed, outcome in cases(part, seeds):
        counts[outcome.kind] += 1
        if outcome.kind == "refused" and outcome.detail:
            say(f"{part} {seed}: refused: {outcome.detail.splitlines()[0][:200]}\n")
        if outcome.kind in FAILURES:
            say(f"{part} {seed}: {outcome.kind}\n{outcome.detail}\n")
    return counts


def main(arguments: list[str]) -> int:
    """`N [FIRST]`, or a part and one seed."""
    torch.set_num_threads(1)
    if arguments[0] == "worker":
        worker()
        return 0
    if arguments[0] in ("networks", "files"):
        ((_, outcome),) = cases(arguments[0], [int(arguments[1])])
        sys.stdout.write(f"{outcome.kind}\n{outcome.detail}\n")
        return int(outcome.kind in FAILURES)
    number, first = int(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 0
    failed = False
    for part, many in (("networks", number), ("files", number * FILES_PER_NETWORK)):
        start = time.monotonic()
        counts = fuzz(part, list(range(first, first + many)))
        text = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        sys.stdout.write(f"{part}: {text}, in {time.monotonic() - start:.0f} s\n")
        sys.stdout.flush()
        failed |= any(counts[kind] for kind in FAILURES)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
