"""Speech data: manifests, audio, and the choice of a small subset."""
