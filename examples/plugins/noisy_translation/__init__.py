"""A task as a plug-in: pyseq-train ... --user-dir noisy_translation --task noisy_translation --word-dropout 0.1

What lies in tasks/ is imported by itself.
"""
