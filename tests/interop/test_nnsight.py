"""nnsight traces the plain module: it reads, and edits, what the project's own functions do."""

import pytest
import torch

pytest.importorskip("nnsight", reason="needs nnsight: make interop")

from nnsight import NNsight  # pyright: ignore[reportMissingImports]

from incontext_linear.learner import Learner
from incontext_linear.learner.base import predict_from, residual_streams
from incontext_linear.tasks import Prompts

HALVES = slice(32), slice(32, 64)


@torch.no_grad()
def test_a_trace_of_the_plain_module_reads_the_residual_streams(small: Learner, prompts: Prompts):
    traced, (xs, ys) = NNsight(small.model), prompts[:2]
    with traced.trace(xs, ys):
        embedding = traced.blocks[0].input.save()
        mixed = traced.blocks[1].attention.project_out.input.save()
        third = traced.blocks[2].output.save()
        last = traced.blocks[3].output.save()
        predictions = traced.output.save()
    streams = dict(residual_streams(small.model, xs, ys))
    assert torch.equal(embedding, streams[0])
    assert torch.equal(third, streams[3])
    # The transformer's own run leaves the y-tokens out of its last block.
    assert torch.equal(last, streams[4][:, ::2])
    assert torch.equal(predictions, small.model(xs, ys))
    attention = small.model.blocks[1].attention
    normed = small.model.blocks[1].attention_norm(streams[1])
    torch.testing.assert_close(attention.project_out(mixed), attention(normed))


@torch.no_grad()
def test_an_edit_in_a_trace_is_predict_from_the_edited_stream(small: Learner, prompts: Prompts):
    traced = NNsight(small.model)
    recipient, donor = (tuple(part[half] for part in prompts[:2]) for half in HALVES)
    streams = [dict(residual_streams(small.model, *side))[2] for side in (recipient, donor)]
    with traced.trace(*recipient):
        traced.blocks[1].output[:, :-1] = streams[1][:, :-1]
        predictions = traced.output.save()
    edited = torch.cat((streams[1][:, :-1], streams[0][:, -1:]), dim=1)
    assert torch.equal(predictions, predict_from(small.model, edited, 2))
    assert (predictions - small.model(*recipient)).abs().max() > 0.1
