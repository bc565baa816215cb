"""This file holds training checkpoints: everything from which a run goes on exactly.

A snapshot is a directory: ``snapshot.json`` (format, step, recipe), ``parameters.safetensors`` (latent weights by name)
and ``optimizer.safetensors`` (what is kept of each, as ``NAME|RULE|KIND``, and how often it was updated, as
``NAME|RULE|updates``). Recipe, step and the number of batches that were left out decide which batch comes next, and
nothing else is random. It appears whole or not at all: a run that is killed at any moment has the one before.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanochat.errors import FormatError, SaveError, TrainingError, VersionError
from nanochat.files import atomic_directory, parse_json, read_bytes
from nanochat.training.flat_recipe import nested
from nanochat.training.old_states import named_states, stacked_states
from nanochat.training.recipe import Recipe, recipe_from_dict, recipe_to_dict
from nanochat.training.setbacks import Setbacks
from nanochat.training.updater import State

__all__ = [
    "Snapshot",
    "find_snapshot",
    "holds_run",
    "is_last_snapshot",
    "largest_numbers",
    "load_record",
    "load_snapshot",
    "remove_leftovers",
    "remove_snapshot",
    "save_snapshot",
    "snapshot_directory",
    "snapshot_steps",
]

# Until the second, there was one snapshot of a run, in "snapshot", and what its optimizer kept lay in stacks; only the
# second had the step in the names of its files. The third had states of the parameters that its phase had updated, and
# no names of rules.
_FORMAT = 4
_UPDATES = "updates"
_FILE_NAME = "snapshot.json"
_FOLDER, _ONLY = "snapshots", "snapshot"
_MAX_JSON_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """A run after `step` updates and so many seconds; `data` is the fingerprint of what it saw, `machine` where.

    `phase` is the number of the last one that has begun, which may be that of the next step; snapshots did not always
    say it. `beside` is what a run of another kind keeps with it, ready for JSON.
    """

    step: int
    phase: int | None = None
    seconds: float = 0.0
    setbacks: Setbacks = field(default_factory=Setbacks)
    recipe: Recipe
    data: str
    machine: Mapping[str, object] = field(default_factory=dict)
    beside: Mapping[str, object] = field(default_factory=dict)
    parameters: Mapping[str, Tensor]
    optimizer: Mapping[str, State]


def largest_numbers(snapshot: Snapshot) -> dict[str, float]:
    """The largest magnitude of each of its tensors."""
    tensors = {**snapshot.parameters}
    for name, state in snapshot.optimizer.items():
        tensors |= {f"{kind} of {name}": tensor for kind, tensor in state.kept.items()}
    largest = torch.stack([tensor.abs().max().float() for tensor in tensors.values()])
    return dict(zip(tensors, largest.tolist(), strict=True))


def save_snapshot(directory: Path, snapshot: Snapshot) -> None:
    """Write a snapshot into a directory of its own, complete or not at all."""
    flat = {
        f"{name}|{state.rule}|{kind}": tensor
        for name, state in snapshot.optimizer.items()
        for kind, tensor in [
            *state.kept.items(),
            (_UPDATES, torch.tensor(state.updates, device="cpu")),
        ]
    }
    text = {
        "format": _FORMAT,
        "step": snapshot.step,
        "phase": snapshot.phase,
        "seconds": snapshot.seconds,
        "setbacks": asdict(snapshot.setbacks),
        "data": snapshot.data,
        "machine": dict(snapshot.machine),
        "recipe": recipe_to_dict(snapshot.recipe),
        **({"beside": dict(snapshot.beside)} if snapshot.beside else {}),
    }
    with atomic_directory(directory) as new:
        parameters, optimizer = _tensor_files(new, _FORMAT, snapshot.step)
        _save(dict(snapshot.parameters), parameters)
        _save(flat, optimizer)
        (new / _FILE_NAME).write_text(json.dumps(text, indent=1))


def snapshot_directory(run: Path, step: int) -> Path:
    """Where the snapshot of a step of a run is."""
    return run / _FOLDER / f"{step}"


def find_snapshot(directory: Path) -> Path:
    """The directory of a snapshot: that of its run stands for its last one, too."""
    last = [snapshot_directory(directory, step) for step in snapshot_steps(directory)[-1:]]
    for found in (directory, *last, directory / _ONLY):
        if (found / _FILE_NAME).is_file():
            return found
    raise TrainingError(
        f"{directory} holds no snapshot: pass the directory of a run that has saved one, or such as RUN/{_FOLDER}/500"
    )


def holds_run(directory: Path) -> bool:
    """Whether a run has saved a snapshot there; one that was killed before is no loss."""
    return bool(snapshot_steps(directory)) or (directory / _ONLY / _FILE_NAME).is_file()


def is_last_snapshot(snapshot: Path, run: Path) -> bool:
    """Whether the last snapshot of the run is that."""
    return holds_run(run) and find_snapshot(run).resolve() == snapshot.resolve()


def remove_snapshot(run: Path, step: int) -> None:
    """Delete the snapshot of a step of a run."""
    directory = snapshot_directory(run, step)
    with _deleting(directory):
        # What is half deleted is no snapshot.
        (directory / _FILE_NAME).unlink()
        shutil.rmtree(directory)


def remove_leftovers(run: Path) -> None:
    """Delete what is no snapshot yet, or none any more, because the run was killed while it wrote or deleted it."""
    for directory in (run / _FOLDER).glob("*"):
        # A temporary directory is called so, in `nanochat.files`.
        is_new = re.fullmatch(r"\.\d+\..+", directory.name)
        is_old = directory.name.isdecimal() and not (directory / _FILE_NAME).exists()
        if (is_new or is_old) and directory.is_dir() and not directory.is_symlink():
            with _deleting(directory):
                shutil.rmtree(directory)


@contextmanager
def _deleting(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SaveError(
            f"cannot delete {directory}: {error.strerror or error}; delete it, and resume"
        ) from error


def snapshot_steps(run: Path) -> list[int]:
    """The steps of a run's snapshots, the last one last."""
    found = (run / _FOLDER).glob(f"*/{_FILE_NAME}")
    return sorted(int(path.parent.name) for path in found if path.parent.name.isdecimal())


