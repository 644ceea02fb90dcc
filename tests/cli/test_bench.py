"""`scm bench`: its list, its options as flags, what it prints, and what it says of wrong input."""

from __future__ import annotations

import re

import pytest

from scmreg.bench import BENCHMARKS
from scmreg.errors import OptionError
from scmreg.options import options_of
from scmreg_cli.benching import made_of

SMALL = ("--set", "rounds=2", "--set", "batch_size=2", "--set", "samplers=[ddim, consistency]")
TINY = ("--shape", "1x2x16x8", "--rounds", "1", "--device", "cpu")


def test_the_list(scm):
    result = scm("bench")
    assert result.code == 0, result.err
    for name, cls in BENCHMARKS.items():
        assert name in result.out
        assert cls.summary() in result.out
    assert "scm bench NAME --help" in result.out
    listed = scm("bench", "--json").json
    assert [entry["name"] for entry in listed] == list(BENCHMARKS)
    assert listed[1]["options"]["properties"]["causal"]["default"] is False


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_the_options(scm, name, flag):
    result = scm("bench", name, flag)
    assert result.code == 0, result.err
    assert "--option value" in result.out
    words = re.sub(r"\s+", " ", result.out)
    assert BENCHMARKS[name].summary() in words
    for option in options_of(BENCHMARKS[name]):
        assert re.search(rf"^ {option.name} ", result.out, re.MULTILINE)
        assert option.help.split("\n")[0].split()[0] in words


def test_help_of_none_has_no_options_of_any(scm):
    assert "rounds" not in scm("bench", "--help").out
    assert "no benchmark called 'samplin', did you mean 'sampling'?" in scm("bench", "samplin", "--help").err


def test_sampling(scm):
    result = scm("bench", "sampling", *SMALL)
    assert result.code == 0, result.err
    assert "ddim, converted to edm" in result.out
    assert "4 bare calls" in result.out
    assert "batch of 2 samples" in result.out
    listed = scm("bench", "sampling", *SMALL, "--json").json
    assert [entry["title"] for entry in listed] == [
        f"{name}{process}{what}"
        for name in ("ddim", "consistency")
        for process in ("", ", converted to edm")
        for what in ("", ", without the network")
    ]
    for entry in listed:
        assert entry["ours"] > 0
        assert entry["theirs"] > 0
        assert entry["ratio"] > 0


def test_attention(scm):
    result = scm("bench", "attention", *TINY, "--passes", "jvp,training")
    assert result.code == 0, result.err
    header, *lines = [line.split() for line in result.out.splitlines() if line.startswith((" shape", " 1x2"))]
    assert {"attention", "ms", "TFLOP/s", "sdpa", "sdpa-math"} <= set(header)
    assert [line[:3] for line in lines] == [
        ["1x2x16x8", what, name] for what in ("jvp", "training") for name in ("chunked", "math", "sdpa", "sdpa-math")
    ]
    assert "chunked (auto)" in result.out
    assert "float32, every key is seen; cpu" in result.out
    assert "extra memory is counted on CUDA devices only" in result.out
    assert "? jvp_flash_attention: needs a CUDA device" in result.out


def test_attention_as_json(scm):
    result = scm("bench", "attention", *TINY, "--against", "sdpa", "--backend=math,chunked", "--causal", "--json")
    assert result.code == 0, result.err
    ours, other, sdpa = result.json
    assert [ours["attention"], other["attention"], sdpa["attention"]] == ["math", "chunked", "sdpa"]
    for entry in (ours, other, sdpa):
        assert entry["shape"] == "1x2x16x8"
        assert entry["pass"] == "jvp"
        assert entry["seconds"] > 0
        assert entry["tflops"] * entry["seconds"] * 1e12 == pytest.approx((12 if entry["tangent"] else 4) * 2 * 136 * 8)
        assert list(entry["over"]) == ["sdpa"]
        assert entry["extra_bytes"] is None
        assert 0 < entry["error"] < 1e-6
    assert ours["over"]["sdpa"] > 0
    assert sdpa["over"]["sdpa"] == 1
    assert not sdpa["tangent"]
    assert sdpa["tangent_error"] is None
    assert 0 < ours["tangent_error"] < 1e-6
    assert (ours["detail"], other["detail"]) == (None, "auto")


def test_what_was_left_out_is_in_the_json(scm):
    listed = scm("bench", "attention", *TINY, "--json").json
    assert {"attention": "jvp_flash_attention", "untried": "needs a CUDA device"} in listed


def test_step(scm):
    small = ("--network", "mlp", "--network.width", "8", "--network.depth=1", "--shape", "2", "--classes", "0")
    few = ("--batch-size", "4", "--rounds", "1", "--device", "cpu", "--objectives", "scd", "--passes", "separate")
    result = scm("bench", "step", *small, *few)
    assert result.code == 0, result.err
    assert "scd, separate" in result.out
    assert "batch of 4 samples of shape (2,), float32; cpu" in result.out
    (entry,) = scm("bench", "step", *small, *few, "--json").json
    assert (entry["title"], entry["against"]) == ("scd, separate", "diffusion")
    assert entry["ours"] > 0
    assert entry["theirs"] > 0
    assert entry["ratio"] > 0


