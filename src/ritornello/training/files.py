"""Writing so that a kill at any moment leaves the old file or the new one, never half of one; never unpickling."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ritornello.errors import RunError


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces `path` by a file with that content, or leaves it as it was.

    Raises:
        RunError: it could not be written (a full disk, no permission); what was there before is intact.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        kept = "; the one written before is intact" if path.exists() else ""
        raise RunError(f"Cannot write {path}: {error.strerror or error}{kept}.") from error


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically, indented for reading."""
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        RunError: the file is missing or no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise RunError(f"{path} is damaged, it holds no JSON ({error}); train anew with --overwrite.") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Writes tensors, and what is to be known about them as JSON, into one safetensors file, atomically."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    places = [tensor.untyped_storage().data_ptr() for tensor in ready.values()]
    ready = {n: t.clone() if places.count(p) > 1 else t for (n, t), p in zip(ready.items(), places, strict=True)}
    text = json.dumps(about)
    write_atomically(path, save(ready, {"about": f"{_crc32(ready, text)} {text}"}))  # two keys would come in any order


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a safetensors file, on the CPU, and what is known about them.

    Raises:
        RunError: the file is missing, cut or corrupt.
    """
    if not path.is_file():
        raise RunError(f"{path} is missing; the run ended before it was written, or it was deleted.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            checksum, _, text = (file.metadata() or {}).get("about", "").partition(" ")
        if checksum != _crc32(tensors, text):
            raise ValueError("its checksum does not fit its content")
        return tensors, json.loads(text)
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{path} is cut or corrupt ({error}); restore it from a copy or train anew.") from error


def _crc32(tensors: Mapping[str, Tensor], about: str) -> str:
    """The checksum of all that a file of tensors says: a flipped bit must not become a weight."""
    sum_ = zlib.crc32(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sum_ = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), sum_)
        sum_ = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, sum_)
    return f"{sum_:08x}"


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and buffers by name; a parameter that is shared stands once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Copies tensors into a model.

    Raises:
        RunError: a tensor is missing, left over or of another shape.
    """
    own = weights(model)
    for name in [*own, *tensors]:
        if name not in own or name not in tensors:
            lacks = "holds a tensor that the model lacks" if name in tensors else "lacks the model's tensor"
            raise RunError(f"{where} {lacks}: {name!r}; it belongs to another configuration.")
    for name, parameter in own.items():
        if parameter.shape != tensors[name].shape:
            raise RunError(
                f"{where} holds {name!r} of shape {tuple(tensors[name].shape)}; "
                f"the configuration asks for {tuple(parameter.shape)}."
            )
        parameter.copy_(tensors[name])