def load_record(directory: Path) -> Snapshot:
    """The snapshot in a directory of its own or in that of its run, without its numbers."""
    return _read_text(find_snapshot(directory))[1]


def load_snapshot(directory: Path, device: str = "cpu") -> Snapshot:
    """Read the snapshot in a directory of its own or in that of its run."""
    directory = find_snapshot(directory)
    version, found = _read_text(directory)
    parameters_file, optimizer_file = _tensor_files(directory, version, found.step)
    optimizer: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _load(optimizer_file, device).items():
        owner, _, kind = key.rpartition("|")
        optimizer.setdefault(owner, {})[kind] = tensor
    match version:
        case 1 | 2:
            states = stacked_states(optimizer, found.recipe, found.step)
        case 3:
            states = named_states(optimizer, found.recipe, found.step)
        case _:
            states = _states(optimizer)
    parameters = _load(parameters_file, device)
    return replace(found, parameters=parameters, optimizer=states)


def _states(found: Mapping[str, Mapping[str, Tensor]]) -> dict[str, State]:
    """The state of each parameter, from what is kept by ``NAME|RULE``."""
    states = {}
    for owner, kept in found.items():
        name, _, rule = owner.rpartition("|")
        tensors = dict(kept)
        states[name] = State(rule=rule, updates=int(tensors.pop(_UPDATES, 0)), kept=tensors)
    return states


def _read_text(directory: Path) -> tuple[int, Snapshot]:
    """The format of a snapshot, and all of it but its numbers."""
    path = directory / _FILE_NAME
    text = parse_json(read_bytes(path, limit=_MAX_JSON_BYTES), str(path))
    version = text.get("format")
    if type(version) is not int or version not in range(1, _FORMAT + 1):
        raise VersionError(
            f"{path}: format {version!r} is none of 1 to {_FORMAT}: upgrade nanochat-ternary or start a new run"
        )
    step, recipe, data = text.get("step"), text.get("recipe"), text.get("data")
    # The third format had this number only.
    setbacks = _setbacks(text.get("setbacks", {"skipped": text.get("skipped", 0)}))
    if (
        not isinstance(step, int)
        or step < 0
        or setbacks is None
        or not isinstance(recipe, dict)
        or not isinstance(data, str)
    ):
        raise FormatError(
            f"{path}: step {step!r}, its data or its recipe is damaged; use an earlier snapshot"
        )
    machine, seconds, phase, beside = (
        text.get(name) for name in ("machine", "seconds", "phase", "beside")
    )
    return version, Snapshot(
        step=step,
        phase=phase if isinstance(phase, int) else None,
        seconds=seconds if isinstance(seconds, float) else 0.0,
        setbacks=setbacks,
        recipe=recipe_from_dict(nested(recipe)),
        data=data,
        machine=machine if isinstance(machine, dict) else {},
        beside=beside if isinstance(beside, dict) else {},
        parameters={},
        optimizer={},
    )


def _setbacks(found: object) -> Setbacks | None:
    """Those that were saved, if they are not damaged."""
    names = {each.name for each in fields(Setbacks)}
    if not isinstance(found, dict) or not names >= found.keys():
        return None
    if not all(isinstance(number, int) and number >= 0 for number in found.values()):
        return None
    return Setbacks(**found)


def _tensor_files(directory: Path, version: int, step: int) -> tuple[Path, Path]:
    """Those of the parameters and of the optimizer."""
    end = f"-{step}.safetensors" if version == 2 else ".safetensors"
    return directory / f"parameters{end}", directory / f"optimizer{end}"


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file({k: t.detach().contiguous().cpu() for k, t in tensors.items()}, path)
    except SafetensorError as error:
        # The library wraps the operating system's refusal; the directory's owner reports it as such.
        raise OSError(str(error)) from error


def _load(path: Path, device: str) -> dict[str, Tensor]:
    try:
        return load_file(path, device=device)
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} is damaged ({error}): use an earlier snapshot") from error