def test_a_flag_is_a_setting():
    flags = ["--network.width", "64", "--batch-size=3", "--shape", "3,4,4", "--samplers", "ddim"]
    settings = ["network.width=64", "batch_size=3", "shape=[3, 4, 4]", "samplers=[ddim]"]
    made = made_of("sampling", [], flags)
    assert made == made_of("sampling", settings, []) == made_of("sampling", settings[:2], flags[3:])
    assert made.network.width == 64
    assert made.shape == (3, 4, 4)
    assert made_of("sampling", ["batch_size=3"], ["--batch_size", "4"]).batch_size == 4
    assert made_of("step", [], ["--objectives", "scd,sct"]) == made_of("step", ["objectives=[scd, {name: sct}]"], [])


@pytest.mark.parametrize(
    ("words", "causal", "rounds"),
    [
        (["--causal"], True, 15),
        (["--causal", "--rounds", "3"], True, 3),
        (["--rounds", "3", "--causal"], True, 3),
        (["--causal", "false", "--rounds=3"], False, 3),
        (["--causal=false"], False, 15),
        (["--causal", "true"], True, 15),
    ],
)
def test_a_switch_needs_no_value(words, causal, rounds):
    made = made_of("attention", [], words)
    assert (made.causal, made.rounds) == (causal, rounds)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_option_is_a_flag(name):
    for option in options_of(BENCHMARKS[name]):
        flag = "--" + option.name.replace("_", "-")
        with pytest.raises(OptionError, match=rf"^{name}\.{option.name}"):
            made_of(name, [], [f"{flag}={{nonsense: 1}}"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("samplin",), "no benchmark called 'samplin', did you mean 'sampling'?"),
        (("--rounds", "3", "sampling"), "the name stands before the options"),
        (("sampling", "--set", "rounds=0"), "rounds must be greater than or equal to 1"),
        (("sampling", "--rounds", "0"), "rounds must be greater than or equal to 1"),
        (("sampling", "--rounds", "-3"), "rounds must be greater than or equal to 1"),
        (("sampling", "--rounds", "[3"), "rounds"),
        (("sampling", "--set", "round=3"), "sampling has no option 'round', did you mean 'rounds'?"),
        (("sampling", "--round", "3"), "sampling has no option '--round', did you mean 'rounds'?"),
        (("sampling", "--round", "3"), "options of sampling: --rounds, --network"),
        (("sampling", "--rounds"), "--rounds needs a value"),
        (("sampling", "--rounds", "--json"), "--rounds needs a value"),
        (("sampling", "3"), "'3' is no option of sampling: write --option value"),
        (("sampling", "-x"), "'-x' is no option of sampling"),
        (("sampling", "--set", "rounds"), "write OPTION=VALUE"),
        (("sampling", "--set", "network=dot"), "no network called 'dot'"),
        (("sampling", "--network.wdth", "3"), "did you mean 'width'?"),
        (("sampling", "--set", "rounds=3", "--rounds.x", "3"), "rounds is 3, which has no options to set"),
        (("sampling", "--set", "samplers=[hein]"), "no sampler called 'hein'"),
        (("sampling", "--samplers", "hein"), "no sampler called 'hein'"),
        (("sampling", "--set", "samplers=[]"), "sampling.samplers must not be empty"),
        (("sampling", "--set", "shape=[2]"), "works on images"),
        (("attention", "--shape", "2x8x1024"), "'2x8x1024' is no shape of an attention"),
        (("attention", "--shape", "2x8x1024"), "a shape is BxHxLxD"),
        (("attention", "--shape", "2x8x16x8,2x8x0x64"), "shape '2x8x0x64' has a size of 0"),
        (("attention", "--shape", "2x3/2x16x8"), "3 heads cannot share 2 heads of keys"),
        (("attention", "--against", "sdpa,sdpa-moth"), "no peer called 'sdpa-moth', did you mean 'sdpa-math'?"),
        (("attention", "--against", "sdpa-moth"), "peers: sdpa, sdpa-math, jvp_flash_attention"),
        (("attention", "--backend", "mth"), "no attention called 'mth', did you mean 'math'?"),
        (("attention", "--dtype", "int8"), "dtype must be 'float64', 'float32', 'bfloat16' or 'float16', not 'int8'"),
        (("attention", "--passes", "jvp,backward"), "passes[1] must be 'jvp' or 'training', not 'backward'"),
        (("attention", "--device", "cpux"), "no device called 'cpux'"),
        (("attention", "--device", "cpu", "--against", "jvp_flash_attention"), "can run here: sdpa, sdpa-math"),
        (("attention", "--shape", "1x1x500000x64", "--device", "cpu", "--backend", "math"), "GiB of memory"),
        (("step", "--shape", "2"), "works on images"),
        (("step", "--objectives", "sct,scx"), "no objective called 'scx'"),
        (("step", "--set", "objectives=[]"), "step.objectives is empty"),
        (("step", "--passes", "both"), "passes[0] must be 'joint' or 'separate', not 'both'"),
        (("step", "--network.width", "30"), "must be a multiple of 4"),
    ],
)
def test_what_cannot_be_measured(scm, arguments, words):
    result = scm("bench", *arguments)
    assert result.code == 2, result.err
    assert words in result.err
    assert result.out == ""


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ("99999999999999x99999x99999x999999", "larger than the memory of any machine"),
        ("1x64x90000000x64", "GiB for its inputs"),
    ],
)
def test_shapes_that_do_not_fit(scm, shape, words):
    result = scm("bench", "attention", "--shape", shape, "--device", "cpu")
    assert result.code == 2
    assert words in result.err
