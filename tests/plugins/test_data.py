"""Data: the same every time, scaled, split without overlap, read from every form they come in."""

from __future__ import annotations

import gzip
import math
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from scmreg import datasets
from scmreg.data import Augmentation, DataSpec
from scmreg.errors import DataError
from scmreg.rng import generator

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 6, 5)).astype(np.uint8)
LABELS = RNG.integers(0, 3, 40)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Every registered kind of data, with the options that it must have."""
    folder = tmp_path_factory.mktemp("data")
    for index, image in enumerate(PIXELS):
        path = folder / "pictures" / "ab"[index % 2] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    np.savez(folder / "x.npz", x=PIXELS, labels=LABELS)
    np.save(folder / "points.npy", RNG.normal(3, 2, (200, 3)))
    known = {
        "digits": {},
        "swissroll": {"count": 3000},
        "checkerboard": {"count": 3000},
        "gaussians": {"count": 3000},
        "gaussian": {"count": 3000, "dimension": 3},
        "mixture": {"count": 3000, "dimension": 3, "labelled": True},
        "images": {"path": folder / "pictures", "size": 8},
        "array": {"path": folder / "x.npz"},
    }
    assert set(known) >= set(datasets), "a new kind of data needs its options here"
    return {**known, "array of points": {"path": folder / "points.npy"}, "labelled gaussians": {"labelled": True}}


NAMES = [*datasets, "array of points", "labelled gaussians"]


@pytest.fixture(params=NAMES)
def data(request, sources):
    return datasets.create(request.param.split()[-1 if "labelled" in request.param else 0], **sources[request.param])


def test_the_same_every_time(data):
    one, two = data.load(), data.load()
    assert one.digest == two.digest
    assert one.spec == two.spec
    for mine, theirs in ((one.train, two.train), (one.held_out, two.held_out)):
        assert torch.equal(mine.all(), theirs.all())
        if mine.labels is not None:
            assert torch.equal(mine.labels, theirs.labels)


def test_the_spec_tells_the_truth(data):
    dataset = data.load()
    spec = dataset.spec
    assert spec.name == data.name
    for part in (dataset.train, dataset.held_out):
        x = part.all()
        assert x.dtype == torch.float32
        assert x.shape == (len(part), *spec.shape)
        if spec.modality == "image":
            assert spec.shape[0] in (1, 3)
            assert x.min() >= 0
            assert x.max() <= 1
        if spec.classes:
            assert part.labels.dtype == torch.int64
            assert part.labels.shape == (len(part),)
            assert part.labels.min() >= 0
            assert part.labels.max() < len(spec.classes)
        else:
            assert part.labels is None
    assert DataSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_scaled_to_sigma_data(data, sigma_data):
    dataset = data.load()
    x = dataset.spec.scale(dataset.train.all().double(), sigma_data)
    assert float(x.square().mean().sqrt()) == pytest.approx(sigma_data, rel=2e-3)
    assert float(x.mean()) == pytest.approx(0, abs=2e-3)
    if dataset.spec.modality == "points":
        assert x.mean(0).abs().max() < 2e-3


def test_rendering_inverts_scaling(data):
    dataset = data.load()
    x = dataset.held_out.all()
    assert len(x) > 1
    again = dataset.spec.render(dataset.spec.scale(x, 0.7), 0.7)
    torch.testing.assert_close(again, x, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(dataset.spec.scale(x, 0.7), x, atol=0.01)


def test_the_split(data):
    dataset = data.load()
    total = len(dataset.train) + len(dataset.held_out)
    assert len(dataset.held_out) == round(total * data.held_out) > 0
    kept, rest = data.split_indices(total)
    assert sorted([*kept.tolist(), *rest.tolist()]) == list(range(total)), "disjoint, and nothing is lost"
    other = type(data)(**{**vars(data), "split_seed": 1})
    assert not torch.equal(other.split_indices(total)[1], rest)
    nothing = type(data)(**{**vars(data), "held_out": 0.0}).load()
    assert (len(nothing.train), len(nothing.held_out)) == (total, 0)
    real, labels = dataset.real()
    assert len(real) == total
    assert (labels is None) == (not dataset.spec.classes)
    sort = lambda x: np.sort(x.flatten(1).double().sum(1).numpy())  # noqa: E731
    np.testing.assert_allclose(sort(real), sort(nothing.train.all()), rtol=1e-6)


def test_items_are_read_by_index(data):
    split = data.load().train
    x = split.all()
    chosen = [5, 0, 5, len(split) - 1]
    assert torch.equal(split.__getitems__(chosen), x[chosen])
    assert split.__getitems__([]).shape == (0, *x.shape[1:])


def test_the_digest_tells_data_apart(sources):
    digests = {
        datasets.create("swissroll", count=100, **options).load().digest
        for options in ({}, {"seed": 1}, {"noise": 0.2}, {"split_seed": 0})
    }
    assert len(digests) == 3


def test_nothing_left_to_train_on():
    with pytest.raises(DataError, match="nothing is left to train on of 3 items"):
        datasets.create("swissroll", count=3, held_out=0.9).load()


# Each kind ------------------------------------------------------------------------------------------------------------


def test_digits():
    from sklearn.datasets import load_digits

    dataset = datasets.create("digits").load()
    assert dataset.spec.shape == (1, 8, 8)
    assert dataset.spec.classes == tuple("0123456789")
    assert (len(dataset.train), len(dataset.held_out)) == (1438, 359)
    images, labels = load_digits(return_X_y=True)
    kept, _ = datasets.create("digits").split_indices(1797)
    np.testing.assert_array_equal(dataset.train.all().flatten(1).numpy() * 16, images[kept])
    np.testing.assert_array_equal(dataset.train.labels.numpy(), labels[kept])


def test_swissroll_is_a_spiral():
    x = datasets.create("swissroll", count=4000, noise=0.0).load().real()[0].double()
    radius, angle = x.norm(dim=1), torch.atan2(x[:, 1], x[:, 0])
    turn = (radius - angle) / (2 * math.pi)
    torch.testing.assert_close(turn, turn.round(), rtol=0, atol=1e-4)
    assert radius.min() > 1.49 * math.pi
    assert radius.max() < 4.51 * math.pi
    noisy = datasets.create("swissroll", count=4000, noise=0.5).load().real()[0].double()
    turn = (noisy.norm(dim=1) - torch.atan2(noisy[:, 1], noisy[:, 0])) / (2 * math.pi)
    assert float((turn - turn.round()).std()) * 2 * math.pi == pytest.approx(0.5, rel=0.15)


@pytest.mark.parametrize("squares", [2, 3, 4, 7])
def test_checkerboard_is_uniform_on_the_black_squares(squares):
    x = datasets.create("checkerboard", squares=squares, count=20_000).load().real()[0] + squares / 2
    assert x.min() >= 0
    assert x.max() <= squares
    cell = x.floor().long().clamp(max=squares - 1)
    assert bool(((cell.sum(1) % 2) == 0).all())
    counts = torch.zeros(squares, squares)
    counts.index_put_((cell[:, 1], cell[:, 0]), torch.ones(len(x)), accumulate=True)
    black = counts[counts > 0]
    assert len(black) == (squares**2 + 1) // 2
    spread = (black / black.mean() - 1).abs().max()
    assert spread < 5 / math.sqrt(20_000 / len(black)), "every black square alike"


def test_gaussians_are_where_they_should_be():
    dataset = datasets.create("gaussians", modes=5, radius=3.0, std=0.2, labelled=True, count=5000).load()
    assert dataset.spec.classes == tuple("01234")
    x, labels = dataset.real()
    for k in range(5):
        mine = x[labels == k].double()
        assert len(mine) == pytest.approx(1000, rel=0.15)
        centre = 3 * torch.tensor([math.cos(2 * math.pi * k / 5), math.sin(2 * math.pi * k / 5)]).double()
        assert (mine.mean(0) - centre).abs().max() < 0.03
        assert float(mine.std()) > 0
        torch.testing.assert_close(mine.std(0), torch.full((2,), 0.2).double(), rtol=0.1, atol=0)
    assert datasets.create("gaussians").load().spec.classes == ()


# Folders of images ----------------------------------------------------------------------------------------------------


def picture(path, color=(255, 0, 0), size=(10, 10), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new(mode, size, color)
    image.putpixel((0, 0), 0 if not isinstance(color, tuple) else (0,) * len(color))
    image.save(path)


def folder(path, **options):
    return datasets.create("images", path=path, held_out=0.0, **options).load()


def test_sub_folders_are_classes(tmp_path):
    for index in range(4):
        picture(tmp_path / "dogs" / f"{index}.png")
        picture(tmp_path / "cats" / "deeper" / f"{index}.jpg")
    (tmp_path / "dogs" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "empty").mkdir()
    dataset = folder(tmp_path)
    assert dataset.spec.classes == ("cats", "dogs")
    assert dataset.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_flat_folder_is_unlabelled(tmp_path):
    for index in range(4):
        picture(tmp_path / f"{index}.png")
    dataset = folder(tmp_path)
    assert dataset.spec.classes == ()
    assert dataset.train.labels is None
    assert len(dataset.train) == 4


def test_labels_follow_their_images_through_the_split(tmp_path):
    for index in range(30):
        picture(tmp_path / f"class{index % 3}" / f"{index}.png", color=80 * (index % 3) + 60, mode="L")
    dataset = datasets.create("images", path=tmp_path, size=10, held_out=0.3).load()
    for part in (dataset.train, dataset.held_out):
        value = part.all()[:, 0, 5, 5] * 255
        assert torch.equal(value.round().long(), 80 * part.labels + 60)


def test_a_mixture_is_refused(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "cats" / "b.png")
    with pytest.raises(DataError, match="both in it and in its sub-folders"):
        folder(tmp_path)


@pytest.mark.parametrize(
    ("modes", "color", "channels"),
    [
        (["L"], "auto", 1),
        (["1", "L"], "auto", 1),
        (["RGB"], "auto", 3),
        (["L", "RGB"], "auto", 3),
        (["RGBA"], "auto", 3),
        (["RGB"], "grey", 1),
        (["L"], "rgb", 3),
    ],
)
def test_colours(tmp_path, modes, color, channels):
    for index in range(4):
        mode = modes[index % len(modes)]
        value = {"RGB": (200, 40, 40), "RGBA": (200, 40, 40, 255), "L": 90, "1": 1}[mode]
        picture(tmp_path / f"{index}.png", value, mode=mode)
    dataset = folder(tmp_path, size=10, color=color)
    assert dataset.spec.shape == (channels, 10, 10)
    pixel = dataset.train.all()[0, :, 5, 5] * 255
    if modes[0].startswith("RGB"):
        expected = [200, 40, 40] if channels == 3 else [round(0.299 * 200 + 0.587 * 40 + 0.114 * 40)]
    else:
        expected = [90 if modes[0] == "L" else 255] * channels
    assert (pixel - torch.tensor(expected).float()).abs().max() <= 1


@pytest.mark.parametrize("size", [(30, 10), (10, 30), (7, 7), (64, 48)])
def test_any_size_is_cropped_at_the_centre_and_resized(tmp_path, size):
    """A white centre square on black margins fills the result."""
    width, height = size
    side = min(size)
    for index in range(3):
        image = np.zeros((height, width), dtype=np.uint8)
        top, left = (height - side) // 2, (width - side) // 2
        image[top : top + side, left : left + side] = 200 + index
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    x = folder(tmp_path, size=16).train.all()
    assert x.shape == (3, 1, 16, 16)
    assert float((x[0, :, 4:-4, 4:-4] * 255 - 200).abs().max()) <= 1
    assert float(x[0].min()) * 255 > 150, "the margins reach in by no more than the filter does"


def test_an_image_of_the_right_size_is_left_alone(tmp_path):
    for index, image in enumerate(PIXELS[:5, :5, :5]):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    x = folder(tmp_path, size=5).train.all()
    np.testing.assert_array_equal((x[:, 0] * 255).round().numpy(), PIXELS[:5, :5, :5])


def test_deep_grey_keeps_its_tones(tmp_path):
    """16-bit grey is brought to 8 bits by its range, not cut off at 255."""
    ramp = np.tile(np.linspace(0, 65535, 16).astype(np.uint16), (16, 1))
    for index in range(3):
        Image.fromarray(ramp).save(tmp_path / f"{index}.png")
    dataset = folder(tmp_path, size=16)
    assert dataset.spec.shape == (1, 16, 16)
    torch.testing.assert_close(dataset.train.all()[0, 0, 3], torch.linspace(0, 1, 16), rtol=0, atol=0.01)


def test_orientation_of_photographs(tmp_path):
    image = Image.new("L", (8, 8), 0)
    image.paste(255, (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    for index in range(2):
        image.save(tmp_path / f"{index}.png", exif=exif)
    x = folder(tmp_path, size=8).train.all()[0, 0]
    assert x[:3].max() < 0.1
    assert x[5:].min() > 0.9


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "webp", "bmp", "gif", "tif"])
def test_every_format(tmp_path, suffix):
    for index in range(3):
        picture(tmp_path / f"{index}.{suffix}", color=(240, 240, 240), size=(12, 12))
    assert float(folder(tmp_path, size=12).train.all()[0, :, 6, 6].mean()) == pytest.approx(240 / 255, abs=0.02)


def test_palettes_with_transparency(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 40, 40])
    image.putpixel((0, 0), 0)
    for index in range(2):
        image.save(tmp_path / f"{index}.png", transparency=b"\x00\xff")
    x = folder(tmp_path, size=8).train.all()
    assert x.shape == (2, 3, 8, 8)
    assert float(x[0, 0, 5, 5]) == pytest.approx(200 / 255, abs=0.01)


def test_one_value_only(tmp_path):
    for index in range(3):
        Image.new("L", (4, 4), 7).save(tmp_path / f"{index}.png")
    with pytest.raises(DataError, match="nothing to model"):
        folder(tmp_path)


def test_what_does_not_fit_in_memory_is_the_same(tmp_path, monkeypatch, sources):
    import scmreg_data.folder as module

    data = datasets.create("images", **sources["images"])
    kept = data.load()
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    read = data.load()
    assert type(kept.train) is not type(read.train)
    assert read.spec == kept.spec
    assert torch.equal(read.train.all(), kept.train.all())
    assert torch.equal(read.held_out.__getitems__([2, 0]), kept.held_out.__getitems__([2, 0]))
    assert torch.equal(read.train.labels, kept.train.labels)


def test_a_changed_folder_has_another_digest(tmp_path):
    for index in range(3):
        picture(tmp_path / f"{index}.png")
    before = folder(tmp_path).digest
    picture(tmp_path / "4.png")
    assert folder(tmp_path).digest != before


def test_the_home_directory_is_known(home):
    for index in range(3):
        picture(home / "pics" / f"{index}.png")
    assert len(folder("~/pics").train) == 3


# Arrays ---------------------------------------------------------------------------------------------------------------


def idx(values, kind=8):
    return bytes([0, 0, kind, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write(path, x, labels=None):
    name = path.name
    if name.endswith(".npy"):
        np.save(path, x)
    elif name.endswith(".npz"):
        np.savez(path, **({"x": x} if labels is None else {"x": x, "labels": labels}))
    elif name.endswith(".safetensors"):
        save_file({"x": x} if labels is None else {"x": x, "labels": labels}, path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(idx(x)))
    else:
        path.write_bytes(idx(x))
    return path


def array(path, **options):
    return datasets.create("array", path=path, held_out=0.0, **options).load()


@pytest.mark.parametrize(
    "name", ["x.npy", "x.npz", "x.safetensors", "train-images-idx3-ubyte", "x-idx3-ubyte.gz", "x.idx"]
)
def test_every_format_of_arrays(tmp_path, name):
    dataset = array(write(tmp_path / name, PIXELS))
    assert dataset.spec.shape == (1, 6, 5)
    assert dataset.spec.classes == ()
    np.testing.assert_array_equal((dataset.train.all() * 255).round().numpy()[:, 0], PIXELS)


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors"])
def test_labels_beside_the_array(tmp_path, name):
    dataset = array(write(tmp_path / name, PIXELS, LABELS))
    assert dataset.spec.classes == ("0", "1", "2")
    np.testing.assert_array_equal(dataset.train.labels.numpy(), LABELS)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint16])
@pytest.mark.parametrize("name", ["y.npy", "y.npz", "y-idx1-ubyte.gz", "y-idx1-ubyte"])
def test_labels_in_a_file_of_their_own(tmp_path, name, dtype):
    labels = LABELS.astype(np.uint8 if "idx" in name else dtype)
    write(tmp_path / name, labels)
    dataset = array(write(tmp_path / "x.npy", PIXELS), labels=tmp_path / name)
    np.testing.assert_array_equal(dataset.train.labels.numpy(), LABELS)
    assert dataset.train.labels.dtype == torch.int64


def test_labels_follow_their_items_through_the_split(tmp_path):
    x = np.repeat(LABELS[:, None], 2, 1) + 0.001 * RNG.random((40, 2))
    np.savez(tmp_path / "x.npz", x=x, y=LABELS)
    dataset = datasets.create("array", path=tmp_path / "x.npz", held_out=0.25).load()
    for part in (dataset.train, dataset.held_out):
        assert torch.equal(part.all()[:, 0].round().long(), part.labels)


def test_every_layout_of_images(tmp_path):
    colour = RNG.integers(0, 256, (10, 6, 5, 3)).astype(np.uint8)
    for number, (x, expected) in enumerate(
        [
            (PIXELS, PIXELS[:, None]),
            (PIXELS[:, None], PIXELS[:, None]),
            (PIXELS[..., None], PIXELS[:, None]),
            (colour, colour.transpose(0, 3, 1, 2)),
            (colour.transpose(0, 3, 1, 2), colour.transpose(0, 3, 1, 2)),
            (PIXELS / 255, PIXELS[:, None]),
            ((PIXELS / 255).astype(np.float16), PIXELS[:, None]),
            (np.asfortranarray(PIXELS), PIXELS[:, None]),
        ]
    ):
        path = tmp_path / f"{number}.npy"
        np.save(path, x)
        got = array(path).train.all() * 255
        assert got.shape == expected.shape
        np.testing.assert_allclose(got.numpy(), expected, atol=0.2)


@pytest.mark.parametrize("dimensions", [1, 2, 7])
@pytest.mark.parametrize("dtype", ["<f8", ">f4", "f2", "i4", "u1"])
def test_points(tmp_path, dimensions, dtype):
    x = RNG.integers(0, 100, (30, dimensions)).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    dataset = array(tmp_path / "x.npy")
    assert dataset.spec.modality == "points"
    assert dataset.spec.shape == (dimensions,)
    np.testing.assert_array_equal(dataset.train.all().numpy(), x.astype(np.float32))


@pytest.mark.parametrize(
    ("kind", "dtype"), [(0x08, ">u1"), (0x09, ">i1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")]
)
def test_every_type_of_idx(tmp_path, kind, dtype):
    x = RNG.integers(0, 100, (12, 2)).astype(dtype)
    (tmp_path / "x.idx").write_bytes(idx(x, kind))
    np.testing.assert_array_equal(array(tmp_path / "x.idx").train.all().numpy(), x.astype(np.float32))


@pytest.mark.parametrize(("name", "content"), [("x.npy", "x.npz"), ("x.npz", "x.npy")])
def test_numpys_two_formats_are_told_apart_by_content(tmp_path, name, content):
    write(tmp_path / content, PIXELS).rename(tmp_path / name)
    np.testing.assert_array_equal((array(tmp_path / name).train.all() * 255).round().numpy()[:, 0], PIXELS)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float16", "float64"])
def test_numbers_that_numpy_does_not_have(tmp_path, dtype):
    from safetensors.torch import save_file as save_torch

    x = torch.rand(20, 8, 8, generator=generator(0)).to(getattr(torch, dtype))
    save_torch({"x": x}, tmp_path / "x.safetensors")
    assert torch.equal(array(tmp_path / "x.safetensors").train.all()[:, 0], x.float())


def test_keys(tmp_path):
    other = RNG.random((9, 2))
    np.savez(tmp_path / "a.npz", x=PIXELS, other=other)
    assert array(tmp_path / "a.npz").spec.shape == (1, 6, 5)
    assert array(tmp_path / "a.npz", key="other").spec.shape == (2,)
    np.savez(tmp_path / "b.npz", whatever=other, y=np.arange(9) % 2)
    assert array(tmp_path / "b.npz").spec.classes == ("0", "1")
    np.savez(tmp_path / "c.npz", other)
    assert array(tmp_path / "c.npz").spec.shape == (2,)


# Augmentation ---------------------------------------------------------------------------------------------------------


def test_augmentation_leaves_alone_unless_asked():
    x = torch.rand(8, 1, 5, 5)
    assert torch.equal(Augmentation().apply(x, generator(0)), x)
    assert datasets.create("digits").augmentation == Augmentation()
    assert datasets.create("digits", shift=1, flip=True).augmentation == Augmentation(1, True)


def test_flips():
    x = torch.rand(400, 2, 4, 5)
    y = Augmentation(flip=True).apply(x, generator(0))
    same = torch.tensor([torch.equal(a, b) for a, b in zip(x, y, strict=True)])
    mirrored = torch.tensor([torch.equal(a.flip(-1), b) for a, b in zip(x, y, strict=True)])
    assert bool((same ^ mirrored).all())
    assert 0.4 < float(mirrored.double().mean()) < 0.6
    assert torch.equal(y, Augmentation(flip=True).apply(x, generator(0)))


def test_shifts():
    x = torch.rand(300, 1, 6, 6)
    y = Augmentation(shift=1).apply(x, generator(0))
    assert y.shape == x.shape
    moves = set()
    for before, after in zip(x, y, strict=True):
        inner = after[:, 1:-1, 1:-1]
        found = [(i, j) for i in range(3) for j in range(3) if torch.equal(before[:, i : i + 4, j : j + 4], inner)]
        assert len(found) == 1
        moves |= set(found)
    assert len(moves) == 9
