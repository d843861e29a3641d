"""What stands on the encoder, by the name in a config's `target`.

    mlm       masked language modelling                            logits of every position to predict
    states    the states themselves, in the teacher's space        a vector of a position, or pooled of a text
    tokens    a linear on every state: tagging, spans of answers    logits of every token
    cls       a linear, tanh (or another) and a linear on the pooled states      logits of a text
"""
