"""Compiled programs on disk: found again without tracing, and rebuilt where anything differs."""

import json
import os

import jax
import jax.numpy as jnp
import pytest

from mixattn.spec import ModelConfig
from pallas_kernels.aot import set_persistent_cache
from serving.config import EngineConfig, Limits
from serving.engine import program_cache, stacks
from serving.engine.engine import Engine
from serving.engine.program_cache import ProgramCache
from tests.serving.tiny import check_against_teacher, model, workload

CONFIG = EngineConfig(
    max_slots=4,
    page_size=4,
    max_request_tok=64,
    prefill_rows=(4,),
    limits=Limits(chunk_tok=16, step_tok=16, decode_steps=(4, 1)),
)


@pytest.fixture
def cache(tmp_path) -> ProgramCache:
    return ProgramCache(tmp_path / "programs")


def double(cache: ProgramCache, description: str = "double", times: int = 2):
    """A small program through the cache, and whether it was compiled."""
    built = []

    def compile():
        built.append(1)
        return jax.jit(lambda x: times * x).lower(jax.ShapeDtypeStruct((3,), jnp.float32)).compile()

    return cache.load_or_compile(description, compile), bool(built)


def test_a_program_is_compiled_once_and_found_again(cache):
    first, built = double(cache)
    again, built_again = double(ProgramCache(cache.folder))
    assert (built, built_again) == (True, False)
    assert again(jnp.arange(3.0)).tolist() == first(jnp.arange(3.0)).tolist() == [0, 2, 4]
    assert oct(cache.folder.stat().st_mode)[-3:] == "700"


def test_a_program_that_jax_has_in_its_own_cache_is_kept_whole(cache, tmp_path):
    """On a CPU a program that was loaded from JAX's cache serializes without its functions."""
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
        set_persistent_cache(True)
        double(ProgramCache(tmp_path / "warms JAX's cache"))
        jax.jit(lambda x: 2 * x).lower(jax.ShapeDtypeStruct((3,), jnp.float32)).compile()
        jax.clear_caches()
        double(cache)
        assert jax.config.jax_enable_compilation_cache, "JAX's cache is on again"
        found, built = double(ProgramCache(cache.folder))
        assert not built
        assert found(jnp.arange(3.0)).tolist() == [0, 2, 4]
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        set_persistent_cache(True)


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "header", "another program's"])
def test_a_file_that_is_not_what_was_written_is_compiled_again(cache, harm):
    double(cache)
    [path] = cache.folder.iterdir()
    content = path.read_bytes()
    match harm:
        case "cut":
            path.write_bytes(content[:-100])
        case "flip":
            path.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
        case "empty":
            path.write_bytes(b"")
        case "header":
            path.write_bytes(b"{}\n" + content.split(b"\n", 1)[1])
        case _:
            double(cache, "triple", 3)
            [other] = set(cache.folder.iterdir()) - {path}
            path.write_bytes(other.read_bytes())
    found, built = double(cache)
    assert built
    assert found(jnp.arange(3.0)).tolist() == [0, 2, 4]
    assert not double(cache)[1], "the rebuilt program is stored"


def test_a_file_whose_digest_is_right_but_that_cannot_be_loaded_is_compiled_again(cache):
    double(cache)
    [path] = cache.folder.iterdir()
    body = b"not a pickle"
    path.write_bytes(json.dumps(program_cache._header(path.stem, body)).encode() + b"\n" + body)
    assert double(cache)[1]


@pytest.mark.parametrize("fact", ["device", "version", "source", "flags"])
def test_another_device_version_source_or_flag_is_another_program(cache, fact, monkeypatch):
    double(cache)
    facts = json.loads(program_cache._surroundings())
    changed = {
        "device": facts | {"device": ["gpu", "H100", 1]},
        "version": facts | {"versions": facts["versions"] | {"jax": "9.9"}},
        "source": facts | {"sources": "0" * 64},
        "flags": facts | {"environment": {"XLA_FLAGS": "--xla_cpu_enable_fast_math=true"}},
    }[fact]
    monkeypatch.setattr(program_cache, "_surroundings", lambda: json.dumps(changed, sort_keys=True))
    assert double(cache)[1]


def test_a_folder_that_others_can_write_to_is_refused(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(ValueError, match=r"must be writable by user \d+ alone"):
        ProgramCache(folder)


def test_the_least_recently_used_programs_go_when_the_folder_is_full(cache, monkeypatch):
    double(cache, "a")
    [a] = cache.folder.iterdir()
    os.utime(a, (1, 1))
    monkeypatch.setattr(program_cache, "MAX_BYTES", int(1.5 * a.stat().st_size))
    double(cache, "b")
    assert not a.exists()
    assert not double(cache, "b")[1]


def test_a_disk_that_is_full_costs_nothing_but_time(cache, monkeypatch):
    def refuse(path):
        raise OSError("no space left")

    monkeypatch.setattr(program_cache.files, "whole", refuse)
    found, built = double(cache)
    assert built
    assert found(jnp.ones(3)).tolist() == [2, 2, 2]


def test_an_engine_starts_from_kept_programs_without_tracing(cache, monkeypatch):
    net, requests = model("0_1s"), workload(seed=2, n=4)
    Engine(net, CONFIG, program_cache=cache)

    def traced(*args, **options):
        raise AssertionError("traced")

    monkeypatch.setattr(stacks.ProgramSpec, "lower", traced)
    kept = ProgramCache(cache.folder)
    engine = Engine(net, CONFIG, program_cache=kept)
    assert kept.hits == engine.stats().programs > 0
    check_against_teacher(requests, engine.run(requests), net)


def test_another_model_of_the_same_shapes_has_programs_of_its_own(cache):
    Engine(model("0_1s"), CONFIG, program_cache=cache)
    files = set(cache.folder.iterdir())
    Engine(model("0_1s", rope_theta=77.0), CONFIG, program_cache=cache)
    assert len(set(cache.folder.iterdir())) == 2 * len(files)


def test_the_description_of_a_configuration_says_every_field():
    assert "rope_theta=77.0" in repr(ModelConfig(rope_theta=77.0))
