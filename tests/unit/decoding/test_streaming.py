"""Streaming: the same tokens as a whole generation, the same audio as a whole decode, and early."""

import pytest
import torch

from slimtts.codec.nano_codec import NanoCodec
from slimtts.decoding.generation import generate_batch
from slimtts.decoding.lean_model import LeanModel
from slimtts.decoding.streaming import FIRST_FRAMES, TOLERANCE, WindowedCodec, stream_audio, stream_codes
from slimtts.params import DecodingParams
from slimtts.teachers.base import Prompt
from slimtts.teachers.nano import bundle_folder
from slimtts.testing.tiny import BeepCodec

GREEDY = DecodingParams(temperature=0.0, top_p=1.0, max_new_tokens=40, batch_rows=4, seed=1)
WAYS = {
    "greedy": GREEDY,
    "sampled": GREEDY.model_copy(update={"temperature": 0.9, "top_p": 0.9, "top_k": 12}),
    "repetition aware": GREEDY.model_copy(update={"temperature": 1.0, "repetition_aware": True}),
    "penalty": GREEDY.model_copy(update={"temperature": 0.7, "repetition_penalty": 1.3}),
}


@pytest.fixture(scope="module")
def codec():
    return NanoCodec.load(bundle_folder() / "codec")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("text", ["anna.", "seven apple castle green tiger."])
def test_the_tokens_are_those_of_a_whole_generation(teacher, way, text):
    ids = teacher.prompt_ids(text, Prompt("anna.", (1, 2, 3)))
    whole = generate_batch(teacher.model, teacher.layout, [ids], WAYS[way], row_seeds=[8])[0]
    assert tuple(stream_codes(teacher.model, teacher.layout, ids, WAYS[way], row_seed=8)) == whole.codes
    assert whole.codes


def test_a_generation_that_is_left_computes_no_further_token(teacher, monkeypatch):
    passes, step = [], LeanModel.step
    monkeypatch.setattr(LeanModel, "step", lambda *a, **k: passes.append(1) or step(*a, **k))
    codes = stream_codes(teacher.model, teacher.layout, teacher.prompt_ids("anna.", Prompt()), GREEDY)
    next(codes)
    codes.close()
    assert len(passes) == 1


@pytest.mark.parametrize("frames", [0, 1, 5, 19, 20, 21, 35, 36, 80, 160])
def test_the_pieces_are_the_whole_decode(codec, frames):
    torch.manual_seed(frames)
    codes = torch.randint(0, codec.num_codes, (frames,)).tolist()
    pieces = list(stream_audio(iter(codes), codec))
    if not frames:
        assert pieces == []
        return
    whole = codec.decode(torch.tensor([codes]))[0]
    joined = torch.cat(pieces)
    assert joined.shape == whole.shape
    torch.testing.assert_close(joined, whole, rtol=0, atol=TOLERANCE)
    assert whole.abs().max() > 1000 * TOLERANCE


def test_sound_starts_before_the_last_code(codec):
    drawn = []
    codes = (drawn.append(code) or code for code in range(100))
    first = next(stream_audio(codes, codec))
    assert len(drawn) == FIRST_FRAMES + codec.context_frames
    assert len(first) == FIRST_FRAMES * codec.samples_per_frame


def test_a_code_is_heard_exactly_as_far_as_the_codec_says(codec):
    torch.manual_seed(0)
    codes = torch.randint(0, codec.num_codes, (1, 60))
    other = codes.clone()
    other[0, 30] = (codes[0, 30] + 2000) % codec.num_codes
    change = (codec.decode(codes) - codec.decode(other))[0].abs().view(60, codec.samples_per_frame).amax(1)
    heard = change.nonzero().flatten().tolist()
    assert (30 - min(heard), max(heard) - 30) == (codec.context_frames, codec.context_frames)


def test_only_a_codec_that_tells_its_reach_is_windowed(codec):
    assert isinstance(codec, WindowedCodec)
    assert not isinstance(BeepCodec(), WindowedCodec)
