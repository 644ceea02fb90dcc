"""Checkpoints: written whole or not at all, verified when read, the oldest ones deleted."""

from __future__ import annotations

import json
import resource

import pytest
import torch

from scmreg import checkpoint
from scmreg.errors import CheckpointError, OutputError

META = {"recipe": {"seed": 0}, "note": "plain"}


def parts(value: float):
    return {
        "model": {"w": torch.full((3, 2), value), "b": torch.arange(4) + int(value)},
        "ema": {"w": torch.full((3, 2), -value)},
    }


def save(folder, step, value=None, keep=10):
    return checkpoint.save(folder, step, parts(step if value is None else value), META, keep)


def check(path, value):
    loaded = checkpoint.load(path)
    for part, tensors in parts(value).items():
        found = loaded.tensors(part)
        assert set(found) == set(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(found[name], tensor)
            assert found[name].dtype == tensor.dtype


def test_what_is_saved_is_loaded(tmp_path):
    path = save(tmp_path / "checkpoints", 7)
    assert path == tmp_path / "checkpoints" / "00000007"
    check(path, 7)
    loaded = checkpoint.load(path)
    assert loaded.step == 7
    assert loaded.meta["recipe"] == META["recipe"]
    assert loaded.meta["format"] == checkpoint.FORMAT
    assert {item.name for item in path.iterdir()} == {"model.safetensors", "ema.safetensors", "meta.json"}
    assert [item.name for item in path.parent.iterdir()] == ["00000007"], "no temporary folder stays"


def test_tensors_that_share_memory_or_are_views(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tied = {"a": base, "b": base, "c": base.T, "d": base[:, 1], "e": base.requires_grad_(True) * 2}
    path = checkpoint.save(tmp_path, 1, {"model": tied}, {}, 1)
    found = checkpoint.load(path).tensors("model")
    assert all(torch.equal(found[name], value) for name, value in tied.items())


def test_the_oldest_go(tmp_path):
    for step in (1, 2, 10, 9, 100):
        save(tmp_path, step, keep=2)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["00000010", "00000100"]
    assert checkpoint.latest(tmp_path) == tmp_path / "00000100"


def test_latest_passes_over_what_is_incomplete(tmp_path):
    assert checkpoint.latest(tmp_path / "nowhere") is None
    assert checkpoint.latest(tmp_path) is None
    save(tmp_path, 3)
    (tmp_path / "00000009").mkdir()
    (tmp_path / ".00000010.tmp").mkdir()
    (tmp_path / ".00000010.tmp" / "meta.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    assert checkpoint.latest(tmp_path) == tmp_path / "00000003"


class Killed(BaseException):
    """The process is gone: nothing after it runs."""


def kill_at(monkeypatch, number):
    """Die at the n-th operation that touches the disk for good; return the count of those that were reached."""
    reached = []
    originals = {"_sync": checkpoint._sync, "save_file": checkpoint.save_file, "rename": type(checkpoint.Path()).rename}

    def counted(name):
        def call(*arguments, **keywords):
            reached.append(name)
            if len(reached) == number:
                raise Killed
            return originals[name](*arguments, **keywords)

        return call

    monkeypatch.setattr(checkpoint, "_sync", counted("_sync"))
    monkeypatch.setattr(checkpoint, "save_file", counted("save_file"))
    monkeypatch.setattr(type(checkpoint.Path()), "rename", counted("rename"))
    return reached


def test_a_killed_save_leaves_the_old_one(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        reached = kill_at(patch, 0)
        save(tmp_path / "whole", 1)
    total = len(reached)
    assert reached.count("save_file") == 2
    assert reached.count("rename") == 1
    assert reached.index("rename") == total - 2, "the files are on disk before the name, the name after them"
    for number in range(1, total + 1):
        folder = tmp_path / str(number)
        save(folder, 1)
        with monkeypatch.context() as patch:
            kill_at(patch, number)
            with pytest.raises(Killed):
                save(folder, 2, keep=1)
        newest = checkpoint.latest(folder)
        assert newest is not None
        done = number > reached.index("rename") + 1
        assert newest.name == ("00000002" if done else "00000001")
        check(newest, int(newest.name))
        save(folder, 2, keep=1)
        check(folder / "00000002", 2)
        assert [item.name for item in folder.iterdir()] == ["00000002"], "what the kill left is cleared away"


def test_a_half_written_file_is_never_a_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1)
    original = checkpoint.save_file

    def half(tensors, path, *rest):
        original(tensors, path, *rest)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", half)
        with pytest.raises(Killed):
            save(tmp_path, 2)
    assert checkpoint.latest(tmp_path) == tmp_path / "00000001"


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors"])
@pytest.mark.parametrize("place", [0, 20, -1])
def test_any_other_content_is_noticed(tmp_path, name, place):
    path = save(tmp_path, 1)
    content = bytearray((path / name).read_bytes())
    content[place] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} is corrupt"):
        checkpoint.load(path)


def test_a_cut_file_is_noticed(tmp_path):
    path = save(tmp_path, 1)
    file = path / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="corrupt"):
        checkpoint.load(path)


def test_a_missing_file_is_noticed(tmp_path):
    path = save(tmp_path, 1)
    (path / "ema.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks its file ema\.safetensors"):
        checkpoint.load(path)


def test_a_part_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="no part 'objective'"):
        checkpoint.load(save(tmp_path, 1)).tensors("objective")


