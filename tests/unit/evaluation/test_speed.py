"""Speed of the bundled teacher, in this process: what its numbers must satisfy, and results without some of them."""

from slimtts.evaluation import speed
from slimtts.evaluation.speed import SpeedJob, measure_here
from slimtts.params import DecodingParams, TeacherParams
from slimtts.results import SpeedResult
from slimtts.speech import bundled_voices
from slimtts.teachers.nano import bundle_folder
from tasks.stage_numbers import numbers

GREEDY = DecodingParams(temperature=0.0, top_p=1.0, max_new_tokens=60, batch_rows=1, seed=0)


def test_each_utterance_is_spoken_whole_streamed_and_eagerly(monkeypatch):
    made = []
    spoken = speed._spoken
    monkeypatch.setattr(speed, "_spoken", lambda *a: made.append(spoken(*a)) or made[-1])
    prompt = bundled_voices()["slt"]
    texts = ["the green tiger found my apple.", "anna took my castle."]
    teacher = TeacherParams(family="nano", source="bundled")
    result = measure_here(SpeedJob(teacher, bundle_folder() / "teacher", texts, [prompt] * 2, GREEDY, 1))
    assert len(made) == 4  # two of them warm up
    timed = made[2:]
    audio_s = sum(one.audio_s for one in timed)
    assert 1 < audio_s < 2 * 60 / 25
    assert abs(result.lm_rtf * audio_s - sum(one.lm_s for one in timed)) < 1e-9
    assert abs(result.eager_lm_rtf * audio_s - sum(one.eager_lm_s for one in timed)) < 1e-9
    assert abs((result.end_to_end_rtf - result.lm_rtf) * audio_s - sum(one.codec_s for one in timed)) < 1e-9
    assert 0 < result.first_audio_p50_s <= result.first_audio_p95_s
    assert result.latency_p50_s <= result.latency_p95_s
    assert result.peak_memory_mb > 100


def test_results_of_earlier_versions_are_read_and_give_the_same_metrics():
    old = '{"lm_rtf": 0.2, "end_to_end_rtf": 0.3, "tokens_per_s": 90, '
    old += '"latency_p50_s": 1, "latency_p95_s": 2, "peak_memory_mb": 9}'
    read = SpeedResult.model_validate_json(old)
    assert read.eager_lm_rtf is None
    assert sorted(numbers("speed", read.model_dump())) == [
        "speed.end_to_end_rtf", "speed.latency_p50_s", "speed.latency_p95_s", "speed.lm_rtf", "speed.peak_memory_mb",
        "speed.tokens_per_s",
    ]  # fmt: skip
