"""Values serialized for other processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from optuna_miha._training.pickling import pack, unpack

LARGE = 1 << 20

TENSORS = {
    "floats": torch.randn(5, 7),
    "integers": torch.arange(12).reshape(3, 4),
    "booleans": torch.tensor([True, False]),
    "bfloat16": torch.randn(6).to(torch.bfloat16),
    "complex": torch.randn(3, dtype=torch.complex64),
    "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 3),
    "transposed": torch.randn(4, 3).T,
    "slice": torch.arange(100)[10:20],
    "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "sparse": torch.eye(3).to_sparse(),
    "parameter": torch.nn.Parameter(torch.randn(2, 2)),
}


@pytest.mark.parametrize("in_file", [False, True], ids=["in bytes", "in a file"])
@pytest.mark.parametrize("name", TENSORS)
def test_tensor_is_unpacked_unchanged(name: str, in_file: bool, tmp_path: Path) -> None:
    tensor = TENSORS[name]
    unpacked = unpack(pack({"t": tensor}, tmp_path / "data" if in_file else None))["t"]
    assert type(unpacked) is type(tensor)
    assert unpacked.dtype == tensor.dtype
    assert unpacked.requires_grad == tensor.requires_grad
    if tensor.layout == torch.strided:
        assert unpacked.stride() == tensor.stride()
    assert torch.equal(unpacked.to_dense(), tensor.to_dense())


def test_shared_tensors_stay_shared() -> None:
    one = torch.zeros(3)
    unpacked = unpack(pack([one, one]))
    unpacked[0][0] = 1.0
    assert unpacked[1][0] == 1.0


def test_slice_is_packed_without_the_rest_of_the_tensor() -> None:
    assert len(pack(torch.zeros(LARGE)[:10])) < 10_000


def test_function_of_a_script_is_packed_with_its_data(tmp_path: Path) -> None:
    data, offset = torch.arange(LARGE, dtype=torch.float32), np.arange(LARGE)

    def total() -> float:
        return float(data.sum()) + float(offset.sum())

    packed = pack(total, tmp_path / "data")
    assert len(packed) < 10_000
    assert (tmp_path / "data").stat().st_size >= 12 * LARGE
    assert unpack(packed)() == total()


def test_changes_are_not_written_to_the_file(tmp_path: Path) -> None:
    packed = pack(torch.zeros(LARGE), tmp_path / "data")
    unpack(packed).fill_(1.0)
    assert not unpack(packed).any()


def private_kilobytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_processes_share_one_copy(tmp_path: Path) -> None:
    n_bytes = 100 << 20
    (tmp_path / "packed").write_bytes(
        pack(torch.ones(n_bytes, dtype=torch.uint8), tmp_path / "data")
    )
    script = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[2:]\n"
        "from optuna_miha._training.pickling import unpack\n"
        "from test_pickling import private_kilobytes\n"
        "before = private_kilobytes(); t = unpack(Path(sys.argv[1]).read_bytes())\n"
        "assert int(t.sum()) == len(t); print(private_kilobytes() - before)"
    )
    folders = [os.fspath(Path(__file__).parent), os.fspath(Path(__file__).parents[2])]
    command = [sys.executable, "-c", script, os.fspath(tmp_path / "packed"), *folders]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(run.stdout) < n_bytes // 1024 // 10


def test_values_without_arrays_are_unpacked_without_the_file(tmp_path: Path) -> None:
    unpacked: Any = unpack(pack({"a": 1, "b": np.empty(0), "c": "x"}, tmp_path / "data"))
    assert unpacked["a"] == 1
    assert unpacked["b"].shape == (0,)


def test_tensors_in_a_file_are_aligned(tmp_path: Path) -> None:
    mixed = [torch.ones(3, dtype=torch.uint8), torch.arange(5), torch.ones(7, dtype=torch.uint8)]
    unpacked: list[Tensor] = unpack(pack([*mixed, torch.randn(LARGE)], tmp_path / "data"))
    assert all(tensor.data_ptr() % 64 == 0 for tensor in unpacked)
