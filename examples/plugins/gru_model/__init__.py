"""A model as a plug-in: pyseq-train ... --user-dir gru_model --arch gru

What lies in models/ is imported by itself.
"""
