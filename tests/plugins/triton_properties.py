"""What holds of the Triton backend alone, each a function that asserts it; run by `triton_worker`."""

from __future__ import annotations

import pytest
import torch
from attention_reference import checks, rounded, tensors
from torch import func

import scmreg
from scmreg import attend, attend_jvp, composable
from scmreg.attention import AUTO, AttentionOptions, choose, operation_of, prepare
from scmreg.errors import UnavailableError


def check_operators() -> None:
    """What is promised of the operators to the compiler is true: strides, aliases, gradients."""
    from scmreg_attention import fused

    attention, attention_backward = composable._operators(fused.KERNEL)
    p, _ = rounded("triton", tensors(s=70))
    leaves = [x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in p]
    q, _, v = (x.detach() for x in leaves)
    for tangents, lengths in (((q, None, v), None), ((None,) * 3, torch.tensor([3, 70]))):
        torch.library.opcheck(attention, (*leaves, *tangents, lengths, 0.3, False))
    out, _, lse = attention(*leaves, None, None, None, None, 0.3, False)
    arguments = [x.detach() for x in (out, *leaves, out, lse)]
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(attention_backward, (*arguments, None, 0.3, False), test_utils=tests)


def check_the_bare_operator_loses_the_tangent_and_attend_does_not() -> None:
    """Why there is a wrapper: torch gives a bare operator a tangent of zero, without an error."""
    from scmreg_attention import fused

    attention, _ = composable._operators(fused.KERNEL)
    (q, k, v), (tq, _, _) = rounded("triton", tensors())
    _, bare = func.jvp(lambda q: attention(q, k, v, None, None, None, None, 0.25, False)[0], (q,), (tq,))
    _, wrapped = func.jvp(lambda q: attend(q, k, v, backend="triton"), (q,), (tq,))
    assert not bare.any()
    assert bool(wrapped.any())


def check_lse() -> None:
    """The log-sum-exp is that of the logits, in natural units, and 0 where there are none."""
    from scmreg_attention import fused

    attention, _ = composable._operators(fused.KERNEL)
    (q, k, v), _ = rounded("triton", tensors(hk=2, s=70))
    _, _, lse = attention(q, k, v, None, None, None, torch.tensor([0, 50]), 0.3, False)
    assert not lse[0].any()
    torch.testing.assert_close(lse[1], torch.logsumexp(0.3 * q[1] @ k[1, :, :50].mT, -1), rtol=1e-5, atol=1e-5)


def check_types_that_it_does_not_take() -> None:
    p, _ = tensors()
    for dtype, words in ((torch.float64, "float32, float16, not in float64"), (torch.bfloat16, "not in bfloat16")):
        with pytest.raises(UnavailableError, match=words) as caught:
            attend(*(x.to(dtype) for x in p), backend="triton")
        assert "can: " in str(caught.value)
        assert "math" in str(caught.value)


def check_it_is_there_but_not_chosen_on_the_cpu() -> None:
    assert scmreg.attentions["triton"].unavailable() is None
    assert "triton" in AUTO
    prepare("auto")
    p, _ = rounded("triton", tensors())
    assert choose(*p)[0] == "chunked"
    assert operation_of("triton").refuses(*p, AttentionOptions(1.0)) is None


def check_nothing_is_timed_in_the_interpreter() -> None:
    from scmreg_attention import launch, tune

    p, t = rounded("triton", tensors())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "quickest", None)
        attend_jvp(*p, *t, backend="triton")
        attend(*p, backend="triton")
    assert len(launch.candidates(16, 4, launch.architecture(p[0].device), True)) == 1
    assert not tune.choices()


CHECKS = checks(globals())
