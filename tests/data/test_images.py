"""Images: what is torn or does not fit is named, the same image is one group, and sides of a source's own are kept."""

from __future__ import annotations

import gzip
import importlib.util
import math
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potstill.data import Pixels, read_sides, reader_for, source_digests
from potstill.data.collate import ImageCollator
from potstill.data.image_sources import read_idx
from potstill.errors import DataError, MissingExtra
from potstill.recipe.data import ArrayData, DigitsData, IDXData
from potstill.signals import Batch, ImageView

Array = np.ndarray[Any, Any]


def idx_bytes(array: Array) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def some_images(count: int, seed: int = 0, size: tuple[int, ...] = (4, 3)) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, *size), dtype=np.uint8)


def some_labels(count: int) -> Array:
    return (np.arange(count) % 3).astype(np.uint8)


def write_folder(folder: Path, changes: Callable[[str, Array], Array] = lambda name, array: array) -> IDXData:
    """A folder in the layout of MNIST: 30 images to train on, 12 to test on, of three classes."""
    for seed, (prefix, count) in enumerate({"train": 30, "t10k": 12}.items()):
        for name, array in (("images-idx3", some_images(count, seed)), ("labels-idx1", some_labels(count))):
            raw = idx_bytes(changes(f"{prefix}-{name.partition('-')[0]}", array))
            (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(raw, 1))
    return IDXData(kind="idx", path=folder, held_out="own")


def write_arrays(path: Path, **arrays: Any) -> ArrayData:
    np.savez(path, **{"images": some_images(30), "labels": some_labels(30), **arrays})
    return ArrayData(kind="arrays", path=path, held_out=0.3)


def pixels(side: Any) -> list[Pixels]:
    assert all(isinstance(image, Pixels) for image in side)
    return list(side)


# ---- IDX -------------------------------------------------------------------------------------------------------


@given(
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    packed=st.booleans(),
    seed=st.integers(0, 9),
)
def test_an_idx_file_gives_the_array_that_was_written(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], packed: bool, seed: int
) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path_factory.mktemp("idx") / "a"
    path.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))
    found = read_idx(path)
    assert found.dtype == np.uint8 and found.shape == array.shape and np.array_equal(found, array)


def promised_length(raw: bytes) -> int | None:
    """How long the file is by its own head; None if it has no whole head."""
    if raw[:3] != b"\0\0\x08" or not raw[3:4].strip(b"\0") or len(raw) < 4 + 4 * raw[3]:
        return None
    return 4 + 4 * raw[3] + math.prod(struct.unpack_from(f">{raw[3]}I", raw, 4))


@given(raw=st.binary(max_size=40) | st.binary(max_size=12).map(b"\0\0\x08\1".__add__), packed=st.booleans())
def test_any_bytes_are_an_array_of_what_they_say_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, packed: bool
) -> None:
    path = tmp_path_factory.mktemp("idx") / "a"
    path.write_bytes(gzip.compress(raw) if packed else raw)
    try:
        found = read_idx(path)
    except DataError:
        assert len(raw) != promised_length(raw)
    else:
        assert len(raw) == promised_length(raw) == 4 + 4 * found.ndim + found.size


@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = idx_bytes(some_images(2))
    raw = data.draw(st.sampled_from([whole, gzip.compress(whole)]))
    path = tmp_path_factory.mktemp("idx") / "a"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(DataError, match="not a whole IDX file"):
        read_idx(path)


HUGE = struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "begins with nothing"),
        (b"PK\3\4....", "begins with 50 4b 03 04, not with two zero bytes"),
        (b"\0\0\x0d\1\0\0\0\0", "of kind 0x0d, not unsigned bytes"),
        (b"\0\0\x08\0", "it has no dimension"),
        (b"\0\0\x08\3\0\0\0\1", "ends within its 3 dimensions"),
        (idx_bytes(some_images(2)) + b"!", "2 × 4 × 3, which is 24 bytes, and holds more"),
        (HUGE + b"12", "and holds 2"),
        (gzip.compress(idx_bytes(some_images(2)), mtime=0)[:-9], "Compressed file ended"),
    ],
    ids=["empty", "zip", "kind", "no dimension", "short", "more", "less", "cut"],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "a").write_bytes(raw)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(tmp_path / "a")
    assert str(tmp_path / "a") in str(caught.value)


