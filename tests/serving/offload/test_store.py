"""Pages come from the checkpoint byte for byte, whatever the disk does."""

import errno
import os
import threading
import time

import numpy as np
import pytest

from mixattn.hf.checkpoint_dir import Tensors
from mixattn.hf.safetensors_file import save_aligned
from mixattn.hf.tensors import TensorPlace, native_places
from mixattn.spec import ModelConfig
from serving.offload import pages, store
from serving.offload.store import FilePages, MemoryPages, PageReader, Throttle, aligned_buffer

CONFIG = ModelConfig(*(3, 8, 2, 1, 4, 24, 50), n_experts=4, experts_per_token=2, dense_layers=(1,))
MATRICES = {"gate": (8, 24), "up": (8, 24), "down": (24, 8)}


def stacked_places(path: str) -> TensorPlace:
    """As Mixtral's: one tensor per expert, [out, in]."""
    _, layer, _, name = path.split(".")
    return TensorPlace(tuple(f"l{layer}.e{e}.{name}" for e in range(4)), transpose=True, stacked=True)


@pytest.fixture(params=["native", "per expert"])
def checkpoint(request, tmp_path):
    """Tensors, places, and the experts as ours: (layer, expert, matrix) -> [in, out]."""
    rng = np.random.default_rng(0)
    values = {
        (layer, e, name): rng.normal(size=shape).astype(np.float32)
        for layer in (0, 2) for e in range(4) for name, shape in MATRICES.items()
    }  # fmt: skip
    if request.param == "native":
        places = native_places
        tensors = {
            f"blocks.{layer}.ffn.{name}": np.stack([values[layer, e, name] for e in range(4)])
            for layer in (0, 2) for name in MATRICES
        }  # fmt: skip
    else:
        places = stacked_places
        tensors = {f"l{i}.e{e}.{n}": np.ascontiguousarray(v.T) for (i, e, n), v in values.items()}
    tensors["odd"] = np.zeros(5, np.float32)  # moves nothing else, but makes the file's end odd
    save_aligned(tensors, tmp_path / "model.safetensors")
    return Tensors(tmp_path), places, values


def expect_equal(found, values, transposed):
    for (layer, expert), matrices in found.items():
        for name, matrix in zip(MATRICES, matrices):
            np.testing.assert_array_equal(matrix.T if transposed else matrix, values[layer, expert, name])


def read_all(source, located):
    return {
        key: [m.copy() for m in source.read_page(p, aligned_buffer(p.buffer_bytes))]
        for key, p in located.items()
    }


@pytest.mark.parametrize("direct", [True, False])
def test_pages_are_the_experts_of_the_checkpoint(checkpoint, direct):
    tensors, places, values = checkpoint
    located = pages.expert_pages(CONFIG, tensors, places)
    assert set(located) == {(layer, e) for layer in (0, 2) for e in range(4)}
    with PageReader(pages.files(located.values()), direct=direct) as reader:
        expect_equal(read_all(FilePages(reader), located), values, places is stacked_places)


def test_counted_bytes_are_the_blocks_around_the_experts(checkpoint):
    tensors, places, _ = checkpoint
    located = pages.expert_pages(CONFIG, tensors, places)
    with PageReader(pages.files(located.values())) as reader:
        source, expected = FilePages(reader), 0
        for page in located.values():
            source.read_page(page, aligned_buffer(page.buffer_bytes))
            for place in page.tensors:
                start, size = store.covered(place.offset, place.size)
                expected += min(size, reader.size(place.file) - start)
        assert reader.bytes_read == expected
    assert sum(page.file_bytes for page in located.values()) == 2 * 4 * 3 * 8 * 24 * 4


def test_short_reads_are_continued(checkpoint, monkeypatch):
    tensors, places, values = checkpoint
    calls = []

    def short(descriptor, out, offset):
        calls.append(len(out))
        return os.preadv(descriptor, [out[: min(len(out), 1000)].data], offset)

    monkeypatch.setattr(PageReader, "_pread", staticmethod(short))
    located = pages.expert_pages(CONFIG, tensors, places)
    with PageReader(pages.files(located.values()), direct=False) as reader:
        expect_equal(read_all(FilePages(reader), located), values, places is stacked_places)
    assert len(calls) > 2 * len(located)


def test_a_file_system_that_refuses_direct_reads_gives_the_same_pages(checkpoint, monkeypatch):
    tensors, places, values = checkpoint
    located = pages.expert_pages(CONFIG, tensors, places)
    with PageReader(pages.files(located.values())) as reader:
        reader.direct = True
        reader._files = dict.fromkeys(reader._buffered, -1)
        plain = os.preadv

        def refuse(descriptor, out, offset):
            if descriptor == -1:
                raise OSError(errno.EINVAL, "Invalid argument")
            return plain(descriptor, [out.data], offset)

        monkeypatch.setattr(PageReader, "_pread", staticmethod(refuse))
        expect_equal(read_all(FilePages(reader), located), values, places is stacked_places)
        assert not reader.direct
        reader._files = {}


def test_a_disk_error_reaches_the_caller(checkpoint, monkeypatch):
    tensors, places, _ = checkpoint
    located = pages.expert_pages(CONFIG, tensors, places)

    def broken(descriptor, out, offset):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(PageReader, "_pread", staticmethod(broken))
    with PageReader(pages.files(located.values())) as reader, pytest.raises(OSError, match="Input/output"):
        read_all(FilePages(reader), located)


def test_a_file_truncated_or_rewritten_during_the_run_is_noticed(checkpoint):
    tensors, places, _ = checkpoint
    located = pages.expert_pages(CONFIG, tensors, places)
    path = next(iter(pages.files(located.values())))
    with PageReader([path]) as reader:
        reader.check_unchanged()
        os.truncate(path, 600)
        with pytest.raises(ValueError, match=r"ends at byte .*it had \d+ bytes"):
            read_all(FilePages(reader), located)
        with pytest.raises(ValueError, match=r"changed while it was used: \d+ bytes before, 600 now"):
            reader.check_unchanged()


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no model-2\.safetensors"):
        PageReader([tmp_path / "model-2.safetensors"])


def test_a_buffer_that_is_too_small_is_refused(checkpoint):
    tensors, places, _ = checkpoint
    page = pages.expert_pages(CONFIG, tensors, places)[0, 0]
    with PageReader(pages.files([page])) as reader, pytest.raises(ValueError, match="buffer of 8 bytes"):
        FilePages(reader).read_page(page, aligned_buffer(8))


def test_host_memory_gives_the_same_pages_no_faster_than_its_throttle(checkpoint):
    tensors, places, values = checkpoint
    located = pages.expert_pages(CONFIG, tensors, places)
    with PageReader(pages.files(located.values())) as reader:
        source = MemoryPages(FilePages(reader), list(located.values()), Throttle(200_000))
    before = time.monotonic()
    found = read_all(source, located)
    assert time.monotonic() - before >= sum(p.file_bytes for p in located.values()) / 200_000
    expect_equal(found, values, places is stacked_places)


def test_a_throttle_is_shared_by_threads():
    throttle, before = Throttle(1000), time.monotonic()
    threads = [threading.Thread(target=throttle.take, args=(50,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - before >= 0.2


def test_a_model_whose_experts_have_another_shape_is_refused(checkpoint):
    tensors, places, _ = checkpoint
    wide = ModelConfig(*(3, 8, 2, 1, 4, 32, 50), n_experts=4, experts_per_token=2, dense_layers=(1,))
    with pytest.raises(ValueError, match=r"has shape .*the model needs"):
        pages.expert_pages(wide, tensors, places)
