"""Speech over HTTP, as OpenAI's `/v1/audio/speech`: one model, streamed, with limits, replaced while it serves."""