@pytest.mark.parametrize(
    ("meta", "match"),
    [
        ("", "corrupt"),
        ("{", "corrupt"),
        ("[1]", "corrupt"),
        ("null", "corrupt"),
        ('{"epoch": 3, "state_dict": {}}', "not the metadata of a checkpoint"),
        ('{"format": 1, "files": []}', "corrupt"),
        ('{"format": 1, "files": {}}', "corrupt|step"),
        ('{"format": "one", "files": {}, "step": 1}', "format"),
        ('{"format": 2, "files": {}, "step": 1}', "format 2, this scmreg reads formats up to 1"),
        ('{"format": 1, "files": {"../secret": "0"}, "step": 1}', "secret"),
    ],
)
def test_foreign_metadata(tmp_path, meta, match):
    path = save(tmp_path, 1)
    (tmp_path / "secret").write_text("")
    (path / "meta.json").write_text(meta)
    with pytest.raises(CheckpointError, match=match):
        _ = checkpoint.load(path).step


def test_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"it has no meta\.json"):
        checkpoint.load(tmp_path / "nowhere")


def test_a_newer_format_says_what_to_do(tmp_path):
    path = save(tmp_path, 1)
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "format": checkpoint.FORMAT + 1}))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert "upgrade" in str(caught.value)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        save(tmp_path / "file" / "checkpoints", 1)
    with pytest.raises(OutputError, match="cannot be written"):
        checkpoint.write_text(tmp_path / "file" / "x.yaml", "x")


def test_a_full_disk(tmp_path):
    """A limit on the size of files stands for a full disk: safetensors has its own error for it."""
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"model": {"w": torch.zeros(100_000)}}
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            checkpoint.save(tmp_path, 2, big, META, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.latest(tmp_path) == tmp_path / "00000001"
    check(tmp_path / "00000001", 1)


def test_write_text_replaces_whole(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    checkpoint.write_text(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_sync", lambda _: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            checkpoint.write_text(path, "new")
    assert path.read_text() == "old"
    checkpoint.write_text(path, "näher")
    assert path.read_text(encoding="utf-8") == "näher"
    assert [item.name for item in tmp_path.iterdir()] == ["x.json"]


class Model(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = torch.nn.Linear(width, 2)


def test_tensors_of_another_model():
    model = Model(3)
    tensors = {name: value + 1 for name, value in model.state_dict().items()}
    checkpoint.load_into(model, tensors, "it")
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for wrong, match in (
        (Model(4).state_dict(), r"'inner\.weight' has shape \(2, 4\), not \(2, 3\)"),
        ({**tensors, "extra": torch.zeros(1)}, "it has 'extra'"),
        ({"inner.weight": tensors["inner.weight"]}, "it lacks 'inner.bias'"),
        ({}, "it lacks 'inner.bias'"),
    ):
        with pytest.raises(CheckpointError, match=match):
            checkpoint.load_into(model, wrong, "it")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
