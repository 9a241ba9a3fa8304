"""Which tensors of a file are the model's: those whose names are, wherever training programs put them."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from bnnfx.checkpoint import Checkpoint, Weights
from bnnfx.errors import ModelSourceError


class Block(nn.Module):
    """Its submodules have names that checkpoints use for other things."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.model = nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))


def prefixed(prefix: str) -> Callable[[nn.Module], dict[str, Tensor]]:
    return lambda model: {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}


def other(model: nn.Module) -> dict[str, Tensor]:
    """The same names, other values."""
    return {name: tensor + 1 for name, tensor in model.state_dict().items()}


def trained(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer


def compiled_within(model: nn.Module) -> Mapping[str, Tensor]:
    assert isinstance(model, Block)
    model.model = torch.compile(model.model)  # type: ignore[assignment]
    state = model.state_dict()
    assert any("_orig_mod" in name for name in state)
    return state


FILES: dict[str, tuple[Callable[[nn.Module], Any], str, tuple[str, ...]]] = {
    # what is stored, the key that is found, the others that would do
    "as it is": (lambda m: m.state_dict(), "", ()),
    "distributed": (lambda m: nn.DataParallel(m).state_dict(), "module", ()),
    "compiled": (lambda m: torch.compile(m).state_dict(), "", ()),
    "compiled and distributed": (lambda m: torch.compile(nn.DataParallel(m)).state_dict(), "module", ()),
    "distributed and compiled": (prefixed("module._orig_mod."), "module", ()),
    "compiled within": (compiled_within, "", ()),
    "averaged": (lambda m: AveragedModel(m).state_dict(), "module", ()),
    "lightning": (
        lambda m: {"epoch": 3, "state_dict": prefixed("model.")(m) | {"loss.weight": torch.ones(2)}},
        "state_dict.model",
        (),
    ),
    "lightning of another name": (lambda m: {"state_dict": prefixed("encoder.")(m)}, "state_dict.encoder", ()),
    "under net": (lambda m: {"net": m.state_dict(), "acc": 93.1}, "net", ()),
    "under model": (lambda m: {"model": m.state_dict(), "args": ["x"], "lr": torch.ones(())}, "model", ()),
    "distributed under net": (lambda m: {"net": prefixed("module.")(m)}, "net.module", ()),
    "with an optimizer": (
        lambda m: {"model_state_dict": m.state_dict(), "optimizer_state_dict": trained(m).state_dict()},
        "model_state_dict",
        (),
    ),
    "with an average": (
        lambda m: {"arch": "x", "state_dict_ema": other(m), "state_dict": m.state_dict()},
        "state_dict",
        ("state_dict_ema",),
    ),
    "with an average of its own": (
        lambda m: {"model": m.state_dict(), "ema": {"decay": 0.9, "shadow": other(m)}},
        "model",
        ("ema.shadow",),
    ),
    "lightning with an average": (
        lambda m: {"state_dict": {f"ema_model.{n}": t for n, t in other(m).items()} | prefixed("model.")(m)},
        "state_dict.model",
        ("state_dict.ema_model",),
    ),
    "without counters": (
        lambda m: {n: t for n, t in m.state_dict().items() if not n.endswith("num_batches_tracked")},
        "",
        (),
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_found_by_names(case: str, tmp_path: Path) -> None:
    store, key, others = FILES[case]
    model = Block()
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(store(model), tmp_path / "weights.pt")
    fit = Checkpoint(Weights(tmp_path / "weights.pt")).fit(expected)
    assert fit is not None and (fit.key, fit.others) == (key, others)
    assert expected.keys() - fit.state.keys() == (
        {"model.0.num_batches_tracked"} if case == "without counters" else set()
    )
    assert fit.state and all(torch.equal(tensor, expected[name]) for name, tensor in fit.state.items())


@pytest.mark.parametrize("key", ["state_dict_ema", "state_dict"])
def test_key_chooses(key: str, tmp_path: Path) -> None:
    model = Block()
    torch.save({"state_dict": model.state_dict(), "state_dict_ema": other(model)}, tmp_path / "weights.pt")
    weights = Weights.parse(f"{tmp_path}/weights.pt:{key}")
    fit = Checkpoint(weights).fit(model.state_dict())
    assert fit is not None and (fit.key, fit.others) == (key, ())
    assert torch.equal(fit.state["net.bias"], model.net.bias + (key == "state_dict_ema"))


def test_several_that_are_as_usual(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"teacher": other(Block()), "student": Block().state_dict()}, path)
    message = f"holds weights for the model under several keys: 'teacher', 'student'; give one as {path}:teacher."
    with pytest.raises(ModelSourceError, match=re.escape(message)):
        Checkpoint(Weights(path)).fit(Block().state_dict())


def test_what_does_not_fit(tmp_path: Path) -> None:
    state, wanted = Block().state_dict(), Block().state_dict()
    del state["net.bias"]
    torch.save(
        {"net": state | {"extra": torch.ones(1)}, "optimizer": {"state": {0: {"step": torch.ones(())}}}},
        tmp_path / "w.pt",
    )
    checkpoint = Checkpoint(Weights(tmp_path / "w.pt"))
    assert checkpoint.fit(wanted) is None
    assert checkpoint.closest(wanted) == (["net.bias"], ["extra"])


def test_names_of_files(tmp_path: Path) -> None:
    for name in ("weights.pt", "odd:name.pt"):
        (tmp_path / name).touch()
    for text, expected in {
        "weights.pt": ("weights.pt", None),
        "weights.pt:": ("weights.pt", ""),
        "weights.pt:state_dict.model": ("weights.pt", "state_dict.model"),
        "odd:name.pt": ("odd:name.pt", None),
        "odd:name.pt:net": ("odd:name.pt", "net"),
    }.items():
        assert Weights.parse(f"{tmp_path}/{text}") == Weights(tmp_path / expected[0], expected[1])
    for text in ("none.pt", "none.pt:net", "odd"):
        with pytest.raises(ModelSourceError, match=f"There is no file .*/{text} to read weights from"):
            Weights.parse(f"{tmp_path}/{text}")


@pytest.mark.parametrize("content", [{"number": 3}, {}, [torch.ones(2)], torch.ones(2), {"a": {"b": "c"}}])
def test_no_tensors(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ModelSourceError, match=r"w\.pt holds no state_dict \(names and tensors\)"):
        Checkpoint(Weights(tmp_path / "w.pt"))


def test_unknown_key(tmp_path: Path) -> None:
    torch.save({"net": Block().state_dict(), "ema": Block().state_dict(), "epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(ModelSourceError, match=r"no tensors under the key 'epoch'; it has 'net', 'ema'\.$"):
        Checkpoint(Weights(tmp_path / "w.pt", "epoch"))


class Trap:
    """What unpickling would execute."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def test_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Block().state_dict(), "other": Trap()}, "w.pt")
    with pytest.raises(ModelSourceError, match=r"w\.pt holds no state_dict that can be read without executing code"):
        Checkpoint(Weights(Path("w.pt"), "state_dict"))
    assert not Path("executed").exists()