def test_a_folder_has_the_sides_that_it_came_with(tmp_path: Path) -> None:
    sides = read_sides(write_folder(tmp_path))
    train, held_out = pixels(sides.train), pixels(sides.held_out)
    assert (len(train), len(held_out), sides.classes) == (30, 12, ("0", "1", "2"))
    assert np.array_equal(np.stack([image.pixels for image in held_out]), some_images(12, 1))
    assert [image.label for image in train] == some_labels(30).tolist() and train[4].row == 5
    assert len(source_digests(write_folder(tmp_path))) == 4
    share = read_sides(IDXData(kind="idx", path=tmp_path, held_out=0.3))
    assert len(share.train) + len(share.held_out) == 42 and 0 < len(share.held_out) < 30


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train-labels", lambda a: a[:-1], r"30 images, and 29 labels"),
        ("t10k-images", lambda a: a[:, :2], r"images of \[2, 3\], and others of \[4, 3\]"),
        ("train-images", lambda a: a[:, 0], r"images are uint8 \[30, 3\], not uint8 \[N,H,W\]"),
        ("train-labels", lambda a: a[:, None], r"labels are uint8 \[30, 1\], not whole numbers \[N\]"),
        ("train-labels", lambda a: a * 0, r"every image to train on is of class '0'"),
    ],
)
def test_parts_that_do_not_fit_together_are_named(
    tmp_path: Path, name: str, change: Callable[[Array], Array], message: str
) -> None:
    settings = write_folder(tmp_path, lambda file, array: change(array) if file == name else array)
    with pytest.raises(DataError, match=message):
        read_sides(settings)


def test_a_missing_file_is_named_and_a_missing_package_with_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = write_folder(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="no such file"):
        read_sides(settings)
    nowhere = tmp_path / "fashion-mnist"
    monkeypatch.setattr("potstill.data.image_sources.FASHION_MNIST", nowhere)
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        read_sides(IDXData(kind="idx", path=nowhere))


# ---- duplicates and sides --------------------------------------------------------------------------------------


def test_of_the_training_side_only_the_same_image_with_the_same_class_is_left_out(tmp_path: Path) -> None:
    images, labels = some_images(30), some_labels(30)
    images[10], labels[10] = images[4], labels[4]  # a duplicate
    images[11], labels[11] = images[5], (labels[5] + 1) % 3  # the same image, another class
    test_images, test_labels = some_images(6, 1), some_labels(6)
    test_images[0], test_labels[0] = images[20], labels[20]  # on both sides
    test_images[2], test_labels[2] = test_images[1], test_labels[1]  # twice on the held-out side
    settings = write_arrays(
        tmp_path / "a.npz", images=images, labels=labels, test_images=test_images, test_labels=test_labels
    )
    sides = read_sides(settings.model_copy(update={"held_out": "own"}))
    assert dict(sides.counts) == {"read": 36, "exact duplicate": 1, "on both sides": 1}
    assert {(reject.reason, reject.row) for reject in sides.rejects} == {("exact duplicate", 11), ("on both sides", 21)}
    assert (len(sides.train), len(sides.held_out)) == (28, 6), "a published test side stays whole"
    train = {image.row: image for image in pixels(sides.train)}
    assert train[12].group == train[6].group and train[12].record_id != train[6].record_id


def test_the_same_image_is_on_one_side_when_sides_are_found_by_hash(tmp_path: Path) -> None:
    images = np.concatenate([some_images(40)] * 2)
    labels = np.concatenate([np.zeros(40, int), np.ones(40, int)])
    sides = read_sides(write_arrays(tmp_path / "a.npz", images=images, labels=labels))
    groups = [{image.group for image in pixels(side)} for side in (sides.train, sides.held_out)]
    assert not groups[0] & groups[1] and len(groups[0] | groups[1]) == 40
    with pytest.raises(DataError, match="no sides of its own"):
        read_sides(write_arrays(tmp_path / "a.npz").model_copy(update={"held_out": "own"}))


def test_a_limit_keeps_a_fair_sample_whatever_the_order(tmp_path: Path) -> None:
    images, labels = some_images(300), np.sort(np.arange(300) % 3)
    settings = write_arrays(tmp_path / "a.npz", images=images, labels=labels).model_copy(update={"limit": 90})
    sides = read_sides(settings)
    kept = {image.group for side in (sides.train, sides.held_out) for image in pixels(side)}
    assert len(sides.train) + len(sides.held_out) == 90 and 15 < len(sides.held_out) < 40
    assert all(15 < count < 45 for count in Counter(image.label for image in pixels(sides.train)).values())
    order = np.random.default_rng(1).permutation(300)
    shuffled = write_arrays(tmp_path / "b.npz", images=images[order], labels=labels[order])
    again = read_sides(shuffled.model_copy(update={"limit": 90}))
    assert kept == {image.group for side in (again.train, again.held_out) for image in pixels(side)}


