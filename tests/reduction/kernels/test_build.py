"""Kernel libraries are built once and kept; what is missing is named."""

import _ctypes
import ctypes
import os
import re
import subprocess

import jax
import pytest

from imagepiece_jax.common import cache_dirs
from imagepiece_jax.reduction.kernels import build, fused
from imagepiece_jax.reduction.layer_plan import Counts
from tests.models import tiny
from tests.runs import ROOT

HOST = build.host_compilers()
NVCC = build.cuda_compilers()
LIBRARY = _ctypes.__file__  # any shared library
needs_host = pytest.mark.skipif(not HOST, reason="needs a C++ compiler")
needs_nvcc = pytest.mark.skipif(not (HOST and NVCC), reason="needs nvcc")


@pytest.fixture
def compilers(tmp_path, monkeypatch):
    """An empty cache and PATH, and a maker of executables: its folder, by name."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in ("CXX", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)

    def make(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    return make


def library(device="cpu", capability=None):
    return build.library.__wrapped__(device, capability)


def copier(folder):
    """Text of a compiler that makes a library of any kind, and notes that it ran."""
    # The output is the last word of the command.
    return (
        f'echo ran >> "{folder}/log"\nfor last; do :; done\n/bin/cp "{LIBRARY}" "$last"'
    )


@pytest.mark.parametrize("device, wanted", [("cpu", "g++"), ("cuda", "nvcc")])
def test_no_compiler_is_named(compilers, device, wanted):
    found = library(device, "9.0")
    assert wanted in found and found.endswith("there is none")


def test_a_compiler_that_fails_is_named_and_the_next_one_tried(
    compilers, tmp_path, monkeypatch
):
    compilers("bin/g++", "echo reduce.h:1: error: wrong word >&2; exit 1")
    assert "bin/g++ could build: reduce.h:1: error: wrong word" in library()
    assert not any(cache_dirs.folder("kernels").iterdir())
    compilers("bin/clang++", copier(tmp_path))
    assert isinstance(library(), ctypes.CDLL)
    compilers("bin/g++", copier(tmp_path))
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert str(tmp_path / "file") in library()


def test_a_library_is_built_once_for_each_that_differs(
    compilers, tmp_path, monkeypatch
):
    compilers("bin/g++", copier(tmp_path))
    for _ in range(2):
        assert isinstance(library(), ctypes.CDLL)
    assert (tmp_path / "log").read_text() == "ran\n"
    monkeypatch.setattr(cache_dirs, "processor", lambda: "another")
    library()
    monkeypatch.setattr(jax, "__version__", "0.0.1")
    library()
    assert (tmp_path / "log").read_text() == "ran\n" * 3
    assert len([*cache_dirs.folder("kernels").iterdir()]) == 3


def test_nvcc_is_looked_for_in_three_places(compilers, tmp_path, monkeypatch):
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path / "nvidia")]})
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    places = ("bin/nvcc", "home/bin/nvcc", "nvidia/cu13/bin/nvcc")
    made = [str(compilers(place, "exit 1")) for place in places]
    (tmp_path / "nvidia/cu13/lib").mkdir()
    assert build.cuda_compilers() == made
    command, source = build.command_and_source("cuda", made[-1], "12.0")
    assert f"-L{tmp_path}/nvidia/cu13/lib" in command
    assert "-gencode=arch=compute_120,code=sm_120" in command
    assert source.exists()


@pytest.mark.slow
@needs_host
def test_a_thread_block_decides_what_one_thread_does(tmp_path):
    """Threads stand for a GPU's: the sanitizer finds barriers that are missing."""
    program = tmp_path / "race"
    command = [HOST[0], "-std=c++17", "-O1", "-fsanitize=thread", "-pthread"]
    source = ROOT / "tests/reduction/kernels/race.cc"
    command += [f"-I{build.SOURCES}", str(source), "-o", str(program)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("the compiler has no thread sanitizer")
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]


@pytest.fixture(scope="module")
def assembled(tmp_path_factory):
    """What the assembler reports of the library for GPUs of 9.0, which stays loaded."""
    reports = []
    run = subprocess.run

    def noted(command, **options):
        done = run(command, **options)
        reports.append(done.stdout + done.stderr)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        # nvcc's -O3 is the host's: without it kernels are the same.
        flags = [flag for flag in build.FLAGS if flag != "-O3"]
        patch.setattr(build, "FLAGS", (*flags, "-Xptxas=-v"))
        patch.setattr(subprocess, "run", noted)
        build.library.cache_clear()
        library = build.library("cuda", "9.0")
    assert isinstance(library, ctypes.CDLL), library
    return reports[-1]


@pytest.mark.slow
@needs_nvcc
def test_it_compiles_for_gpus_and_hardly_spills(assembled):
    """64 registers a thread, so that two blocks of 512 share a multiprocessor; a few
    bytes that are put aside once a thread do no harm, what is spilled in a loop would.
    """
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill loads", assembled)]
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", assembled)]
    assert len(spills) == len(registers) == 12  # rules, types, widths of a head
    assert max(spills) <= 24
    assert max(registers) <= 64


@pytest.mark.slow
@needs_nvcc
def test_shared_memory_of_an_image(assembled, monkeypatch):
    """197 tokens fit on every card, 577 on some, 1025 in bipartite matching on none."""
    assert fused.unsupported_reason("cuda", "9.0") is None
    model = tiny.model(embed_dim=384, num_heads=6, dtype="bfloat16")

    def reason(rule, n, candidates=None):
        counts = Counts(n - 1, n // 2, candidates)
        return fused.Kernel(rule).unsupported_reason(model, counts, "9.0")

    assert reason("retokenize", 577, candidates=172) is None
    assert "232448 bytes" in reason("bipartite", 1025)
    monkeypatch.setattr(fused, "SHARED_KIB", {})  # as cards that it does not name
    assert reason("bipartite", 197) is None
    assert reason("prune", 1025) is None
    assert "101376 bytes" in reason("retokenize", 577, candidates=172)


@pytest.mark.parametrize("whose", ["", "kernels", "library"])
def test_what_another_user_owns_is_not_loaded(compilers, tmp_path, monkeypatch, whose):
    """Native code of others: the package's folder, its folder of kernels, a library."""
    compilers("bin/g++", copier(tmp_path))
    assert isinstance(library(), ctypes.CDLL)
    folder = tmp_path / "cache" / "imagepiece_jax"
    (built,) = (folder / "kernels").iterdir()
    theirs = built if whose == "library" else folder / whose
    owner_of = cache_dirs.owner
    monkeypatch.setattr(
        cache_dirs, "owner", lambda path: 12345 if path == theirs else owner_of(path)
    )
    monkeypatch.setattr(ctypes, "CDLL", None)
    found = library()
    assert f"{theirs} belongs to another user (12345), whose code is not run" in found
    assert "XDG_CACHE_HOME" in found


def test_programs_of_another_user_are_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("JAX_ENABLE_COMPILATION_CACHE", raising=False)
    folder, is_new = cache_dirs.keep_programs()
    assert is_new
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(folder)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setattr(cache_dirs, "owner", lambda path: 12345)
    assert cache_dirs.keep_programs() == (None, False)
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
