"""Neural audio codecs: waveform to discrete speech codes and back."""