def test_a_limit_on_what_is_learned_from_leaves_the_held_out_side_whole(tmp_path: Path) -> None:
    images, labels = some_images(300), np.sort(np.arange(300) % 3)
    settings = write_arrays(tmp_path / "a.npz", images=images, labels=labels)
    whole = read_sides(settings)
    cut = read_sides(settings.model_copy(update={"train_limit": 60}))
    assert [image.record_id for image in pixels(cut.held_out)] == [image.record_id for image in pixels(whole.held_out)]
    assert len(cut.train) == 60 and min(Counter(image.label for image in pixels(cut.train)).values()) > 10
    # A larger sample holds the smaller one, so that what more images are worth can be compared.
    more = {image.record_id for image in pixels(read_sides(settings.model_copy(update={"train_limit": 90})).train)}
    assert {image.record_id for image in pixels(cut.train)} < more
    assert cut.counts["beyond data.train_limit"] == len(whole.train) - 60
    with pytest.raises(
        DataError, match=r"of 2 images to learn from none is of class '.'.*(\n.*)*raise data.train_limit"
    ):
        read_sides(settings.model_copy(update={"train_limit": 2}))
    beyond = read_sides(settings.model_copy(update={"train_limit": 10_000}))
    assert len(beyond.train) == len(whole.train)


# ---- arrays ----------------------------------------------------------------------------------------------------


def test_classes_are_named_by_their_numbers_or_by_the_names_in_the_file(tmp_path: Path) -> None:
    labels = some_labels(30).astype(np.int64) * 5  # 0, 5 and 10
    sides = read_sides(write_arrays(tmp_path / "a.npz", labels=labels))
    assert sides.classes == ("0", "5", "10")
    assert {image.label for image in pixels(sides.train)} == {0, 1, 2}
    named = read_sides(write_arrays(tmp_path / "a.npz", names=np.array(["ale", "malt", "rye", "hop"])))
    assert named.classes == ("ale", "malt", "rye", "hop"), "one without an image keeps its number"


def test_a_class_that_only_the_held_out_side_has_is_left_out_with_the_reason(tmp_path: Path) -> None:
    test = {"test_images": some_images(4, 1), "test_labels": np.array([0, 1, 2, 7])}
    settings = write_arrays(tmp_path / "a.npz", **test).model_copy(update={"held_out": "own"})
    sides = read_sides(settings)
    assert len(sides.held_out) == 3 and sides.counts["its class is not on the training side"] == 1
    assert [(reject.row, reject.detail) for reject in sides.rejects] == [(4, "7")]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": some_images(30).astype(np.float32)}, r"images are float32 \[30, 4, 3\], not uint8"),
        ({"labels": some_labels(29)}, "30 images, and 29 labels"),
        ({"labels": np.full(30, 0.5)}, "labels are float64"),
        ({"labels": np.arange(30) - 1}, "label -1 is below 0"),
        ({"names": np.array(["ale", "malt"])}, r"label 2, and only 2 classes have a name \(0 to 1\)"),
        ({"names": np.array([1, 2, 3])}, "names are int64"),
        ({"images": np.array([[None]])}, "Object arrays cannot be loaded"),
        ({"test_images": some_images(3)}, "no array 'test_labels'"),
        ({"images": some_images(0), "labels": some_labels(0)}, "the data set is empty"),
    ],
)
def test_arrays_that_cannot_be_right_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_sides(write_arrays(tmp_path / "a.npz", **arrays))


