"""Values to bytes and back, and the error feedback of lossy codecs."""
