"""The registered model, as MLflow stores it: this file's text and the student's folder, no pickle.

MLflow executes the file when the model is logged, loaded or served, so it does work when it is read; nothing else
imports it. Input columns: `text`; optional `voice`, `prompt_text`, `prompt_audio_base64` (any format that libsndfile
reads). Output columns: `audio_base64` (WAV, 16 bit, mono) and `sample_rate_hz`.
"""

import base64
import io
from collections.abc import Hashable
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

STUDENT_ARTIFACT = "student"


class SpeechModel(PythonModel):
    """Text in, speech out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the student once for all requests."""
        from slimtts.speech import Speaker

        self._speaker = Speaker.load(context.artifacts[STUDENT_ARTIFACT])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row of audio for each row of text."""
        rows = [self._speak(row) for row in model_input.to_dict("records")]
        return pd.DataFrame(rows, columns=["audio_base64", "sample_rate_hz"])

    def _speak(self, row: dict[Hashable, Any]) -> dict[str, Any]:
        import soundfile

        given = {key: value for key, value in row.items() if isinstance(value, str) and value}  # absent ones are NaN
        prompt_codes = self._prompt_codes(given["prompt_audio_base64"]) if "prompt_audio_base64" in given else ()
        waveform = self._speaker.speak(
            given.get("text", ""), given.get("voice"), given.get("prompt_text", ""), prompt_codes
        )
        wav = io.BytesIO()
        soundfile.write(wav, waveform, self._speaker.sample_rate_hz, format="WAV", subtype="PCM_16")
        return {
            "audio_base64": base64.b64encode(wav.getvalue()).decode(),
            "sample_rate_hz": self._speaker.sample_rate_hz,
        }

    def _prompt_codes(self, audio_base64: str) -> list[int]:
        import soundfile

        samples, sample_rate_hz = soundfile.read(io.BytesIO(base64.b64decode(audio_base64)), dtype="float32")
        mono = samples if samples.ndim == 1 else samples.mean(axis=1)
        return self._speaker.encode_prompt(mono, sample_rate_hz)


set_model(SpeechModel())