def test_a_file_that_is_torn_or_something_else_is_refused(tmp_path: Path) -> None:
    settings = write_arrays(tmp_path / "a.npz")
    whole = settings.path.read_bytes()
    lone = tmp_path / "lone.npy"
    np.save(lone, some_images(2))
    for raw in (whole[: len(whole) // 2], b"", b"text", lone.read_bytes()):
        settings.path.write_bytes(raw)
        with pytest.raises(DataError, match=r"not a whole \.npz file"):
            read_sides(settings)
    damaged = bytearray(whole)
    damaged[len(whole) // 3] ^= 0xFF
    settings.path.write_bytes(bytes(damaged))
    with pytest.raises(DataError, match=r"not a whole \.npz file"):
        read_sides(settings)
    np.savez(settings.path, image=some_images(2), labels=some_labels(2))
    with pytest.raises(DataError, match="no array 'images'; did you mean 'image'"):
        read_sides(settings)


# ---- digits and Fashion-MNIST ----------------------------------------------------------------------------------


def test_the_digits_are_brought_to_0_to_255() -> None:
    sides = read_sides(DigitsData(kind="digits", held_out=0.2))
    images = [*pixels(sides.train), *pixels(sides.held_out)]
    assert len(images) == 1797 and sides.classes == tuple("0123456789")
    assert images[0].pixels.shape == (8, 8) and max(image.pixels.max() for image in images) == 255
    # The first digit of the set is a nought with an empty corner; its second row has 13 of 16 in column 2.
    first = next(image for image in images if image.row == 1)
    assert first.label == 0 and first.pixels[0, 0] == 0 and first.pixels[1, 2] == round(13 * 255 / 16)


def test_without_scikit_learn_the_install_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (read_sides, source_digests):
        with pytest.raises(MissingExtra, match=r'pip install "potstill\[vision\]"'):
            call(DigitsData(kind="digits"))


@pytest.mark.slow
@pytest.mark.needs("fashion-mnist")
def test_fashion_mnist_has_its_sides_and_the_names_of_its_classes() -> None:
    sides = read_sides(IDXData(kind="idx", held_out="own"))
    assert (len(sides.train), len(sides.held_out)) == (60_000, 10_000) and dict(sides.counts) == {"read": 70_000}
    assert Counter(image.label for image in pixels(sides.held_out)) == dict.fromkeys(range(10), 1000)
    # The first image to train on is an ankle boot.
    assert sides.classes[pixels(sides.train)[0].label or 0] == "Ankle boot"


# ---- batches ---------------------------------------------------------------------------------------------------


def test_grey_and_coloured_images_become_channels_of_floats() -> None:
    grey = np.array([[0, 255], [51, 102]], np.uint8)
    columns = ImageCollator(mean=0.5, std=0.25)([Pixels(grey, 3), Pixels(grey, None)])
    assert columns["pixel_values"].shape == (2, 1, 2, 2) and columns["classes"].tolist() == [3, -100]
    assert torch.allclose(columns["pixel_values"][0, 0], torch.tensor([[-2.0, 2.0], [-1.2, -0.4]]))
    colours = some_images(1, size=(2, 5, 3))[0]
    stacked = ImageCollator(0.0, 1.0)([Pixels(colours, 0)])["pixel_values"]
    assert stacked.shape == (1, 3, 2, 5)
    assert torch.allclose(stacked[0, 2], torch.from_numpy(colours[:, :, 2].astype(np.float32) / 255))


def test_a_batch_of_images_has_targets_where_there_is_a_class() -> None:
    floats = np.full((2, 3, 3), 7.0, np.float32)
    batch = Batch.from_inputs(ImageCollator(0.5, 0.5)([Pixels(floats), Pixels(floats, 1)]))
    assert isinstance(batch.student, ImageView) and (batch.student.pixels == 7).all(), "floats stay as they are"
    assert batch.target_ids.tolist() == [1] and batch.target_positions["student"].tolist() == [1]
    with pytest.raises(DataError, match=r"images of one batch are \[2, 3, 3\] and \[4, 3\]"):
        ImageCollator(0.5, 0.5)([Pixels(floats), Pixels(some_images(1)[0])])


def test_a_process_without_images_takes_part_with_none() -> None:
    collate = ImageCollator(0.5, 0.5)
    collate([Pixels(some_images(1)[0], 0)])
    batch = Batch.from_inputs(collate([]))
    assert isinstance(batch.student, ImageView) and batch.student.pixels.shape == (0, 1, 4, 3)
    assert int(batch.count("targets")) == int(batch.count("examples")) == 0


def test_a_reader_takes_images_as_they_are_and_needs_two_classes(tmp_path: Path) -> None:
    settings = write_arrays(tmp_path / "a.npz").model_copy(update={"mean": 0.0, "std": 1.0})
    sides = read_sides(settings)
    reader = reader_for("image_classification", data=settings, classes=sides.classes)
    rows = [row for example in sides.train for row in reader.rows(example)]
    assert rows == list(sides.train)
    assert reader.collator()(rows[:2])["pixel_values"].min() >= 0, "mean and std are those of the data"
    with pytest.raises(DataError, match="everything is of class 'x'"):
        reader_for("image_classification", classes=("x",))
